"""AgentMail's REST API, as far as recovery asks it: the one place that knows HTTP."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import quote

import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._reconnect import Verdict, ceilings, full_jitter, http_date, retry_after, verdict
from trio_agentmail._settings import ReconnectPolicy, Settings
from trio_agentmail.errors import ApiError, AuthenticationError, RequestFailedError, refusal

if TYPE_CHECKING:
    import httpx

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

MAX_PATIENCE = 60.0
"""Seconds that are waited before a request is made again: rather is the next sweep's try."""

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
        import httpx  # here, before there is a connection: it takes 0.1 s, in which no event could be read

        self._httpx = httpx
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._clock = clock
        self._client: httpx.AsyncClient
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
            # Neither proxies nor passwords are taken from the environment, and no redirect is followed, with the key.
            self._client = self._httpx.AsyncClient(
                base_url=self._settings.environment.http,
                transport=self._backend.http_transport(self._settings.ssl_context),
                timeout=None,
                trust_env=False,
            )
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                # Given up first: another user may come while it is closed. Also, it would be a good part of an idle
                # stream's memory.
                client = self._client
                del self._client
                await client.aclose()

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
            RequestFailedError: it cannot be reached, or answers with no JSON object, and that has.
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
        tokens: set[str] = set()
        while True:
            await pace()
            page = await self.get(path, asked)
            items = page.get(field, [] if page.get("count") == 0 else None)
            if not isinstance(items, list):
                raise RequestFailedError(f"the REST API answered without {field}, so nobody knows what there is")
            token = page.get("next_page_token")
            if not isinstance(token, str):
                token = ""
            yield Page([item for item in items if isinstance(item, dict)], has_more=bool(token))
            if not token:
                return
            if token in tokens:
                raise RequestFailedError("the REST API gave a page_token twice, so the listing has no end")
            tokens.add(token)
            asked["page_token"] = token

    async def _ask(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None
    ) -> dict[str, Any]:
        delays = ceilings(DELAYS)
        left = ATTEMPTS
        key_was_replaced = False
        while True:
            authorization = self._api_key.authorization
            answer = await self._once(method, path, parameters, body, authorization)
            if isinstance(answer, dict):
                return answer
            refused = isinstance(answer, AuthenticationError) and not key_was_replaced
            if refused and self._api_key.is_other_than(authorization):
                key_was_replaced = True  # since the last connection was made
                continue
            left -= 1
            if not left or verdict(answer) is not Verdict.TRANSIENT:
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
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: bytes | None, authorization: str
    ) -> dict[str, Any] | ApiError | RequestFailedError:
        async with self._under_way:
            while trio.current_time() < self._not_before:  # noqa: ASYNC110  it may be put off while we wait
                await trio.sleep_until(self._not_before)
            self.requests += 1
            headers = {"Authorization": authorization}
            if body is not None:
                headers["Content-Type"] = "application/json"
            failure: ApiError | RequestFailedError
            try:
                with trio.move_on_after(REQUEST_TIMEOUT) as patience:
                    response = await self._client.request(
                        method, f"/v0{path}", params=parameters, content=body, headers=headers
                    )
            except (self._httpx.RequestError, self._httpx.InvalidURL) as exc:  # the latter: a Message-ID of 64 KiB
                # Raised outside, and so without this as its context: it holds the request, with the key.
                failure = RequestFailedError(_explained(exc))
            else:
                if not patience.cancelled_caught:
                    return self._read(response)
                failure = RequestFailedError(f"no answer within {REQUEST_TIMEOUT:.0f} s")
        self._api_key.redact(failure)
        return failure

    def _read(self, response: "httpx.Response") -> dict[str, Any] | ApiError | RequestFailedError:
        self._clock.answered(http_date(response.headers.get("date", "")))
        failure: ApiError | RequestFailedError
        if response.status_code == 200:
            answer = parse_object(response.content)
            if answer is not None:
                return answer
            failure = RequestFailedError("the REST API answered with something that is no JSON object")
        else:
            failure = refusal(response.status_code, dict(response.headers), response.text)
        self._api_key.redact(failure)
        return failure


def _explained(failure: BaseException) -> str:
    """httpx says nothing of what went wrong in TLS; the beginning of the story does."""
    while (cause := failure.__cause__ or failure.__context__) is not None:
        failure = cause
    return f"{type(failure).__name__}: {failure}"


def segment(text: str) -> str:
    """A part of a path: a Message-ID may hold any character, slashes included."""
    quoted = quote(text, safe="", errors="surrogatepass")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")  # "..": else httpx takes it for a step up


def raise_first(failures: Sequence[Exception]) -> None:
    """Of what went wrong while the rest went on."""
    if failures:
        raise failures[0]
