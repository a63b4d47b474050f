"""A stream that intercepts the pongs of trio-websocket, to record pings and delay pongs."""

from collections.abc import Awaitable, Callable

import trio

__all__ = ["PongStream"]

PONG = b"\x8a"
"""The first byte of a pong."""


class PongStream(trio.abc.Stream):
    """The stream below trio-websocket. It passes pongs to a function instead of the stream.

    trio-websocket answers pings itself, and has no hook for them. However, it sends each frame with a single
    `send_all`, and the task that reads sends the pong before it reads again. So this stream sees each pong, and the
    time of the last read is the time of the ping. The function delays pongs in another task: trio-websocket holds a
    lock during `send_all`, so a delay here would delay all events.

    Args:
        pong: Called with each pong and the arrival time of its ping, by Trio's clock. It sends the pong, now or later.
        is_websocket: Returns whether the handshake is complete. Before that, the body of a rejection may begin with any
            byte.
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
