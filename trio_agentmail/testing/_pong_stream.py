"""Pongs, told apart from all else that the server says."""

from collections.abc import Awaitable, Callable

import trio

__all__ = ["PongStream"]

PONG = b"\x8a"
"""How a pong begins."""


class PongStream(trio.abc.Stream):
    """The stream below trio-websocket, from which its pongs go another way.

    trio-websocket answers pings by itself, and tells nobody. But it answers in the task that reads, before that reads
    on; and it sends each frame by one `send_all`, for which it holds a lock. So a pong is seen here, and which read
    brought its ping; and whoever is to wait with it must not do that here, or no event could be sent meanwhile.

    Args:
        pong: Takes each pong, with when its ping came by Trio's clock, and sends it or sees to that.
        is_websocket: Whether there are frames yet: the body of a refusal may have any bytes.
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

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  a Stream has it, nobody calls it
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._last_read = trio.current_time()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
