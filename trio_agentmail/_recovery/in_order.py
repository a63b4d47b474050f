"""Several things under way at once, whose results are handed over in order."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Start", "in_order"]

T = TypeVar("T")


class Start(Protocol):
    async def __call__(self, first: Callable[[], Awaitable[T]], then: Callable[[T], Awaitable[None]]) -> None:
        """Wait for a place, and start `first`; `then` gets its result, after those of all that were started before."""


@asynccontextmanager
async def in_order(places: int) -> AsyncIterator[Start]:
    """A block in which things can be started; it ends when all are done. If it raises, they are cancelled.

    Taking a few at a time and waiting for all of them would be simpler: and each time, all wait for the slowest. Here
    a place is free again when a result has been handed over; so results that wait for an earlier one are bounded too.

    What one of them raises cancels the others and the block, and comes out as it is.

    Args:
        places: How many may have been started whose results have not been handed over.
    """
    free = trio.Semaphore(places)
    last = trio.Event()
    last.set()

    async def run(
        first: Callable[[], Awaitable[T]], then: Callable[[T], Awaitable[None]], before: trio.Event, done: trio.Event
    ) -> None:
        result = await first()
        await before.wait()
        await then(result)
        done.set()
        free.release()

    async def start(first: Callable[[], Awaitable[T]], then: Callable[[T], Awaitable[None]]) -> None:
        nonlocal last
        await free.acquire()
        before, last = last, trio.Event()
        nursery.start_soon(run, first, then, before, last)

    async with background_nursery() as nursery:
        yield start
        await last.wait()
