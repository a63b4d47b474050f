"""Concurrent operations whose results are handed over in the order in which they were started."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Room", "Start", "in_order"]

T = TypeVar("T")


class Room:
    """Bounds the text that is being fetched or waits to be handed over, in all scans together.

    Before a mail is fetched, its size is estimated from the listing; afterwards it is known.

    Args:
        size: The bound, in characters or bytes. A single larger thing has room if nothing else takes any.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._turn = trio.Lock()  # without turns, small ones would overtake a large one for ever
        self._freed = trio.lowlevel.ParkingLot()

    async def take(self, size: int) -> None:
        """Wait until there is room for `size`, and take it."""
        async with self._turn:
            while self._taken and self._taken + size > self._size:
                await self._freed.park()
            self._taken += size

    def correct(self, change: int) -> None:
        """Take `change` more room without waiting or, if it is negative, give room back."""
        self._taken += change
        self._freed.unpark_all()


class Start(Protocol):
    async def __call__(
        self,
        first: Callable[[], Awaitable[T]],
        then: Callable[[T], Awaitable[None]],
        size: int = 0,
        size_of: Callable[[T], int] = lambda _: 0,
    ) -> None:
        """Wait for a free place, and start `first`. `then` is called with its result, after all earlier results.

        Args:
            size: The estimated size of the result; see `Room`.
            size_of: Return the size of a result.
        """


@asynccontextmanager
async def in_order(places: int, room: Room) -> AsyncIterator[Start]:
    """A block in which operations can be started. It ends when all of them are done; if it raises, they are cancelled.

    Starting a batch and waiting for all of it would be simpler, but then each batch waits for its slowest operation.
    Here a place becomes free when a result has been handed over. That also bounds the results that wait for an earlier
    one.

    An exception of one operation cancels the others and the block, and comes out unwrapped.

    Args:
        places: The maximum number of operations that were started and whose results were not handed over.
        room: Bounds the size of their results, together with those of other blocks. Blocks cannot deadlock: each takes
            room in the order in which it hands over results, so the first operation of each block has its room.
    """
    free = trio.Semaphore(places)
    last = trio.Event()
    last.set()

    async def run(
        first: Callable[[], Awaitable[T]],
        then: Callable[[T], Awaitable[None]],
        size: int,
        size_of: Callable[[T], int],
        before: trio.Event,
        done: trio.Event,
    ) -> None:
        taken = size
        try:
            result = await first()
            taken = size_of(result)
            room.correct(taken - size)
            await before.wait()
            await then(result)
        finally:
            room.correct(-taken)
        done.set()
        free.release()

    async def start(
        first: Callable[[], Awaitable[T]],
        then: Callable[[T], Awaitable[None]],
        size: int = 0,
        size_of: Callable[[T], int] = lambda _: 0,
    ) -> None:
        nonlocal last
        await free.acquire()
        if size:
            await room.take(size)
        before, last = last, trio.Event()
        nursery.start_soon(run, first, then, size, size_of, before, last)

    async with background_nursery() as nursery:
        yield start
        await last.wait()
