"""Decodes frames and REST responses, and encodes what the client sends. All of the client's JSON code is here."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import attrs
import orjson

from ._class_hook import Hook
from ._event_types import CLASSES, payload_field
from ._printable import printable
from ._settings import Subscribe
from ._structuring import hook_of, optional_datetime, optional_text
from .events import ErrorEvent, Event, MessageReceivedEvent, Subscribed, ThreadItem, UnknownEvent

__all__ = [
    "as_unknown",
    "decode_event",
    "decode_thread",
    "decoded_classes",
    "encode_object",
    "encode_subscribe",
    "parse_object",
    "parse_time",
    "recovered_event",
    "with_message",
]


class _Kind:
    """The decoder for one `event_type`, or for `subscribed` or `error` frames."""

    def __init__(self, cls: Any, event_type: str = "", payload: str = "") -> None:
        self.cls = cls
        self.event_type = event_type
        self.payload = payload  # the field that the frame must have
        self.structure: Hook = self._structure_first

    def _structure_first(self, *args: Any) -> Any:
        # Generating the function takes 2 ms for a mail and 9 ms for all classes, so it is not done during the import.
        self.structure = hook_of(self.cls)
        return self.structure(*args)


def _kinds() -> dict[str | None, _Kind]:
    kinds: dict[str | None, _Kind] = {}
    for event_type, cls in CLASSES.items():
        kind = _Kind(cls, event_type, payload_field(cls).name)
        # AgentMail's older documentation spells the types with underscores: message_received.
        kinds[event_type] = kinds[event_type.replace(".", "_")] = kind
    return kinds


_KINDS = _kinds()
_SUBSCRIBED = _Kind(Subscribed)
_ERROR = _Kind(ErrorEvent)


def decoded_classes() -> list[Any]:
    """Return the classes that need a decoding function. The classes of a class's fields come before it."""
    classes: dict[Any, None] = {}
    for kind in (_SUBSCRIBED, _ERROR, *_KINDS.values()):
        _add_classes(kind.cls, classes)
    return list(classes)


def _add_classes(type_: Any, classes: dict[Any, None]) -> None:
    for arg in get_args(type_):
        _add_classes(arg, classes)
    if attrs.has(type_) and type_ not in classes:
        for field in attrs.fields(type_):
            _add_classes(field.type, classes)
        classes[type_] = None


# Matches the escapes of lone surrogates, in JSON without escaped backslashes: a high surrogate without a low one after
# it, or a low surrogate without a high one before it.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB]HH(?!\\u[dD][c-fC-F]HH)|(?<!\\u[dD][89abAB]HH\\u[dD])[c-fC-F]HH)".replace(b"H", b"[0-9a-fA-F]")
)

_NOT_UTF8 = b"\xff"
"""A byte that never occurs in UTF-8."""


def _encoded(text: str | bytes) -> bytes:
    # A lone surrogate is escaped. The escape means the same in JSON, and can be printed and stored.
    return text if isinstance(text, bytes) else text.encode(errors="backslashreplace")


def _parse(data: bytes | bytearray) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # JavaScript counts UTF-16 code units, so a preview that it cut may end with half an emoji: a lone surrogate.
        # JSON allows it as an escape, but orjson refuses it. Such a mail must not become an UnknownEvent.
        repaired = _without_lone_surrogates(bytes(data))
        if repaired == data:
            raise
        return orjson.loads(repaired)


def _without_lone_surrogates(data: bytes) -> bytes:
    # There may be millions of escapes, so calling a Python function for each would be too slow. Instead, each escaped
    # backslash is replaced temporarily by a byte that never occurs in UTF-8. Then every backslash begins an escape.
    if _NOT_UTF8 in data:
        return data
    unescaped = data.replace(rb"\\", _NOT_UTF8)
    return _LONE_SURROGATE.sub(rb"\\ufffd", unescaped).replace(_NOT_UTF8, rb"\\")


def decode_event(data: str | bytes) -> Event:
    """Decode the text of a frame or the body of a webhook. This never raises because of the text.

    A frame of a known type becomes an instance of that type's class if its payload is an object. A message of
    `message.received` or one of its variants must also have an `inbox_id` and a `message_id`. Other fields that are
    missing or of the wrong type become `None` or empty. Any other text becomes an `UnknownEvent` that has the reason.

    Bytes are faster to decode than `str`. Bytes that are not UTF-8 are not JSON.

    Raises:
        TypeError: `data` is neither `str` nor `bytes`.
    """
    if not isinstance(data, bytes):
        if not isinstance(data, str):
            raise TypeError(f"decode_event takes the text of a frame, as str or bytes, not {type(data).__name__}")
        data = _encoded(data)
    try:
        frame = _parse(data)
    except orjson.JSONDecodeError as error:
        return UnknownEvent(reason=f"not JSON: {error}", raw=data)
    if not isinstance(frame, dict):
        return UnknownEvent(payload=frame, reason="JSON, but not an object", raw=data)
    event: Event | None
    outer, name = frame.get("type"), frame.get("event_type")
    if outer == "subscribed" or outer == "error":
        control = _SUBSCRIBED if outer == "subscribed" else _ERROR
        event = control.structure(frame, None, data)
        return event
    if not isinstance(name, str):
        name = outer if isinstance(outer, str) and outer != "event" else None
    kind = _KINDS.get(name)
    if kind is None:
        reason = "it names no type" if name is None else f"its type is not known: {printable(name, 100)}"
        return _unknown(name, reason, frame, data)
    event = kind.structure(frame, None, data, kind.event_type)
    if event is None:
        return _unknown(kind.event_type, f"{kind.event_type} without {_missing(kind, frame)}", frame, data)
    return event


def _missing(kind: _Kind, frame: dict[str, Any]) -> str:
    """Return the name of what the class requires and the frame lacks."""
    payload = frame.get(kind.payload)
    if not isinstance(payload, dict):
        return f"its object {kind.payload}"
    part: Any = payload_field(kind.cls).type
    needed = [field.name for field in attrs.fields(part) if field.default is attrs.NOTHING]
    missing = [name for name in needed if not optional_text(payload.get(name))]
    return f"{kind.payload}.{missing[0]}"


def _unknown(event_type: str | None, reason: str, frame: dict[str, Any], data: bytes) -> UnknownEvent:
    event_id = optional_text(frame.get("event_id"))
    return UnknownEvent(event_type=event_type, event_id=event_id, payload=frame, reason=reason, raw=data)


def as_unknown(event: Subscribed, reason: str) -> UnknownEvent:
    """Convert a confirmation that does not match the subscription to an `UnknownEvent`."""
    raw = _encoded(event._raw)
    return UnknownEvent(event_type="subscribed", payload=_parse(raw), reason=reason, raw=raw)


def parse_object(data: bytes | bytearray) -> dict[str, Any] | None:
    """Parse a response of the REST API. Returns `None` if it is not a JSON object."""
    try:
        parsed = _parse(data)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def encode_object(value: dict[str, Any]) -> bytes:
    """Encode an object that this package made: the body of a request, or the progress of recovery."""
    return orjson.dumps(value)


def _frame(value: dict[str, Any]) -> bytes | None:
    """Encode a frame that contains parsed JSON. Returns `None` if the result is too deep to be parsed again.

    orjson parses 1,024 levels of nesting but writes only 254, and the frame adds one level to the parsed JSON.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        text = b"".join(_pieces(value))
    return text if parse_object(text) is not None else None


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield the JSON of a value in pieces. An explicit stack, instead of recursion, allows any depth."""
    waiting = [value]  # the last item is next; bytes are JSON already
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes):
            yield item
        elif isinstance(item, dict) and item:
            yield b"{"
            waiting.append(b"}")
            for name, inner in reversed(item.items()):
                waiting += (inner, orjson.dumps(name) + b":", b",")
            waiting.pop()  # no comma before the first item
        elif isinstance(item, list) and item:
            yield b"["
            waiting.append(b"]")
            for inner in reversed(item):
                waiting += (inner, b",")
            waiting.pop()
        else:
            yield orjson.dumps(item)


def recovered_event(message: dict[str, Any], event_type: str, origin: str) -> MessageReceivedEvent | None:
    """Make the event for a message from the REST API. Its `raw` is the frame with which it would have been pushed.

    Returns:
        `None` if the message has no `inbox_id` or no `message_id`, or is too deep for its text to be parsed again.
    """
    raw = _frame({"type": "event", "event_type": event_type, "message": message})
    if raw is None:
        return None
    event: MessageReceivedEvent | None = _KINDS[event_type].structure(
        {"message": message}, None, raw, event_type, origin
    )
    return event


def decode_thread(item: dict[str, Any]) -> ThreadItem | None:
    """Decode a thread from a listing of the REST API."""
    thread: ThreadItem | None = hook_of(ThreadItem)(item)
    return thread


def parse_time(value: Any) -> float | None:
    """Convert a time from the REST API to seconds since the epoch. Returns `None` if it is not a valid time."""
    time = optional_datetime(value)
    return None if time is None else time.timestamp()


def with_message(event: MessageReceivedEvent, message: dict[str, Any]) -> MessageReceivedEvent | None:
    """Replace the message of a pushed event, whose body was left out, by the message from the REST API.

    Returns:
        `None` if it is a different message, or is too deep for its text to be parsed again.
    """
    frame = parse_object(_encoded(event._raw)) or {}
    frame["message"] = {"inbox_id": event.message.inbox_id} | message
    raw = _frame(frame)
    whole = None if raw is None else decode_event(raw)
    if not isinstance(whole, MessageReceivedEvent) or whole.event_type != event.event_type:
        return None
    fetched, pushed = whole.message, event.message
    is_same = (fetched.inbox_id, fetched.message_id) == (pushed.inbox_id, pushed.message_id)
    return whole if is_same else None


def encode_subscribe(subscribe: Subscribe) -> str:
    """Encode the frame that requests a subscription. A filter that is `None` is left out, so it matches everything."""
    filters = attrs.asdict(subscribe, filter=lambda _, value: value is not None)
    return orjson.dumps({"type": "subscribe"} | filters).decode()
