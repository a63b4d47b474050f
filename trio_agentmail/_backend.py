"""The one seam to the outside: whoever opens WebSockets, sends requests, tells the time and waits for disks.

That is a `Backend`: the real world, or a fake one.
"""

import functools
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

import trio
import trio.abc

from ._handshake import ask_for_tunnel
from ._proxy import DEFAULT_PORTS, Proxies, Proxy
from ._watched_stream import WatchedStream
from ._websocket import WebSocket, client_websocket, close_at_once
from ._why import PROXY_HINT, connecting_failed, tls_failed, waiting_for

if TYPE_CHECKING:
    import httpx2  # imported when it is needed, which takes as long as all the rest of this package

T = TypeVar("T")

__all__ = ["Backend", "NetworkBackend", "default_backend", "installed_backend"]


class Backend(Protocol):
    """The outside: the real one, or a fake. Provisional: it grows with what the stream needs."""

    @property
    def api_key(self) -> str | None:
        """The API key to use when the caller gives none and `$AGENTMAIL_API_KEY` is not set."""

    def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AbstractAsyncContextManager[WebSocket]:
        """Open a WebSocket; leaving the context manager cuts it, a polite close comes before that."""

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> "httpx2.AsyncBaseTransport":
        """What carries the requests to the REST API. Whoever asks for it closes it.

        What goes wrong in it is an `httpx2.HTTPError` or an `OSError`. Anything else is a bug, and ends the stream.
        """

    def now(self) -> float:
        """The time of day, in seconds since the epoch."""

    async def run_sync(self, function: Callable[[], T]) -> T:
        """Call a function that waits for a disk, without holding up the event loop."""


class NetworkBackend:
    """The real outside: TCP, TLS where the URL says so, a WebSocket or HTTP over it; threads for what waits.

    Args:
        proxies: What stands between us and AgentMail.
    """

    api_key: str | None = None

    def __init__(self, proxies: Proxies = Proxies()) -> None:  # noqa: B008  frozen
        self._proxies = proxies

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        """See `Backend`.

        Raises:
            OSError: The server or the proxy cannot be reached, or TLS failed; `ssl.SSLCertVerificationError` is one.
            ApiError, ConnectionLostError: see `client_websocket`.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None  # AgentMailEnvironment has checked it
        secure = parts.scheme == "wss"
        host, port, proxy = parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme], self._proxies.websockets
        server = f"{host} port {port}"
        context = ssl_context or default_ssl_context()
        stream: trio.abc.Stream
        if proxy is None:
            stream = watched = WatchedStream(await connect(host, port, server, PROXY_HINT), self.now)
        else:
            stream = watched = WatchedStream(await connect(proxy.host, proxy.port, str(proxy)), self.now)
            if proxy.scheme == "https":
                stream = await start_tls(stream, context, proxy.host, str(proxy))
            await through(stream, proxy, host, port)
            server += f" through {proxy}"
        if secure:
            stream = await start_tls(stream, context, host, server)
        async with client_websocket(
            stream,
            host=parts.netloc,
            target=parts.path,
            headers=headers,
            max_message_size=max_message_size,
            watched=watched,
            server=server,
        ) as websocket:
            yield websocket

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> "httpx2.AsyncBaseTransport":
        """See `Backend`."""
        from ._network_transport import NetworkTransport, SteadyTransport

        return SteadyTransport(NetworkTransport(ssl_context or default_ssl_context(), self._proxies.http))

    def now(self) -> float:
        """See `Backend`."""
        return time.time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        """See `Backend`. Cancelling does not leave the thread behind: it is waited for."""
        return await trio.to_thread.run_sync(function)


async def connect(host: str, port: int, where: str, hint: str = "") -> trio.SocketStream:
    """Open a TCP connection.

    Args:
        where: Host and port in words.
        hint: What may help if the name cannot be resolved.
    """
    try:
        with waiting_for(f"connecting to {where}"):
            return await trio.open_tcp_stream(host, port)
    except OSError as exc:
        raise connecting_failed(exc, host, where, hint) from exc


async def through(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Have a proxy lead the stream to a host."""
    try:
        with waiting_for(f"waiting for {proxy} to connect to {host}"):
            await ask_for_tunnel(stream, proxy, host, port)
    except BaseException:
        await close_at_once(stream)
        raise


async def start_tls(transport: trio.abc.Stream, context: ssl.SSLContext, host: str, where: str) -> trio.abc.Stream:
    """Encrypt a stream.

    Args:
        host: Whose certificate it must be.
        where: Host and port in words.
    """
    failure: BaseException
    try:
        # https_compatible: peers that hang up without TLS's goodbye are common, and WebSocket has its own.
        stream = trio.SSLStream(transport, context, server_hostname=host, https_compatible=True)
        with waiting_for(f"setting up TLS with {where}"):
            # Now, and not with the first bytes that are sent: what goes wrong here is told as what it is.
            await stream.do_handshake()
        return stream
    except trio.BrokenResourceError as exc:
        failure = exc
        await close_at_once(transport)
    except BaseException:
        await close_at_once(transport)
        raise
    told = tls_failed(failure, where)
    raise told from (None if told is failure.__cause__ else failure)


@functools.cache
def default_ssl_context() -> ssl.SSLContext:
    """One for all connections: each costs 24 ms and 0.8 MiB."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # as the HTTP client would, in the middle of it all
    return context


# Of the process, and not in a ContextVar: a test's fixtures and its tasks need not have one context.
_installed: Backend | None = None


def default_backend(proxies: Callable[[], Proxies] = Proxies) -> Backend:
    """The outside of a stream that is given none: the network, unless another one is installed.

    Args:
        proxies: Asked for what stands between us and the network.
    """
    return NetworkBackend(proxies()) if _installed is None else _installed


@contextmanager
def installed_backend(backend: Backend) -> Iterator[None]:
    """For the block, this is what `default_backend` returns.

    Raises:
        RuntimeError: another one is installed already.
    """
    global _installed
    if _installed is not None:
        raise RuntimeError(f"{type(_installed).__name__} is installed already, and a stream has one outside")
    _installed = backend
    try:
        yield
    finally:
        _installed = None
