"""The fake on local TCP ports, one for WebSockets and one for the REST API."""

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

from .access import AccessCheck, CheckedStream, check_hosts
from .http_server import HttpConnection, Refuse, Respond, with_tls
from .tasks import fake_tasks

__all__ = ["Services", "accept_from", "serve_on_ports"]

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@attrs.frozen
class Services:
    """The functions that serve clients. If one raises, the block of `serve_on_ports` raises the same exception.

    Attributes:
        serve_websocket: Serves a connection to the WebSocket's port: see `WebSockets.serve_tcp`.
        respond: Answers a request to the REST API.
        note: Adds an entry to the log.
        serve_requests: Serves a connection to the REST API's port.
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
    """Serve within the block. `FakeAgentMail.serve` describes the arguments and the exceptions."""
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
    """Accept a connection. If the process has too many open files, wait until it can open another one.

    `trio.serve_listeners` waits as well, but loses the exception of a handler if it is cancelled at the same time.
    """
    while True:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in TOO_MANY_FILES:
                raise
        await trio.sleep(0.1)


def _guarded(stream: trio.SocketStream, ssl_context: ssl.SSLContext | None, refuse: Refuse) -> CheckedStream:
    return CheckedStream(with_tls(stream, ssl_context), refuse)


def _refuse(stream: trio.SocketStream, allow_hosts: Collection[str], note: Callable[[str], None]) -> Refuse:
    """Return a function that checks the requests on a connection, and logs refusals."""
    check = AccessCheck(stream.socket.getsockname()[0], allow_hosts)

    def refuse(head: h11.Request) -> Refusal | None:
        refusal = check.refusal(head)
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
    """Return the host for URLs with which clients on this machine reach an address that we listen on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
