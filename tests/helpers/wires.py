"""What tests put into the streams under a connection to a `FakeAgentMail`.

Both of its sides send each frame by one `send_all`, so that whoever looks there sees frames.
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
    """Of a frame that is no fragment; None: it is one, or a part of a handshake, which is ASCII."""
    return data[0] & 0x0F if data[0] & 0x80 else None


async def do_nothing(data: bytes) -> None:
    pass


def tap_client(
    fake: FakeAgentMail, *, before: Hook = do_nothing, after: Hook = do_nothing, pair: Pair = memory_stream_pair
) -> None:
    """Have `before` and `after` called for all that clients of the fake send on connections to come.

    Args:
        after: When the stream has taken it: one without a buffer does when the server has.
        pair: The streams.
    """

    def tapped() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        client_end, server_end = pair()
        return Tap(client_end, before, after), server_end

    fake._stream_pair = tapped


def tap_server(fake: FakeAgentMail, *, after: Hook, pair: Pair = memory_stream_pair) -> None:
    """The same for what the fake sends."""

    def tapped() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        client_end, server_end = pair()
        return client_end, Tap(server_end, do_nothing, after)

    fake._stream_pair = tapped


class Tap(trio.abc.Stream):
    """A stream that tells of what is sent on it, and is in all else the one below."""

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
