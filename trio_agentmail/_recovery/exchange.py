"""One exchange with the REST API: a request, and its answer, read within bounds.

The transport is asked itself, without `httpx2.AsyncClient` around it. The client logs each URL, with its inbox address
and Message-ID, at INFO. It keeps cookies and sends them back, unpacks what comes without a limit, and decodes text by
any charset that an answer names. Nothing of that is wanted here.
"""

import logging
import zlib
from contextvars import ContextVar

import httpx2
import trio

from trio_agentmail import __version__
from trio_agentmail._api_key import ApiKey
from trio_agentmail.errors import MAX_BODY, AnswerTooLargeError, RequestFailedError

__all__ = ["HEADERS", "NETWORK_ERRORS", "Answer", "key_in_use"]

HEADERS = {
    "Accept": "application/json",
    # What Python can unpack in pieces, so that a small answer cannot fill the memory.
    "Accept-Encoding": "gzip",
    "User-Agent": f"trio-agentmail/{__version__}",
}
"""Of every request."""

NETWORK_ERRORS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.CookieConflict,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What a transport may raise when an exchange fails, and no bug has."""

REFUSAL_TIMEOUT = 2.0
"""Seconds that the body of a refusal may take once its head is there."""

PIECES_TO_SKIP = 1_000
"""Of a body that is given up, how many pieces are taken until there is a checkpoint, which ends it."""


key_in_use: ContextVar[ApiKey | None] = ContextVar("key_in_use", default=None)
"""Set while an exchange is under way that is ours."""


class _WithoutKey(logging.Filter):
    """httpcore2 tells at DEBUG which headers came, and a server may repeat the key in one of them.

    What others do with httpcore2 goes on as it did.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        key = key_in_use.get()
        if key is not None:
            record.msg, record.args = key.redacted(record.getMessage()), ()
        return True


for _name in ("connection", "http11", "proxy", "socks"):
    logging.getLogger(f"httpcore2.{_name}").addFilter(_WithoutKey())


class Answer:
    """What there is of an answer.

    Attributes:
        status: The HTTP status.
        headers: The names in lower case; of repeated ones the last.
        body: Unpacked. That of a refusal is cut at 64 KiB, and is what there is of it: it only helps to explain.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        # latin-1, which has a character for every byte.
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        self.body = bytearray()

    async def read(self, limit: int) -> None:
        """Read the body, and close the answer.

        Args:
            limit: Bytes that it may have, packed and unpacked, if it is no refusal.

        Raises:
            AnswerTooLargeError: It has more.
            RequestFailedError: It is not packed as it says, or in a way that was not asked for.
            NETWORK_ERRORS: The connection fails.
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
        pieces, packing = self._response.stream, self.headers.get("content-encoding", "").strip().lower()
        if self._response.is_stream_consumed:  # it was made in memory, where httpx2 has unpacked it
            pieces, packing = httpx2.ByteStream(self._response.content), ""
        assert isinstance(pieces, httpx2.AsyncByteStream)
        if packing not in ("", "identity", "gzip", "x-gzip"):
            return RequestFailedError(f"the answer is packed in a way that was not asked for: {packing}")
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if packing.endswith("gzip") else None
        failure: RequestFailedError | None = None
        received, left = 0, PIECES_TO_SKIP
        # It is given up by cancelling it. Left by an exception, the generators that it is read with would be for the
        # garbage collector to end, and the connection with them.
        with trio.CancelScope() as scope:
            async for piece in pieces:
                if failure is None:
                    received += len(piece)
                    failure = self._take(piece, received, unpacker, limit)
                    if failure is not None:
                        scope.cancel()
                else:
                    left -= 1
                    if not left:
                        break
        return failure

    def _take(
        self, piece: bytes, received: int, unpacker: "zlib._Decompress | None", limit: int
    ) -> RequestFailedError | None:
        try:
            self.body += piece if unpacker is None else unpacker.decompress(piece, limit + 1 - len(self.body))
        except zlib.error as exc:
            return RequestFailedError(f"the answer is not packed as it says: {exc}")
        if max(received, len(self.body)) > limit:
            return AnswerTooLargeError(f"the answer has more than {limit} bytes")
        return None
