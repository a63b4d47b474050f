"""Runs operations concurrently, and hands over their results in the order in which they were started."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Room", "Start", "in_order"]

T = TypeVar("T")


class Room:
    """Limits the amount of text that is being fetched or waits to be handed over, in all scans together.

    Before a mail is fetched, its size is estimated from the listing. Afterwards the actual size is used.

    Args:
        size: The limit, in characters or bytes. A larger item has room only if no other item takes any.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._turn = trio.Lock()  # otherwise small items could overtake a large one forever
        self._freed = trio.lowlevel.ParkingLot()

    async def take(self, size: int) -> None:
        """Wait until there is room for `size`, and take it."""
        async with self._turn:
            while self._taken and self._taken + size > self._size:
                await self._freed.park()
            self._taken += size

    def correct(self, change: int) -> None:
        """Take `change` more room without waiting. A negative `change` gives room back."""
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
            size_of: A function that returns the size of a result.
        """


@asynccontextmanager
async def in_order(places: int, room: Room) -> AsyncIterator[Start]:
    """Return a context manager for a block that starts operations. It waits for them, or cancels them on an exception.

    Starting a batch and waiting for all of it would be simpler, but then each batch waits for its slowest operation.
    Here a place becomes free when a result has been handed over. That also limits the number of results that wait for
    an earlier one.

    An exception of one operation cancels the others and the block, and is raised unwrapped.

    Args:
        places: Maximum number of started operations whose results have not been handed over.
        room: Limits the size of their results, together with those of other blocks. Blocks cannot deadlock: each takes
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
