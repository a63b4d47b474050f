"""The fake on ports of this machine, one for WebSockets and one for the REST API."""

import errno
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import attrs
import h11
import trio

from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.testing._agentmail.refusals import Refusal

from .door import Door, DoorStream, check_hosts
from .http_server import HttpConnection, Refuse, Respond, with_tls
from .tasks import fake_tasks

__all__ = ["Services", "accept_from", "serve_on_ports"]

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@attrs.frozen
class Services:
    """What is served. An exception from one of these functions comes out of `serve_on_ports`.

    Attributes:
        serve_websocket: Serves a client that has connected to the port of the WebSocket: see `WebSockets.serve_tcp`.
        respond: Answers a request to the REST API.
        note: Adds an entry to the log.
        serve_requests: Serves a connection to the port of the REST API.
    """

    serve_websocket: Callable[[trio.SocketStream, Callable[[], trio.abc.Stream]], Awaitable[None]]
    respond: Respond
    note: Callable[[str], None]
    serve_requests: Callable[[HttpConnection], Awaitable[None]] = HttpConnection.run


@asynccontextmanager
async def serve_on_ports(
    services: Services,
    port: int,
    ssl_context: ssl.SSLContext | None,
    *,
    http_port: int,
    host: str,
    allow_hosts: Collection[str],
) -> AsyncIterator[AgentMailEnvironment]:
    """Serve for the block. `FakeAgentMail.serve` describes the arguments, and what is raised."""
    check_hosts(allow_hosts)

    async def accept_websockets() -> None:
        while True:
            stream = await accept_from(websockets)
            wrap = partial(_guarded, stream, ssl_context, _refuse(stream, allow_hosts, services.note))
            spawn(services.serve_websocket, stream, wrap)

    async def accept_requests() -> None:
        while True:
            stream = await accept_from(http)
            refuse = _refuse(stream, allow_hosts, services.note)
            spawn(services.serve_requests, HttpConnection(stream, ssl_context, refuse, services.respond))

    async with await _listener(host, port) as websockets, await _listener(host, http_port) as http:
        async with fake_tasks() as spawn:
            spawn(accept_websockets)
            spawn(accept_requests)
            name, s = (_name_in_url(host), "") if ssl_context is None else ("localhost", "s")
            yield AgentMailEnvironment(
                http=f"http{s}://{name}:{http.socket.getsockname()[1]}",
                websockets=f"ws{s}://{name}:{websockets.socket.getsockname()[1]}",
                insecure=host != "127.0.0.1",
            )


async def accept_from(listener: trio.SocketListener) -> trio.SocketStream:
    """Accept a connection, once this process may open another file.

    `trio.serve_listeners` would wait as well, but lose what a handler raises when it is cancelled at the same time.
    """
    while True:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in TOO_MANY_FILES:
                raise
        await trio.sleep(0.1)


def _guarded(stream: trio.SocketStream, ssl_context: ssl.SSLContext | None, refuse: Refuse) -> DoorStream:
    return DoorStream(with_tls(stream, ssl_context), refuse)


def _refuse(stream: trio.SocketStream, allow_hosts: Collection[str], note: Callable[[str], None]) -> Refuse:
    """Return a function that returns why a request on a connection is refused, and notes it."""
    door = Door(stream.socket.getsockname()[0], allow_hosts)

    def refuse(head: h11.Request) -> Refusal | None:
        refusal = door.refusal(head)
        if refusal is not None:
            note(f"a request is answered with {refusal.status}: {refusal.answer['message']}")
        return refusal

    return refuse


async def _listener(host: str, port: int) -> trio.SocketListener:
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on port {port} of {host}: {exc.strerror}") from exc
    return listener


def _name_in_url(host: str) -> str:
    """Return the name by which a client on this machine reaches an address that we listen on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
