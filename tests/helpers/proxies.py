"""An HTTP proxy on a real socket.

It leads names that cannot be resolved to servers on this machine. So a request that arrives went through the proxy. It
can also misbehave.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import h11
import trio
import trustme

from tests.helpers.servers import HungUp, Peer, Server, serve
from trio_agentmail import AgentMailEnvironment

WS, API = "ws.agentmail.example", "api.agentmail.example"

PLAIN = AgentMailEnvironment(http=f"http://{API}", websockets=f"ws://{WS}", insecure=True)
ENCRYPTED = AgentMailEnvironment(http=f"https://{API}", websockets=f"wss://{WS}")

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

Answer = Callable[[Peer], Awaitable[bool]]
"""What a proxy does after it has read a request. Returns whether the proxy then makes the connection as well."""


@attrs.define
class ConnectProxy:
    """A running proxy, as a test sees it."""

    server: Server
    leads_to: dict[str, int]
    """Requested hosts and ports, and the ports of this machine to which they lead."""
    answer: Answer
    asked: list[str] = attrs.field(factory=list)
    """The requested targets: `host:port`, or a URL."""
    authorizations: list[str] = attrs.field(factory=list)
    """The `Proxy-Authorization` headers of the requests."""

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def url(self, credentials: str = "", scheme: str = "http") -> str:
        return f"{scheme}://{credentials}{'@' if credentials else ''}{self.name}"


async def established(peer: Peer) -> bool:
    await peer.send(ESTABLISHED)
    return True


@asynccontextmanager
async def connect_proxy(
    leads_to: dict[str, int], answer: Answer = established, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectProxy]:
    """
    Args:
        tls: Speak TLS to clients, with this server's context.
    """

    async def handle(peer: Peer) -> None:
        if tls is not None:
            await peer.start_tls(tls)
        request = await read_head(peer)
        target = request.target.decode()
        proxy.asked.append(target)
        proxy.authorizations += [
            value.decode() for name, value in request.headers if name.lower() == b"proxy-authorization"
        ]
        if await proxy.answer(peer):
            async with await trio.open_tcp_stream("127.0.0.1", proxy.leads_to[target]) as onward:
                await relay(peer.stream, onward)

    async with serve(handle) as server:
        proxy = ConnectProxy(server, leads_to, answer)
        yield proxy


async def read_head(peer: Peer) -> h11.Request:
    http = h11.Connection(h11.SERVER)
    while not isinstance(event := http.next_event(), h11.Request):
        if event is not h11.NEED_DATA:
            raise HungUp
        http.receive_data(bytes(await peer.stream.receive_some()))
    return event


async def relay(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
    """Copy bytes until one of the streams ends."""

    async def forward(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await sink.send_all(data)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(forward, one, other))
        nursery.start_soon(partial(forward, other, one))


class Certificates:
    """The certificates of AgentMail's hosts and of proxies on this machine, and a client that trusts them."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.servers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate = authority.issue_cert(WS, API, "127.0.0.1", "0.0.0.0")
        self.certificate.configure_cert(self.servers)
