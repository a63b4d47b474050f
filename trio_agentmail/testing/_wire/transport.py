"""The transport to the in-memory REST API, for clients of httpx2 and of httpx.

The fake uses the requests, responses and exceptions of httpx2. A client needs those of its own library: it asserts that
a body is a stream of its library, and its callers catch exceptions of its library. Clients of httpx are common because
the official SDK uses one. For them, this module converts requests, responses and exceptions. It never imports httpx,
since a client of httpx has already done so.
"""

import functools
import math
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import httpx2
import trio

from .http_server import NoAnswer, Respond

if TYPE_CHECKING:
    import httpx

    class AnyTransport(httpx2.AsyncBaseTransport, httpx.AsyncBaseTransport):
        """A transport that clients of both libraries accept, for type checkers."""

        @overload
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
        @overload
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
        async def handle_async_request(self, request: Any) -> Any: ...
else:
    AnyTransport = httpx2.AsyncBaseTransport

__all__ = ["FakeTransport"]

ENCODING_HEADERS = (b"content-encoding", b"content-length", b"transfer-encoding")
"""Headers that no longer apply to a body that has been decoded."""


class FakeTransport(AnyTransport):
    """A transport that answers requests in memory.

    For a type checker, it is a transport of httpx2 and of httpx. At runtime, it is a subclass of httpx2's class only,
    since neither library checks the class of a transport.

    Args:
        respond: Answers a request of httpx2.
    """

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    @overload
    async def handle_async_request(self, request: "httpx.Request") -> "httpx.Response": ...
    async def handle_async_request(self, request: Any) -> Any:
        await request.aread()
        if isinstance(request, httpx2.Request):
            return await self._answered(request)
        library = _library_of(request)
        with _errors_of(library, request):
            response = await self._answered(_as_httpx2(request))
        return _response_of(library, response, request)

    async def _answered(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._respond(request)
        if isinstance(response, httpx2.Response):
            return _without_body(response) if request.method == "HEAD" else response
        if response is NoAnswer.RESET:
            raise httpx2.ReadError("connection reset by FakeAgentMail", request=request)
        # Time-outs are the job of the transport.
        seconds = request.extensions.get("timeout", {}).get("read")
        await trio.sleep(math.inf if seconds is None else seconds)
        raise httpx2.ReadTimeout("no answer from FakeAgentMail", request=request)


def _without_body(response: httpx2.Response) -> httpx2.Response:
    """Return the response to a HEAD request, whose headers describe the body that a GET would return."""
    return httpx2.Response(response.status_code, headers=response.headers, extensions=response.extensions)


def _library_of(request: object) -> Any:
    """Return the module httpx if it made this request.

    Raises:
        TypeError: The request is of another library.
    """
    httpx = sys.modules.get("httpx")
    if httpx is None or not isinstance(request, httpx.Request):
        raise TypeError(f"FakeAgentMail answers requests of httpx2 and httpx, not {request!r}")
    return httpx


def _as_httpx2(request: Any) -> httpx2.Request:
    """Convert a request whose body has been read."""
    converted = httpx2.Request(
        request.method,
        _url(str(request.url)),
        headers=request.headers.raw,
        # With `content`, httpx2 would look for headers to add. The request has all of its headers.
        stream=httpx2.ByteStream(request.content),
        extensions=request.extensions,
    )
    converted.read()
    return converted


@functools.lru_cache(maxsize=256)
def _url(url: str) -> httpx2.URL:
    """Parse a URL. This takes longer than the rest of the conversion, and tests repeat requests."""
    return httpx2.URL(url)


def _response_of(library: Any, response: httpx2.Response, request: object) -> Any:
    """Convert a response to another library. Its body keeps its content encoding, unless it has already been read."""
    headers = response.headers.raw
    if isinstance(response.stream, httpx2.ByteStream):
        stream = library.ByteStream(b"".join(response.stream))
    elif response.is_stream_consumed:  # for example, a test passes on the response of another server
        headers = [(name, value) for name, value in headers if name.lower() not in ENCODING_HEADERS]
        stream = library.ByteStream(response.content)
    else:
        stream = _stream_class(library)(response.stream, request)
    return library.Response(response.status_code, headers=headers, stream=stream, extensions=response.extensions)


@functools.cache
def _stream_class(library: Any) -> Any:
    """Return the class of streaming bodies, a subclass of the library's stream class, as its client asserts."""

    class Body(library.AsyncByteStream):  # type: ignore[misc]  # the base is known when it runs
        def __init__(self, stream: httpx2.AsyncByteStream, request: object) -> None:
            self._stream = stream
            self._request = request

        async def __aiter__(self) -> AsyncIterator[bytes]:
            with _errors_of(library, self._request):
                async for piece in self._stream:
                    yield piece

        async def aclose(self) -> None:
            with _errors_of(library, self._request):
                await self._stream.aclose()

    return Body


@contextmanager
def _errors_of(library: Any, request: object) -> Iterator[None]:
    """Convert exceptions of httpx2 to the exceptions of the same name in another library."""
    try:
        yield
    except httpx2.RequestError as exc:
        kinds = (getattr(library, cls.__name__, None) for cls in type(exc).__mro__)
        kind = next(kind for kind in kinds if kind is not None)
        raise kind(str(exc), request=request) from exc
