"""The one seam to the outside: whoever opens WebSockets is a `Backend`."""

import functools
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

import trio
import trio.abc

from ._watched_stream import WatchedStream
from ._websocket import WebSocket, client_websocket, close_at_once

__all__ = ["Backend", "NetworkBackend"]


class Backend(Protocol):
    """Opens WebSockets: on the real network, or to a fake. Provisional: it grows with what the stream needs."""

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


class NetworkBackend:
    """The real network: TCP, TLS where the URL says so, and a WebSocket over it."""

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
            ApiError, ConnectionLost: see `client_websocket`.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None  # AgentMailEnvironment has checked it
        secure = parts.scheme == "wss"
        tcp = await trio.open_tcp_stream(parts.hostname, parts.port or (443 if secure else 80))
        watched = WatchedStream(tcp)
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
    return ssl.create_default_context()
