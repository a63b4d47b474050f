"""A class from a JSON object: one flat function for each class, whose source is written from the class's fields.

What cattrs would write calls a hook for each field, and then the `__init__` that attrs wrote, must go through
`object.__setattr__` for each attribute, since the classes are frozen. With that, decoding a mail took twice as long as
it does. Two things are done otherwise here.

A value that is missing, or is of exactly the field's type, goes past the hook. What the hook answers for a missing
value is asked when the function is written, so that the hooks stay the one place that says how a field is read.

An instance begins as one of a twin: a subclass that is not frozen, so that setting an attribute is a plain store into
its slot. Then its `__class__` becomes the class itself. Python allows that between classes with the same slots, and a
subclass whose `__slots__` are empty has those of its base: CPython compares the layouts at each assignment, so that
what does not fit is a TypeError and never a broken object. No `__init__` runs, so converters are called here;
validators the classes must not have.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

__all__ = ["Hook", "class_hook", "wire_names"]

Hook: TypeAlias = Callable[..., Any]
"""cattrs' signature, (value, type), where the type may be left out. Takes any JSON value and never raises."""

_EXACT: dict[Any, str] = {str: "str", str | None: "str", int | None: "int", bool | None: "bool"}
"""The types whose values JSON has as they are, and what such a value's type must be, since a bool is an int as well."""


def class_hook(cls: Any, hook_of: Callable[[Any], Hook], given: tuple[str, ...]) -> Hook:
    """Write the function that makes instances of an attrs class, and `None` of what is none.

    An instance is made of an object that has, not empty, all that has no default. `from_` is `from` on the wire.

    Args:
        cls: A class that is frozen and slotted.
        hook_of: Tells for an `attrs.Attribute` how it is read.
        given: The fields that the object has no say in. The function takes those that the class has as arguments, in
            this order, after cattrs' two.
    """
    fields: dict[str, Any] = attrs.fields_dict(cls)
    parameters = [name for name in given if name in fields]
    names: dict[str, Any] = {"cls": cls, "twin": _twin(cls)}
    names |= {f"default_{name}": fields[name].default for name in parameters}
    source = [
        f"def structure({', '.join(['value', '_=None', *(f'{name}=default_{name}' for name in parameters)])}):",
        "    if type(value) is not dict: return None",
        "    get = value.get",
        "    new = twin()",
        *(f"    new.{name} = {name}" for name in parameters),
    ]
    for name, field in fields.items():
        if name in parameters:
            continue
        hook = names[f"hook_{name}"] = hook_of(field)
        wire_name = _wire_name(name)
        get = f"get({name!r})" if name == wire_name else f"(get({wire_name!r}) or get({name!r}))"
        value = f"hook_{name}(x)"
        if exact := _EXACT.get(field.type):
            value = f"x if type(x) is {exact} else {value}"
        value = f"{hook(None)!r} if (x := {get}) is None else {value}"
        if field.converter is not None:
            names[f"convert_{name}"] = field.converter
            value = f"convert_{name}({value})"
        source.append(f"    new.{name} = {value}")
        if field.default is attrs.NOTHING:
            source.append(f"    if not new.{name}: return None")
    source += ["    new.__class__ = cls", "    return new"]
    exec(compile("\n".join(source), f"<structure {cls.__qualname__}>", "exec"), names)
    structure: Hook = names["structure"]
    return structure


def wire_names(cls: Any) -> frozenset[str]:
    """The names of the fields that an instance may be made of."""
    names = attrs.fields_dict(cls)
    return frozenset([*names, *map(_wire_name, names)])


def _wire_name(name: str) -> str:
    return name.rstrip("_")


def _twin(cls: Any) -> Any:
    not_frozen = {name: getattr(object, name) for name in ("__init__", "__setattr__", "__delattr__")}
    return type(cls.__name__, (cls,), {"__slots__": ()} | not_frozen)
