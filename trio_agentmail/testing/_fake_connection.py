"""One connection of the fake: the server's end of a WebSocket over any Trio stream.

Whoever waits for a client by trio-websocket can wait for ever: for the handshake or the close frame of a
client that has gone or that never answers. So the end of its reader task, however it comes, is the end of the
connection, and it is this module that closes the stream. And all that the server says goes through one queue,
which a task of the connection works off: pushing neither waits for the client nor fails because it is just
leaving, and a close comes after what was pushed before it.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from trio_agentmail._nursery import background_nursery, raise_as_it_is
from trio_agentmail._settings import Subscribe

from ._pong_stream import PongStream

__all__ = ["FakeConnection", "Spawn", "cut", "fake_tasks"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a client may take to answer our close frame, or to take what was pushed before a cut."""

Spawn = Callable[..., None]
"""`nursery.start_soon`."""


@asynccontextmanager
async def fake_tasks() -> AsyncIterator[Spawn]:
    """A nursery for tasks of the fake, which are cancelled when the block ends.

    What one of them raises is a bug in the fake, or in what a test has put into it. It comes out of the block
    as itself, whatever the block makes of a server that is suddenly gone; of several, a KeyboardInterrupt or the like
    does, or else the first.
    """
    errors: list[BaseException] = []

    async def run(async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await async_fn(*args)
        except BaseException as exc:
            if isinstance(exc, trio.Cancelled | BaseExceptionGroup) and not isinstance(exc, Exception):
                raise  # only Trio knows whose Cancelled it is, and what is in such a group
            errors.append(exc)
            nursery.cancel_scope.cancel()

    raised: BaseException | None = None
    try:
        async with background_nursery() as nursery:
            yield lambda async_fn, *args: nursery.start_soon(partial(run, async_fn, *args), name=async_fn)
    except BaseException as exc:
        if not errors:
            raise
        raised = exc
    if errors:
        error = next((error for error in errors if not isinstance(error, Exception)), errors[0])
        if raised is not None and not isinstance(raised, Exception | trio.Cancelled):
            error = raised
        raise_as_it_is(error)


async def cut(connections: Iterable["FakeConnection"]) -> None:
    """End them without a close frame, after what was pushed: for that the clients have `CLOSE_TIMEOUT`."""
    connections = list(connections)
    await trio.lowlevel.checkpoint()
    for connection in connections:
        connection.begin_to_cut()
    with trio.move_on_after(CLOSE_TIMEOUT):
        for connection in connections:
            await connection.wait_ended()
    for connection in connections:
        connection.end_now()


class FakeConnection:
    """A stream on which the fake is the server. `run` is its life; the other methods are called meanwhile.

    Args:
        stream: Its `send_all` may be called by several tasks, and waits for its turn.
        on_ping: Called for each ping of the client with when it came, by Trio's clock; says how many seconds after that
            it is to be answered.

    Attributes:
        number: The how manieth of the fake's connections it is.
        key: The API key of the client.
        subscription: What the client listens to, once that is confirmed.
        is_silent: Whether it reads and writes nothing more, once it has written what was pushed before.
        permissions: What its key might do when it asked for that; `None`: everything.
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
        """Whether it is a WebSocket that nobody has ended yet, as far as we know."""
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
        """Whether it was a WebSocket, and the fake has not dropped it."""
        return self._websocket is not None and not self._dropped

    @property
    def close_code(self) -> int | None:
        """The code of the client's close frame; `None`: there was none."""
        reason = self._websocket.closed if self._websocket is not None else None
        return int(reason.code) if reason is not None and reason.code != 1006 else None

    @property
    def end(self) -> str:
        """How it ended, in words."""
        if self._websocket is None:
            return "at its end before it was open"
        if self._dropped:
            return "ended by the fake"
        return "cut by the client" if self.close_code is None else f"closed by the client with {self.close_code}"

    async def run(self, talk: Callable[[trio_websocket.WebSocketRequest], Awaitable[None]]) -> None:
        """Have the handshake answered by `talk`, and end with it, or when the client has gone."""
        try:
            with self._alive:
                async with fake_tasks() as spawn:
                    spawn(self._work_off_steps)
                    # No message waits in a queue of trio-websocket, to be lost when the reader ends.
                    request = await trio_websocket.wrap_server_stream(
                        cast(trio.Nursery, SimpleNamespace(start_soon=partial(spawn, self._read))),
                        PongStream(self._stream, partial(self._pong, spawn), lambda: self._websocket is not None),
                        message_queue_size=0,
                    )
                    with suppress(trio_websocket.ConnectionClosed):
                        await talk(request)
        finally:
            self._ended.set()
            # Shielded, so that a Cancelled does not take the place of the exception that brought us here. It
            # keeps nobody waiting: closing by force does not block.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def accept(self, request: trio_websocket.WebSocketRequest) -> None:
        """Make it a WebSocket."""
        self._websocket = await request.accept()

    async def receive(self) -> str | bytes:
        """The client's next message."""
        assert self._websocket is not None
        try:
            return await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            await trio.sleep_forever()  # until the end of the reader, or of the closing handshake

    def push(self, frame: str | bytes) -> None:
        self._put_step.send_nowait(partial(self._send, frame))

    def send_bytes(self, data: bytes) -> None:
        """Write bytes as they are, after what was pushed."""
        self._put_step.send_nowait(partial(self._send_bytes, data))

    def fall_silent(self) -> None:
        """Stop reading and writing, once what was pushed has been written, and leave the stream open."""
        self.is_silent = True
        self._put_step.send_nowait(self._fall_silent)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what was pushed; end when it is answered or `CLOSE_TIMEOUT` is over."""
        self._dropped = True
        self._put_step.send_nowait(partial(self._close, code, reason))

    def begin_to_cut(self) -> None:
        """End without a close frame, after what was pushed."""
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
                # A ping that crosses our close frame does this to trio-websocket. Were the stream closed now,
                # with bytes unread, TCP would reset the connection, and what is still on its way to the
                # client could be lost. So we wait for the client to hang up.
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
