"""The HTTP transport of a real network."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx

__all__ = ["SteadyTransport"]


class SteadyTransport(httpx.AsyncBaseTransport):
    """A transport of which whatever goes wrong is an `httpx.TransportError`.

    httpx means that to be so, and knows the errors that it expects below. What a server that is not sane may have h11,
    httpcore, TLS or a codec raise besides is no bug of whoever asks, and must not end a stream.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _as_transport_errors():
            response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _SteadyStream(response.stream)
        return response

    async def aclose(self) -> None:
        with _as_transport_errors():
            await self._transport.aclose()


class _SteadyStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
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
    except httpx.TransportError:
        raise
    except Exception as exc:
        raise httpx.TransportError(f"{type(exc).__name__}: {exc}") from exc
