"""The entries of the table of faults, and the decorators that make them from methods.

A fault is a decorated method of `Faults`. Its entry consists of the arguments of the decorator, the name of the method,
the first paragraph of its docstring, and its parameters with their `Annotated` metadata.
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

SECONDS = Number("a number of seconds", 0, MAX_SECONDS, "The duration. [default: until `fault clear`]")
"""The duration of a fault of the kind `BLOCK`: a parameter of the control API and the command line only."""

SHOWN = 40
"""Maximum number of characters shown of an argument."""


class Kind(Enum):
    """What a fault applies to."""

    PRESENT = "the open WebSockets"
    CONNECTION = "the next WebSocket connection"
    PUSH = "the next event"
    REQUEST = "the next REST request"
    STATE = "everything, until the faults are cleared"
    BLOCK = "everything, for a while"


@attrs.frozen
class Parameter:
    """A parameter of a fault in the control API and on the command line.

    Attributes:
        default: The default, or `inspect.Parameter.empty` if the parameter is required.
    """

    argument: Argument
    default: Any = inspect.Parameter.empty

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


Cause = Callable[[Any, Random], Any]
"""A function, async or not, that causes a fault with random arguments. Chaos calls it with the `Faults` and a random
generator."""


@attrs.frozen
class Entry:
    """A fault.

    Attributes:
        name: The name of the method, which is also the name in the control API, the command line and chaos.
        help: The first paragraph of the method's docstring.
        parameters: The parameters in the control API and on the command line, or `None` if the fault can be caused in
            Python only.
        chaos: The function with which chaos causes the fault, or `None` if chaos does not draw it.
    """

    name: str
    kind: Kind
    help: str
    parameters: Mapping[str, Parameter] | None
    chaos: Cause | None


def immediate(kind: Kind, *, chaos: Cause | None = None) -> Callable[[F], F]:
    """Return a decorator for a fault that takes effect at once."""

    def decorate(method: F) -> F:
        method.__fault__ = kind, chaos  # type: ignore[attr-defined]
        return method

    return decorate


def queued(
    kind: Kind, *, chaos: Cause | None = None
) -> Callable[[Callable[P, ConnectionFault | PushFault | RequestFault]], Callable[P, None]]:
    """Return a decorator for a fault that waits in a queue. The decorated method returns its hooks.

    A call then adds the fault to the queue of its kind, for as many times as the parameter `times` says.
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
    """Format the arguments of a call, without those that have their default values."""
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
    """Return a short repr of a value, or the name of a function."""
    text = getattr(value, "__name__", type(value).__name__) if callable(value) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def table_of(faults: type) -> Mapping[str, Entry]:
    """Return the entries of a class of faults by their names, in the order of its methods."""
    return {
        name: _entry(name, member, *member.__fault__)
        for name, member in vars(faults).items()
        if hasattr(member, "__fault__")
    }


def _entry(name: str, method: Callable[..., Any], kind: Kind, chaos: Cause | None) -> Entry:
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
