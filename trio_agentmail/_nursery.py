"""A nursery whose block raises as if there were no nursery."""

from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import NoReturn

import trio

from .errors import JournalError

__all__ = ["TaskNursery", "add_context", "background_nursery", "raise_as_it_is", "sole_exception"]


LEFT_ELSEWHERE = (
    "a stream was left in another task than the one that entered it. This happens when it is held by an async "
    "generator that is not iterated to its end, since Python then closes the generator later and elsewhere: open the "
    "stream outside of the generator, or use the generator in `async with contextlib.aclosing(…)`"
)

TIME_TO_END = 10.0
"""Seconds."""


class TaskNursery(AbstractAsyncContextManager[trio.Nursery]):
    """A nursery whose block cannot be left in another task than the one that entered it.

    An async generator that is abandoned is closed in a task of Trio's. A plain nursery in it would then wake the task
    that it belongs to at the wrong place, or wait for ever. This one cancels that task, and raises. Trio then ends
    it with an error as well, since the nursery has not been left there. The tasks in the nursery are given time to end
    before that: tasks that outlive the main task are an internal error of Trio's.
    """

    @trio.lowlevel.enable_ki_protection  # as Trio's own: Ctrl-C strikes in the block, or not at all
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
                while self._nursery.child_tasks:  # noqa: ASYNC110  a nursery tells only its own task
                    await trio.sleep(0.01)
            self._nursery.cancel_scope.cancel(reason=LEFT_ELSEWHERE)
            raise RuntimeError(LEFT_ELSEWHERE)
        return await self._manager.__aexit__(exc_type, exc, traceback)


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the block: when the block ends, however it ends, they are cancelled.

    What the block raises comes out as itself. A plain nursery would wrap it in a group, and an `except OSError`
    around it would never match; so it is caught inside and raised again outside. What a task raises ends the block,
    and comes out as itself as well, as long as it is one exception.
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
    """What to raise instead of what one of our nurseries raised.

    Args:
        exc: What the nursery raised: a group, unless `trio.run` was told not to be strict about groups.
        caught: What had been caught in the nursery's block, to be raised again.

    Returns:
        The one exception in the group that is no Cancelled, or what is left of the group if there are several;
        if there is none, what was caught; and if that is nothing either, one Cancelled.
    """
    group = exc if isinstance(exc, BaseExceptionGroup) else BaseExceptionGroup("", [exc])
    _, others = group.split(trio.Cancelled)
    if others is not None and len(told := {_what(leaf): leaf for leaf in _leaves(others)}) == 1:
        others = BaseExceptionGroup("", list(told.values()))  # several tasks were told of one thing
    if others is None and caught is not None:
        return caught
    found: BaseException = others or group
    while isinstance(found, BaseExceptionGroup) and (others is None or len(found.exceptions) == 1):
        found = found.exceptions[0]
    if caught is not None:
        add_context(found, caught)
    return found


def _what(leaf: BaseException) -> Hashable:
    """The same for exceptions that tell of one thing."""
    # A journal that has failed raises a new exception for each who asks, with the same text.
    return (type(leaf), str(leaf)) if isinstance(leaf, JournalError) else id(leaf)


def _leaves(exc: BaseException) -> list[BaseException]:
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]


def add_context(raised: BaseException, context: BaseException) -> None:
    """Make `context` the beginning of the story that `raised` tells; a Cancelled there is left out."""
    link = raised
    while link is not context and link.__context__ is not None and not isinstance(link.__context__, trio.Cancelled):
        link = link.__context__
    story: BaseException | None = context
    while story is not None:
        if story is link:
            return  # it is told already, by one or the other
        story = story.__context__
    link.__context__ = context


def raise_as_it_is(exc: BaseException) -> NoReturn:
    """Raise an exception that was caught before, with the context that it had, not the one in which it is raised."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
