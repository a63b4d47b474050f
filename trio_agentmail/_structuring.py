"""JSON values to attrs objects: how each field is read, by its type.

`events` holds the one definition of every class; of that, and of the hooks here, a cattrs converter makes one function
for each class, when it is first asked for it. AgentMail's wire differs from its own schema now and then, so a hook
takes any JSON value at all and has an answer for it: that is why decoding cannot raise. What cannot be a field's value
becomes `None` or empty.

A frame may hold millions of values. So no hook does more for a value than in proportion to its text, and lists are gone
through without a call for each item where that can be done.
"""

import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs

from ._class_hook import Hook, class_hook, wire_names

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = ["converter", "hook_of", "optional_datetime", "optional_text"]

NOT_FROM_THE_WIRE = ("_raw", "event_type", "origin", "attempt")
"""The fields of an event that its frame has no say in: the arguments of its hook, after cattrs' two."""

_fromisoformat = datetime.fromisoformat  # looking it up for each of a mail's eight times took a third of reading them


def _text(value: Any, _: Any = None) -> str:
    return value if isinstance(value, str) else ""


def optional_text(value: Any, _: Any = None) -> str | None:
    return value if isinstance(value, str) else None


def _optional_int(value: Any, _: Any = None) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _optional_bool(value: Any, _: Any = None) -> bool | None:
    return value if isinstance(value, bool) else None


def optional_datetime(value: Any, _: Any = None) -> datetime | None:
    try:
        time: datetime = _fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


# Without the quotes, a name like `Boss <boss@corp.example>` would be read as the address.
_needs_quotes = re.compile(r'[][<>()@,;:"\\]').search


def _address(value: dict[str, Any]) -> str | None:
    """`Name <address>` of the wire's `{"name": …, "email": …}`."""
    email = value.get("email")
    if not isinstance(email, str):
        return None
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return email
    if _needs_quotes(name):
        name = name.replace("\\", r"\\").replace('"', r"\"")
        return f'"{name}" <{email}>'
    return f"{name} <{email}>"


def _texts(value: Any, _: Any = None) -> tuple[str, ...]:
    """A list of strings or of address objects, or one of these alone."""
    if not isinstance(value, list):
        value = [value] if value else []
    for item in value:
        if type(item) is not str:
            break
    else:
        return tuple(value)
    texts = []
    for item in value:
        if type(item) is str:
            texts.append(item)
        elif type(item) is dict and "email" in item and (address := _address(item)) is not None:
            texts.append(address)
    return tuple(texts)


def _optional_texts(value: Any, _: Any = None) -> tuple[str, ...] | None:
    return _texts(value) if isinstance(value, list | str) else None


def _sender(value: Any, _: Any = None) -> str:
    """The first of what `_texts` finds."""
    for item in value if isinstance(value, list) else [value]:
        text = _address(item) if isinstance(item, dict) else optional_text(item)
        if text is not None:
            return text
    return ""


def _headers(value: Any, _: Any = None) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    for text in value.values():
        if not isinstance(text, str):
            break
    else:
        return value
    return {name: text for name, text in value.items() if isinstance(text, str)}


_HOOKS: dict[Any, Hook] = {
    Any: lambda value, _=None: value,
    str: _text,
    str | None: optional_text,
    int | None: _optional_int,
    bool | None: _optional_bool,
    datetime | None: optional_datetime,
    tuple[str, ...]: _texts,
    tuple[str, ...] | None: _optional_texts,
    Mapping[str, str]: _headers,
}


def _is_tuple(type_: Any) -> bool:
    return get_origin(type_) is tuple


def _is_optional(type_: Any) -> bool:
    return isinstance(type_, UnionType) and NoneType in get_args(type_)


def _optional_hook(type_: Any) -> Hook:
    """`X | None` of a class or of a tuple: `None` for what is no object or no list."""
    [inner] = [arg for arg in get_args(type_) if arg is not NoneType]
    structure = hook_of(inner)
    if attrs.has(inner):
        return structure
    return lambda value, _=None: structure(value) if isinstance(value, list) else None


def _tuple_hook(type_: Any) -> Hook:
    """`tuple[X, ...]` or `tuple[str | X, ...]` of a class: without the items that are neither."""
    item_type = get_args(type_)[0]
    [cls] = [arg for arg in get_args(item_type) or [item_type] if attrs.has(arg)]
    strings = str in get_args(item_type)
    structure = hook_of(cls)
    # Objects without any field of the class, of which a frame may hold millions, share an instance.
    has_no_field = wire_names(cls).isdisjoint
    without_fields = structure({})

    def structure_items(value: Any, _: Any = None) -> tuple[Any, ...]:
        items: list[Any] = []
        if isinstance(value, list):
            for item in value:
                if type(item) is dict:
                    items.append(without_fields if has_no_field(item) else structure(item))
                elif strings and type(item) is str:
                    items.append(item)
        return tuple(items)

    return structure_items


def _field_hook(field: "attrs.Attribute[Any]") -> Hook:
    type_: Any = field.type
    return _sender if field.name == "from_" else hook_of(type_)


@functools.cache
def converter() -> "Converter":
    """The converter, made when something is first decoded: importing cattrs takes 10 ms."""
    from cattrs import Converter

    made = Converter(detailed_validation=False)
    made.register_structure_hook(str, _text)
    # The one registered last is asked first.
    made.register_structure_hook_factory(attrs.has, lambda cls: class_hook(cls, _field_hook, NOT_FROM_THE_WIRE))
    made.register_structure_hook_factory(_is_optional, _optional_hook)
    made.register_structure_hook_factory(_is_tuple, _tuple_hook)
    made.register_structure_hook_factory(lambda type_: type_ in _HOOKS, lambda type_: _HOOKS[type_])
    return made


def hook_of(type_: Any) -> Hook:
    """How a value of this type is read: of a field, or of a class, whose function is written when it is asked for."""
    hook: Hook = converter().get_structure_hook(type_)
    return hook
