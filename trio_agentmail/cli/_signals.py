"""Ctrl-C and SIGTERM as requests, not as exceptions anywhere."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_agentmail._nursery import background_nursery

__all__ = ["stop_signals"]


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
