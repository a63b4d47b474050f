"""The transport for requests to the REST API over the network.

This module is imported on first use, because httpx2 is slow to import.
"""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx2
import trio

from ._handshake import refused_by_proxy
from ._proxy import DEFAULT_PORTS, Proxy, authority
from ._why import PROXY_HINT, causes_of, connect_error, describe, tls_error

__all__ = ["NetworkTransport", "SteadyTransport"]


class NetworkTransport(httpx2.AsyncHTTPTransport):
    """The transport of httpx2, with errors that explain the failure. It ignores environment variables.

    Args:
        ssl_context: The TLS context.
        proxy: The proxy, if there is one.
    """

    def __init__(self, ssl_context: ssl.SSLContext, proxy: Proxy | None) -> None:
        super().__init__(
            verify=ssl_context,
            trust_env=False,
            proxy=None if proxy is None else _to_httpx2(proxy, ssl_context),
        )
        self._proxy = proxy

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await super().handle_async_request(request)
        except httpx2.TransportError as exc:
            failure = type(exc)(self._explanation(exc, request.url), request=request)
        # This is raised outside of the block: otherwise, its context would hold the headers.
        raise failure

    def _explanation(self, failure: httpx2.TransportError, url: httpx2.URL) -> str:
        host, port = url.host, url.port or DEFAULT_PORTS[url.scheme]
        server = f"{host} port {port}"
        if self._proxy is not None:
            if isinstance(failure, httpx2.ProxyError) and (status := str(failure)[:3]).isdecimal():
                return str(refused_by_proxy(self._proxy, int(status), authority(host, port)))
            server = f"{server} through {self._proxy}"
        if not isinstance(failure, httpx2.ConnectError):
            return describe(failure)
        causes = list(causes_of(failure))
        if any(isinstance(cause, trio.BrokenResourceError) for cause in causes):
            return str(tls_error(failure, server))
        refused = next(cause for cause in causes if isinstance(cause, OSError))
        if self._proxy is not None:
            return str(connect_error(refused, self._proxy.host, str(self._proxy)))
        return str(connect_error(refused, host, server, PROXY_HINT))


def _to_httpx2(proxy: Proxy, ssl_context: ssl.SSLContext) -> httpx2.Proxy:
    context = ssl_context if proxy.scheme == "https" else None
    return httpx2.Proxy(proxy.url, auth=proxy.credentials, ssl_context=context)


class SteadyTransport(httpx2.AsyncBaseTransport):
    """A transport whose only exceptions are `httpx2.TransportError` and those of cancellation.

    httpx2 converts the errors that it expects from the layers below. A broken server may cause others, in h11,
    httpcore2, TLS or a codec. They are not bugs of this package, and must not end a stream.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with _as_transport_errors():
            response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _SteadyStream(response.stream)
        return response

    async def aclose(self) -> None:
        with _as_transport_errors():
            await self._transport.aclose()


class _SteadyStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_transport_errors():
            async for piece in self._stream:
                yield piece

    async def aclose(self) -> None:
        with _as_transport_errors():
            await self._stream.aclose()


@contextmanager
def _as_transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError:
        raise
    except Exception as exc:
        raise httpx2.TransportError(f"{type(exc).__name__}: {exc}") from exc
