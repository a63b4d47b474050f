"""Generates, for each attrs class, the function that converts a JSON object to an instance.

cattrs has such a generator, `make_dict_structure_fn`. With it, decoding takes 1.9 times as long for an event of 0.5 KB,
1.8 times for one of 2.6 KB (17 µs instead of 9) and 1.4 times for one of 23 KB (CPU time, both in one process, hooks
fetched ahead of time, cattrs 26.2, Python 3.11). The CPU time of an event from the socket to the consumer would be 1.2
to 1.4 times as long. That is too much, so this module generates the function. cattrs still finds the hook for each type
and caches the functions. Two things save time:

- A value that is missing, or that has exactly the field's type, does not go through a hook.
- The `__init__` of a frozen class sets each attribute with `object.__setattr__`. The function here makes an instance of
  a twin: a subclass with empty `__slots__` that is not frozen, so that setting an attribute is a plain store. At the
  end, it sets the `__class__` of the object to the class itself. Python allows this between classes of the same layout
  and checks it at each assignment, so a mismatch would raise `TypeError` and could not corrupt an object.

Since `__init__` does not run, the function calls converters and default factories itself, and `class_hook` rejects a
class that relies on anything else that `__init__` does. A test generates the function of every class of this package.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs

__all__ = ["Hook", "class_hook", "wire_name", "wire_names"]

Hook: TypeAlias = Callable[..., Any]
"""A function with cattrs' signature, (value, type), where the type may be left out. It takes any JSON value and never
raises."""

_EXACT: dict[Any, str] = {str: "str", str | None: "str", int | None: "int", bool | None: "bool"}
"""The field types whose values need no conversion, and the exact type of such a value. (A bool is also an int.)"""

_FROZEN_SETATTR = attrs.make_class("_Frozen", (), frozen=True).__setattr__
"""The `__setattr__` of all frozen attrs classes."""


class _Generating(threading.local):
    """The classes whose functions this thread is generating, each for a field of the one before it."""

    def __init__(self) -> None:
        self.classes: list[Any] = []


_generating = _Generating()


def class_hook(cls: Any, hook_of: Callable[[Any], Hook], given: tuple[str, ...]) -> Hook:
    """Generate the function that converts a JSON object to an instance of an attrs class.

    The function returns `None` if the value is not an object, or if a field without a default is missing, empty or
    invalid. A field that is missing or null gets its default.

    Args:
        cls: A slotted attrs class.
        hook_of: Returns the hook that reads a field, given its `attrs.Attribute`.
        given: The fields that are not read from the object. Those that the class has become parameters of the function,
            in this order, after the two of cattrs.

    Raises:
        TypeError: The class has a validator, an `__attrs_post_init__` or something else that needs its `__init__`; it
            contains itself; or `hook_of` raised it.
    """
    for problem in _problems(cls):
        raise TypeError(f"{cls.__qualname__} cannot be decoded: {problem}")
    _generating.classes.append(cls)
    try:
        return _generate(cls, hook_of, given)
    finally:
        _generating.classes.pop()


def _generate(cls: Any, hook_of: Callable[[Any], Hook], given: tuple[str, ...]) -> Hook:
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
        try:
            names[f"hook_{name}"] = hook_of(field)
        except TypeError as error:
            error.add_note(f"for the field {name} of {cls.__qualname__}")
            raise
        on_the_wire = wire_name(name)
        get = f"get({name!r})" if name == on_the_wire else f"(get({on_the_wire!r}) or get({name!r}))"
        value = f"hook_{name}(x)"
        if exact := _EXACT.get(field.type):
            value = f"x if type(x) is {exact} else {value}"
        value = f"{_default(field, names)} if (x := {get}) is None else {value}"
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


def _problems(cls: Any) -> Iterator[str]:
    """Yield the features of the class that only its `__init__` supports, and whether it contains itself."""
    if cls in _generating.classes:
        yield "it contains itself"
    for name in ("__attrs_pre_init__", "__attrs_post_init__"):
        if hasattr(cls, name):
            yield f"its {name} would not be called"
    if hasattr(cls, "__attrs_init__") or cls.__new__ is not object.__new__:
        yield "its own __init__ or __new__ would not be called"
    by_attrs = vars(cls).get("__attrs_own_setattr__", False)  # for `on_setattr`, which does not apply to `__init__`
    if cls.__setattr__ not in (object.__setattr__, _FROZEN_SETATTR) and not by_attrs:
        yield "its own __setattr__ would not be called"
    if hasattr(cls, "_attrs_cached_hash"):
        yield "the cache of its hash would not be set up"
    if "__dict__" in dir(cls):
        yield "it is not slotted"
    for field in attrs.fields(cls):
        if field.validator is not None:
            yield f"the validator of {field.name} would not be called"
        if not field.init:
            yield f"{field.name} has init=False"
        if isinstance(field.converter, attrs.Converter):
            yield f"the converter of {field.name} takes more than the value"
        if isinstance(field.default, attrs.Factory) and field.default.takes_self:  # type: ignore[arg-type]
            yield f"the default of {field.name} is computed from other fields"


def _default(field: "attrs.Attribute[Any]", names: dict[str, Any]) -> str:
    """Return the source code for the default of a field, and add the names that it uses to `names`."""
    default: Any = field.default
    if default is attrs.NOTHING or default is None or default == ():
        return "()" if default == () else "None"
    names[f"default_{field.name}"] = default.factory if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
    return f"default_{field.name}()" if isinstance(default, attrs.Factory) else f"default_{field.name}"  # type: ignore[arg-type]


def wire_name(name: str) -> str:
    """Return a field's name on the wire, for example `from` for `from_`."""
    return name.rstrip("_")


def wire_names(cls: Any) -> frozenset[str]:
    """Return the names from which the fields of a class can be read."""
    names = attrs.fields_dict(cls)
    return frozenset([*names, *map(wire_name, names)])


def _twin(cls: Any) -> Any:
    not_frozen = {name: getattr(object, name) for name in ("__init__", "__setattr__", "__delattr__")}
    return type(cls.__name__, (cls,), {"__slots__": ()} | not_frozen)
