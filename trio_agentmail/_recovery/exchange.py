"""One exchange with the REST API: a request, and its answer, read within limits.

The transport is called directly, without an `httpx2.AsyncClient` around it. The client logs each URL, with its inbox
address and Message-ID, at INFO. It keeps cookies and sends them back, decompresses without a limit, and decodes text
by any charset that an answer names.
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
from trio_agentmail.errors import (
    MAX_BODY,
    AnswerTooLargeError,
    ApiError,
    RequestFailedError,
    RequestTooLargeError,
    refusal,
)

__all__ = ["NETWORK_ERRORS", "exchange"]

HEADERS = {
    "Accept": "application/json",
    # The encoding that Python can decompress in pieces, so that a small answer cannot fill the memory.
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
"""What a transport may raise when an exchange fails. Anything else is a bug."""

REFUSAL_TIMEOUT = 2.0
"""Seconds for the body of a refusal, once its headers have come."""

PIECES_TO_SKIP = 1_000
"""Pieces of an abandoned body that are read, at most, until a checkpoint ends the reading."""


_key_in_use: ContextVar[ApiKey | None] = ContextVar("_key_in_use", default=None)
"""The key of the exchange that this task is making, if it is making one."""


class _WithoutKey(logging.Filter):
    """Remove the key from httpcore2's log: it logs response headers at DEBUG, and a server may repeat the key in one.

    Requests that others make through httpcore2 are logged as before.
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
    """Make a request, and return the object of its answer or why it failed.

    Args:
        clock: Told the time that the answer says.
        limit: Maximum size of the answer, in bytes.
        timeout: Seconds for the request and all of its answer.
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
        # Without the frames of the code that was sending the request: the key is among their variables.
        exc.__context__ = None
        raise exc.with_traceback(None) from None
    except NETWORK_ERRORS as exc:
        # Returned and raised elsewhere, so that this exception is not its context: it holds the request, with the key.
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
    """Return the root cause in words: httpx2's own message says nothing of what went wrong in TLS."""
    while (cause := failure.__cause__ or failure.__context__) is not None:
        failure = cause
    return f"{type(failure).__name__}: {failure}"


class _Answer:
    """An answer whose headers have come, and its body as far as it has been read.

    Attributes:
        status: The HTTP status.
        headers: By their names in lower case; of a repeated header, the last one.
        body: Decompressed. The body of a refusal is cut at 64 KiB and may be incomplete: it only helps to explain.
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
            limit: Maximum size of the body in bytes, compressed and decompressed, unless the answer is a refusal.

        Raises:
            AnswerTooLargeError: The body is larger.
            RequestFailedError: The body is not compressed as its headers say, or in a way that was not asked for.
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
        if self._response.is_stream_consumed:  # it was made in memory, and httpx2 has decompressed it
            pieces, encoding = httpx2.ByteStream(self._response.content), ""
        assert isinstance(pieces, httpx2.AsyncByteStream)
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            return RequestFailedError(f"the answer has a Content-Encoding that was not asked for: {encoding}")
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding.endswith("gzip") else None
        failure: RequestFailedError | None = None
        received, left = 0, PIECES_TO_SKIP
        # Reading is ended by cancelling it, and not by leaving the loop: that would leave the generators below to the
        # garbage collector, and the connection with them.
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
