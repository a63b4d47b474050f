"""AgentMail's schema, taken from its SDKs, and how an object departs from it.

`wire-schema.json` lists the fields of each object. A field whose name ends in `?` is optional.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["EVENTS", "departures"]

SCHEMA: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "wire-schema.json").read_text())

EVENTS = {
    event_type: name
    for name, fields in SCHEMA.items()
    for event_type in fields.get("event_type", "").removeprefix("one of ").split(", ")
    if event_type
}
"""The name of the object for each event type."""


def departures(name: str, value: Any, path: str = "") -> list[str]:
    """Return the fields that are missing or have another type than in the schema.

    Additional fields are accepted, since AgentMail adds some every few months.
    """
    path = path or name
    if not isinstance(value, dict):
        return [f"{path} is not an object"]
    found = []
    for field, kind in SCHEMA[name].items():
        key, optional = field.removesuffix("?"), field.endswith("?")
        if value.get(key) is not None:
            found += _departures_of(kind, value[key], f"{path}.{key}")
        elif not optional:
            found.append(f"{path}.{key} is missing")
    return found


def _departures_of(kind: str, value: Any, path: str) -> list[str]:
    if kind.startswith("list of "):
        if not isinstance(value, list):
            return [f"{path} is not a list"]
        items = enumerate(value)
        return [
            found for n, item in items for found in _departures_of(kind.removeprefix("list of "), item, f"{path}[{n}]")
        ]
    if " | " in kind:
        all_found = [_departures_of(alternative, value, path) for alternative in kind.split(" | ")]
        return min(all_found, key=len)
    if kind in SCHEMA:
        return departures(kind, value, path)
    return [] if _is_of(kind, value) else [f"{path} is not {kind}"]


def _is_of(kind: str, value: Any) -> bool:
    if kind.startswith("one of "):
        return value in kind.removeprefix("one of ").split(", ")
    match kind:
        case "str":
            return isinstance(value, str)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, bool)
        case "map of str to str":
            return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        case "datetime (RFC 3339)":
            return isinstance(value, str) and _is_time(value)
        case "":
            return True
    raise AssertionError(f"unknown kind {kind!r} in the schema")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
