"""The one place that knows trio-websocket: a client WebSocket over any Trio stream, without its traps.

trio-websocket runs a reader task in a nursery, and several ways in which a server can misbehave leave it, or
whoever waits for it, waiting for ever: a handshake that is not answered, or refused with a body that does not
end; a close frame with the TCP connection left open; a ping that crosses our close frame. So three things
stand around it here, and nothing of it is patched:

- `HandshakeStream` stands between it and the network. It reads the server's answer to the handshake itself, so that
  a refusal is an `ApiError` with its status whatever its body does. Below that, `WatchedStream` tells what
  trio-websocket does not: when bytes come, and whether anybody is reading.
- `_Reader` stands in for the nursery that the reader task is started in: it keeps what the reader raises, and
  tells that it has ended, however it ended.
- the stream is closed here, by force, and never by trio-websocket: the end of the block is the end of it.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

import trio
import trio.abc
import trio_websocket

from ._handshake import HandshakeStream
from ._nursery import background_nursery
from ._watched_stream import WatchedStream
from .errors import AgentMailError, ConnectionLost

__all__ = ["WebSocket", "client_websocket", "close_at_once"]

RECEIVE_BYTES = 2**16
"""The largest read, in bytes."""


_in_our_reader = ContextVar("_in_our_reader", default=False)


def _says_nothing_of_the_server(record: logging.LogRecord) -> bool:
    """A logging filter: trio-websocket logs at DEBUG, as it is, what a server says, for example with a close frame.

    That may be terminal escapes, or the API key, sent back to us. Numbers, types and the connection's own name pass,
    and so do records of connections that are not ours.
    """
    args = record.args if isinstance(record.args, tuple) else (record.args,)
    harmless = all(isinstance(arg, int | type | trio_websocket.WebSocketConnection) for arg in args)
    return harmless or not _in_our_reader.get()


logging.getLogger("trio-websocket").addFilter(_says_nothing_of_the_server)


class WebSocket:
    """An open WebSocket. Made by `client_websocket`."""

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: trio.abc.Stream,
        watched: WatchedStream,
        reader: "_Reader",
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._reader = reader
        self.watched = watched
        """Tells when bytes come, and whether anybody is reading."""

    async def send(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionLost: the connection has ended.
        """
        with suppress(trio_websocket.ConnectionClosed):
            return await self._connection.send_message(text)
        raise self._lost()

    async def receive(self) -> str | bytes:
        """The next message. Nothing below holds more than one message back, so reading waits for the caller.

        Raises:
            ConnectionLost: the connection has ended, and every message before its end has been received.
        """
        with suppress(trio_websocket.ConnectionClosed):
            return await self._connection.get_message()
        raise self._lost()

    async def ping(self) -> None:
        """Send a ping, and wait for its pong.

        Raises:
            ConnectionLost: the connection has ended.
        """
        with suppress(trio_websocket.ConnectionClosed):
            async with self._reader.while_running():
                await self._connection.ping()
                return
        raise self._lost()

    async def close(self) -> None:
        """Close with code 1000, and wait until the server agrees: the caller says for how long."""
        async with self._reader.while_running():
            await self._connection.aclose()
        if self._reader.error is not None:
            # A ping that crossed our close frame ended the reader. Were the stream closed now, with bytes unread,
            # the network could throw away the close frame as well: so we wait for the server to hang up.
            with suppress(trio.BrokenResourceError):
                while await self._stream.receive_some(RECEIVE_BYTES):
                    pass

    def _lost(self) -> ConnectionLost:
        # Raised where trio-websocket's exception is no longer its context: it holds what the server said, which may
        # be the API key.
        reason = self._connection.closed
        if reason is None:
            return ConnectionLost(f"the connection ended: {self._reader.error or 'nothing says why'}")
        if reason.code == 1006:
            return ConnectionLost("the connection was cut without a close frame")
        return ConnectionLost(f"the WebSocket was closed: {reason.reason or reason.name}", int(reason.code))


@asynccontextmanager
async def client_websocket(
    stream: trio.abc.Stream,
    *,
    host: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    max_message_size: int,
    watched: WatchedStream | None = None,
) -> AsyncIterator[WebSocket]:
    """Make a WebSocket of a stream that has just been connected; the end of the block closes the stream.

    Args:
        stream: Any Trio stream.
        host: What the `Host` header says.
        target: Path of the URL, with its query.
        headers: More headers for the handshake.
        max_message_size: Characters of a text message, bytes of a binary one. A larger one ends the
            connection with code 1009.
        watched: The stream below `stream` that stands on the network; None: put one below it.

    Raises:
        ApiError: The server refused the handshake.
        ConnectionLost: The server hung up, or is not a WebSocket server.
    """
    if watched is None:
        stream = watched = WatchedStream(stream)
    try:
        async with background_nursery() as nursery:
            reader = _Reader(nursery)
            handshake = HandshakeStream(stream)
            connection = None
            async with reader.while_running():
                connection = await trio_websocket.wrap_client_stream(
                    cast(trio.Nursery, reader),
                    cast(trio.SocketStream, handshake),
                    host,
                    target,
                    extra_headers=[(name.encode(), value.encode()) for name, value in headers],
                    # With room for no message in the queue, none can be in it when an oversized one throws the
                    # queue away, and reading waits for whoever receives.
                    message_queue_size=0,
                    max_message_size=max_message_size,
                    receive_buffer_size=RECEIVE_BYTES,
                )
            if connection is None:
                if handshake.accepted:
                    raise ConnectionLost("not a WebSocket server: it accepts the handshake in a way that is not valid")
                raise reader.failure("the handshake failed")
            yield WebSocket(connection, stream, watched, reader)
    finally:
        await close_at_once(stream)


async def close_at_once(stream: trio.abc.Stream) -> None:
    """Close a stream by force. Shielded, since a Cancelled from here would replace the exception that led here."""
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


class _Reader:
    """Stands in for the nursery in which trio-websocket starts its reader task."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ended = trio.Event()
        self.error: Exception | None = None

    def start_soon(self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        self._nursery.start_soon(self._run, async_fn, *args, name=name)

    async def _run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        _in_our_reader.set(True)
        try:
            await async_fn(*args)
        except Exception as exc:  # noqa: BLE001  whatever it is, it ends this one connection: see failure()
            self.error = exc
        finally:
            self._ended.set()

    @asynccontextmanager
    async def while_running(self) -> AsyncIterator[None]:
        """Give up what the block waits for when the reader ends: nothing else would ever wake it."""

        async def give_up() -> None:
            await self._ended.wait()
            nursery.cancel_scope.cancel()

        async with background_nursery() as nursery:
            nursery.start_soon(give_up)
            yield

    def failure(self, explanation: str) -> AgentMailError:
        if isinstance(self.error, AgentMailError):
            return self.error
        # In words, and not as the cause: what the server said may be in it, and so the API key.
        return ConnectionLost(f"{explanation}: {self.error}" if self.error else explanation)
