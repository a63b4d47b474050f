"""`FakeAgentMail`: all sides of the fake together, and where it can be found."""

import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import trio

from trio_agentmail._backend import installed_backend
from trio_agentmail._settings import AgentMailEnvironment

from ._door import check_hosts
from ._fake_chaos import FakeChaos
from ._fake_connection import fake_tasks

__all__ = ["FakeAgentMail"]


class FakeAgentMail(FakeChaos):
    """An AgentMail in memory: pass it as `backend=`, or `serve()` it on a port of this machine.

    It has neither a start nor an end: its tasks live inside the connections that it serves. A bug in it comes
    out of the block that has the connection open, as itself.

    It remembers the mail that it was given, and its REST API lists it: `http_transport()` is the way there.

    Faults are asked for, by method, before the connection, push or request that they are for: each new one takes
    the next fault of its kind, in the order in which they were asked for, and goes well when none is left. `times`
    is how many a fault is for; `None`: all that follow, until `clear_faults()`.

    Args:
        api_keys: The API keys that it knows; `None`: it knows any. A mapping says what each of them may do.
        permissions: What other keys may do, for example `{"message_read", "label_spam_read"}`; `None`: everything. A
            key that may do nothing at all gets a 403 for an answer when it wants a WebSocket.

    Raises:
        TypeError: `api_keys` or `permissions` is a string, and no collection of them; here and when they are changed.
        ValueError: AgentMail has no such permission; likewise.

    Attributes:
        api_keys: As given; may be changed, for the handshakes and requests to come.
        permissions: As given; may be changed, for the subscriptions and requests to come.
        attempts: How often somebody wanted a connection, whatever became of it.
        handshakes: Every request for a WebSocket that was read, granted or not, in order.
        frames: Every message that a client has sent, valid or not, in order.
        subscriptions: Every valid `subscribe` frame, confirmed or not, in order.
        close_codes: Of every WebSocket that `drop_connections` or a fault did not end, when it has ended: the
            code with which the client closed it, or `None` where it just went.
        pings: When each ping of a client came, in seconds by Trio's clock, in order; of those that find a connection
            silent or being closed, nothing is known.
        requests: Every request to the REST API that was read, in order.
    """

    def __init__(
        self,
        *,
        api_keys: Collection[str] | Mapping[str, Collection[str] | None] | None = None,
        permissions: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.api_keys = api_keys
        self.permissions = permissions

    @property
    def api_key(self) -> str:
        """The API key that is used when the caller gives none, and `$AGENTMAIL_API_KEY` is not set: one that is known,
        if any is."""
        return next(iter(self.api_keys or ()), "am_fake_key")

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """For the block, streams in this process that are given no `backend` come here, and need no API key.

        Raises:
            RuntimeError: Another one is installed already.
        """
        with installed_backend(self):
            yield self

    @asynccontextmanager
    async def serve(
        self,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        *,
        http_port: int = 0,
        host: str = "127.0.0.1",
        allow_hosts: Collection[str] = (),
    ) -> AsyncIterator[AgentMailEnvironment]:
        """Listen on 127.0.0.1 for the block, at whose end the connections that are left are cut.

        Args:
            port: That of the WebSocket. `0`: any that is free.
            ssl_context: Speak TLS, with this server's context; its certificate must be for `localhost`.
            http_port: That of the REST API. `0`: any that is free.
            host: The IP address to listen on, in place of 127.0.0.1. Of `0.0.0.0` and `::`, which are all addresses
                of this machine, the loopback address is yielded.
            allow_hosts: Names and addresses by which clients may ask for it (the header `Host`) besides `localhost`,
                loopback addresses and the address that they have connected to. Other requests, and those of pages in a
                browser that are from elsewhere, are answered with 403.

        Yields:
            Where a client finds it.

        Raises:
            TypeError: `allow_hosts` is no collection of strings.
            ValueError: One of them is no name and no IP address.
            OSError: A port is not free, or the address is not one of this machine.
        """
        check_hosts(allow_hosts)
        async with await _listener(host, port) as websockets, await _listener(host, http_port) as http:
            async with fake_tasks() as spawn:
                spawn(self._accept_websockets, websockets, ssl_context, allow_hosts, spawn)
                spawn(self._accept_http, http, ssl_context, allow_hosts, spawn)
                name, s = (_name_in_url(host), "") if ssl_context is None else ("localhost", "s")
                yield AgentMailEnvironment(
                    http=f"http{s}://{name}:{http.socket.getsockname()[1]}",
                    websockets=f"ws{s}://{name}:{websockets.socket.getsockname()[1]}",
                    insecure=host != "127.0.0.1",
                )


async def _listener(host: str, port: int) -> trio.SocketListener:
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on port {port} of {host}: {exc.strerror}") from exc
    return listener


def _name_in_url(host: str) -> str:
    """How a client on this machine writes an address on which we listen."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
