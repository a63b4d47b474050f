"""A REST API whose answers a test gives word for word, by path, for tests of recovery below the stream."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, TypeAlias

import httpx2
import trio

from trio_agentmail import AgentMailEnvironment, ReconnectPolicy
from trio_agentmail._api_key import ApiKey
from trio_agentmail._clock import ServerClock
from trio_agentmail._recovery.rest import Rest
from trio_agentmail._settings import Settings
from trio_agentmail.testing import FakeAgentMail

from .backends import FakeBackend

EPOCH = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""The time of day at which a mock clock starts."""

KEY = "am_key"

Handler: TypeAlias = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
Answer: TypeAlias = dict[str, Any] | int | httpx2.Response
"""A JSON object, a status, or a whole response."""


def service() -> FakeAgentMail:
    """Return a fake whose time of day begins at `EPOCH`."""
    fake = FakeAgentMail()
    fake._clock.time = lambda: EPOCH + trio.current_time()  # type: ignore[method-assign]
    return fake


class RestBackend(FakeBackend):
    """A backend whose requests are answered by a function, and whose clock is right unless `wrong_by` is set."""

    def __init__(self, handle: Handler) -> None:
        super().__init__(service())
        self.fake.faults.answer_requests(handle, times=None)
        self.wrong_by = 0.0
        """Seconds by which our clock is ahead."""

    def now(self) -> float:
        return self.fake.now() + self.wrong_by


class Api:
    """Answers requests by a table of paths; other paths are answered with 404."""

    def __init__(self, answers: dict[str, Answer | Callable[[httpx2.Request], Any]]) -> None:
        self.answers = answers
        self.requests: list[httpx2.Request] = []
        self.times: list[float] = []
        """When each request came, on Trio's clock."""
        self.ahead = 0.0
        """Seconds by which its clock is ahead of the true time."""
        self.took = 0.0
        """Seconds until a request is answered."""

    @property
    def asked(self) -> list[str]:
        """The path and page_token of each request so far."""
        return [path_of(request) for request in self.requests]

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        self.times.append(trio.current_time())
        await trio.sleep(self.took)
        answer = self.answers.get(path_of(request), 404)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, int):
            answer = httpx2.Response(answer, json={"name": "no", "message": f"status {answer}"})
        elif not isinstance(answer, httpx2.Response):
            answer = httpx2.Response(200, json=answer)
        if self.ahead:
            answer.headers["Date"] = date(EPOCH + trio.current_time() + self.ahead)
        return answer


def path_of(request: httpx2.Request) -> str:
    """Return the path after `/v0`, not decoded, with the page_token and without other parameters."""
    path = request.url.raw_path.decode().partition("?")[0].removeprefix("/v0")
    token = request.url.params.get("page_token")
    return path if token is None else f"{path}?{token}"


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def at(seconds: float) -> str:
    """Return the time of day `seconds` after `EPOCH`, as AgentMail writes it."""
    return datetime.fromtimestamp(EPOCH + seconds, UTC).isoformat().replace("+00:00", "Z")


def mail(message_id: str, at_: float | None = 0.0, *labels: str, **more: Any) -> dict[str, Any]:
    """Return a received mail as it is listed, created and dated `at_` seconds after `EPOCH`; `None`: without times."""
    times = {} if at_ is None else {"timestamp": at(at_), "created_at": at(at_)}
    return {"message_id": message_id, "labels": ["received", *labels]} | times | more


def settings(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "environment": AgentMailEnvironment.PROD,
        "reconnect": ReconnectPolicy(),
        "ping_interval": 20.0,
        "ping_timeout": 20.0,
        "open_timeout": 10.0,
        "enter_timeout": 30.0,
        "close_timeout": 5.0,
        "buffer_size": 64,
        "max_message_size": 16 * 2**20,
        "ssl_context": None,
    }
    return Settings(**(defaults | changes))


def asked_key(source: str | Callable[[], str] = KEY) -> ApiKey:
    """Return a key with which a connection has been made."""
    key = ApiKey(source)
    key.ask()
    return key


@asynccontextmanager
async def rest(
    handle: Handler, key: str | Callable[[], str] = KEY, clock: ServerClock | None = None
) -> AsyncIterator[Rest]:
    """A block with a `Rest` that is connected to a REST API.

    Args:
        clock: Set by each answer; `None`: a new one, which `clock_of` returns.
    """
    backend = RestBackend(handle)
    asks = Rest(backend, settings(), asked_key(key), clock or ServerClock(backend.now))
    async with asks.connected():
        yield asks


def clock_of(asks: Rest) -> ServerClock:
    """Return AgentMail's clock as its answers have set it."""
    return asks._clock
