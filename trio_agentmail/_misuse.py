"""Decorators for the functions that open streams. A call that cannot work raises a `TypeError` with advice."""

import functools
import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, get_args

__all__ = ["explain_arguments", "opener", "opener_over"]

P = ParamSpec("P")
T = TypeVar("T")
Y = TypeVar("Y")


def explain_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that unexpected arguments raise a `TypeError` with advice.

    No frame of the traceback holds the arguments, because the API key may be one of them.

    Args:
        function: A function whose call only binds the arguments, such as a coroutine function.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        name = function.__name__
        if filters := [each for each in ("inbox_ids", "pod_ids", "event_types") if each in kwargs]:
            problem = f"{filters[0]} belongs to the subscription: {name}(Subscribe({filters[0]}=…), …)"
        else:
            try:
                return function(*args, **kwargs)
            except TypeError as exc:  # the arguments do not fit the signature; the function has not started to run
                problem = re.sub(r"^\w+\(\)", f"{name}()", str(exc))
        del args, kwargs
        raise TypeError(problem)

    return wrapper


class _Opening(AbstractAsyncContextManager[T]):
    """The context manager that an opener returns. Using it without `async with` raises a `TypeError` with advice."""

    def __init__(self, name: str, manager: AbstractAsyncContextManager[T]) -> None:
        self._name = name
        self._manager = manager

    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(exc_type, exc, traceback)

    if not TYPE_CHECKING:  # pragma: no branch  a type checker reports these by itself

        def _must_be_entered(self, *_: object) -> NoReturn:
            raise TypeError(f"{self._name}(…) must be entered: async with {self._name}(…) as …:")

        __aiter__ = __iter__ = __enter__ = __exit__ = __await__ = _must_be_entered


def opener(function: Callable[P, AsyncIterator[T]]) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Turn an async generator function into an opener, as `asynccontextmanager` does."""
    manager = asynccontextmanager(function)

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _Opening(function.__name__, manager(*args, **kwargs))

    return explain_arguments(_described(wrapper, function, function))


Function = Callable[[AbstractAsyncContextManager[Y]], AsyncIterator[T]]


def opener_over(
    inner: Callable[P, AbstractAsyncContextManager[Y]],
) -> Callable[[Function[Y, T]], Callable[P, AbstractAsyncContextManager[T]]]:
    """Turn an async generator function into an opener with the parameters of another opener.

    The parameters are listed only once, in the innermost opener. `help()` and `inspect.signature` show them for the
    other openers as well, and so do type checkers and editors, because of the `ParamSpec`.

    ```python
    @opener_over(open_agentmail_session)
    async def open_something(opening: AbstractAsyncContextManager[AgentMailSession]) -> AsyncIterator[Something]:
        async with opening as session:
            yield Something(session)
    ```

    Args:
        inner: The opener that has the parameters. Its return value is passed to the decorated function.
    """

    def decorate(function: Function[Y, T]) -> Callable[P, AbstractAsyncContextManager[T]]:
        manager = asynccontextmanager(function)

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
            return _Opening(function.__name__, manager(inner(*args, **kwargs)))

        return explain_arguments(_described(wrapper, function, inner))

    return decorate


def _described(wrapper: Callable[P, T], function: Callable[..., Any], inner: Callable[..., Any]) -> Callable[P, T]:
    """Give a wrapper the name and docstring of one function, and the parameters of another."""
    functools.update_wrapper(wrapper, function)
    del wrapper.__wrapped__  # type: ignore[attr-defined]  # otherwise, inspect.signature would show its signature
    returned = GenericAlias(AbstractAsyncContextManager, get_args(inspect.signature(function).return_annotation))
    signature = inspect.signature(inner).replace(return_annotation=returned)
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    parameters = {name: each.annotation for name, each in signature.parameters.items()}
    wrapper.__annotations__ = parameters | {"return": returned}
    return wrapper
