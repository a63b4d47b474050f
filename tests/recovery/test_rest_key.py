"""The API key is in one header of a request and nowhere else."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import answers, clock, kinds_of, wire
from tests.helpers.rest_api import EPOCH, KEY, Api, asked_key, rest
from tests.helpers.secret_key import KEY as SECRET
from tests.helpers.secret_key import MARK, assert_no_secret
from trio_agentmail import ApiError, AuthenticationError, MessageReceivedEvent, Subscribe, open_agentmail_stream
from trio_agentmail._clock import ServerClock
from trio_agentmail._network import NetworkBackend
from trio_agentmail._recovery.rest import ATTEMPTS, CONCURRENCY, REQUEST_TIMEOUT, Rest
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.testing import FakeAgentMail

ANSWER = {"answer": 42}

INBOX = "agent@agentmail.to"


class Keys:
    """A key that is replaced while the stream runs."""

    def __init__(self) -> None:
        self.key = "am_old"
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.key


def knows(*keys: str) -> Callable[[httpx2.Request], Any]:
    def answer(request: httpx2.Request) -> Any:
        return ANSWER if request.headers["Authorization"].removeprefix("Bearer ") in keys else 401

    return answer


async def test_a_replaced_key_is_noticed(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": knows("am_new")})
    async with rest(api, keys) as asks:
        keys.key = "am_new"
        assert await asks.get("/x") == ANSWER
        assert trio.current_time() == 0
        assert await asks.get("/x") == ANSWER
    assert (len(api.requests), keys.asked) == (3, 2)


async def test_a_replaced_key_is_noticed_by_all_requests_under_way(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": knows("am_new")})
    api.took = 1
    async with rest(api, keys) as asks:
        keys.key = "am_new"
        async with trio.open_nursery() as nursery:
            for _ in range(CONCURRENCY):
                nursery.start_soon(asks.get, "/x")


async def test_a_replaced_key_is_noticed_by_the_last_attempt_as_well(autojump_clock: MockClock) -> None:
    keys = Keys()
    async with rest(answers(*[503] * (ATTEMPTS - 1), 401, ANSWER), keys) as asks:
        keys.key = "am_new"
        assert await asks.get("/x") == ANSWER


async def test_an_unchanged_key_that_is_refused_is_not_retried(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": 401})
    async with rest(api, keys) as asks:
        with pytest.raises(AuthenticationError):
            await asks.get("/x")
    assert (len(api.requests), keys.asked) == (1, 2)


async def test_a_key_that_changes_each_time_is_not_retried_for_ever(autojump_clock: MockClock) -> None:
    keys = iter(f"am_{number}" for number in range(100))
    api = Api({"/x": 401})
    async with rest(api, lambda: next(keys)) as asks:
        with pytest.raises(AuthenticationError):
            await asks.get("/x")
    assert len(api.requests) == 2


async def test_what_an_api_key_function_raises_comes_out_as_itself() -> None:
    def ask() -> str:
        raise KeyError("vault")

    keys: list[Callable[[], str]] = [lambda: "am_old", ask]
    async with rest(Api({"/x": 401}), lambda: keys.pop(0)()) as asks:
        with pytest.raises(KeyError, match="vault"):
            await asks.get("/x")


@pytest.mark.parametrize(
    "failure",
    [
        *[
            httpx2.Response(
                status,
                headers={"X-Echo": f"Bearer {SECRET}", f"X-{SECRET}": "", "Location": f"https://x/?api_key={SECRET}"},
                json={"message": f"{SECRET} is not allowed to"},
            )
            for status in (302, 400, 401, 403, 404, 429, 500)
        ],
        *[kind(f"Illegal header value b'Bearer {SECRET}'") for kind in kinds_of(httpx2.RequestError)],
        httpx2.InvalidURL(f"https://{SECRET}@host"),
        httpx2.Response(200, text=SECRET),
    ],
    ids=repr,
)
async def test_no_failure_shows_the_key(failure: Any, autojump_clock: MockClock) -> None:
    async with rest(answers(failure), SECRET) as asks:
        with pytest.raises((ApiError, RequestFailedError)) as caught:
            await asks.get("/x", {"a": "b"})
        assert_no_secret(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [200, 401])
async def test_no_logger_shows_the_key_at_any_level(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.headers["Authorization"])
        return httpx2.Response(status, json={"your_key": SECRET})

    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "httpcore2.connection", "httpcore2.http11", "h11", "trio_agentmail"):
        caplog.set_level(logging.DEBUG, logger=name)
    sent: list[str] = []
    fake = FakeAgentMail()
    fake.faults.answer_requests(answer, times=None)
    async with fake.serve() as environment:
        asks = Rest(NetworkBackend(), rest_api.settings(environment=environment), asked_key(SECRET), clock())
        async with asks.connected():
            try:
                assert await asks.get("/inboxes", {"limit": "1"}) == {"your_key": SECRET}
            except AuthenticationError as exc:
                assert_no_secret(exc)
    assert sent == [f"Bearer {SECRET}"]
    assert {record.name.partition(".")[0] for record in caplog.records} == {"trio_agentmail", "httpcore2"}
    shown = [logging.Formatter().format(record) + repr(vars(record)) for record in caplog.records]
    assert [line for line in shown if MARK in line] == []


# Logs and tracebacks


async def test_requests_are_logged_at_debug_only_and_without_ids(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake) as events:
        await anext(events)
        await trio.sleep(1)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=INBOX, message_id="<secret-id@example.com>")
        assert isinstance(await anext(events), MessageReceivedEvent)
        fake.faults.fail_requests(500, times=20)
        fake.faults.break_requests(times=20)
        await trio.sleep(1_000)
    lines = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] != "trio-websocket"]
    shown = [line for line in lines if "agent@" in line or "agent%40" in line or "secret-id" in line]
    assert shown == []
    ours = [record for record in caplog.records if record.getMessage().startswith("REST: ")]
    assert {record.levelno for record in ours} == {logging.DEBUG}
    assert {record.name for record in ours} == {"trio_agentmail"}
    assert ours[0].getMessage() == "REST: GET inboxes: an object, 0.000 s"
    told = {record.getMessage().rpartition(",")[0] for record in ours}
    assert told == {
        "REST: GET inboxes: an object",
        "REST: GET inboxes/…/messages: an object",
        "REST: GET inboxes/…/messages/…: an object",
        "REST: GET inboxes/…/messages: HTTP status 500",
        "REST: GET inboxes/…/messages: ReadError: connection reset by FakeAgentMail",
    }


async def test_over_a_socket_httpx2_logs_requests_of_others_and_none_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        asks = Rest(
            NetworkBackend(), rest_api.settings(environment=environment), asked_key(), ServerClock(lambda: EPOCH)
        )
        async with asks.connected():
            await asks.get("/inboxes")
        assert caplog.records == []
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.get(f"{environment.http}/v0/inboxes", headers={"Authorization": f"Bearer {KEY}"})
    assert [record.name for record in caplog.records] == ["httpx2"]


async def test_a_key_that_a_server_repeats_does_not_get_into_httpcore2s_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpcore2", "httpcore2.connection", "httpcore2.http11"):
        caplog.set_level(logging.DEBUG, logger=name)
    odd = SECRET + "'\\\""  # its repr() is another text
    fake = FakeAgentMail(api_keys={odd, KEY})
    fake.faults.answer_requests(
        lambda request: httpx2.Response(200, headers={"X-Echo": request.headers["Authorization"]}, json=ANSWER),
        times=None,
    )
    async with fake.serve() as environment:
        asks = Rest(
            NetworkBackend(), rest_api.settings(environment=environment), asked_key(odd), ServerClock(lambda: EPOCH)
        )
        async with asks.connected():
            await asks.get("/inboxes")
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("httpcore2")]
        assert any("X-Echo" in line and "Bearer ***" in line for line in lines)
        assert [line for line in lines if MARK in line] == []
        caplog.clear()
        # The log of other users of httpcore2 is unchanged.
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.get(f"{environment.http}/v0/inboxes", headers={"Authorization": f"Bearer {KEY}"})
    assert any(f"Bearer {KEY}" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("failure", [401, 404, httpx2.ReadError("reset"), "no object", "bug"], ids=repr)
async def test_no_local_of_a_traceback_shows_the_key(failure: Any, autojump_clock: MockClock) -> None:
    def answer(request: httpx2.Request) -> Any:
        if failure == "bug":
            raise ZeroDivisionError
        if isinstance(failure, Exception):
            raise failure
        return wire(b"[]") if failure == "no object" else failure

    # Concatenated, since a literal would be in this frame.
    async with rest(Api({"/x": answer}), lambda: SECRET[:5] + SECRET[5:]) as asks:
        with pytest.raises(Exception) as caught:
            await asks.get("/x")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert MARK not in "".join(shown.format())


def test_the_key_is_redacted_however_it_is_shown() -> None:
    key = asked_key("am_a'b\\c")
    assert key.redacted("x am_a'b\\c " + repr("am_a'b\\c")) == 'x *** "***"'


async def test_a_request_without_an_answer_says_how_long_it_waited(autojump_clock: MockClock) -> None:
    async def hang(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with rest(hang) as asks:
        with pytest.raises(RequestFailedError, match=f"no answer within {REQUEST_TIMEOUT:.0f} s"):
            await asks.get("/x")
