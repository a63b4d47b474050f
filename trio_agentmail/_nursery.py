"""Nurseries that must be left in the task that entered them, and whose block raises one exception and no group."""

from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import NoReturn

import trio

from .errors import JournalError

__all__ = ["TaskNursery", "add_context", "background_nursery", "raise_as_it_is", "sole_exception"]


LEFT_ELSEWHERE = (
    "a stream was left in a different task than it was entered in. This happens if it is opened in an async generator "
    "that is not iterated to its end, because Python then closes the generator later, in another task: open the "
    "stream outside of the generator, or use the generator in `async with contextlib.aclosing(…)`"
)

TIME_TO_END = 10.0
"""Seconds for which `TaskNursery` waits for its tasks when it is left in another task."""


class TaskNursery(AbstractAsyncContextManager[trio.Nursery]):
    """A nursery whose block must be left in the task that entered it.

    Trio closes an abandoned async generator in a system task. A plain nursery in such a generator would then wake the
    task that entered it at the wrong place, or wait for ever. This nursery gives its own tasks time to end, since Trio
    treats tasks that outlive the main task as an internal error. Then it cancels the task that entered it, and
    raises. Trio also ends that task with an error, because the nursery has not been left there.
    """

    @trio.lowlevel.enable_ki_protection  # like Trio's own nursery: Ctrl-C interrupts the block, or nothing
    async def __aenter__(self) -> trio.Nursery:
        self._task = trio.lowlevel.current_task()
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if trio.lowlevel.current_task() is not self._task:  # pragma: no cover  tested in a process that this ends
            with trio.CancelScope(shield=True), trio.move_on_after(TIME_TO_END):
                while self._nursery.child_tasks:  # noqa: ASYNC110  a nursery notifies only the task that entered it
                    await trio.sleep(0.01)
            self._nursery.cancel_scope.cancel(reason=LEFT_ELSEWHERE)
            raise RuntimeError(LEFT_ELSEWHERE)
        return await self._manager.__aexit__(exc_type, exc, traceback)


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for background tasks. They are cancelled when the block ends, with or without an exception.

    The block's exception is raised unchanged. A plain nursery would wrap it in a group, and an `except OSError` around
    the nursery would never match. So the exception is caught inside of the nursery and raised again outside. The
    exception of a task cancels the block, and is raised unchanged as well if it is the only one.
    """
    raised: BaseException | None = None
    try:
        async with TaskNursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                raise  # only Trio knows whether it belongs to this nursery or to a scope outside
            except BaseException as exc:  # noqa: BLE001  raised again below
                raised = exc
            nursery.cancel_scope.cancel()
    except BaseException as exc:  # noqa: BLE001  raised again below
        raised = sole_exception(exc, raised)
    if raised is not None:
        raise_as_it_is(raised)


def sole_exception(exc: BaseException, caught: BaseException | None) -> BaseException:
    """Return the exception to raise in place of the one that a nursery of this package raised.

    Args:
        exc: The exception that the nursery raised: a group, unless `trio.run` has `strict_exception_groups=False`.
        caught: The exception that was caught in the nursery's block, if any.

    Returns:
        The only exception in the group that is not a Cancelled. If there are several, the group without the Cancelled.
        If there is none, `caught`. If that is `None` too, one Cancelled.
    """
    leaves = list(_leaves(exc))
    # Several tasks may have raised an exception for the same failure.
    others = {_failure(leaf): leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)}
    if not others:
        return leaves[0] if caught is None else caught
    found = next(reversed(others.values()))
    if len(others) > 1:
        _, rest = BaseExceptionGroup("", [exc]).split(trio.Cancelled)
        assert rest is not None
        found = rest
        while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
            found = found.exceptions[0]
    if caught is not None:
        add_context(found, caught)
    return found


def _failure(leaf: BaseException) -> Hashable:
    """Return a key that is the same for exceptions which report the same failure."""
    # A journal that has failed raises a new exception with the same text for each caller.
    return (type(leaf), str(leaf)) if isinstance(leaf, JournalError) else id(leaf)


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, or the exception itself."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def add_context(raised: BaseException, context: BaseException) -> None:
    """Append `context` to the chain of contexts of `raised`. A Cancelled at its end is replaced."""
    link = raised
    while link is not context and link.__context__ is not None and not isinstance(link.__context__, trio.Cancelled):
        link = link.__context__
    chain: BaseException | None = context
    while chain is not None:
        if chain is link:
            return  # one of the two chains contains the other
        chain = chain.__context__
    link.__context__ = context


def raise_as_it_is(exc: BaseException) -> NoReturn:
    """Raise an exception that was caught earlier, and keep the `__context__` that it had then."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
