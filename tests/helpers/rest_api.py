"""What a `FakeAgentMail` answers to recovery, below the stream, when a test says it word for word: a table of paths."""

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
"""The time of day when a mock clock starts."""

KEY = "am_key"

Handler: TypeAlias = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
Answer: TypeAlias = dict[str, Any] | int | httpx2.Response
"""A JSON object, or a status, or any answer at all."""


class Service(FakeAgentMail):
    """Its time of day begins at `EPOCH`."""

    def now(self) -> float:
        return EPOCH + trio.current_time()


class RestBackend(FakeBackend):
    """A fake that answers requests as it is told; our clock is right, unless it is told otherwise."""

    def __init__(self, handle: Handler) -> None:
        super().__init__(Service())
        self.fake.answer_requests(handle, times=None)
        self.wrong_by = 0.0
        """Seconds by which our clock is ahead."""

    def now(self) -> float:
        return self.fake.now() + self.wrong_by


class Api:
    """Answers each path as its table says, and 404 where that says nothing."""

    def __init__(self, answers: dict[str, Answer | Callable[[httpx2.Request], Any]]) -> None:
        self.answers = answers
        self.requests: list[httpx2.Request] = []
        self.times: list[float] = []
        """When they came."""
        self.ahead = 0.0
        """Seconds by which its clock is ahead of the true time."""
        self.took = 0.0
        """Seconds for an answer."""

    @property
    def asked(self) -> list[str]:
        """The requests so far: path and page_token."""
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
    """As it crossed the wire, behind the `/v0`; with the page_token, and without the other parameters."""
    path = request.url.raw_path.decode().partition("?")[0].removeprefix("/v0")
    token = request.url.params.get("page_token")
    return path if token is None else f"{path}?{token}"


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def at(seconds: float) -> str:
    """A time of day so many seconds after the start, as AgentMail writes it."""
    return datetime.fromtimestamp(EPOCH + seconds, UTC).isoformat().replace("+00:00", "Z")


def mail(message_id: str, at_: float | None = 0.0, *labels: str, **more: Any) -> dict[str, Any]:
    """A received mail as a listing has it: created at that time, and dated so as well, unless it says otherwise."""
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
    """A key that a connection has been made with."""
    key = ApiKey(source)
    key.ask()
    return key


@asynccontextmanager
async def rest(
    handle: Handler, key: str | Callable[[], str] = KEY, clock: ServerClock | None = None
) -> AsyncIterator[Rest]:
    """Connected to a REST API.

    Args:
        clock: Told the time by each answer; `None`: one that `clock_of` gives.
    """
    backend = RestBackend(handle)
    asks = Rest(backend, settings(), asked_key(key), clock or ServerClock(backend.now))
    async with asks.connected():
        yield asks


def clock_of(asks: Rest) -> ServerClock:
    """AgentMail's clock, as its answers have told it."""
    return asks._clock
