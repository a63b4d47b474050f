"""Every answer of the REST API tells how far the clocks are apart."""

import time
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import answers
from tests.helpers.rest_api import EPOCH, Api, RestBackend, asked_key, clock_of, date, rest
from trio_agentmail import ApiError
from trio_agentmail._clock import ServerClock
from trio_agentmail._reconnect import http_date
from trio_agentmail._recovery.rest import Rest
from trio_agentmail.errors import RequestFailedError

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=200)

ANSWER = {"answer": 42}


@pytest.mark.parametrize("skew", [-600.0, -2.0, 2.0, 600.0, 86_400.0])
async def test_every_answer_tells_how_far_the_clocks_are_apart(skew: float, autojump_clock: MockClock) -> None:
    api = answers(404, ANSWER)
    async with rest(api) as asks:
        clock = clock_of(asks)
        assert (clock.ahead, clock.now()) == (0, EPOCH)
        assert not clock.is_known
        api.ahead = skew
        with pytest.raises(ApiError):
            await asks.get("/x")
        assert clock.is_known
        assert clock.ahead == skew
        await trio.sleep(10)
        assert clock.now() == EPOCH + 10 + skew
        api.ahead = 0.0
        await asks.get("/x")
        assert (clock.ahead, clock.now()) == (0, EPOCH + 10)


@pytest.mark.parametrize("skew", [-1.4, -1.0, 0.5, 1.4])
async def test_a_difference_within_whole_seconds_is_ignored(skew: float, autojump_clock: MockClock) -> None:
    backend = RestBackend(answers(httpx2.Response(200, json=ANSWER, headers={"Date": date(EPOCH)})))
    backend.wrong_by = -skew
    clock = ServerClock(backend.now)
    asks = Rest(backend, rest_api.settings(), asked_key(), clock)
    async with asks.connected():
        await asks.get("/x")
    assert clock.is_known
    assert clock.ahead == 0


@pytest.mark.parametrize(
    ("value", "ahead"),
    [
        ("Wed, 01 Jan 2025 01:00:00 GMT", 3600),
        ("Wednesday, 01-Jan-25 01:00:00 GMT", 3600),
        ("Wed Jan  1 01:00:00 2025", 3600),
        ("Wed, 01 Jan 2025 01:00:00 -0000", 3600),
        ("Wed, 01 Jan 2025 01:00:00", 3600),
        ("Wed, 01 Jan 2025 01:00:00 +0100", 0),
        ("", 0),
        ("now", 0),
        ("1735689600", 0),
        ("Wed, 01 Jan 2025 25:61:00 GMT", 0),
        ("Wed, 01 Jan 2025 01:00:00 +9999", 0),
        ("Wed, 01 Jan 0000 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +1200", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 -1200", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
async def test_a_date_may_have_any_shape(
    value: str, ahead: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        async with rest(answers(httpx2.Response(200, json=ANSWER, headers={"Date": value}))) as asks:
            await asks.get("/x")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert clock_of(asks).ahead == ahead
    assert clock_of(asks).is_known


@repeatable
@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ (Jan|Feb|x) -?\d+ \d+:\d+:\d+ (GMT|[+-]\d+|EST)"))
def test_no_date_header_causes_an_error(value: str) -> None:
    async def main() -> float:
        clock = ServerClock(lambda: EPOCH)
        clock.answered(http_date(value))
        return clock.ahead

    assert abs(trio.run(main, clock=MockClock())) < 366 * 86_400


async def test_a_key_without_permissions_can_learn_the_time(autojump_clock: MockClock) -> None:
    api = Api({"/inboxes": 403})
    api.ahead = 600.0
    async with rest(api) as asks:
        await asks.learn_the_time()
    assert clock_of(asks).ahead == 600
    assert len(api.requests) == 1
    assert api.requests[0].url.params["limit"] == "1"


async def test_without_an_answer_learning_the_time_fails(autojump_clock: MockClock) -> None:
    async with rest(Api({"/inboxes": lambda _: unreachable()})) as asks:
        with pytest.raises(RequestFailedError, match="refused"):
            await asks.learn_the_time()
    assert not clock_of(asks).is_known
    assert clock_of(asks).ahead == 0


async def test_a_refusal_or_a_malformed_answer_tells_the_time_nevertheless(autojump_clock: MockClock) -> None:
    for answer in (500, httpx2.Response(200, content=b"<html>")):
        api = Api({"/inboxes": answer})
        api.ahead = 600.0
        async with rest(api) as asks:
            with suppress(RequestFailedError):
                await asks.learn_the_time()
        assert clock_of(asks).ahead == pytest.approx(600, abs=1)


def unreachable() -> Any:
    raise httpx2.ConnectError("refused")
