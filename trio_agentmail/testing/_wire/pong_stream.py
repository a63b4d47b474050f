"""Take the pongs out of what trio-websocket sends."""

from collections.abc import Awaitable, Callable

import trio

__all__ = ["PongStream"]

PONG = b"\x8a"
"""The first byte of a pong."""


class PongStream(trio.abc.Stream):
    """The stream below trio-websocket. Pongs go to a function instead of the stream.

    trio-websocket answers pings by itself and tells nobody. But it answers in the task that reads, before that task
    reads on, and it sends each frame by one `send_all`, for which it acquires a lock. So this stream sees each pong,
    and knows which read brought the ping. Delaying a pong here would block the lock, and no event could be sent
    meanwhile.

    Args:
        pong: Called with each pong, and with the time at which its ping came, by Trio's clock. It sends the pong, now
            or later.
        is_websocket: Returns whether frames are sent yet. The body of a rejection may begin with any byte.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        pong: Callable[[bytes, float], Awaitable[None]],
        is_websocket: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._pong = pong
        self._is_websocket = is_websocket
        self._last_read = 0.0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if data[:1] == PONG and self._is_websocket():
            await self._pong(bytes(data), self._last_read)
        else:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  required of a Stream, and not called
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._last_read = trio.current_time()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
