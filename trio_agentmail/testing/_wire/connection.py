"""One connection: the server's end of a WebSocket over any Trio stream.

trio-websocket can wait for ever for the handshake or the close frame of a client that has gone or never answers. To
avoid this, the end of the reader task ends the connection, and this module closes the stream.

A single task sends everything, from a queue. Therefore, pushing does not wait for the client and does not fail while
the client leaves, and a close frame follows everything that was pushed before it.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import cast

import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from trio_agentmail._settings import Subscribe

from .pong_stream import PongStream
from .tasks import Spawn, fake_tasks

__all__ = ["Connection", "cut"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to answer our close frame, or to read what was pushed before a cut."""


async def cut(connections: Iterable["Connection"]) -> None:
    """End connections without a close frame. Clients have `CLOSE_TIMEOUT` to read what was pushed before."""
    connections = list(connections)
    await trio.lowlevel.checkpoint()
    for connection in connections:
        connection.begin_to_cut()
    with trio.move_on_after(CLOSE_TIMEOUT):
        for connection in connections:
            await connection.wait_ended()
    for connection in connections:
        connection.end_now()


class Connection:
    """The server's end of one connection. `run` serves it, and the other methods may be called while `run` runs.

    Args:
        stream: A stream whose `send_all` several tasks may call at the same time.
        on_ping: Called for each ping from the client, with its time of arrival by Trio's clock. Returns the delay of
            the pong, in seconds.

    Attributes:
        number: The number of the connection, counting from 1.
        key: The API key of the client.
        subscription: The client's subscription, once it is confirmed.
        permissions: The permissions that its key had when it subscribed. `None` means all.
        is_silent: Whether `fall_silent` has been called.
    """

    def __init__(self, stream: trio.abc.Stream, number: int, on_ping: Callable[[float], float]) -> None:
        self.number = number
        self.key = ""
        self.subscription: Subscribe | None = None
        self.is_silent = False
        self.permissions: Collection[str] | None = None
        self._stream = stream
        self._on_ping = on_ping
        self._websocket: trio_websocket.WebSocketConnection | None = None
        self._dropped = False
        self._silent = False
        self._alive = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._ended = trio.Event()
        self._put_step, self._steps = trio.open_memory_channel[Callable[[], Awaitable[None]]](math.inf)

    def __str__(self) -> str:
        return f"connection {self.number}"

    @property
    def is_open(self) -> bool:
        """Whether the WebSocket has been opened and has not ended yet, as far as the server knows."""
        return (
            self._websocket is not None
            and self._websocket.closed is None
            and not self._dropped
            and not self._ended.is_set()
        )

    @property
    def is_subscribed(self) -> bool:
        return self.is_open and self.subscription is not None

    @property
    def ended_by_client(self) -> bool:
        """Whether the WebSocket was opened and the fake has not ended it."""
        return self._websocket is not None and not self._dropped

    @property
    def close_code(self) -> int | None:
        """The code of the client's close frame, or `None` if it sent none."""
        reason = self._websocket.closed if self._websocket is not None else None
        return int(reason.code) if reason is not None and reason.code != 1006 else None

    @property
    def end(self) -> str:
        """A description of how the connection ended, for the log."""
        if self._websocket is None:
            return "ended before the handshake was complete"
        if self._dropped:
            return "ended by the fake"
        return "cut by the client" if self.close_code is None else f"closed by the client with {self.close_code}"

    async def run(self, talk: Callable[[trio_websocket.WebSocketRequest], Awaitable[None]]) -> None:
        """Serve the connection until `talk` returns or the client has gone. `talk` answers the handshake."""
        try:
            with self._alive:
                async with fake_tasks() as spawn:
                    spawn(self._work_off_steps)
                    # If trio-websocket had a message queue, the messages in it would be lost when the reader ends.
                    request = await trio_websocket.wrap_server_stream(
                        cast(trio.Nursery, SimpleNamespace(start_soon=partial(spawn, self._read))),
                        PongStream(self._stream, partial(self._pong, spawn), lambda: self._websocket is not None),
                        message_queue_size=0,
                    )
                    with suppress(trio_websocket.ConnectionClosed):
                        await talk(request)
        finally:
            self._ended.set()
            # The shield prevents a Cancelled from replacing an exception that is propagating. A forceful close does
            # not block.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def accept(self, request: trio_websocket.WebSocketRequest) -> None:
        """Accept the handshake."""
        self._websocket = await request.accept()

    async def receive(self) -> str | bytes:
        """Return the client's next message."""
        assert self._websocket is not None
        try:
            return await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            await trio.sleep_forever()  # cancelled by the end of the reader or of the closing handshake

    def push(self, frame: str | bytes) -> None:
        """Queue a WebSocket message."""
        self._put_step.send_nowait(partial(self._send, frame))

    def send_bytes(self, data: bytes) -> None:
        """Queue raw bytes."""
        self._put_step.send_nowait(partial(self._send_bytes, data))

    def fall_silent(self) -> None:
        """Send what was pushed before, then stop reading and writing. The stream stays open."""
        self.is_silent = True
        self._put_step.send_nowait(self._fall_silent)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what was pushed before. The client has `CLOSE_TIMEOUT` to answer it."""
        self._dropped = True
        self._put_step.send_nowait(partial(self._close, code, reason))

    def begin_to_cut(self) -> None:
        """End without a close frame, after sending what was pushed before."""
        self._dropped = True
        self._put_step.send_nowait(self._cut)

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def end_now(self) -> None:
        self._alive.cancel()

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        with self._reading:
            try:
                await reader()
            except (trio_websocket.ConnectionClosed, ProtocolError):
                # trio-websocket raises if a ping crosses our close frame. If we closed the stream now, with unread
                # bytes, TCP would reset the connection, and the client could lose data that is in transit. So wait
                # for the client to hang up.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await self._stream.receive_some():
                        pass
        if not self._silent:
            self._alive.cancel()

    async def _pong(self, spawn: Spawn, frame: bytes, pinged_at: float) -> None:
        seconds = self._on_ping(pinged_at)
        if not seconds:
            await self._stream.send_all(frame)
        elif seconds != math.inf:
            spawn(self._pong_later, frame, pinged_at + seconds)

    async def _pong_later(self, frame: bytes, when: float) -> None:
        await trio.sleep_until(when)
        self.send_bytes(frame)

    async def _work_off_steps(self) -> None:
        async for step in self._steps:
            await step()

    async def _send(self, frame: str | bytes) -> None:
        if self._websocket is not None and not self._silent:
            with suppress(trio_websocket.ConnectionClosed):
                await self._websocket.send_message(frame)

    async def _send_bytes(self, data: bytes) -> None:
        if self._websocket is not None and not self._silent:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(data)

    async def _fall_silent(self) -> None:
        self._silent = True
        self._reading.cancel()

    async def _close(self, code: int, reason: str) -> None:
        if self._websocket is not None and not self._silent:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await self._websocket.aclose(code, reason)
        self._alive.cancel()

    async def _cut(self) -> None:
        self._alive.cancel()
