"""Makes requests to AgentMail's REST API, with retries and limits.

Each request returns a JSON object, or raises an `ApiError` or a `RequestFailedError`.
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
from trio_agentmail._printable import printable
from trio_agentmail._reconnect import Verdict, ceilings, full_jitter, retry_after, verdict
from trio_agentmail._settings import ReconnectPolicy, Settings
from trio_agentmail.errors import (
    AnswerTooLargeError,
    ApiError,
    AuthenticationError,
    RequestFailedError,
    RequestTooLargeError,
)

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("trio_agentmail")

__all__ = ["UNDER_WAY", "Pace", "Rest", "raise_first", "segment"]

CONCURRENCY = 8
"""Maximum number of concurrent requests."""

UNDER_WAY = 2 * CONCURRENCY
"""Maximum number of mails or threads of one listing that are being fetched or wait for an earlier one.

It is larger than `CONCURRENCY`, so that requests continue while results wait.
"""

REQUEST_TIMEOUT = 30.0
"""Seconds for one request with its complete answer."""

ATTEMPTS = 5
"""Maximum number of attempts to make a request. After that, its caller tries again later."""

SMALLEST_LIMIT = 2**20
"""Minimum of the size limit of an answer, in bytes, which is otherwise `max_message_size`.

A page of a listing takes about 100 KB.
"""

NOT_WORTH_RETRYING = (AnswerTooLargeError, RequestTooLargeError)
"""Failures that a retry would only repeat."""

MAX_PATIENCE = 60.0
"""Maximum delay of a retry in seconds, except after a 429. For a longer one, the request fails instead."""

COLLECTIONS = frozenset({"inboxes", "pods", "threads", "messages", "batch-get"})
"""The parts of paths that are not ids, and may be logged."""

DELAYS = ReconnectPolicy(initial_delay=1.0)


Pace: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until another request may be made."""


class Rest:
    """Makes requests, inside a `connected` block. Each answer updates `clock` with AgentMail's time."""

    def __init__(self, backend: Backend, settings: Settings, api_key: ApiKey, clock: ServerClock) -> None:
        # Imported before a connection exists, since importing httpx2 takes 0.05 s, during which no event could be read.
        from . import exchange

        self._exchange = exchange
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._clock = clock
        self.largest_answer = max(settings.max_message_size, SMALLEST_LIMIT)
        """Maximum size of an answer, in bytes."""
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
        """Return a context manager for a block that makes requests. Blocks may overlap.

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
                # Remove it before closing it, since another block may be entered meanwhile. A closed transport is not
                # kept, because it would be a large part of an idle stream's memory.
                transport = self._transport
                del self._transport
                with suppress(*self._exchange.NETWORK_ERRORS):
                    await transport.aclose()

    async def learn_the_time(self) -> None:
        """Make a small request to learn AgentMail's time. An error response shows the time as well.

        Raises:
            RequestFailedError: The request failed without an HTTP error status; see `get`.
        """
        try:
            await self.get("/inboxes", {"limit": "1"})
        except ApiError:
            return

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Request a JSON object.

        Args:
            path: The path after `/v0`. Its variable parts have been escaped by `segment`.
            parameters: The query.

        Raises:
            ApiError: AgentMail refuses the request, or all attempts got a temporary error.
            RequestFailedError: In all attempts, AgentMail could not be reached or did not return a JSON object. Or the
                request is too large, or the answer is larger than `largest_answer`.
        """
        return await self._request("GET", path, parameters, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON object and return the one in the answer; see `get`."""
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
    """Return a path without its ids, like inbox addresses and Message-IDs."""
    return "/".join(part if part in COLLECTIONS else "…" for part in path.split("/") if part)


def _outcome(result: dict[str, Any] | ApiError | RequestFailedError) -> str:
    if isinstance(result, dict):
        return "an object"
    return f"HTTP status {result.status_code}" if isinstance(result, ApiError) else printable(str(result), 200)


def segment(text: str) -> str:
    """Escape a part of a path. A Message-ID may contain any character, including slashes."""
    quoted = quote(text, safe="", errors="surrogatepass")
    # httpx2 would resolve ".." as the parent path.
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first of the collected failures, if any."""
    if failures:
        raise failures[0]
