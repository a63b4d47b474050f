"""Event to text: the way back, for servers in tests."""

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any

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
    if not isinstance(event, Event):
        raise TypeError(f"encode_event takes an event, not {type(event).__name__}")
    wire_type = {Subscribed: "subscribed", ErrorEvent: "error"}.get(type(event), "event")
    fields = attrs.asdict(event, filter=_is_on_the_wire, value_serializer=_wire_value)
    if isinstance(message := fields.get("message"), dict):
        _name_sender(message)
    return _dumps({"type": wire_type} | fields)


def encode_part(part: Message | ThreadItem | Attachment, *, without: Collection[str] = ()) -> str:
    """The JSON object by which the REST API describes a message, a thread or an attachment: that in an event."""
    fields = attrs.asdict(part, filter=_is_on_the_wire, value_serializer=_wire_value)
    _name_sender(fields)
    return _dumps({name: value for name, value in fields.items() if name not in without})


def _name_sender(message: dict[str, Any]) -> None:
    if "from_" in message:
        message["from"] = message.pop("from_")


def _is_on_the_wire(field: "attrs.Attribute[Any]", value: Any) -> bool:
    return value is not None and field.name not in _NOT_ON_THE_WIRE


def _wire_value(_: Any, field: "attrs.Attribute[Any] | None", value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        where = f" {field.name}" if field is not None else ""
        raise TypeError(f"the time{where} has no offset, so no wire form: give it one, for example tzinfo=UTC")
    text = value.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def _dumps(frame: Any) -> str:
    try:
        text = json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise TypeError(f"no wire form: {error}") from error
    # A lone surrogate can be sent as an escape only.
    return text.encode(errors="backslashreplace").decode()
