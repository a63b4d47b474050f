"""The heartbeat of a WebSocket: sends a ping after a silence, and detects that the server does not answer."""

import math
from collections.abc import Callable
from contextlib import suppress

import trio

from ._backend import WebSocket
from .errors import ConnectionLostError

__all__ = ["keep_alive", "wait_for_silence"]


async def keep_alive(
    websocket: WebSocket, ping_interval: float, ping_timeout: float, is_wanted: Callable[[], bool], pings: trio.Nursery
) -> None:
    """Send a ping after each silence, until the connection is no longer wanted.

    Any byte from the server counts as an answer, because the pong may have to wait behind a large message. Time in
    which reading waits for the consumer is not silence.

    Args:
        websocket: The connection.
        ping_interval: Seconds of silence before a ping.
        ping_timeout: Seconds that may pass after a ping without a byte.
        is_wanted: Returns whether the connection is still wanted. It is called before each ping.
        pings: The nursery for the pings. It must outlive the WebSocket, because closing that ends a ping that the
            server does not read.

    Raises:
        ConnectionLostError: The server did not answer a ping.
    """
    while True:
        since = await wait_for_silence(websocket, ping_interval)
        if not is_wanted():
            return
        pings.start_soon(_ping, websocket, ping_timeout)
        deadline = trio.current_time() + ping_timeout
        while await _is_silent_since(websocket, since):
            if trio.current_time() >= deadline:
                raise ConnectionLostError(
                    f"silent for {ping_interval} s (ping_interval), then no answer to a ping for {ping_timeout} s"
                )
            # The WebSocket does not report each byte, so this polls. A silence that begins now requires a ping after
            # `ping_interval` at the earliest, so polling at that interval delays no ping.
            await trio.sleep_until(min(deadline, trio.current_time() + ping_interval))


async def wait_for_silence(websocket: WebSocket, seconds: float, *, after: float = -math.inf) -> float:
    """Wait until a silence has lasted for some time, and return when it began.

    Args:
        websocket: The connection.
        seconds: How long the silence must last.
        after: A time on Trio's clock. Silence before it does not count.
    """
    while True:
        since = websocket.silent_since
        if since is None:
            await trio.sleep(seconds)
            continue
        await trio.sleep_until(max(since, after) + seconds)
        if await _is_silent_since(websocket, since):
            return since


async def _is_silent_since(websocket: WebSocket, since: float) -> bool:
    # After something has blocked the event loop, bytes that arrived meanwhile and a deadline wake their tasks at the
    # same time. The task that reads must run first.
    await trio.lowlevel.checkpoint()
    return websocket.silent_since == since


async def _ping(websocket: WebSocket, ping_timeout: float) -> None:
    with trio.move_on_after(ping_timeout), suppress(ConnectionLostError):  # receive() reports the loss
        await websocket.ping()
