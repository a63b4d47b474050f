"""Text to event, and subscription to text: the only place in this package that knows JSON.

`events` holds the one definition of every class. Here stands how a field is read, by its type, and at import
a cattrs converter makes of both one function for each class. AgentMail's wire differs from its own schema now
and then, so a hook takes any JSON value at all and has an answer for it: that is why decoding cannot raise.
What cannot be a field's value becomes `None` or empty; the text itself stays in `raw`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeAlias, get_args, get_origin

import attrs
import orjson
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from trio_agentmail._settings import Subscribe
from trio_agentmail.errors import printable
from trio_agentmail.events import (
    Disconnected,
    ErrorEvent,
    Event,
    Message,
    MessageReceivedEvent,
    RecurrencePeriod,
    Subscribed,
    UnknownEvent,
)

__all__ = ["decode_event", "encode_subscribe", "identity"]


MAX_IDENTITY_LENGTH = 256
"""Characters; see `identity`."""

# How a field is read, by its type. A hook has cattrs' signature, (value, type), and never raises.
Hook: TypeAlias = Callable[[Any, Any], Any]


def _text(value: Any, _: Any) -> str:
    return value if isinstance(value, str) else ""


def _optional_text(value: Any, _: Any) -> str | None:
    return value if isinstance(value, str) else None


def _optional_int(value: Any, _: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _optional_bool(value: Any, _: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _optional_datetime(value: Any, _: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


# Without the quotes, a name like `Boss <boss@corp.example>` would be read as the address.
_NEEDS_QUOTES = re.compile(r'[][<>()@,;:"\\]')


def _address(value: Any) -> str | None:
    """`Name <address>` of the wire's `{"name": …, "email": …}`."""
    if not isinstance(value, dict) or not isinstance(email := value.get("email"), str):
        return None
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return email
    if _NEEDS_QUOTES.search(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{name} <{email}>"


def _texts(value: Any, _: Any) -> tuple[str, ...]:
    """A list of strings or of address objects, or one of these alone."""
    if not isinstance(value, list):
        value = [value] if value else []
    for item in value:
        if not isinstance(item, str):
            break
    else:
        return tuple(value)
    texts = [item if isinstance(item, str) else _address(item) for item in value]
    return tuple([text for text in texts if text is not None])


def _optional_texts(value: Any, type_: Any) -> tuple[str, ...] | None:
    return _texts(value, type_) if isinstance(value, list | str) else None


def _sender(value: Any, type_: Any) -> str:
    if isinstance(value, str):
        return value
    senders = _texts(value, type_)
    return senders[0] if senders else ""


def _headers(value: Any, _: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    for text in value.values():
        if not isinstance(text, str):
            break
    else:
        return value
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _date_or_period(value: Any, _: Any) -> str | RecurrencePeriod | None:
    return value if isinstance(value, str) else _optional_period(value, None)


_HOOKS: dict[Any, Hook] = {
    str | None: _optional_text,
    int | None: _optional_int,
    bool | None: _optional_bool,
    datetime | None: _optional_datetime,
    tuple[str, ...]: _texts,
    tuple[str, ...] | None: _optional_texts,
    Mapping[str, str]: _headers,
    str | RecurrencePeriod | None: _date_or_period,
}


def _is_optional(type_: Any) -> bool:
    return isinstance(type_, UnionType) and NoneType in get_args(type_)


def _is_tuple(type_: Any) -> bool:
    return get_origin(type_) is tuple


def _optional_hook(type_: Any) -> Hook:
    """`X | None` of a class or of a tuple: `None` for what is no object or no list."""
    [inner] = [arg for arg in get_args(type_) if arg is not NoneType]
    structure = _converter.get_structure_hook(inner)
    wire_type = list if _is_tuple(inner) else dict
    return lambda value, _: structure(value, inner) if isinstance(value, wire_type) else None


def _tuple_hook(type_: Any) -> Hook:
    """`tuple[X, ...]`: without the items that are no X."""
    item_type = get_args(type_)[0] | None
    structure = _converter.get_structure_hook(item_type)

    def structure_items(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            return ()
        items = [structure(item, item_type) for item in value]
        return tuple([item for item in items if item is not None])

    return structure_items


def _class_hook(cls: Any) -> Hook:
    """A class, from a JSON object."""
    # `origin` says by which way a frame came, so a frame has no say in it.
    overrides: dict[str, Any] = {}
    if hasattr(cls, "origin"):
        overrides["origin"] = override(omit=True)
    if cls is Message:
        overrides["from_"] = override(rename="from", struct_hook=_sender)
    return make_dict_structure_fn(cls, _converter, _cattrs_detailed_validation=False, **overrides)


def _message_hook(_: Any) -> Hook:
    structure = _class_hook(Message)

    def structure_message(value: dict[str, Any], _: Any) -> Any:
        if not value.get("from"):
            value = {**value, "from": value.get("from_")}
        return structure(value, Message)

    return structure_message


_converter = Converter(detailed_validation=False)
_converter.register_structure_hook(str, _text)
# The one registered last is asked first.
_converter.register_structure_hook_factory(attrs.has, _class_hook)
_converter.register_structure_hook_factory(lambda type_: type_ is Message, _message_hook)
_converter.register_structure_hook_factory(_is_optional, _optional_hook)
_converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
_converter.register_structure_hook_factory(lambda type_: type_ in _HOOKS, lambda type_: _HOOKS[type_])
_optional_period = _converter.get_structure_hook(RecurrencePeriod | None)


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
        structure = _converter.get_structure_hook(cls)
        for variant in ("", ".spam", ".blocked", ".unauthenticated") if cls is MessageReceivedEvent else ("",):
            event_type = fields["event_type"].default + variant
            kind = _Kind(event_type, payload.name, needed, structure)
            # The second is the older documentation's spelling, message_received.
            kinds[event_type] = kinds[event_type.replace(".", "_")] = kind
    return kinds


_KINDS = _kinds()
_structure_subscribed = _converter.get_structure_hook(Subscribed)
_structure_error = _converter.get_structure_hook(ErrorEvent)

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
    event_id = _optional_text(frame.get("event_id"), None)
    return UnknownEvent(event_type=event_type, event_id=event_id, payload=frame, reason=reason, raw=text)


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
