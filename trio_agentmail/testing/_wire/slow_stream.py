"""A stream that simulates a slow network."""

from collections.abc import Callable

import trio

__all__ = ["SlowStream"]

STEP = 0.1
"""Seconds between two portions of data."""


class SlowStream(trio.abc.Stream):
    """A stream that limits its sending rate. Several tasks may call `send_all` at the same time, and take turns.

    Args:
        bytes_per_second: Called before each portion. Returns the rate, or `None` for no limit.
    """

    def __init__(self, stream: trio.abc.Stream, bytes_per_second: Callable[[], float | None]) -> None:
        self._stream = stream
        self._bytes_per_second = bytes_per_second
        self._sending = trio.StrictFIFOLock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._sending.acquire_nowait()  # without the checkpoint of acquire()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._trickle(memoryview(data))
        finally:
            self._sending.release()

    async def _trickle(self, data: memoryview) -> None:
        while len(data) and (rate := self._bytes_per_second()) is not None:
            portion = max(1, int(rate * STEP))
            await trio.sleep(min(portion, len(data)) / rate)
            await self._stream.send_all(data[:portion])
            data = data[portion:]
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
