"""The entries of the table of faults: what is known of a fault besides what it does.

A fault is a method of `Faults`, decorated here. The decorator reads everything else from the method: its name, the
first paragraph of its docstring, and its parameters, with the metadata by which they can be given from outside of
Python.
"""

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from functools import wraps
from random import Random
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin

import attrs

from trio_agentmail.testing._wire.hooks import ConnectionFault, PendingFaults, PushFault, RequestFault

from .arguments import MAX_SECONDS, Argument, Number

__all__ = ["Entry", "Kind", "Parameter", "immediate", "queued", "short", "table_of"]

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

SECONDS = Number("a number of seconds", 0, MAX_SECONDS, "How long. [default: until `fault clear`]")
"""How long a fault of the kind `BLOCK` lasts: a parameter that it has outside of Python only."""

SHOWN = 40
"""The maximum of characters that are shown of an argument."""


class Kind(Enum):
    """What a fault is for."""

    PRESENT = "the WebSockets that are open"
    CONNECTION = "the next connection for a WebSocket"
    PUSH = "the next event"
    REQUEST = "the next REST request"
    STATE = "everything, until the faults are cleared"
    BLOCK = "everything, for a while"


@attrs.frozen
class Parameter:
    """A parameter of a fault that can be given from outside of Python.

    Attributes:
        default: The default; `inspect.Parameter.empty`: the parameter is required.
    """

    argument: Argument
    default: Any = inspect.Parameter.empty

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


Strike = Callable[[Any, Random], Any]
"""A function, async or not, by which chaos has a fault strike. It is called with the `Faults`, and with a random
generator from which it draws the arguments."""


@attrs.frozen
class Entry:
    """A fault.

    Attributes:
        name: The name of the method, by which it is known everywhere.
        help: The first paragraph of its docstring.
        parameters: Those that can be given from outside of Python; `None`: it has a required one that cannot.
        chaos: How chaos has it strike; `None`: chaos leaves it out.
    """

    name: str
    kind: Kind
    help: str
    parameters: Mapping[str, Parameter] | None
    chaos: Strike | None


def immediate(kind: Kind, *, chaos: Strike | None = None) -> Callable[[F], F]:
    """Make a method that acts at once an entry of the table."""

    def decorate(method: F) -> F:
        method.__fault__ = kind, chaos  # type: ignore[attr-defined]
        return method

    return decorate


def queued(
    kind: Kind, *, chaos: Strike | None = None
) -> Callable[[Callable[P, ConnectionFault | PushFault | RequestFault]], Callable[P, None]]:
    """Make a method that returns the hooks of a fault an entry of the table. A call of it adds the fault to its queue.

    The method's parameter `times` says how often the fault strikes.
    """

    def decorate(method: Callable[P, ConnectionFault | PushFault | RequestFault]) -> Callable[P, None]:
        signature = inspect.signature(method)

        @wraps(method)
        def add(*args: P.args, **kwargs: P.kwargs) -> None:
            fault = method(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            asked_for = f"{method.__name__}({_shown(signature, bound.arguments)})"
            pending: PendingFaults = bound.arguments["self"]._pending
            pending.add(attrs.evolve(fault, asked_for=asked_for), bound.arguments["times"])

        add.__signature__ = signature.replace(return_annotation=None)  # type: ignore[attr-defined]
        return immediate(kind, chaos=chaos)(add)

    return decorate


def _shown(signature: inspect.Signature, arguments: Mapping[str, Any]) -> str:
    """Write a call's arguments as the test did, but for those that are as by default."""
    shown = []
    for name, parameter in signature.parameters.items():
        value, is_required = arguments[name], parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            shown.append("…")
        elif name != "self" and is_required:
            shown.append(short(value))
        elif name not in ("self", "times") and value != parameter.default:
            shown.append(f"{name}={short(value)}")
    return ", ".join(shown)


def short(value: object) -> str:
    """Write a value in a few characters, and a function as its name."""
    text = getattr(value, "__name__", type(value).__name__) if callable(value) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def table_of(faults: type) -> Mapping[str, Entry]:
    """Return the entries of a class by their names, in the order of its methods."""
    return {
        name: _entry(name, member, *member.__fault__)
        for name, member in vars(faults).items()
        if hasattr(member, "__fault__")
    }


def _entry(name: str, method: Callable[..., Any], kind: Kind, chaos: Strike | None) -> Entry:
    first, _, _ = (inspect.getdoc(method) or "").partition("\n\n")
    parameters: dict[str, Parameter] = {}
    for parameter in inspect.signature(method).parameters.values():
        argument = _argument(parameter.annotation)
        if argument is not None:
            parameters[parameter.name] = Parameter(argument, parameter.default)
        elif parameter.default is inspect.Parameter.empty and parameter.name != "self":
            return Entry(name, kind, " ".join(first.split()), None, chaos)
    if kind is Kind.BLOCK:
        parameters["seconds"] = Parameter(SECONDS, None)
    return Entry(name, kind, " ".join(first.split()), parameters, chaos)


def _argument(annotation: Any) -> Argument | None:
    return get_args(annotation)[1] if get_origin(annotation) is Annotated else None
