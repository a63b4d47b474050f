"""What tests put into the streams under a connection to a `FakeAgentMail`."""

from collections.abc import Awaitable, Callable

import trio

__all__ = ["PONG", "TEXT", "Hook", "Wire"]

TEXT, PONG = 0x81, 0x8A
"""First bytes of frames. Both sides send each frame by one `send_all`."""

Hook = Callable[[bytes], Awaitable[None]]


async def do_nothing(data: bytes) -> None:
    pass


class Wire(trio.abc.Stream):
    """An end of a connection.

    Args:
        before: Called with what is to be sent, before that is sent.
        after: Called with what was sent, when `stream` has taken it.
    """

    def __init__(self, stream: trio.abc.Stream, *, before: Hook = do_nothing, after: Hook = do_nothing) -> None:
        self._stream = stream
        self._before = before
        self._after = after

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._before(bytes(data))
        await self._stream.send_all(data)
        await self._after(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
