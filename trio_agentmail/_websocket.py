"""The one place that knows trio-websocket: a client WebSocket over any Trio stream, without its traps.

trio-websocket runs a reader task in a nursery, and several ways in which a server can misbehave leave it, or
whoever waits for it, waiting for ever: a handshake that is not answered, or refused with a body that does not
end; a close frame with the TCP connection left open; a ping that crosses our close frame. So three things
stand around it here, and nothing of it is patched:

- `_WatchedStream` stands between it and the network. It tells when bytes come and whether anybody is reading,
  and it reads the server's answer to the handshake itself, so that a refusal is an `ApiError` with its status
  whatever its body does.
- `_Reader` stands in for the nursery that the reader task is started in: it keeps what the reader raises, and
  tells that it has ended, however it ended.
- the stream is closed here, by force, and never by trio-websocket: the end of the block is the end of it.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import h11
import trio
import trio_websocket

from ._nursery import background_nursery
from .errors import AgentMailError, ApiError, AuthenticationError, ConnectionLost, PermissionDeniedError

__all__ = ["WebSocket", "client_websocket", "close_at_once"]

RECEIVE_BYTES = 2**16
"""The largest read, in bytes."""

MAX_HANDSHAKE_BYTES = 2**16
"""How much of the head, and how much of the body, of an answer to the handshake is read."""

BODY_TIMEOUT = 0.2
"""Seconds that the body of a refusal may take once its head is there: the body only helps to explain."""

SEND_TIMEOUT = 20.0
"""Seconds that a frame of ours may take to leave: they are a few bytes, so the server has stopped reading."""


class WebSocket:
    """An open WebSocket. Made by `client_websocket`."""

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: "_WatchedStream",
        reader: "_Reader",
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._reader = reader

    @property
    def last_received(self) -> float:
        """When the last byte came, in seconds since the epoch."""
        return self._stream.last_received

    @property
    def quiet_since(self) -> float | None:
        """Since when a read has been waiting for bytes, on Trio's clock; None while nobody reads."""
        return self._stream.quiet_since

    async def changed(self) -> None:
        """Wait until `quiet_since` changes."""
        await self._stream.changed()

    async def send(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionLost: the connection has ended.
        """
        try:
            await self._connection.send_message(text)
        except trio_websocket.ConnectionClosed as exc:
            raise self._lost(exc.reason) from None

    async def receive(self) -> str | bytes:
        """The next message. Nothing below holds more than one message back, so reading waits for the caller.

        Raises:
            ConnectionLost: the connection has ended, and every message before its end has been received.
        """
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise self._lost(exc.reason) from None

    async def ping(self) -> None:
        """Send a ping, and wait for its pong.

        Raises:
            ConnectionLost: the connection has ended.
        """
        try:
            await self._connection.ping()
        except trio_websocket.ConnectionClosed as exc:
            raise self._lost(exc.reason) from None

    async def close(self) -> None:
        """Close with code 1000, and wait until the server agrees: the caller says for how long."""
        async with self._reader.while_running():
            await self._connection.aclose()
        if self._reader.error is not None:
            # A ping that crossed our close frame ended the reader. Were the stream closed now, with bytes unread,
            # the network could throw away the close frame as well: so we wait for the server to hang up.
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass

    def _lost(self, reason: trio_websocket.CloseReason | None) -> ConnectionLost:
        if reason is None:
            return ConnectionLost(f"the connection ended: {self._reader.error or 'nothing says why'}")
        if reason.code == 1006:
            return ConnectionLost("the connection was cut without a close frame", 1006)
        return ConnectionLost(f"the WebSocket was closed: {reason.reason or reason.name}", int(reason.code))


@asynccontextmanager
async def client_websocket(
    stream: trio.abc.Stream,
    *,
    host: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    max_message_size: int,
) -> AsyncIterator[WebSocket]:
    """Make a WebSocket of a stream that has just been connected; the end of the block closes the stream.

    Args:
        stream: Any Trio stream.
        host: What the `Host` header says.
        target: Path of the URL, with its query.
        headers: More headers for the handshake.
        max_message_size: Characters of a text message, bytes of a binary one. A larger one ends the
            connection with code 1009.

    Raises:
        ApiError: The server refused the handshake.
        ConnectionLost: The server hung up, or is not a WebSocket server.
    """
    watched = _WatchedStream(stream)
    try:
        async with background_nursery() as nursery:
            reader = _Reader(nursery)
            connection = None
            async with reader.while_running():
                connection = await trio_websocket.wrap_client_stream(
                    cast(trio.Nursery, reader),
                    cast(trio.SocketStream, watched),
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
                raise reader.failure("the handshake failed")
            yield WebSocket(connection, watched, reader)
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
        lost = ConnectionLost(f"{explanation}: {self.error}" if self.error else explanation)
        lost.__cause__ = self.error
        return lost


class _WatchedStream(trio.abc.Stream):
    """The stream under trio-websocket, and what it does not tell of it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._in_handshake = True
        self._changed: trio.Event | None = None
        self.quiet_since: float | None = None
        self.last_received = time.time()

    async def changed(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _set_quiet_since(self, when: float | None) -> None:
        self.quiet_since = when
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(SEND_TIMEOUT) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the server has read nothing for {SEND_TIMEOUT} s")

    async def wait_send_all_might_not_block(
        self,
    ) -> None:  # pragma: no cover  part of the interface, not called
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._in_handshake:
            self._in_handshake = False
            return await self._receive_answer()
        self._set_quiet_since(trio.current_time())
        data = await self._stream.receive_some(max_bytes)
        self._set_quiet_since(None)
        self.last_received = time.time()
        return data

    async def aclose(self) -> None:
        """Nothing: whoever made the stream closes it."""

    async def _receive_answer(self) -> bytes:
        """The bytes with which the server accepts the handshake, and what came with them.

        Raises:
            ApiError: it refuses.
            ConnectionLost: it does neither.
        """
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HANDSHAKE_BYTES)
        # What is really sent is trio-websocket's request: h11 must only know that an upgrade was asked for.
        upgrade = [("host", ""), ("connection", "upgrade"), ("upgrade", "websocket")]
        http.send(h11.Request(method="GET", target="/", headers=upgrade))
        received = bytearray()
        refusal: h11.Response | None = None
        body = bytearray()
        deadline = trio.CancelScope()
        with deadline:
            while len(body) < MAX_HANDSHAKE_BYTES:
                try:
                    event = http.next_event()
                except h11.RemoteProtocolError as exc:
                    raise ConnectionLost(f"not a WebSocket server: {exc}") from None
                if event is h11.NEED_DATA:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                    if not data and refusal is None:
                        raise ConnectionLost("the server hung up during the handshake")
                    self.last_received = time.time()
                    http.receive_data(bytes(data))
                    received += data
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        return bytes(received)
                elif isinstance(event, h11.Response):
                    refusal = event
                    deadline.deadline = trio.current_time() + BODY_TIMEOUT
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
        assert refusal is not None  # h11 gives the rest of an answer after its head only
        raise _refused(refusal, bytes(body[:MAX_HANDSHAKE_BYTES]))


def _refused(response: h11.Response, body: bytes) -> AgentMailError:
    status = response.status_code
    if status < 300:
        return ConnectionLost(f"not a WebSocket server: it answered with HTTP status {status}")
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status, ApiError)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return error(status, headers, body.decode(errors="replace"))
