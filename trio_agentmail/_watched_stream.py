"""A stream that tells when bytes come, and whether anybody is reading."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

import trio
import trio.abc

__all__ = ["WatchedStream"]

QUIET = 1.0
"""Seconds. When a read has waited for so long, all that the server had to send has come. When nobody has read for so
long, the server may have had to wait."""

CAUGHT_UP_AFTER = 60.0
"""Seconds without a sign of a backlog, after which there is none, though bytes come all the time."""

LARGE_READ = 2**16
"""Bytes: a read that gets as many may have left some."""

SEND_TIMEOUT = 5.0
"""Seconds that a frame of ours may take to leave: they are a few bytes, so the server has stopped reading."""


class WatchedStream(trio.abc.Stream):
    """Stands right on the network, below TLS: any byte is a sign of life, also one of a record that is not complete.

    Args:
        now: Tells the time of day; see `Backend.now`.

    Attributes:
        quiet_since: Since when a read has been waiting for bytes, on Trio's clock; None while nobody reads.
        last_received: When the last byte came, in seconds since the epoch.
        last_heard: The same, on Trio's clock.
    """

    def __init__(self, stream: trio.abc.Stream, now: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._now = now
        self._changed: trio.Event | None = None
        self._mute = False
        self.quiet_since: float | None = None
        self.last_received = now()
        self.last_heard = trio.current_time()
        self._returned_at = self._read_until = self.last_heard
        """When the last read returned, and before when all that the server sent is known to have been handed over."""
        self._behind_at = -math.inf
        """When there was a backlog last."""

    def read_until(self) -> float:
        """A time on Trio's clock: all that the server sent before it has been handed over.

        It is on the safe side. While nobody reads, bytes wait here, and then at the server, so old ones may still come
        when a read has found nothing for a moment.
        """
        now = trio.current_time()
        if self.quiet_since is not None and now - self.quiet_since >= QUIET:
            return now
        return self._read_until

    async def changed(self) -> None:
        """Wait until `quiet_since` changes."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _set_quiet_since(self, when: float | None) -> None:
        self.quiet_since = when
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        asked_at = trio.current_time()
        if asked_at - self._returned_at >= QUIET:
            self._behind_at = asked_at
        elif asked_at - self._behind_at >= CAUGHT_UP_AFTER:
            self._read_until = self._returned_at
        self._set_quiet_since(asked_at)
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            self._set_quiet_since(None)
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
        """Send, as long as the server takes it; what it no longer takes is dropped.

        That the connection has ended is told by reading, after all that came before the end. A pong that can no
        longer be sent must not come before that: whoever sends it would give up with events still to be read.
        """
        if self._mute:
            await trio.lowlevel.checkpoint()
            return
        self._mute = True
        with suppress(trio.BrokenResourceError), trio.move_on_after(SEND_TIMEOUT):
            await self._stream.send_all(data)
            self._mute = False

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  a Stream has it, nobody calls it
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
