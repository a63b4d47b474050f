"""A WebSocket client over any Trio stream.

The client has no task of its own. `receive` reads the stream, and also answers the server's pings and its close frame.
While no task is in `receive` or `close`, nothing is read. `_frames` parses incoming frames, and wsproto makes outgoing
ones.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio
import trio.abc
from wsproto.frame_protocol import CloseReason, FrameProtocol

from ._frames import Close, Failure, Ping, Pong, Received, Receiver
from ._handshake import shake_hands
from ._watched_stream import WatchedStream
from ._why import waiting_for
from .errors import ConnectionLostError

__all__ = ["ClientWebSocket", "client_websocket", "close_at_once"]

RECEIVE_BYTES = 2**18
"""Maximum size of one read, in bytes."""

MAX_WITHOUT_CHECKPOINT = 1_000
"""Maximum number of messages returned without a checkpoint. One read may contain 130,000 empty messages."""

PING_SIZE = 8
"""The size of a ping's payload, in bytes. The payload is the ping's number."""


class ClientWebSocket:
    """An open WebSocket, made by `client_websocket`. It implements `WebSocket`.

    Args:
        stream: The stream to the server.
        watched: The stream on the network: `stream` itself, or the one below TLS.
        max_message_size: Characters of a text message, bytes of a binary one.
        already_received: Bytes that arrived together with the response to the handshake.
    """

    def __init__(
        self, stream: trio.abc.Stream, watched: WatchedStream, max_message_size: int, already_received: bytes
    ) -> None:
        self._stream = stream
        self._out = FrameProtocol(client=True, extensions=[])
        self._receiver = Receiver(max_message_size)
        self._received: deque[Received] = deque(self._receiver.receive(already_received))
        self._returned = 0
        """The number of messages returned since the last read or checkpoint."""
        self._being_read: trio.Event | None = None
        self._sending = trio.Lock()
        self._pings = 0
        self._pings_answered = 0
        self._waiting_for_pongs: dict[int, trio.Event] = {}
        self._closing = False
        self._receiving_stopped = False
        self._end: tuple[str, int] | None = None
        """Why the connection has ended, and the close code."""
        self._watched = watched

    @property
    def silent_since(self) -> float | None:
        """See `WatchedStream`."""
        return self._watched.silent_since

    @property
    def last_received(self) -> float:
        """See `WatchedStream`."""
        return self._watched.last_received

    @property
    def last_heard(self) -> float:
        """See `WatchedStream`."""
        return self._watched.last_heard

    @property
    def read_until(self) -> float:
        """See `WatchedStream`. Unless the consumer is behind, all messages that have been read have been returned."""
        return self._watched.read_until

    async def send(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        self._check_open()
        await self._send(self._out.send_data(text))

    async def receive(self) -> bytes:
        """Return the next message. A text message is returned as valid UTF-8.

        This is a checkpoint only if it reads the stream or answers the server, and once every `MAX_WITHOUT_CHECKPOINT`
        messages of one read.

        Raises:
            ConnectionLostError: The connection has ended, and all messages before its end have been returned.
        """
        while True:
            if self._received:
                if self._returned == MAX_WITHOUT_CHECKPOINT:
                    self._returned = 0
                    await trio.lowlevel.checkpoint()
                    continue
                item = self._received.popleft()
                if isinstance(item, bytes):
                    self._returned += 1
                    return item
                await self._handle(item)
            else:
                self._check_end()
                await self._read()

    async def ping(self) -> None:
        """Send a ping, and wait until `receive` processes its pong.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        self._check_open()
        self._pings += 1
        number = self._pings
        changed = self._waiting_for_pongs[number] = trio.Event()
        try:
            await self._send_whole(self._out.ping(number.to_bytes(PING_SIZE)))
            await changed.wait()
        finally:
            del self._waiting_for_pongs[number]
        if number > self._pings_answered:
            self._check_end()

    def stop_receiving(self) -> None:
        """Discard messages that are read from now on. Messages that were read earlier can still be received."""
        self._receiving_stopped = True

    async def close(self) -> None:
        """Close with code 1000, and wait for the server's close frame. The caller sets a timeout.

        Messages that still arrive are discarded. Unless `stop_receiving` was called, messages that have been read are
        discarded as well, and no other task should call `receive`.
        """
        if self._end is None:
            await self._send_close(1000)
        if self._receiving_stopped:
            while self._end is None and not any(isinstance(item, Close | Failure) for item in self._received):
                await self._read()
            return
        with suppress(ConnectionLostError):
            while True:
                await self.receive()

    async def _read(self) -> None:
        """Read once. If another task is reading, wait for its read instead."""
        if self._being_read is not None:
            await self._being_read.wait()
            return
        self._being_read = trio.Event()
        try:
            data = await self._stream.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._being_read.set()
            self._being_read = None
        self._returned = 0
        if data:
            received = self._receiver.receive(bytes(data))
            if self._receiving_stopped:
                received = [item for item in received if isinstance(item, Close | Failure)]
            self._received.extend(received)
        else:
            self._end_with("the connection was cut without a close frame", 1006)

    async def _handle(self, item: Ping | Pong | Close | Failure) -> None:
        match item:
            case Ping(payload):
                if not self._closing:
                    await self._send_whole(self._out.pong(payload))
            case Pong(payload):
                if len(payload) == PING_SIZE:
                    self._take_pong(int.from_bytes(payload))
            case _:
                self._end_with(f"the WebSocket was closed: {item.reason or _name(item.code)}", item.code)
                await self._send_close(item.code)

    def _take_pong(self, number: int) -> None:
        """Mark the ping with this number, if it was sent, and all earlier ones as answered (RFC 6455, 5.5.3)."""
        if number <= self._pings:
            self._pings_answered = max(number, self._pings_answered)
            for sent, changed in self._waiting_for_pongs.items():
                if sent <= number:
                    changed.set()

    async def _send_close(self, code: int) -> None:
        if not self._closing:
            self._closing = True
            await self._send(self._out.close(code))

    async def _send_whole(self, data: bytes | bytearray) -> None:
        # The tasks that ping and receive may be cancelled, and a close frame must still follow. It could not follow
        # half a frame. If the server does not read the frame, closing the stream ends the wait.
        with trio.CancelScope(shield=True):
            await self._send(data)

    async def _send(self, data: bytes | bytearray) -> None:
        # An error is ignored here: receive() reports the end of the connection, after all messages before it.
        async with self._sending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(data)

    def _end_with(self, reason: str, code: int) -> None:
        self._end = reason, code
        for changed in self._waiting_for_pongs.values():
            changed.set()

    def _check_open(self) -> None:
        self._check_end()
        if self._closing:
            raise ConnectionLostError("the WebSocket is being closed")

    def _check_end(self) -> None:
        if self._end is not None:
            raise ConnectionLostError(*self._end)


@asynccontextmanager
async def client_websocket(
    stream: trio.abc.Stream,
    *,
    host: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    max_message_size: int,
    watched: WatchedStream | None = None,
    now: Callable[[], float] = time.time,
    server: str = "the server",
) -> AsyncIterator[ClientWebSocket]:
    """Open a WebSocket over a stream. The end of the block closes the stream without a close frame.

    Args:
        stream: Any connected Trio stream.
        host: The `Host` header.
        target: The path of the URL, with its query.
        headers: Additional headers of the handshake.
        max_message_size: Characters of a text message, bytes of a binary one. A larger message ends the connection
            with code 1009.
        watched: The stream on the network, below `stream`. By default, `stream` is wrapped in a `WatchedStream`.
        now: Returns the time of day, for that `WatchedStream`.
        server: The server's name in errors.

    Raises:
        ApiError: The server refused the handshake.
        ConnectionLostError: The server closed the connection, or is not a WebSocket server.
    """
    if watched is None:
        stream = watched = WatchedStream(stream, now)
    try:
        with waiting_for(f"waiting for {server} to answer the handshake"):
            already_received = await shake_hands(stream, host, target, headers, server)
        yield ClientWebSocket(stream, watched, max_message_size, already_received)
    finally:
        await close_at_once(stream)


async def close_at_once(stream: trio.abc.Stream) -> None:
    """Close a stream at once. The shield prevents a `Cancelled` from replacing the present exception."""
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


def _name(code: int) -> str:
    try:
        return CloseReason(code).name
    except ValueError:
        return "no reason given"
