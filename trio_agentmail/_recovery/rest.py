"""AgentMail's REST API, as far as recovery asks it.

Whatever it answers, what comes out of a request is an object, an `ApiError` or a `RequestFailedError`.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import quote, urlencode

import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._reconnect import Verdict, ceilings, full_jitter, http_date, retry_after, verdict
from trio_agentmail._settings import ReconnectPolicy, Settings
from trio_agentmail.errors import (
    AnswerTooLargeError,
    ApiError,
    AuthenticationError,
    RequestFailedError,
    RequestTooLargeError,
    printable,
    refusal,
)

if TYPE_CHECKING:
    from .exchange import Answer

logger = logging.getLogger("trio_agentmail")

__all__ = ["UNDER_WAY", "Pace", "Page", "Rest", "raise_first", "segment"]

PAGE_SIZE = 100
"""Items of a page: as many as AgentMail is sure to give."""

CONCURRENCY = 8
"""Requests under way at once."""

UNDER_WAY = 2 * CONCURRENCY
"""Mails or threads of one listing that are being fetched, or wait for an earlier one, so that requests go on."""

REQUEST_TIMEOUT = 30.0
"""Seconds for one request, until all of its answer is there."""

ATTEMPTS = 5
"""How often a request is made before it has failed. What asks for it tries again later."""

SMALLEST_LIMIT = 2**20
"""Bytes that any answer may have, however low `max_message_size` is: a page of a listing takes some 100 KB."""

MAX_EMPTY_PAGES = 1_000
"""Pages with nothing on them, one after the other, after which a listing is taken to have no end."""

HOPELESS = (AnswerTooLargeError, RequestTooLargeError)
"""What would be the same each time."""

MAX_PATIENCE = 60.0
"""Seconds that are waited before a request is made again: rather is the next sweep's try."""

COLLECTIONS = frozenset({"inboxes", "pods", "threads", "messages", "batch-get"})
"""The words in paths that are the same for everybody."""

DELAYS = ReconnectPolicy(initial_delay=1.0)


Pace: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until another request may be made."""


class Page(NamedTuple):
    """A page of a listing: its items, and whether there is another page."""

    items: list[dict[str, Any]]
    has_more: bool


class Rest:
    """Asks AgentMail, in a block of `connected`. Each answer tells `clock` the time."""

    def __init__(self, backend: Backend, settings: Settings, api_key: ApiKey, clock: ServerClock) -> None:
        # Here, before there is a connection: httpx2 takes 0.1 s to import, in which no event could be read.
        import httpx2

        from . import exchange

        self._httpx2 = httpx2
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
        self._under_way = trio.CapacityLimiter(CONCURRENCY)
        self._not_before = 0.0
        """By Trio's clock: AgentMail has said that we ask too much."""
        self.requests = 0
        """How many have been made."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Requests can be made in this block. When nobody is in one, no connection is held: streams are idle mostly."""
        if not self._users:
            self._transport = self._backend.http_transport(self._settings.ssl_context)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                # Given up first: another user may come while it is closed. Also, it would be a good part of an idle
                # stream's memory.
                transport = self._transport
                del self._transport
                with suppress(*self._exchange.NETWORK_ERRORS):
                    await transport.aclose()

    async def learn_the_time(self) -> None:
        """Ask for something small: any answer at all tells the time.

        Raises:
            RequestFailedError: there is no answer.
        """
        try:
            await self.get("/inboxes", {"limit": "1"})
        except ApiError:
            return

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Ask for an object.

        Args:
            path: The path behind `/v0`; what is variable in it has gone through `segment`.

        Raises:
            ApiError: AgentMail refuses, or its trouble has outlasted `ATTEMPTS`.
            RequestFailedError: it cannot be reached, or answers with no JSON object, and that has; or the answer is
                larger than `max_message_size`.
        """
        return await self._ask("GET", path, parameters, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for an object, by a request with a body; as `get`."""
        return await self._ask("POST", path, None, encode_object(body))

    async def pages(
        self,
        path: str,
        field: str,
        parameters: Mapping[str, str],
        size: int = PAGE_SIZE,
        pace: Pace = trio.lowlevel.checkpoint,
    ) -> AsyncGenerator[Page, None]:
        """Go through a listing to its end, a page at a time; as `get`.

        Args:
            field: Which field of a page holds its items.
            pace: Waited for before each request.
        """
        asked = {"limit": str(size), **parameters}
        tokens: set[int] = set()  # the hashes: a token may be long
        before: list[Any] = []
        empty_pages = 0
        while True:
            await pace()
            try:
                page = await self.get(path, asked)
            except AnswerTooLargeError:
                if size == 1:
                    raise
                size = max(1, size // 5)
                asked["limit"] = str(size)
                continue
            items = page.get(field, [] if page.get("count") == 0 else None)
            if not isinstance(items, list):
                raise RequestFailedError(f"the REST API answered without {field}, so nobody knows what there is")
            token = page.get("next_page_token")
            if not isinstance(token, str):
                token = ""
            if items and items == before:
                raise RequestFailedError("the REST API gave a page twice, so the listing has no end")
            before = items
            yield Page([item for item in items if isinstance(item, dict)], has_more=bool(token))
            if not token:
                return
            if hash(token) in tokens:
                raise RequestFailedError("the REST API gave a page_token twice, so the listing has no end")
            empty_pages = 0 if items else empty_pages + 1
            if empty_pages == MAX_EMPTY_PAGES:
                raise RequestFailedError(f"the REST API gave {MAX_EMPTY_PAGES} empty pages one after the other")
            tokens.add(hash(token))
            asked["page_token"] = token

    async def _ask(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any]:
        delays = ceilings(DELAYS)
        left = ATTEMPTS
        key_was_replaced = False
        while True:
            sent = hash(self._api_key.authorization)  # and not itself: a traceback may show this frame
            answer = await self._once(method, path, parameters, body)
            if isinstance(answer, dict):
                return answer
            if isinstance(answer, AuthenticationError) and not key_was_replaced:
                self._api_key.ask()
                key_was_replaced = hash(self._api_key.authorization) != sent  # since the last connection was made
                if key_was_replaced:
                    continue
            left -= 1
            if not left or isinstance(answer, HOPELESS) or verdict(answer) is not Verdict.TRANSIENT:
                raise answer
            patience = max(full_jitter(next(delays)), retry_after(answer, self._backend.now))
            if isinstance(answer, ApiError) and answer.status_code == 429:
                # It is the key that asks too much: nobody asks any more for so long.
                self._not_before = max(self._not_before, trio.current_time() + patience)
            elif patience > MAX_PATIENCE:
                raise answer
            else:
                await trio.sleep(patience)

    async def _once(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any] | ApiError | RequestFailedError:
        async with self._under_way:
            while trio.current_time() < self._not_before:  # noqa: ASYNC110  it may be put off while we wait
                await trio.sleep_until(self._not_before)
            self.requests += 1
            began = trio.current_time()
            result = await self._exchanged(method, path, parameters, body)
        if not isinstance(result, dict):
            self._api_key.redact(result)
        seconds = trio.current_time() - began
        logger.debug("REST: %s %s: %s, %.3f s", method, _without_ids(path), _outcome(result), seconds)
        return result

    async def _exchanged(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any] | ApiError | RequestFailedError:
        answer: Answer | None = None
        failure: RequestFailedError | None = None
        token = self._exchange.key_in_use.set(self._api_key)
        try:
            with trio.move_on_after(REQUEST_TIMEOUT) as patience:
                answer = await self._send(method, path, parameters, body)
                self._clock.answered(http_date(answer.headers.get("date", "")))
                await answer.read(self.largest_answer)
            if patience.cancelled_caught:
                failure = RequestFailedError(f"no answer within {REQUEST_TIMEOUT:.0f} s")
        except RequestFailedError as exc:
            failure = exc
        except self._httpx2.InvalidURL as exc:  # what is variable in it is quoted, so it can only be too long
            failure = RequestTooLargeError(_explained(exc))
        except (KeyboardInterrupt, SystemExit) as exc:
            # Without the frames of whoever was just sending the request: the key is among their variables.
            exc.__context__ = None
            raise exc.with_traceback(None) from None
        except self._exchange.NETWORK_ERRORS as exc:
            # Raised elsewhere, and so without this as its context: it holds the request, with the key.
            failure = RequestFailedError(_explained(exc))
        finally:
            self._exchange.key_in_use.reset(token)
        if answer is not None and answer.status != 200:
            return refusal(answer.status, answer.headers, answer.body.decode(errors="replace"))
        if answer is None or failure is not None:
            assert failure is not None
            return failure
        parsed = parse_object(answer.body)
        if parsed is None:
            return RequestFailedError("the REST API answered with something that is no JSON object")
        return parsed

    async def _send(self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None) -> "Answer":
        query = "?" + urlencode(parameters, quote_via=quote, errors="surrogatepass") if parameters else ""
        request = self._httpx2.Request(method, self._base + path + query, headers=self._exchange.HEADERS, content=body)
        if body is not None:
            request.headers["Content-Type"] = "application/json"
        request.headers["Authorization"] = self._api_key.authorization
        return self._exchange.Answer(await self._transport.handle_async_request(request))


def _explained(failure: BaseException) -> str:
    """httpx2 says nothing of what went wrong in TLS; the beginning of the story does."""
    while (cause := failure.__cause__ or failure.__context__) is not None:
        failure = cause
    return f"{type(failure).__name__}: {failure}"


def _without_ids(path: str) -> str:
    """A path without what is somebody's: inbox addresses, Message-IDs and the like."""
    return "/".join(part if part in COLLECTIONS else "…" for part in path.split("/") if part)


def _outcome(result: dict[str, Any] | ApiError | RequestFailedError) -> str:
    if isinstance(result, dict):
        return "an object"
    return f"HTTP status {result.status_code}" if isinstance(result, ApiError) else printable(str(result), 200)


def segment(text: str) -> str:
    """A part of a path: a Message-ID may hold any character, slashes included."""
    quoted = quote(text, safe="", errors="surrogatepass")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")  # "..": else httpx2 takes it for a step up


def raise_first(failures: Sequence[Exception]) -> None:
    """Of what went wrong while the rest went on."""
    if failures:
        raise failures[0]
