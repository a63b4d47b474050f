"""Turning SIGINT and SIGTERM into cancellation, instead of a KeyboardInterrupt at an arbitrary point."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["Interrupted", "interruptible", "stop_signals"]


class Interrupted(Exception):
    """SIGINT or SIGTERM was received.

    Attributes:
        status: The exit status that shells expect: 128 plus the signal number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


@asynccontextmanager
async def stop_signals() -> AsyncIterator[list[trio.CancelScope]]:
    """Yield a list of cancel scopes. Each SIGINT or SIGTERM removes the last one and cancels it.

    The list starts with the scope of the whole block. If an inner scope is appended, the first signal cancels only that
    scope, and the rest of the block can clean up until a second signal comes.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as block:
        scopes = [block]

        async def cancel_on_signal() -> None:
            async for _ in signals:
                scopes.pop().cancel()

        async with background_nursery() as nursery:
            nursery.start_soon(cancel_on_signal)
            yield scopes


@asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """Cancel the block on the first SIGINT or SIGTERM.

    Raises:
        Interrupted: A signal has cancelled the block.
    """
    received: list[int] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as block:

        async def cancel_on_signal() -> None:
            async for signum in signals:
                received.append(signum)
                block.cancel()

        async with background_nursery() as nursery:
            nursery.start_soon(cancel_on_signal)
            yield
    if block.cancelled_caught:
        raise Interrupted(received[0])
