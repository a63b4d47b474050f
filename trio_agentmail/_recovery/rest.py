"""Requests to AgentMail's REST API, with retries and limits.

Whatever the server answers, a request results in an object, an `ApiError` or a `RequestFailedError`.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urlencode

import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import encode_object
from trio_agentmail._reconnect import Verdict, ceilings, full_jitter, retry_after, verdict
from trio_agentmail._settings import ReconnectPolicy, Settings
from trio_agentmail.errors import (
    AnswerTooLargeError,
    ApiError,
    AuthenticationError,
    RequestFailedError,
    RequestTooLargeError,
    printable,
)

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("trio_agentmail")

__all__ = ["UNDER_WAY", "Pace", "Rest", "raise_first", "segment"]

CONCURRENCY = 8
"""Maximum number of concurrent requests."""

UNDER_WAY = 2 * CONCURRENCY
"""Maximum number of mails or threads of one listing that are being fetched or wait for an earlier one.

It is larger than `CONCURRENCY`, so that requests go on while results wait.
"""

REQUEST_TIMEOUT = 30.0
"""Seconds for one request, including all of its answer."""

ATTEMPTS = 5
"""Attempts to make a request. After that it has failed; its caller tries again later."""

SMALLEST_LIMIT = 2**20
"""Bytes that any answer may have, however low `max_message_size` is: a page of a listing takes some 100 KB."""

NOT_WORTH_RETRYING = (AnswerTooLargeError, RequestTooLargeError)
"""Failures that would be the same each time."""

MAX_PATIENCE = 60.0
"""Seconds, at most, before a request is made again. If the server asks for more, that is left to the next sweep."""

COLLECTIONS = frozenset({"inboxes", "pods", "threads", "messages", "batch-get"})
"""The parts of paths that are no ids, and may be logged."""

DELAYS = ReconnectPolicy(initial_delay=1.0)


Pace: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until another request may be made."""


class Rest:
    """Makes requests, inside a block of `connected`. Each answer tells `clock` AgentMail's time."""

    def __init__(self, backend: Backend, settings: Settings, api_key: ApiKey, clock: ServerClock) -> None:
        # Imported before a connection exists: importing httpx2 takes 0.05 s, in which no event could be read.
        from . import exchange

        self._exchange = exchange
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._clock = clock
        self.largest_answer = max(settings.max_message_size, SMALLEST_LIMIT)
        """Bytes."""
        self._base = settings.environment.http + "/v0"
        self._transport: httpx2.AsyncBaseTransport
        self._users = 0
        self._slots = trio.CapacityLimiter(CONCURRENCY)
        self._not_before = 0.0
        """When requests are allowed again, on Trio's clock, after AgentMail has answered 429."""
        self.requests = 0
        """The number of requests made so far."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """A block in which requests can be made.

        Outside of all blocks no HTTP connection is kept open, since streams are mostly idle.
        """
        if not self._users:
            self._transport = self._backend.http_transport(self._settings.ssl_context)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                # Removed before it is closed: another block may be entered meanwhile. And a closed transport would be
                # a good part of an idle stream's memory.
                transport = self._transport
                del self._transport
                with suppress(*self._exchange.NETWORK_ERRORS):
                    await transport.aclose()

    async def learn_the_time(self) -> None:
        """Make a small request: any answer at all tells the time.

        Raises:
            RequestFailedError: The server has not answered.
        """
        try:
            await self.get("/inboxes", {"limit": "1"})
        except ApiError:
            return

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Request an object.

        Args:
            path: The path after `/v0`. Its variable parts have been escaped by `segment`.
            parameters: The query.

        Raises:
            ApiError: AgentMail refuses the request, or has answered `ATTEMPTS` times that it cannot answer it now.
            RequestFailedError: `ATTEMPTS` times, AgentMail could not be reached or has answered without a JSON object;
                or the answer is larger than `max_message_size`.
        """
        return await self._request("GET", path, parameters, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send an object and return the one in the answer; see `get`."""
        return await self._request("POST", path, None, encode_object(body))

    async def _request(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any]:
        delays = ceilings(DELAYS)
        attempts_left = ATTEMPTS
        key_was_replaced = False
        while True:
            sent = hash(self._api_key.authorization)  # not the key itself, since tracebacks show local variables
            result = await self._attempt(method, path, parameters, body)
            if isinstance(result, dict):
                return result
            if isinstance(result, AuthenticationError) and not key_was_replaced:
                self._api_key.ask()
                key_was_replaced = hash(self._api_key.authorization) != sent  # since the last connection was made
                if key_was_replaced:
                    continue
            attempts_left -= 1
            is_retryable = not isinstance(result, NOT_WORTH_RETRYING) and verdict(result) is Verdict.TRANSIENT
            if not attempts_left or not is_retryable:
                raise result
            patience = max(full_jitter(next(delays)), retry_after(result, self._backend.now))
            if isinstance(result, ApiError) and result.status_code == 429:
                # The limit is per key, so all requests wait.
                self._not_before = max(self._not_before, trio.current_time() + patience)
            elif patience > MAX_PATIENCE:
                raise result
            else:
                await trio.sleep(patience)

    async def _attempt(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any] | ApiError | RequestFailedError:
        query = "?" + urlencode(parameters, quote_via=quote, errors="surrogatepass") if parameters else ""
        async with self._slots:
            while trio.current_time() < self._not_before:  # noqa: ASYNC110  it may be moved while this task sleeps
                await trio.sleep_until(self._not_before)
            self.requests += 1
            began = trio.current_time()
            result = await self._exchange.exchange(
                self._transport,
                method,
                self._base + path + query,
                body,
                api_key=self._api_key,
                clock=self._clock,
                limit=self.largest_answer,
                timeout=REQUEST_TIMEOUT,
            )
        if not isinstance(result, dict):
            self._api_key.redact(result)
        seconds = trio.current_time() - began
        logger.debug("REST: %s %s: %s, %.3f s", method, _without_ids(path), _outcome(result), seconds)
        return result


def _without_ids(path: str) -> str:
    """Return a path with its ids replaced: inbox addresses, Message-IDs and the like."""
    return "/".join(part if part in COLLECTIONS else "…" for part in path.split("/") if part)


def _outcome(result: dict[str, Any] | ApiError | RequestFailedError) -> str:
    if isinstance(result, dict):
        return "an object"
    return f"HTTP status {result.status_code}" if isinstance(result, ApiError) else printable(str(result), 200)


def segment(text: str) -> str:
    """Escape a part of a path: a Message-ID may contain any character, slashes included."""
    quoted = quote(text, safe="", errors="surrogatepass")
    # httpx2 would take ".." for a step up.
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first of the failures that were collected while the rest went on, if there are any."""
    if failures:
        raise failures[0]
