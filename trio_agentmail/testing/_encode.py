"""Encoding events as AgentMail sends them, for servers in tests."""

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from typing import Any, get_args

import attrs

from trio_agentmail._class_hook import wire_name
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

# The client sets these fields; AgentMail does not send them.
_NOT_ON_THE_WIRE = {"_raw", "origin", "attempt"}

EVENTS = get_args(Event)
PLAIN = frozenset({str, int, float, bool})


def encode_event(event: Event) -> str:
    """Encode an event as the frame that AgentMail would send. `decode_event` makes an equal event from it.

    The frame is made from the fields, not from `raw`, which is stale after `attrs.evolve`. Fields that are `None` are
    left out. The frame of an `UnknownEvent` is its `payload`.

    Raises:
        TypeError: The event has no wire form: it is a `Disconnected`, `CaughtUp` or `RecoveryFailed`, an `UnknownEvent`
            without a payload, or it contains a time without an offset or a value that is not JSON.
    """
    if isinstance(event, UnknownEvent):
        if event.payload is None:
            raise TypeError("an UnknownEvent without a payload has no wire form; send its raw text instead")
        return _dumps(event.payload)
    if isinstance(event, Disconnected):
        raise TypeError("a Disconnected has no wire form: the client makes it; cut the connection instead")
    if isinstance(event, CaughtUp | RecoveryFailed):
        raise TypeError(f"a {type(event).__name__} has no wire form: the client makes it from the REST API's answers")
    if not isinstance(event, EVENTS):
        raise TypeError(f"encode_event takes an event, not {type(event).__name__}")
    wire_type = {Subscribed: "subscribed", ErrorEvent: "error"}.get(type(event), "event")
    return _dumps({"type": wire_type} | _fields(event))


def encode_part(part: Message | ThreadItem | Attachment, *, without: Collection[str] = ()) -> str:
    """Encode a message, a thread or an attachment as the REST API does, which is also the form inside an event."""
    return _dumps({name: value for name, value in _fields(part).items() if name not in without})


@cache
def _names(cls: type[attrs.AttrsInstance]) -> tuple[tuple[str, str], ...]:
    """Return the names of the fields that AgentMail sends, each with its name on the wire."""
    return tuple(
        (field.name, wire_name(field.name)) for field in attrs.fields(cls) if field.name not in _NOT_ON_THE_WIRE
    )


def _fields(part: attrs.AttrsInstance) -> dict[str, Any]:
    # `attrs.asdict` takes three times as long, and a test may deliver a million mails.
    fields = {}
    for name, on_the_wire in _names(type(part)):
        value = getattr(part, name)
        if value is not None:
            fields[on_the_wire] = value if type(value) in PLAIN else _wire_value(value, name)
    return fields


def _wire_value(value: Any, name: str | None = None) -> Any:
    """Convert a value to one that `json` can write.

    Args:
        name: The field that has the value; `None` for an item inside a field's value.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            where = "" if name is None else f" {name}"
            raise TypeError(f"the time{where} has no offset, so it has no wire form: add one, for example tzinfo=UTC")
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
    # A lone surrogate can only be sent as an escape.
    return text.encode(errors="backslashreplace").decode()
