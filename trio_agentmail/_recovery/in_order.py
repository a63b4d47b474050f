"""Several things under way at once, whose results are handed over in order."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Room", "Start", "in_order"]

T = TypeVar("T")


class Room:
    """How much text may be fetched or have been fetched, and not been handed over: by all looks together.

    The size of what is to be fetched is known roughly, from the listing. When it has been fetched it is known exactly.

    Args:
        size: Characters or bytes, whichever comes. Something larger has room when there is nothing else.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._turn = trio.Lock()  # a large one must not wait for ever while small ones come and go
        self._freed = trio.lowlevel.ParkingLot()

    async def take(self, size: int) -> None:
        """Wait until so much has room."""
        async with self._turn:
            while self._taken and self._taken + size > self._size:
                await self._freed.park()
            self._taken += size

    def correct(self, change: int) -> None:
        """What had room has turned out to be larger or, if negative, smaller; or has been handed over."""
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
        """Wait for a place, and start `first`; `then` gets its result, after those of all that were started before.

        Args:
            size: How large the result will be, as far as that is known; see `Room`.
            size_of: Tells how large it is.
        """


@asynccontextmanager
async def in_order(places: int, room: Room) -> AsyncIterator[Start]:
    """A block in which things can be started; it ends when all are done. If it raises, they are cancelled.

    Taking a few at a time and waiting for all of them would be simpler: and each time, all wait for the slowest. Here
    a place is free again when a result has been handed over; so results that wait for an earlier one are bounded too.

    What one of them raises cancels the others and the block, and comes out as it is.

    Args:
        places: How many may have been started whose results have not been handed over.
        room: How large they may be, together with those of other blocks. There is no dead-lock between blocks: room is
            taken in the order in which results are handed over, so that whoever is the first in its block has it.
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
