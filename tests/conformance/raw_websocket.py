"""A WebSocket client that shows every frame, including pings and pongs."""

import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.uri import parse_uri

__all__ = ["RawWebSocket", "open_raw_websocket"]


class RawWebSocket:
    """A client on the sans-I/O protocol of websockets, which answers pings and close frames."""

    def __init__(self, stream: trio.abc.Stream, protocol: ClientProtocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._events: Iterator[Any] = iter(())

    async def send(self, message: Any) -> None:
        self._protocol.send_text(json.dumps(message).encode())
        await self.flush()

    async def receive(self) -> Frame | Response | None:
        """Return the next frame or the answer to the handshake, or `None` when the connection has ended."""
        while True:
            for event in self._events:
                assert isinstance(event, Frame | Response)
                return event
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._protocol.receive_data(bytes(data))
            await self.flush()
            self._events = iter(self._protocol.events_received())

    async def flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._stream.send_all(data)


@asynccontextmanager
async def open_raw_websocket(url: str, key: str) -> AsyncIterator[tuple[RawWebSocket, Response]]:
    """Open a connection, and yield it with the answer to the handshake."""
    uri = parse_uri(url)
    if uri.secure:
        stream: trio.abc.Stream = await trio.open_ssl_over_tcp_stream(
            uri.host, uri.port, ssl_context=ssl.create_default_context(), https_compatible=True
        )
    else:
        stream = await trio.open_tcp_stream(uri.host, uri.port)
    async with stream:
        protocol = ClientProtocol(uri)
        request = protocol.connect()
        request.headers["Authorization"] = f"Bearer {key}"
        protocol.send_request(request)
        websocket = RawWebSocket(stream, protocol)
        await websocket.flush()
        response = await websocket.receive()
        assert isinstance(response, Response)
        yield websocket, response
