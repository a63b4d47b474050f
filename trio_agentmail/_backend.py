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

from ._watched_stream import WatchedStream
from ._websocket import WebSocket, client_websocket, close_at_once

if TYPE_CHECKING:
    import httpx  # imported when it is needed, which takes as long as all the rest of this package

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

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> "httpx.AsyncBaseTransport":
        """What carries the requests to the REST API. Whoever asks for it closes it."""

    def now(self) -> float:
        """The time of day, in seconds since the epoch."""

    async def run_sync(self, function: Callable[[], T]) -> T:
        """Call a function that waits for a disk, without holding up the event loop."""


class NetworkBackend:
    """The real outside: TCP, TLS where the URL says so, a WebSocket or HTTP over it; threads for what waits."""

    api_key: str | None = None

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
            OSError: The server cannot be reached; `ssl.SSLCertVerificationError` is one.
            trio.BrokenResourceError: TLS failed otherwise.
            ApiError, ConnectionLostError: see `client_websocket`.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None  # AgentMailEnvironment has checked it
        secure = parts.scheme == "wss"
        tcp = await trio.open_tcp_stream(parts.hostname, parts.port or (443 if secure else 80))
        watched = WatchedStream(tcp, self.now)
        stream: trio.abc.Stream = watched
        if secure:
            stream = await start_tls(watched, ssl_context or default_ssl_context(), parts.hostname)
        async with client_websocket(
            stream,
            host=parts.netloc,
            target=parts.path,
            headers=headers,
            max_message_size=max_message_size,
            watched=watched,
        ) as websocket:
            yield websocket

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> "httpx.AsyncBaseTransport":
        """See `Backend`."""
        import httpx

        # Like the WebSocket, it goes straight to AgentMail: a transport that is given knows of no proxies.
        return httpx.AsyncHTTPTransport(verify=ssl_context or default_ssl_context())

    def now(self) -> float:
        """See `Backend`."""
        return time.time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        """See `Backend`. Cancelling does not leave the thread behind: it is waited for."""
        return await trio.to_thread.run_sync(function)


async def start_tls(transport: trio.abc.Stream, context: ssl.SSLContext, host: str) -> trio.abc.Stream:
    try:
        # https_compatible: peers that hang up without TLS's goodbye are common, and WebSocket has its own.
        stream = trio.SSLStream(transport, context, server_hostname=host, https_compatible=True)
        # Now, and not with the first bytes that are sent: what goes wrong here is told as what it is.
        await stream.do_handshake()
    except BaseException as exc:
        await close_at_once(transport)
        if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
            raise exc.__cause__ from None
        raise
    return stream


@functools.cache
def default_ssl_context() -> ssl.SSLContext:
    """One for all connections: each costs 24 ms and 0.8 MiB."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # as the HTTP client would, in the middle of it all
    return context


# Of the process, and not in a ContextVar: a test's fixtures and its tasks need not have one context.
_installed: Backend | None = None


def default_backend() -> Backend:
    """The outside of a stream that is given none: the network, unless another one is installed."""
    return NetworkBackend() if _installed is None else _installed


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
