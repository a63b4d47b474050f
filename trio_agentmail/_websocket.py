"""The one place that knows WebSocket: a client over any Trio stream.

It has no task of its own. Whoever receives a message reads the stream, and on the way there answers the server's pings
and its close frame; so while nobody receives, nothing is read. `_frames` takes apart what comes, wsproto makes the
frames that go.
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

__all__ = ["WebSocket", "client_websocket", "close_at_once"]

RECEIVE_BYTES = 2**18
"""The largest read, in bytes."""

WITHOUT_CHECKPOINT = 1_000
"""Messages of one read that are handed over without a checkpoint: it may bring 130,000, if they are empty."""

PING_SIZE = 8
"""Bytes of a ping's payload, which is its number."""


class WebSocket:
    """An open WebSocket. Made by `client_websocket`."""

    def __init__(
        self, stream: trio.abc.Stream, watched: WatchedStream, max_message_size: int, already_received: bytes
    ) -> None:
        self._stream = stream
        self._out = FrameProtocol(client=True, extensions=[])
        self._receiver = Receiver(max_message_size)
        self._received: deque[Received] = deque(self._receiver.receive(already_received))
        self._handed_over = 0
        """Messages since the last checkpoint."""
        self._being_read: trio.Event | None = None
        self._sending = trio.Lock()
        self._pings = 0
        self._pings_answered = 0
        self._waiting_for_pongs: dict[int, trio.Event] = {}
        self._closing = False
        self._keeps_received = False
        self._end: tuple[str, int] | None = None
        """Why there is nothing more to receive, and the close code."""
        self.watched = watched
        """Tells when bytes come, and whether anybody is reading."""

    async def send(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionLostError: the connection has ended.
        """
        self._check_open()
        await self._send(self._out.send_data(text))

    async def receive(self) -> bytes:
        """The next message: of a text its UTF-8, which has been checked.

        There is no checkpoint, unless the stream has to be read, or has brought very many messages at once.

        Raises:
            ConnectionLostError: the connection has ended, and every message before its end has been received.
        """
        while True:
            if self._received:
                if self._handed_over == WITHOUT_CHECKPOINT:
                    self._handed_over = 0
                    await trio.lowlevel.checkpoint()
                    continue
                item = self._received.popleft()
                if isinstance(item, bytes):
                    self._handed_over += 1
                    return item
                await self._handle(item)
            else:
                self._check_end()
                await self._read()

    async def ping(self) -> None:
        """Send a ping, and wait until somebody who receives comes upon its pong.

        Raises:
            ConnectionLostError: the connection has ended.
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
        """Messages that come from now on are thrown away; those that have been read can still be received."""
        self._keeps_received = True

    async def close(self) -> None:
        """Close with code 1000, and wait until the server agrees: the caller says for how long.

        What still comes is thrown away. Unless `stop_receiving` was called, so is what has been read, and nobody
        should receive any more.
        """
        if self._end is None:
            await self._say_goodbye(1000)
        if self._keeps_received:
            while self._end is None and not any(isinstance(item, Close | Failure) for item in self._received):
                await self._read()
            return
        with suppress(ConnectionLostError):
            while True:
                await self.receive()

    async def _read(self) -> None:
        """Read once, or, if somebody else is just reading, wait for that."""
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
        self._handed_over = 0
        if data:
            received = self._receiver.receive(bytes(data))
            if self._keeps_received:
                received = [item for item in received if isinstance(item, Close | Failure)]
            self._received.extend(received)
        else:
            self._ended("the connection was cut without a close frame", 1006)

    async def _handle(self, item: Ping | Pong | Close | Failure) -> None:
        match item:
            case Ping(payload):
                if not self._closing:
                    await self._send_whole(self._out.pong(payload))
            case Pong(payload):
                if len(payload) == PING_SIZE:
                    self._take_pong(int.from_bytes(payload))
            case _:
                self._ended(f"the WebSocket was closed: {item.reason or _name(item.code)}", item.code)
                await self._say_goodbye(item.code)

    def _take_pong(self, number: int) -> None:
        """It answers the ping of this number, if there is one, and all before it (RFC 6455, 5.5.3)."""
        if number <= self._pings:
            self._pings_answered = max(number, self._pings_answered)
            for sent, changed in self._waiting_for_pongs.items():
                if sent <= number:
                    changed.set()

    async def _say_goodbye(self, code: int) -> None:
        if not self._closing:
            self._closing = True
            await self._send(self._out.close(code))

    async def _send_whole(self, data: bytes | bytearray) -> None:
        # Nothing could follow half a frame: who pings and who receives may be cancelled, and a polite close still has
        # to come. A server that does not take it holds up nobody who has the stream closed.
        with trio.CancelScope(shield=True):
            await self._send(data)

    async def _send(self, data: bytes | bytearray) -> None:
        # That the connection has ended is told by receiving, after all that came before its end.
        async with self._sending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(data)

    def _ended(self, reason: str, code: int) -> None:
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
        now: Tells that one the time of day.
        server: What an error calls it.

    Raises:
        ApiError: The server refused the handshake.
        ConnectionLostError: The server hung up, or is not a WebSocket server.
    """
    if watched is None:
        stream = watched = WatchedStream(stream, now)
    try:
        with waiting_for(f"waiting for {server} to answer the handshake"):
            already_received = await shake_hands(stream, host, target, headers, server)
        yield WebSocket(stream, watched, max_message_size, already_received)
    finally:
        await close_at_once(stream)


async def close_at_once(stream: trio.abc.Stream) -> None:
    """Close a stream by force. Shielded, since a Cancelled from here would replace the exception that led here."""
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


def _name(code: int) -> str:
    try:
        return CloseReason(code).name
    except ValueError:
        return "no reason given"
