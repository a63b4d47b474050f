"""Ctrl-C and SIGTERM as requests, not as exceptions anywhere."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Interrupted", "interruptible", "stop_signals"]


class Interrupted(Exception):
    """SIGINT or SIGTERM came.

    Attributes:
        status: The exit status by which a shell knows that: 128 and the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


@asynccontextmanager
async def stop_signals() -> AsyncIterator[list[trio.CancelScope]]:
    """Each SIGINT or SIGTERM takes the last scope from the list that this yields, and cancels it.

    The list begins with the scope of the whole block. Who has something to do when asked to stop puts a scope of his
    own behind it: then it takes a second signal to cancel that as well.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as block:
        scopes = [block]

        async def obey() -> None:
            async for _ in signals:
                scopes.pop().cancel()

        async with background_nursery() as nursery:
            nursery.start_soon(obey)
            yield scopes


@asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """The first SIGINT or SIGTERM cancels the block.

    Raises:
        Interrupted: It did.
    """
    received: list[int] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as block:

        async def obey() -> None:
            async for signum in signals:
                received.append(signum)
                block.cancel()

        async with background_nursery() as nursery:
            nursery.start_soon(obey)
            yield
    if block.cancelled_caught:
        raise Interrupted(received[0])
