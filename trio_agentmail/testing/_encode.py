"""Event to text: the way back, for servers in tests."""

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from typing import Any, get_args

import attrs

from trio_agentmail.events import (
    Attachment,
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Event,
    Message,
    RecoveryFailed,
    Subscribed,
    ThreadItem,
    UnknownEvent,
)

__all__ = ["encode_event", "encode_part"]

# How an event came here is no part of what AgentMail sends.
_NOT_ON_THE_WIRE = {"_raw", "origin", "attempt"}

EVENTS = get_args(Event)
PLAIN = frozenset({str, int, float, bool})


def encode_event(event: Event) -> str:
    """The frame by which AgentMail would send this event: `decode_event` makes an equal one of it.

    It is written from the fields, not from `raw`, which is stale after `attrs.evolve`. Fields that are `None`
    are left out. Of an `UnknownEvent`, `payload` is the whole frame.

    Raises:
        TypeError: what has no wire form: `Disconnected`, `CaughtUp` and `RecoveryFailed`, an `UnknownEvent` without
            payload, a time without an offset, a value inside `metadata` or `payload` that is not JSON.
    """
    if isinstance(event, UnknownEvent):
        if event.payload is None:
            raise TypeError("an UnknownEvent without payload has no wire form; send its raw text as it is")
        return _dumps(event.payload)
    if isinstance(event, Disconnected):
        raise TypeError("Disconnected has no wire form: the client makes it; cut the connection instead")
    if isinstance(event, CaughtUp | RecoveryFailed):
        raise TypeError(f"{type(event).__name__} has no wire form: the client makes it, of what the REST API answers")
    if not isinstance(event, EVENTS):
        raise TypeError(f"encode_event takes an event, not {type(event).__name__}")
    wire_type = {Subscribed: "subscribed", ErrorEvent: "error"}.get(type(event), "event")
    return _dumps({"type": wire_type} | _fields(event))


def encode_part(part: Message | ThreadItem | Attachment, *, without: Collection[str] = ()) -> str:
    """The JSON object by which the REST API describes a message, a thread or an attachment: that in an event."""
    return _dumps({name: value for name, value in _fields(part).items() if name not in without})


@cache
def _names(cls: type[attrs.AttrsInstance]) -> tuple[tuple[str, str], ...]:
    """The fields of a class that are on the wire, and their names there."""
    renamed = {"from_": "from"}
    return tuple(
        (field.name, renamed.get(field.name, field.name))
        for field in attrs.fields(cls)
        if field.name not in _NOT_ON_THE_WIRE
    )


def _fields(part: attrs.AttrsInstance) -> dict[str, Any]:
    # In place of `attrs.asdict`, which takes three times as long: a test may deliver a million mails.
    fields = {}
    for name, on_the_wire in _names(type(part)):
        value = getattr(part, name)
        if value is not None:
            fields[on_the_wire] = value if type(value) in PLAIN else _wire_value(value, name)
    return fields


def _wire_value(value: Any, name: str | None = None) -> Any:
    """
    Args:
        name: The field whose value it is; `None`: it is a part of one.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            where = "" if name is None else f" {name}"
            raise TypeError(f"the time{where} has no offset, so no wire form: give it one, for example tzinfo=UTC")
        text = value.isoformat()
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    if isinstance(value, list | tuple):
        return [item if type(item) in PLAIN else _wire_value(item) for item in value]
    if isinstance(value, Mapping):
        return {_wire_value(key): _wire_value(item) for key, item in value.items()}
    return _fields(value) if attrs.has(type(value)) else value


def _dumps(frame: Any) -> str:
    try:
        text = json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise TypeError(f"no wire form: {error}") from error
    # A lone surrogate can be sent as an escape only.
    return text.encode(errors="backslashreplace").decode()
