"""A WebSocket server that sends exactly the bytes that the test chooses, and a client connected to it."""

import base64
import functools
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import pytest
import trio
import trustme
from trio.testing import lockstep_stream_pair, memory_stream_pair

from trio_agentmail._network import start_tls
from trio_agentmail._nursery import background_nursery
from trio_agentmail._watched_stream import WatchedStream
from trio_agentmail._websocket import ClientWebSocket, client_websocket
from trio_agentmail.errors import ConnectionLostError

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

Talk: TypeAlias = Callable[["Server"], Awaitable[None]]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    if len(payload) < 126:
        length = bytes([len(payload)])
    elif len(payload) < 2**16:
        length = b"\x7e" + len(payload).to_bytes(2)
    else:
        length = b"\x7f" + len(payload).to_bytes(8)
    return bytes([opcode | (0x80 if fin else 0)]) + length + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason.encode())


class Server:
    """The server's end of a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.request = b""
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_request(self) -> bytes:
        """Read the handshake and return the answer that accepts it."""
        while b"\r\n\r\n" not in self.request:
            self.request += await self.stream.receive_some()
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", self.request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    async def accept(self) -> None:
        await self.send(await self.read_request())

    async def receive_frame(self) -> tuple[int, bytes]:
        """Return the client's next frame, unmasked. All of them are short here."""
        head = await self._receive_exactly(6)
        assert head[1] & 0x80, "a client masks its frames"
        payload = await self._receive_exactly(head[1] & 0x7F)
        return head[0] & 0x0F, bytes(byte ^ head[2 + i % 4] for i, byte in enumerate(payload))

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Return the client's frames until it hangs up."""
        while True:
            if not self._received:
                self._received += await self.stream.receive_some()
            if not self._received:
                return
            yield await self.receive_frame()

    async def _receive_exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            data = await self.stream.receive_some()
            assert data, "the client hung up"
            self._received += data
        data, self._received = self._received[:size], self._received[size:]
        return bytes(data)


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a client and of a server that it trusts."""
    authority = trustme.CA()
    client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("ws.example").configure_cert(server)
    return client, server


@asynccontextmanager
async def connected_to(
    talk: Talk, *, max_message_size: int = 1000, lockstep: bool = False, tls: bool = False
) -> AsyncIterator[ClientWebSocket]:
    """A WebSocket to a server that runs `talk`. The server leaves its end of the stream open if `talk` does.

    At the end of the block, the client must have closed its own end.
    """
    client_end, server_end = lockstep_stream_pair() if lockstep else memory_stream_pair()
    client_stream: trio.abc.Stream = client_end
    server_stream: trio.abc.Stream = server_end
    watched: WatchedStream | None = None
    if tls:
        client_context, server_context = tls_contexts()
        server_stream = trio.SSLStream(server_end, server_context, server_side=True, https_compatible=True)
    # On the mock clock, a test that hangs would hang for ever.
    with trio.fail_after(1000):
        async with background_nursery() as nursery:
            nursery.start_soon(talk, Server(server_stream))
            try:
                if tls:
                    watched = WatchedStream(client_end)
                    client_stream = await start_tls(watched, client_context, "ws.example", "ws.example port 443")
                async with client_websocket(
                    client_stream,
                    host="ws.example",
                    target="/v0",
                    headers=[("Authorization", "Bearer am_key")],
                    max_message_size=max_message_size,
                    watched=watched,
                ) as websocket:
                    yield websocket
            finally:
                with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                    await client_end.send_all(b"is it closed?")


async def receive_until_cancelled(websocket: ClientWebSocket, scope: trio.CancelScope) -> None:
    with scope:
        await websocket.receive()


async def receive_until_lost(websocket: ClientWebSocket) -> None:
    with suppress(ConnectionLostError):
        while True:
            await websocket.receive()
