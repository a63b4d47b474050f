"""Text to event, and subscription to text: the only place in this package that knows JSON."""

import hashlib
import re
from typing import Any, NamedTuple, get_args

import attrs
import orjson

from ._settings import Subscribe
from ._structuring import Hook, converter, optional_text
from .errors import printable
from .events import (
    Disconnected,
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    Subscribed,
    UnknownEvent,
)

__all__ = ["as_unknown", "decode_event", "encode_subscribe", "identity"]


MAX_IDENTITY_LENGTH = 256
"""Characters; see `identity`."""


class _Kind(NamedTuple):
    """How the events of one `event_type` are decoded."""

    event_type: str
    payload: str  # the field that the class needs
    needed: tuple[str, ...]  # the strings that the payload needs
    structure: Hook


def _kinds() -> dict[str | None, _Kind]:
    """What `events` says: an event_type is its class's default, what has no default is needed."""
    kinds: dict[str | None, _Kind] = {}
    for cls in get_args(Event):
        fields: dict[str, Any] = attrs.fields_dict(cls)
        if cls is UnknownEvent or "event_type" not in fields:
            continue
        [payload] = [field for field in fields.values() if field.default is attrs.NOTHING]
        needed = tuple(field.name for field in attrs.fields(payload.type) if field.default is attrs.NOTHING)
        structure = converter.get_structure_hook(cls)
        for variant in ("", ".spam", ".blocked", ".unauthenticated") if cls is MessageReceivedEvent else ("",):
            event_type = fields["event_type"].default + variant
            kind = _Kind(event_type, payload.name, needed, structure)
            # The second is the older documentation's spelling, message_received.
            kinds[event_type] = kinds[event_type.replace(".", "_")] = kind
    return kinds


_KINDS = _kinds()
_structure_subscribed = converter.get_structure_hook(Subscribed)
_structure_error = converter.get_structure_hook(ErrorEvent)

# An escape in a JSON string: a surrogate pair; a surrogate without its other half (the group); any other.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _parse(text: str, encoded: bytes) -> Any:
    # The bytes, since orjson leaves a copy in UTF-8 in a `str` that is not ASCII, and `raw` keeps the `str`.
    try:
        return orjson.loads(encoded)
    except orjson.JSONDecodeError:
        # JavaScript counts UTF-16, so a preview cut there may end in half an emoji. JSON can write that,
        # as an escape, and orjson refuses to read it: such mail must not become unknown.
        repaired = _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)
        if repaired == text:
            raise
        return orjson.loads(repaired.encode())


def decode_event(data: str | bytes) -> Event:
    """The event that a frame's text, or a webhook's body, holds. Never raises, whatever the text.

    A text whose type is known becomes that type's class if its payload is an object, and for
    `message.received` and its variants if the message has its `inbox_id` and `message_id`. Fields that are
    missing or of the wrong type are then `None` or empty. Everything else is an `UnknownEvent` that says why.

    Raises:
        TypeError: `data` is neither `str` nor `bytes`.
    """
    if isinstance(data, str):
        text = data
    elif isinstance(data, bytes):
        text = data.decode(errors="backslashreplace")
    else:
        raise TypeError(f"decode_event takes the text of a frame, as str or bytes, not {type(data).__name__}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        # Lone surrogates. As escapes they mean the same to JSON, and can be printed and stored.
        encoded = text.encode(errors="backslashreplace")
        text = encoded.decode()
    try:
        frame = _parse(text, encoded)
    except orjson.JSONDecodeError as error:
        return UnknownEvent(reason=f"not JSON: {error}", raw=text)
    if not isinstance(frame, dict):
        return UnknownEvent(payload=frame, reason="JSON, but not an object", raw=text)
    return _event(frame, text)


def _event(frame: dict[str, Any], text: str) -> Event:
    outer, name = frame.get("type"), frame.get("event_type")
    if outer == "subscribed" or outer == "error":
        structure = _structure_subscribed if outer == "subscribed" else _structure_error
        return _with_raw(structure, frame, text)
    if not isinstance(name, str):
        name = outer if isinstance(outer, str) and outer != "event" else None
    kind = _KINDS.get(name)
    if kind is None:
        reason = "it names no type" if name is None else f"its type is not known: {printable(name, 100)}"
        return _unknown(name, reason, frame, text)
    payload = frame.get(kind.payload)
    if not isinstance(payload, dict):
        return _unknown(kind.event_type, f"{kind.event_type} without its object {kind.payload}", frame, text)
    for field in kind.needed:
        value = payload.get(field)
        if not isinstance(value, str) or not value:
            return _unknown(kind.event_type, f"{kind.event_type} without {kind.payload}.{field}", frame, text)
    frame["event_type"] = kind.event_type
    return _with_raw(kind.structure, frame, text)


def _with_raw(structure: Hook, frame: dict[str, Any], text: str) -> Event:
    # The frame is ours and nobody reads it again, so what the wire does not have can travel in it.
    frame["raw"] = text
    event: Event = structure(frame, None)
    return event


def _unknown(event_type: str | None, reason: str, frame: dict[str, Any], text: str) -> UnknownEvent:
    event_id = optional_text(frame.get("event_id"), None)
    return UnknownEvent(event_type=event_type, event_id=event_id, payload=frame, reason=reason, raw=text)


def as_unknown(event: Subscribed, reason: str) -> UnknownEvent:
    """A confirmation that confirms nothing, as what it then is."""
    payload = _parse(event.raw, event.raw.encode())
    return UnknownEvent(event_type="subscribed", payload=payload, reason=reason, raw=event.raw)


def encode_subscribe(subscribe: Subscribe) -> str:
    """The frame that asks for a subscription. Filters that are `None` are left out: they match everything."""
    filters = attrs.asdict(subscribe, filter=lambda _, value: value is not None)
    return orjson.dumps({"type": "subscribe"} | filters).decode()


def identity(event: Event) -> tuple[str, str, str] | str | bytes | None:
    """What tells whether two events are the same one, delivered twice. `None`: it is never the same one.

    For a received mail (event_type, inbox_id, message_id), which a listing through the REST API has as well,
    whereas it has no `event_id`. For any other event its `event_id`; and where that is missing, its text.
    `Subscribed`, `ErrorEvent` and `Disconnected` tell something new every time, and an event that was made by
    hand, without `event_id` and `raw`, resembles no other.

    Whatever is long is replaced by 16 bytes of its hash: texts have any length, and a Message-ID is chosen by
    whoever sends the mail, so that remembering one must not cost more than remembering another.
    """
    if isinstance(event, MessageReceivedEvent):
        message = event.message
        if len(message.inbox_id) + len(message.message_id) > MAX_IDENTITY_LENGTH:
            return _digest("\0".join((event.event_type, message.inbox_id, message.message_id)))
        return event.event_type, message.inbox_id, message.message_id
    if isinstance(event, (Subscribed, ErrorEvent, Disconnected)):
        return None
    if event.event_id:
        return event.event_id if len(event.event_id) <= MAX_IDENTITY_LENGTH else _digest(event.event_id)
    return _digest(event.raw) if event.raw else None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
