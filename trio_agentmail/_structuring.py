"""Converts JSON values to attrs objects, with a hook for each field type.

The fields are defined only by the event classes. A cattrs converter generates one function for each class, from its
definition and the hooks here, on the first request. What AgentMail sends sometimes differs from its own schema, so a
hook accepts any JSON value, and decoding cannot raise. A value of the wrong type becomes `None` or empty.

A frame may contain millions of values. Therefore the time of a hook is at most proportional to the length of
the value's text, and hooks avoid a function call for each item of a list where possible.
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
"""The fields of an event that are not read from its frame. They are further arguments of its hook."""

_fromisoformat = datetime.fromisoformat  # looked up once: a third of the time to read a mail's eight datetimes


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


def _optional_float(value: Any, _: Any = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer that is larger than any float
        return None


def _optional_bool(value: Any, _: Any = None) -> bool | None:
    return value if isinstance(value, bool) else None


def optional_datetime(value: Any, _: Any = None) -> datetime | None:
    try:
        time: datetime = _fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


# Without quotes, a name like `Boss <boss@corp.example>` would be read as the address.
_needs_quotes = re.compile(r'[][<>()@,;:"\\]').search


def _address(value: dict[str, Any]) -> str | None:
    """Convert `{"name": …, "email": …}` to `Name <address>`. Returns `None` without a valid `email`."""
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
    """Read a list of strings or address objects, or a single string or address object."""
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
    """Return the first item that `_texts` would return, or `""`."""
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
    float | None: _optional_float,
    bool | None: _optional_bool,
    datetime | None: optional_datetime,
    tuple[str, ...]: _texts,
    tuple[str, ...] | None: _optional_texts,
    Mapping[str, str]: _headers,
}


def _is_tuple(type_: Any) -> bool:
    """Return whether a type is `tuple[X, ...]` or `tuple[str | X, ...]`, where X is an attrs class."""
    if get_origin(type_) is not tuple or get_args(type_)[1:] != (...,):
        return False
    others = [arg for arg in _alternatives(get_args(type_)[0]) if arg is not str]
    return len(others) == 1 and attrs.has(others[0])


def _is_optional(type_: Any) -> bool:
    """Return whether a type is `X | None`, where X is an attrs class or a tuple as above."""
    types = _alternatives(type_)
    others = [arg for arg in types if arg is not NoneType]
    return len(types) == 2 and len(others) == 1 and (attrs.has(others[0]) or _is_tuple(others[0]))


def _alternatives(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if isinstance(type_, UnionType) else (type_,)


def _optional_hook(type_: Any) -> Hook:
    """Make the hook of `X | None`. It returns `None` for a value that is not an object or not a list."""
    [inner] = [arg for arg in get_args(type_) if arg is not NoneType]
    structure = hook_of(inner)
    if attrs.has(inner):
        return structure
    return lambda value, _=None: structure(value) if isinstance(value, list) else None


def _tuple_hook(type_: Any) -> Hook:
    """Make the hook of `tuple[X, ...]` or `tuple[str | X, ...]`. It leaves out items of other types."""
    item_types = _alternatives(get_args(type_)[0])
    [cls] = [item_type for item_type in item_types if item_type is not str]
    strings = str in item_types
    structure = hook_of(cls)
    # A frame may contain millions of objects that have no field of the class. All of them become one instance.
    has_no_field = wire_names(cls).isdisjoint
    without_fields = structure({})

    def structure_items(value: Any, _: Any = None) -> tuple[Any, ...]:
        items: list[Any] = []
        if isinstance(value, list):
            for item in value:
                if type(item) is dict:
                    structured = without_fields if has_no_field(item) else structure(item)
                    if structured is not None:  # None: it lacks a required field
                        items.append(structured)
                elif strings and type(item) is str:
                    items.append(item)
        return tuple(items)

    return structure_items


def _field_hook(field: "attrs.Attribute[Any]") -> Hook:
    """Return the hook of a field.

    Raises:
        TypeError: No hook reads the field's type.
    """
    type_: Any = field.type
    if field.name == "from_":
        return _sender
    if attrs.has(type_) and field.default is not attrs.NOTHING:
        raise TypeError(f"a value that is not an object becomes None, so the type must be {type_.__qualname__} | None")
    if not (_has_own_hook(type_) or attrs.has(type_) or _is_tuple(type_) or _is_optional(type_)):
        raise TypeError(f"no hook reads the type {type_}; add one to _HOOKS in _structuring.py")
    return hook_of(type_)


def _has_own_hook(type_: Any) -> bool:
    return type_ in _HOOKS


@functools.cache
def converter() -> "Converter":
    """Return the converter. It is made on the first call, because importing cattrs takes 10 ms."""
    from cattrs import Converter

    made = Converter(detailed_validation=False)
    made.register_structure_hook(str, _text)
    # The factory that was registered last is tried first.
    made.register_structure_hook_factory(attrs.has, lambda cls: class_hook(cls, _field_hook, NOT_FROM_THE_WIRE))
    made.register_structure_hook_factory(_is_optional, _optional_hook)
    made.register_structure_hook_factory(_is_tuple, _tuple_hook)
    made.register_structure_hook_factory(_has_own_hook, lambda type_: _HOOKS[type_])
    return made


def hook_of(type_: Any) -> Hook:
    """Return the hook that reads a value of a type. The function of a class is generated on its first request."""
    hook: Hook = converter().get_structure_hook(type_)
    return hook
