"""A Trio run that a synchronous test advances step by step."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio
from trio.testing import MockClock

__all__ = ["Stage"]

T = TypeVar("T")

PATIENCE = 20_000.0
"""Seconds on the mock clock that one act may take. An act that takes longer waits for something that never happens."""


class Stage:
    """A run on a mock clock. The run stands still except while `perform` runs an act.

    The rules of a Hypothesis state machine are synchronous, and their subject lives in tasks that outlive them. So this
    is Trio's guest mode, with a host that has nothing else to do: Trio asks for the next turn of its loop, and the turn
    runs if `perform` is waiting for an act. On an autojumping clock no turn waits for I/O, so no thread is used, and
    everything is repeatable.

    Attributes:
        nursery: A nursery for tasks that outlive an act. An exception of such a task ends the run and comes out of
            `perform`.
    """

    def __init__(self) -> None:
        self.nursery: trio.Nursery
        self._turns: deque[Callable[[], object]] = deque()
        self._act: Callable[[], Awaitable[Any]] | None = None
        self._result: outcome.Outcome[Any] | None = None
        self._end: outcome.Outcome[None] | None = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._turns.append,
            done_callback=self._ended,
            host_uses_signal_set_wakeup_fd=True,
            clock=MockClock(autojump_threshold=0),
        )
        self.perform(trio.lowlevel.checkpoint)

    def perform(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run the function in the run. Everything else in the run goes on for that long."""

        async def act() -> T:
            with trio.fail_after(PATIENCE):
                return await async_fn(*args)

        self._act, self._result = act, None
        while self._result is None and self._end is None:
            self._turns.popleft()()
        if self._end is not None:
            self._end.unwrap()
        assert self._result is not None
        result: T = self._result.unwrap()
        return result

    def close(self) -> None:
        """End the run and its tasks."""
        if self._end is None:
            self._act = self._cancel
            while self._end is None:
                self._turns.popleft()()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            while True:
                # This is the only turn of the loop between two acts, so no time passes between them.
                await trio.lowlevel.checkpoint()
                act, self._act = self._act, None
                assert act is not None
                try:
                    self._result = outcome.Value(await act())
                except Exception as exc:  # noqa: BLE001  raised by `perform`
                    self._result = outcome.Error(exc)

    async def _cancel(self) -> None:
        self.nursery.cancel_scope.cancel()

    def _ended(self, end: outcome.Outcome[None]) -> None:
        self._end = end
