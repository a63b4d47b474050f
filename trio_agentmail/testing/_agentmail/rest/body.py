"""Functions that read the fields of a request's body. Each raises a `Refusal` if the field is invalid."""

import re
from typing import Any

from trio_agentmail.testing._agentmail.refusals import invalid

__all__ = ["flag", "ids", "key", "line", "objects", "text", "texts"]

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that a header cannot contain."""

KEY = re.compile("[A-Za-z0-9._~-]{1,256}")


def text(body: dict[str, Any], name: str) -> str | None:
    """Read a string."""
    value = body.get(name)
    if not isinstance(value, str | None):
        raise invalid(name, "a string")
    return value


def line(body: dict[str, Any], name: str) -> str | None:
    """Read a string for a header, without control characters."""
    value = text(body, name)
    if value is not None and CONTROL.search(value):
        raise invalid(name, "a string without control characters")
    return value


def flag(body: dict[str, Any], name: str) -> bool:
    """Read a boolean, which is false by default."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise invalid(name, "true or false")
    return value


def texts(body: dict[str, Any], name: str) -> tuple[str, ...]:
    """Read a list of strings. A single string is read as a list of one."""
    value = body.get(name, [])
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise invalid(name, "a string or a list of strings")
    return tuple(strings)


def ids(body: dict[str, Any], name: str, limit: int) -> tuple[str, ...]:
    """Read a list of at most `limit` different ids."""
    value = body.get(name)
    if not isinstance(value, list) or len(value) > limit:
        raise invalid(name, f"a list of at most {limit} ids")
    strings = texts(body, name)
    if len(set(strings)) < len(strings):
        raise invalid(name, "a list of ids without duplicates")
    return strings


def objects(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Read a list of objects, without fields that are null."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise invalid(name, "a list of objects")
    return [{field: item for field, item in part.items() if item is not None} for part in value]


def key(value: str | None, name: str) -> str | None:
    """Check an id that a client has chosen: a `client_id` or an idempotency key."""
    if value is not None and not KEY.fullmatch(value):
        raise invalid(name, "1 to 256 letters, digits, and -._~")
    return value
