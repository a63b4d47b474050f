"""Makes a single request to the REST API, and reads its answer within limits.

The transport is called directly, without an `httpx2.AsyncClient`. A client would log each URL, with its inbox address
and Message-ID, at INFO, keep cookies and send them back, decompress without a limit, and decode text with any charset
that an answer names.
"""

import logging
import zlib
from contextvars import ContextVar
from typing import Any

import httpx2
import trio

from trio_agentmail import __version__
from trio_agentmail._api_key import ApiKey
from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import parse_object
from trio_agentmail._reconnect import http_date
from trio_agentmail._why import MAX_BODY, refusal
from trio_agentmail.errors import AnswerTooLargeError, ApiError, RequestFailedError, RequestTooLargeError

__all__ = ["NETWORK_ERRORS", "exchange"]

HEADERS = {
    "Accept": "application/json",
    # Python can decompress gzip in pieces, so a small answer cannot fill the memory.
    "Accept-Encoding": "gzip",
    "User-Agent": f"trio-agentmail/{__version__}",
}
"""The headers of every request."""

NETWORK_ERRORS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.CookieConflict,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""Exceptions that a transport may raise when an exchange fails. Any other exception is a bug."""

REFUSAL_TIMEOUT = 2.0
"""Seconds for reading the body of an error response after its headers."""

PIECES_TO_SKIP = 1_000
"""Maximum number of pieces of an abandoned body that are read until a checkpoint cancels the read."""


_key_in_use: ContextVar[ApiKey | None] = ContextVar("_key_in_use", default=None)
"""The key of this task's present exchange, if any."""


class _WithoutKey(logging.Filter):
    """Redacts the key in httpcore2's log, which has response headers at DEBUG. A server may repeat the key in one.

    The filter does not change the log of other requests through httpcore2.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        key = _key_in_use.get()
        if key is not None:
            record.msg, record.args = key.redacted(record.getMessage()), ()
        return True


for _name in ("connection", "http11", "proxy", "socks"):
    logging.getLogger(f"httpcore2.{_name}").addFilter(_WithoutKey())


async def exchange(
    transport: httpx2.AsyncBaseTransport,
    method: str,
    url: str,
    body: bytes | None,
    *,
    api_key: ApiKey,
    clock: ServerClock,
    limit: int,
    timeout: float,  # noqa: ASYNC109  it is a result and not an exception
) -> dict[str, Any] | ApiError | RequestFailedError:
    """Make a request, and return the JSON object in its answer, or the error if it failed.

    Args:
        clock: Receives the time in the answer's `Date` header.
        limit: Maximum size of the answer, in bytes.
        timeout: Seconds for the request and its complete answer.
    """
    answer: _Answer | None = None
    failure: RequestFailedError | None = None
    token = _key_in_use.set(api_key)
    try:
        with trio.move_on_after(timeout) as patience:
            answer = await _send(transport, method, url, body, api_key)
            clock.answered(http_date(answer.headers.get("date", "")))
            await answer.read(limit)
        if patience.cancelled_caught:
            failure = RequestFailedError(f"no answer within {timeout:.0f} s")
    except RequestFailedError as exc:
        failure = exc
    except httpx2.InvalidURL as exc:  # variable parts of the URL are escaped, so it can only be too long
        failure = RequestTooLargeError(_explained(exc))
    except (KeyboardInterrupt, SystemExit) as exc:
        # Drop the frames of the code that was sending the request, since their variables contain the key.
        exc.__context__ = None
        raise exc.with_traceback(None) from None
    except NETWORK_ERRORS as exc:
        # The failure is returned and raised elsewhere, so that this exception, which contains the request and its key,
        # does not become its context.
        failure = RequestFailedError(_explained(exc))
    finally:
        _key_in_use.reset(token)
    if answer is not None and answer.status != 200:
        return refusal(answer.status, answer.headers, answer.body.decode(errors="replace"))
    if answer is None or failure is not None:
        assert failure is not None
        return failure
    parsed = parse_object(answer.body)
    if parsed is None:
        return RequestFailedError("the REST API's answer is not a JSON object")
    return parsed


async def _send(
    transport: httpx2.AsyncBaseTransport, method: str, url: str, body: bytes | None, api_key: ApiKey
) -> "_Answer":
    request = httpx2.Request(method, url, headers=HEADERS, content=body)
    if body is not None:
        request.headers["Content-Type"] = "application/json"
    request.headers["Authorization"] = api_key.authorization
    return _Answer(await transport.handle_async_request(request))


def _explained(failure: BaseException) -> str:
    """Describe the root cause of a failure. httpx2's own message does not name the cause of a TLS error."""
    while (cause := failure.__cause__ or failure.__context__) is not None:
        failure = cause
    return f"{type(failure).__name__}: {failure}"


class _Answer:
    """An answer whose headers have been received, and the part of its body that has been read.

    Attributes:
        status: The HTTP status.
        headers: The headers by their names in lower case, with the last value of a repeated header.
        body: The decompressed body. The body of an error response is cut at 64 KiB and may be incomplete, since it is
            only used in messages.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        # latin-1 has a character for every byte.
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        self.body = bytearray()

    async def read(self, limit: int) -> None:
        """Read the body, and close the answer.

        Args:
            limit: Maximum size of the body in bytes, both compressed and decompressed. It does not apply to error
                responses.

        Raises:
            AnswerTooLargeError: The body is larger.
            RequestFailedError: The body is not compressed as its headers say, or in a way that was not requested.
            NETWORK_ERRORS: The connection failed.
        """
        try:
            if self.status == 200:
                failure = await self._read(limit)
            else:
                with trio.move_on_after(REFUSAL_TIMEOUT):
                    await self._read(MAX_BODY)
                failure = None
                del self.body[MAX_BODY:]
        finally:
            await self._response.aclose()
        if failure is not None:
            raise failure

    async def _read(self, limit: int) -> RequestFailedError | None:
        pieces, encoding = self._response.stream, self.headers.get("content-encoding", "").strip().lower()
        if self._response.is_stream_consumed:  # a response made in memory, which httpx2 has decompressed
            pieces, encoding = httpx2.ByteStream(self._response.content), ""
        assert isinstance(pieces, httpx2.AsyncByteStream)
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            return RequestFailedError(f"the answer has a Content-Encoding that was not asked for: {encoding}")
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding.endswith("gzip") else None
        failure: RequestFailedError | None = None
        received, left = 0, PIECES_TO_SKIP
        # Reading is ended by cancellation. Leaving the loop would leave the generators below it, and so the connection,
        # to the garbage collector.
        with trio.CancelScope() as scope:
            async for piece in pieces:
                if failure is None:
                    received += len(piece)
                    failure = self._take(piece, received, decompressor, limit)
                    if failure is not None:
                        scope.cancel()
                else:
                    left -= 1
                    if not left:
                        break
        return failure

    def _take(
        self, piece: bytes, received: int, decompressor: "zlib._Decompress | None", limit: int
    ) -> RequestFailedError | None:
        try:
            self.body += piece if decompressor is None else decompressor.decompress(piece, limit + 1 - len(self.body))
        except zlib.error as exc:
            return RequestFailedError(f"the answer is not compressed as its headers say: {exc}")
        if max(received, len(self.body)) > limit:
            return AnswerTooLargeError(f"the answer has more than {limit} bytes")
        return None
