"""JSON values to attrs objects: how each field is read, by its type.

`events` holds the one definition of every class; of that, and of the hooks here, a cattrs converter makes one function
for each class, when it is first asked for it. AgentMail's wire differs from its own schema now and then, so a hook
takes any JSON value at all and has an answer for it: that is why decoding cannot raise. What cannot be a field's value
becomes `None` or empty.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter

from ._class_hook import Hook, class_hook
from .events import RecurrencePeriod

__all__ = ["converter", "optional_datetime", "optional_text"]

NOT_FROM_THE_WIRE = ("_raw", "event_type", "origin", "attempt")
"""The fields of an event that its frame has no say in: the arguments of its hook, after cattrs' two."""

_fromisoformat = datetime.fromisoformat  # looking it up for each of a mail's eight times took a third of reading them


def _text(value: Any, _: Any) -> str:
    return value if isinstance(value, str) else ""


def optional_text(value: Any, _: Any) -> str | None:
    return value if isinstance(value, str) else None


def _optional_int(value: Any, _: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _optional_bool(value: Any, _: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def optional_datetime(value: Any, _: Any) -> datetime | None:
    try:
        time: datetime = _fromisoformat(value)
    except (TypeError, ValueError):
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
        if type(item) is not str:
            break
    else:
        return tuple(value)
    texts = [item if isinstance(item, str) else _address(item) for item in value]
    return tuple([text for text in texts if text is not None])


def _optional_texts(value: Any, type_: Any) -> tuple[str, ...] | None:
    return _texts(value, type_) if isinstance(value, list | str) else None


def _sender(value: Any, type_: Any) -> str:
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
    return value if isinstance(value, str) else converter.structure(value, RecurrencePeriod)


_HOOKS: dict[Any, Hook] = {
    str | None: optional_text,
    int | None: _optional_int,
    bool | None: _optional_bool,
    datetime | None: optional_datetime,
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
    structure = converter.get_structure_hook(inner)
    if attrs.has(inner):
        return structure
    return lambda value, _: structure(value, inner) if isinstance(value, list) else None


def _tuple_hook(type_: Any) -> Hook:
    """`tuple[X, ...]`: without the items that are no X."""
    item_type = get_args(type_)[0] | None
    structure = converter.get_structure_hook(item_type)

    def structure_items(value: Any, _: Any) -> tuple[Any, ...]:
        items = []
        if isinstance(value, list):
            for item in value:
                structured = structure(item, item_type)
                if structured is not None:
                    items.append(structured)
        return tuple(items)

    return structure_items


def _field_hook(field: "attrs.Attribute[Any]") -> Hook:
    return _sender if field.name == "from_" else converter.get_structure_hook(field.type)


converter = Converter(detailed_validation=False)
converter.register_structure_hook(str, _text)
# The one registered last is asked first.
converter.register_structure_hook_factory(attrs.has, lambda cls: class_hook(cls, _field_hook, NOT_FROM_THE_WIRE))
converter.register_structure_hook_factory(_is_optional, _optional_hook)
converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
converter.register_structure_hook_factory(lambda type_: type_ in _HOOKS, lambda type_: _HOOKS[type_])
