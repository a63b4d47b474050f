"""A stream that records when bytes last arrived, and since when a read has been waiting for bytes."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

import trio
import trio.abc

__all__ = ["WatchedStream"]

QUIET = 1.0
"""Seconds. If a read has waited for so long, everything that the server sent has arrived. If the pause between two
reads was so long, the server may have been unable to send."""

CAUGHT_UP_AFTER = 60.0
"""Seconds without a sign of a backlog, after which it is assumed to be gone although bytes keep arriving."""

LARGE_READ = 2**16
"""Bytes. After a read that returned at least as many, more bytes may be available."""

SEND_TIMEOUT = 5.0
"""Seconds that sending may take. Our frames are short, so a longer wait means that the server has stopped reading."""


class WatchedStream(trio.abc.Stream):
    """A wrapper for the stream that is directly on the network. Below TLS, it notices even part of a TLS record.

    Args:
        stream: The stream to watch.
        now: Returns the time of day; see `Backend.now`.

    Attributes:
        silent_since: When the read that is waiting for bytes began, on Trio's clock; None if none is waiting.
        last_received: When the last byte arrived, in seconds since the epoch.
        last_heard: The same moment, on Trio's clock.
    """

    def __init__(self, stream: trio.abc.Stream, now: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._now = now
        self._has_stopped_sending = False
        self.silent_since: float | None = None
        self.last_received = now()
        self.last_heard = trio.current_time()
        self._returned_at = self._read_until = self.last_heard
        """When the last read returned, and the time before which everything that was sent has certainly been read."""
        self._behind_at = -math.inf
        """When there was last a sign of a backlog."""

    @property
    def read_until(self) -> float:
        """A time on Trio's clock: everything that the server sent before it has been read.

        The result may be too early, but not too late. While nothing reads, bytes wait in the buffers of this machine,
        and then in those of the server. So a read that has to wait briefly does not prove that no old bytes are left.
        """
        now = trio.current_time()
        if self.silent_since is not None and now - self.silent_since >= QUIET:
            return now
        return self._read_until

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        asked_at = trio.current_time()
        if asked_at - self._returned_at >= QUIET:
            self._behind_at = asked_at
        elif asked_at - self._behind_at >= CAUGHT_UP_AFTER:
            self._read_until = self._returned_at
        self.silent_since = asked_at
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            self.silent_since = None
        self._returned_at = trio.current_time()
        if self._returned_at - asked_at >= QUIET:
            self._read_until, self._behind_at = self._returned_at, -math.inf
        elif len(data) >= (max_bytes or LARGE_READ):
            self._behind_at = self._returned_at
        if data:
            self.last_received = self._now()
            self.last_heard = self._returned_at
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data if the server still accepts data; otherwise, discard it.

        The end of a connection is reported by reading, after everything that arrived before it. If sending a pong
        raised, the task that reads would fail while events are still waiting to be read.
        """
        if self._has_stopped_sending:
            await trio.lowlevel.checkpoint()
            return
        self._has_stopped_sending = True
        with suppress(trio.BrokenResourceError), trio.move_on_after(SEND_TIMEOUT):
            await self._stream.send_all(data)
            self._has_stopped_sending = False

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  a Stream has it, nothing calls it
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
