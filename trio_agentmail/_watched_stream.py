"""A stream that tells when bytes come, and whether anybody is reading."""

import time
from collections.abc import Callable
from contextlib import suppress

import trio
import trio.abc

__all__ = ["WatchedStream"]

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
        read_at: When bytes were asked for last, on Trio's clock: all that came before has been handed over.
    """

    def __init__(self, stream: trio.abc.Stream, now: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._now = now
        self._changed: trio.Event | None = None
        self._mute = False
        self.quiet_since: float | None = None
        self.last_received = now()
        self.last_heard = self.read_at = trio.current_time()

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
        self.read_at = trio.current_time()
        self._set_quiet_since(self.read_at)
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            self._set_quiet_since(None)
        if data:
            self.last_received = self._now()
            self.last_heard = trio.current_time()
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
