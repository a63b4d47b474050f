"""Servers on real sockets: good ones, bad ones, and a proxy that drops what it receives.

`websockets_server` is a well-behaved server that is not ours. `serve` is plain TCP, and hands each connection to a
function as a `Peer`, which can do what no server should: place frames by hand, stop in the middle of one, or cut the
connection in any way that a network can. Both allow the block under them `PATIENCE` seconds.
"""

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.trio.server import Server as WebsocketsServer
from websockets.trio.server import ServerConnection
from websockets.trio.server import serve as websockets_serve

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import (
    AgentMailEnvironment,
    Disconnected,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Subscribed,
)
from trio_agentmail._network import NetworkBackend
from trio_agentmail._nursery import background_nursery
from trio_agentmail._proxy import proxies_for, proxy_from_url

PATIENCE = 15.0
"""Seconds that the block under a server may last. The time-outs of a test that must end sooner than one of them are
set to `NEVER`, so that no test measures tight times."""

NEVER = 60.0
"""Seconds: longer than any test may last."""

KEY = "am_test_key"
SUBSCRIBED = '{"type": "subscribed"}'

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
CLOSE, PING, PONG = Opcode.CLOSE, Opcode.PING, Opcode.PONG


def environment(port: int, *, host: str = "127.0.0.1", scheme: str = "ws") -> AgentMailEnvironment:
    return AgentMailEnvironment(http="https://api.invalid", websockets=f"{scheme}://{host}:{port}", insecure=True)


@attrs.define
class Server:
    """A running server, as a test sees it."""

    port: int
    connections: int = 0
    """The number of accepted connections, good or bad."""
    subscriptions: list[Any] = attrs.field(factory=list)
    _goodbyes: Any = attrs.field(factory=lambda: trio.open_memory_channel[int](1000))

    @property
    def environment(self) -> AgentMailEnvironment:
        return environment(self.port)

    @property
    def tls_environment(self) -> AgentMailEnvironment:
        return environment(self.port, scheme="wss")

    def note_goodbye(self, code: int | None) -> None:
        self._goodbyes[0].send_nowait(code)

    async def goodbye(self) -> int:
        """Return the close code of the next connection that ended, as the server saw it; 1006 without a close frame."""
        code: int = await self._goodbyes[1].receive()
        return code


def open_stream(
    server: Server | AgentMailEnvironment, **settings: Any
) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
    """Open a stream from a server. It reconnects within hundredths of a second."""
    defaults: dict[str, Any] = {
        "api_key": KEY,
        "environment": server.environment if isinstance(server, Server) else server,
        "reconnect": ReconnectPolicy(initial_delay=0.01, max_delay=0.05),
    }
    return open_agentmail_stream(**(defaults | settings))


async def failure_of_one_attempt(
    where: AgentMailEnvironment, *, proxy: str | None = None, ssl_context: ssl.SSLContext | None = None
) -> Exception:
    """Return why opening the WebSocket fails, below the stream, which would try again. No timing decides the result."""
    given = None if proxy is None else proxy_from_url(proxy, "proxy")
    with pytest.raises(Exception) as caught:
        async with NetworkBackend(proxies_for(where, given)).open_websocket(
            f"{where.websockets}/v0",
            headers=[("Authorization", f"Bearer {KEY}")],
            max_message_size=1000,
            ssl_context=ssl_context,
        ):
            pytest.fail("opened")
    return caught.value


def mail(message_id: str, **more: Any) -> str:
    """Return the text of a frame for a received mail."""
    message = {"inbox_id": "agent@agentmail.to", "message_id": message_id, **more}
    return json.dumps({"type": "event", "event_type": "message.received", "message": message}, ensure_ascii=False)


def word(event: Event) -> str:
    """Return an event as a word. A mail is its message_id."""
    match event:
        case MessageReceivedEvent():
            return event.message.message_id
        case Subscribed():
            return "subscribed"
        case Disconnected():
            return f"disconnected {event.code}"
    return type(event).__name__


async def story(events: trio.MemoryReceiveChannel[Event], length: int) -> list[str]:
    """Return the next events, each as a word."""
    return [word(await events.receive()) for _ in range(length)]


def frame(
    opcode: int, payload: bytes | str = b"", *, fin: bool = True, reserved: int = 0, masked: bool = False
) -> bytes:
    """Return the bytes of a frame as a server sends it, valid or not."""
    if isinstance(payload, str):
        payload = payload.encode()
    size = len(payload)
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 2**16:
        head += struct.pack("!BH", mask_bit | 126, size)
    else:
        head += struct.pack("!BQ", mask_bit | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


class HungUp(Exception):
    """The client hung up, or was cut."""


class Peer:
    """The server's end of one connection.

    Args:
        number: 1 for the server's first connection.
    """

    def __init__(self, stream: trio.SocketStream, number: int, server: Server) -> None:
        self.stream: trio.abc.Stream = stream
        self.socket = stream.socket
        self.number = number
        self.server = server
        self._protocol = ServerProtocol()
        self._received: list[Frame] = []

    async def start_tls(self, context: ssl.SSLContext) -> None:
        tls = trio.SSLStream(self.stream, context, server_side=True, https_compatible=True)
        await tls.do_handshake()
        self.stream = tls

    # The handshake

    async def read_request(self) -> Request:
        while not (requests := self._protocol.events_received()):
            await self._read()
        [request] = requests
        assert isinstance(request, Request)
        return request

    def acceptance(self, request: Request) -> bytes:
        """Return the answer that accepts the handshake."""
        self._protocol.send_response(self._protocol.accept(request))
        return b"".join(self._protocol.data_to_send())

    async def accept(self) -> None:
        await self.send(self.acceptance(await self.read_request()))

    async def confirm(self) -> None:
        """Accept the handshake, wait for the subscription and confirm it."""
        await self.accept()
        await self.read_subscription()
        await self.send(frame(TEXT, SUBSCRIBED))

    async def read_subscription(self) -> None:
        self.server.subscriptions.append(json.loads(bytes((await self.receive()).data)))

    # Frames

    async def send(self, *data: bytes) -> None:
        """Send bytes: of one frame, of several, of part of one, or of none at all."""
        await self.stream.send_all(b"".join(data))

    async def push(self, *message_ids: str) -> None:
        """Send mails, in one packet."""
        await self.send(*(frame(TEXT, mail(message_id)) for message_id in message_ids))

    async def receive(self) -> Frame:
        """Return the next frame of the client, of any kind."""
        while not self._received:
            await self._read()
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                self._received.append(event)
        return self._received.pop(0)

    async def stay(self) -> None:
        """Behave well until the client closes or hangs up, and note its close code."""
        code = 1006
        with suppress(HungUp, trio.BrokenResourceError):
            while True:
                received = await self.receive()
                if received.opcode is PING:
                    await self.send(frame(PONG, bytes(received.data)))
                if received.opcode is CLOSE:
                    code = Close.parse(received.data).code
                    await self.send(frame(CLOSE, bytes(received.data)))
                    break
        self.server.note_goodbye(code)

    async def wait_for_hang_up(self) -> None:
        """Answer nothing more."""
        with suppress(trio.BrokenResourceError):
            while await self.stream.receive_some():
                pass

    async def _read(self) -> None:
        data = await self.stream.receive_some(2**16)
        if not data:
            raise HungUp
        self._protocol.receive_data(data)

    # The end

    def reset(self) -> None:
        """Cut the connection with an RST, as a crashed host or a firewall does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def hang_up(self) -> None:
        """End the TCP connection in an orderly way, without a close frame or TLS's close_notify."""
        self.socket.shutdown(trio.socket.SHUT_WR)


@asynccontextmanager
async def serve(handle: Callable[[Peer], Awaitable[None]], *, port: int = 0) -> AsyncIterator[Server]:
    """A TCP server. A connection is cut when `handle` returns."""
    with trio.fail_after(PATIENCE):
        async with background_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            server = Server(listeners[0].socket.getsockname()[1])

            async def serve_one(stream: trio.SocketStream) -> None:
                server.connections += 1
                peer = Peer(stream, server.connections, server)
                try:
                    await handle(peer)
                except (HungUp, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the client hung up
                finally:
                    await trio.aclose_forcefully(peer.stream)

            await nursery.start(trio.serve_listeners, serve_one, listeners)
            yield server


@asynccontextmanager
async def websockets_server(
    handle: Callable[[ServerConnection, int], Awaitable[None]], *, port: int = 0, **options: Any
) -> AsyncIterator[Server]:
    """A server of the `websockets` package. It confirms the subscription, and closes when `handle` returns.

    Args:
        handle: Called with the connection and its number, counting from 1.
        options: Options of `websockets.trio.server.serve`.
    """
    bugs: list[Exception] = []

    async def serve_one(websocket: ServerConnection) -> None:
        server.connections += 1
        try:
            with suppress(ConnectionClosed):
                server.subscriptions.append(json.loads(await websocket.recv()))
                await websocket.send(SUBSCRIBED)
                await handle(websocket, server.connections)
            await websocket.aclose()
        except Exception as exc:  # noqa: BLE001  raised below: the websockets package would only log it
            bugs.append(exc)
        finally:
            server.note_goodbye(websocket.close_code)

    with trio.fail_after(PATIENCE):
        async with background_nursery() as nursery:
            defaults: dict[str, Any] = {"host": "127.0.0.1", "ping_interval": None, "close_timeout": 1.0}
            running: WebsocketsServer = await nursery.start(
                partial(websockets_serve, serve_one, port, **(defaults | options))
            )
            server = Server(running.listeners[0].socket.getsockname()[1])
            async with running:
                yield server
    if bugs:
        raise bugs[0]


async def stay(websocket: ServerConnection) -> None:
    """Stay until the client closes. The websockets package answers pings by itself."""
    await websocket.wait_closed()


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port that refuses connections. A server with this `port=` may come and go there."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@attrs.define
class Proxy:
    """A TCP proxy that can simulate a half-open connection: nothing gets through, not even the end of a connection."""

    server: Server
    swallowing: set[int] = attrs.field(factory=set)
    """The numbers of the connections whose bytes it drops."""
    swallowed: trio.Event = attrs.field(factory=trio.Event)
    """Set when it has dropped bytes."""
    pause: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    """Called after each thousand bytes from the server."""


@asynccontextmanager
async def proxy_to(target: Server) -> AsyncIterator[Proxy]:
    async def handle(peer: Peer) -> None:
        async def pass_on(data: bytes | bytearray, target: trio.abc.SendStream) -> None:
            if peer.number in proxy.swallowing:
                proxy.swallowed.set()
            else:
                await target.send_all(data)

        async def forward() -> None:
            with suppress(trio.BrokenResourceError):
                while data := await peer.stream.receive_some():
                    await pass_on(data, onward)
            await end()

        async def forward_back() -> None:
            with suppress(trio.BrokenResourceError):
                while data := await onward.receive_some(1000):
                    await pass_on(data, peer.stream)
                    await proxy.pause()
            await end()

        async def end() -> None:
            if peer.number in proxy.swallowing:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

        async with await trio.open_tcp_stream("127.0.0.1", target.port) as onward:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward)
                nursery.start_soon(forward_back)

    async with serve(handle) as server:
        proxy = Proxy(server)
        yield proxy
