"""The backend for production: TCP, TLS and HTTP proxies, the system's clock, and threads for blocking functions."""

import functools
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import trio
import trio.abc

from ._backend import Backend, installed
from ._handshake import ask_for_tunnel
from ._proxy import DEFAULT_PORTS, Proxies, Proxy
from ._watched_stream import WatchedStream
from ._websocket import ClientWebSocket, client_websocket, close_at_once
from ._why import PROXY_HINT, connect_error, tls_error, waiting_for

if TYPE_CHECKING:
    import httpx2  # imported on first use: it takes as long as the rest of this package

T = TypeVar("T")

__all__ = ["NetworkBackend", "default_backend", "default_ssl_context", "start_tls"]


class NetworkBackend:
    """The real network.

    Args:
        proxies: The proxies to AgentMail, if any.
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
    ) -> AsyncIterator[ClientWebSocket]:
        """See `Backend`.

        Raises:
            OSError: The server or the proxy cannot be reached, or TLS failed. Includes `ssl.SSLCertVerificationError`.
            ApiError, ConnectionLostError: See `client_websocket`.
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
            await open_tunnel(stream, proxy, host, port)
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
        """See `Backend`. A cancelled call still waits for its thread."""
        return await trio.to_thread.run_sync(function)


def default_backend(proxies: Callable[[], Proxies] = Proxies) -> Backend:
    """Return the backend for a stream opened without one: the installed backend, or else the network.

    Args:
        proxies: Returns the proxies. It is called only for the network.
    """
    backend = installed()
    return NetworkBackend(proxies()) if backend is None else backend


async def connect(host: str, port: int, where: str, hint: str = "") -> trio.SocketStream:
    """Open a TCP connection.

    Args:
        host: Name or address of the host.
        port: TCP port.
        where: Host and port, as an error shows them.
        hint: Advice to append to the error if the name cannot be resolved.
    """
    try:
        with waiting_for(f"connecting to {where}"):
            return await trio.open_tcp_stream(host, port)
    except OSError as exc:
        raise connect_error(exc, host, where, hint) from exc


async def open_tunnel(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of a stream to connect the stream to a host."""
    try:
        with waiting_for(f"waiting for {proxy} to connect to {host}"):
            await ask_for_tunnel(stream, proxy, host, port)
    except BaseException:
        await close_at_once(stream)
        raise


async def start_tls(transport: trio.abc.Stream, context: ssl.SSLContext, host: str, where: str) -> trio.abc.Stream:
    """Start TLS on a stream.

    Args:
        transport: The stream.
        context: The settings of TLS.
        host: The host that the server's certificate must name.
        where: Host and port, as an error shows them.
    """
    failure: BaseException
    try:
        # https_compatible: many peers close without TLS's close_notify, and WebSocket has its own close frame.
        stream = trio.SSLStream(transport, context, server_hostname=host, https_compatible=True)
        with waiting_for(f"setting up TLS with {where}"):
            # By default, the handshake happens with the first send. Here, its errors are reported as TLS errors.
            await stream.do_handshake()
        return stream
    except trio.BrokenResourceError as exc:
        failure = exc
        await close_at_once(transport)
    except BaseException:
        await close_at_once(transport)
        raise
    error = tls_error(failure, where)
    raise error from (None if error is failure.__cause__ else failure)


@functools.cache
def default_ssl_context() -> ssl.SSLContext:
    """Return the TLS context that all connections share. Making one takes 24 ms and 0.8 MiB."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # otherwise, the HTTP client would set it on the first request
    return context
