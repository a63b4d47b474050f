"""Text to event, and subscription to text: the only place in this package that knows JSON."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import attrs
import orjson

from ._class_hook import Hook
from ._settings import Subscribe
from ._structuring import hook_of, optional_datetime, optional_text
from .errors import printable
from .events import ErrorEvent, Event, EventType, MessageReceivedEvent, Subscribed, ThreadItem, UnknownEvent

__all__ = [
    "RECEIVED_TYPES",
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


RECEIVED_TYPES = tuple(event_type for event_type in get_args(EventType) if event_type.startswith("message.received"))
"""The event_types of received mail."""


class _Kind:
    """How the frames of one `event_type` are decoded, or those of a `type` that is no event's."""

    def __init__(self, cls: Any, event_type: str = "", payload: str = "") -> None:
        self.cls = cls
        self.event_type = event_type
        self.payload = payload  # the field that the class needs
        self.structure: Hook = self._structure_first

    def _structure_first(self, *args: Any) -> Any:
        # Written when the first one comes: for a mail that takes 2 ms, and for all classes 9, which is no part of the
        # import.
        self.structure = hook_of(self.cls)
        return self.structure(*args)


def _kinds() -> dict[str | None, _Kind]:
    """What `events` says: an event_type is its class's default, what has no default is needed."""
    classes: dict[str, Any] = dict.fromkeys(RECEIVED_TYPES, MessageReceivedEvent)
    for cls in get_args(Event):
        fields: dict[str, Any] = attrs.fields_dict(cls)
        if cls is not UnknownEvent and "event_type" in fields:
            classes[fields["event_type"].default] = cls
    kinds: dict[str | None, _Kind] = {}
    for event_type in get_args(EventType):
        cls = classes[event_type]
        [payload] = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
        kind = _Kind(cls, event_type, payload)
        # The second is the older documentation's spelling, message_received.
        kinds[event_type] = kinds[event_type.replace(".", "_")] = kind
    return kinds


_KINDS = _kinds()
_SUBSCRIBED = _Kind(Subscribed)
_ERROR = _Kind(ErrorEvent)


def decoded_classes() -> list[Any]:
    """The classes for which functions are written, each behind those that it needs."""
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


# Surrogates as JSON writes them, where no backslash is itself escaped: a first half without a second one behind it, or
# a second half without a first one in front of it.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB]HH(?!\\u[dD][c-fC-F]HH)|(?<!\\u[dD][89abAB]HH\\u[dD])[c-fC-F]HH)".replace(b"H", b"[0-9a-fA-F]")
)

_NOT_UTF8 = b"\xff"
"""A byte that no UTF-8 has."""


def _encoded(text: str | bytes) -> bytes:
    # A lone surrogate as an escape means the same to JSON, and can be printed and stored.
    return text if isinstance(text, bytes) else text.encode(errors="backslashreplace")


def _parse(data: bytes | bytearray) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # JavaScript counts UTF-16, so a preview cut there may end in half an emoji. JSON can write that,
        # as an escape, and orjson refuses to read it: such mail must not become unknown.
        repaired = _without_lone_surrogates(bytes(data))
        if repaired == data:
            raise
        return orjson.loads(repaired)


def _without_lone_surrogates(data: bytes) -> bytes:
    # No Python function is called for each escape, of which there may be millions: one byte stands for an escaped
    # backslash meanwhile, so that every other backslash begins an escape.
    if _NOT_UTF8 in data:
        return data
    unescaped = data.replace(rb"\\", _NOT_UTF8)
    return _LONE_SURROGATE.sub(rb"\\ufffd", unescaped).replace(_NOT_UTF8, rb"\\")


def decode_event(data: str | bytes) -> Event:
    """The event that a frame's text, or a webhook's body, holds. Never raises, whatever the text.

    A text whose type is known becomes that type's class if its payload is an object, and for
    `message.received` and its variants if the message has its `inbox_id` and `message_id`. Fields that are
    missing or of the wrong type are then `None` or empty. Everything else is an `UnknownEvent` that says why.

    Bytes are read as they are, which is faster; those that are not UTF-8 are not JSON.

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
    """What the class of this kind needs and the frame does not have."""
    payload = frame.get(kind.payload)
    if not isinstance(payload, dict):
        return f"its object {kind.payload}"
    part: Any = attrs.fields_dict(kind.cls)[kind.payload].type
    needed = [field.name for field in attrs.fields(part) if field.default is attrs.NOTHING]
    missing = [name for name in needed if not optional_text(payload.get(name))]
    return f"{kind.payload}.{missing[0]}"


def _unknown(event_type: str | None, reason: str, frame: dict[str, Any], data: bytes) -> UnknownEvent:
    event_id = optional_text(frame.get("event_id"))
    return UnknownEvent(event_type=event_type, event_id=event_id, payload=frame, reason=reason, raw=data)


def as_unknown(event: Subscribed, reason: str) -> UnknownEvent:
    """A confirmation that confirms nothing, as what it then is."""
    raw = _encoded(event._raw)
    return UnknownEvent(event_type="subscribed", payload=_parse(raw), reason=reason, raw=raw)


def parse_object(data: bytes | bytearray) -> dict[str, Any] | None:
    """The JSON object that an answer of the REST API holds; None if it is none."""
    try:
        parsed = _parse(data)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def encode_object(value: dict[str, Any]) -> bytes:
    """JSON of what is made here: the body of a request, or what recovery has to remember."""
    return orjson.dumps(value)


def _frame(value: dict[str, Any]) -> bytes | None:
    """JSON of a frame made of what was read as JSON; None: it could not be read again.

    orjson reads 1,024 levels and writes 254, and a frame has a level more than what it is made of.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        text = b"".join(_pieces(value))
    return text if parse_object(text) is not None else None


def _pieces(value: Any) -> Iterator[bytes]:
    """The JSON of a value piece by piece, however deep it is: what is still to be written waits in a list."""
    waiting = [value]  # the last one comes first; bytes are written as they are
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes):
            yield item
        elif isinstance(item, dict) and item:
            yield b"{"
            waiting.append(b"}")
            for name, inner in reversed(item.items()):
                waiting += (inner, orjson.dumps(name) + b":", b",")
            waiting.pop()  # no comma before the first
        elif isinstance(item, list) and item:
            yield b"["
            waiting.append(b"]")
            for inner in reversed(item):
                waiting += (inner, b",")
            waiting.pop()
        else:
            yield orjson.dumps(item)


def recovered_event(message: dict[str, Any], event_type: str, origin: str) -> MessageReceivedEvent | None:
    """The event of a message that the REST API gave, with the frame that would have pushed it as its text.

    None: the message has no inbox_id or no message_id, or is so deep that its text could not be read again.
    """
    raw = _frame({"type": "event", "event_type": event_type, "message": message})
    if raw is None:
        return None
    event: MessageReceivedEvent | None = _KINDS[event_type].structure(
        {"message": message}, None, raw, event_type, origin
    )
    return event


def decode_thread(item: dict[str, Any]) -> ThreadItem | None:
    """A thread as the REST API lists it."""
    thread: ThreadItem | None = hook_of(ThreadItem)(item)
    return thread


def parse_time(value: Any) -> float | None:
    """A time that the REST API gave, in seconds since the epoch; `None`: it is none."""
    time = optional_datetime(value)
    return None if time is None else time.timestamp()


def with_message(event: MessageReceivedEvent, message: dict[str, Any]) -> MessageReceivedEvent | None:
    """A pushed event whose body was left out, with the message as the REST API gave it; None: it gave another."""
    frame = parse_object(_encoded(event._raw)) or {}
    frame["message"] = {"inbox_id": event.message.inbox_id} | message
    raw = _frame(frame)
    whole = None if raw is None else decode_event(raw)
    if not isinstance(whole, MessageReceivedEvent) or whole.event_type != event.event_type:
        return None
    message_ = whole.message
    same = (message_.inbox_id, message_.message_id) == (event.message.inbox_id, event.message.message_id)
    return whole if same else None


def encode_subscribe(subscribe: Subscribe) -> str:
    """The frame that asks for a subscription. Filters that are `None` are left out: they match everything."""
    filters = attrs.asdict(subscribe, filter=lambda _, value: value is not None)
    return orjson.dumps({"type": "subscribe"} | filters).decode()
