"""Taps on the streams below a connection to a `FakeAgentMail`.

Both sides send each frame by one `send_all`, so a tap sees whole frames.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from trio.testing import memory_stream_pair

from trio_agentmail.testing import FakeAgentMail

__all__ = ["Pair", "Tap", "opcode", "tap_client", "tap_server"]

Hook: TypeAlias = Callable[[bytes], Awaitable[None]]

Pair: TypeAlias = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]


def opcode(data: bytes) -> int | None:
    """Return the opcode of an unfragmented frame; None for a fragment, and for a handshake, which is ASCII."""
    return data[0] & 0x0F if data[0] & 0x80 else None


async def do_nothing(data: bytes) -> None:
    pass


def tap_client(
    fake: FakeAgentMail, *, before: Hook = do_nothing, after: Hook = do_nothing, pair: Pair = memory_stream_pair
) -> None:
    """Call `before` and `after` for each frame that clients of the fake send on later connections.

    Args:
        fake: The fake.
        before: Called with a frame before it is sent.
        after: Called with a frame when the stream has taken it. A stream without a buffer takes it with the server.
        pair: Returns the two ends of a stream.
    """

    def tapped() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        client_end, server_end = pair()
        return Tap(client_end, before, after), server_end

    fake._websockets.stream_pair = tapped


def tap_server(fake: FakeAgentMail, *, after: Hook, pair: Pair = memory_stream_pair) -> None:
    """Call `after` for each frame that the fake sends on later connections."""

    def tapped() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        client_end, server_end = pair()
        return client_end, Tap(server_end, do_nothing, after)

    fake._websockets.stream_pair = tapped


class Tap(trio.abc.Stream):
    """A stream that reports what is sent on it, and otherwise is the stream below."""

    def __init__(self, stream: trio.abc.Stream, before: Hook = do_nothing, after: Hook = do_nothing) -> None:
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
