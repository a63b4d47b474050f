"""The Retry-After of an answer is a floor under the wait."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.failures import NOON, api_error, comes_back, stream, time_of_day, times
from trio_agentmail import ApiError, ConnectionFailedError, ReconnectPolicy
from trio_agentmail._reconnect import retry_after
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        (" 7\t", 7),
        ("3600", 3600),
        ("3601", 3600),
        ("9" * 5_000, 3600),
        ("-7", 0),
        ("+7", 0),
        ("7.5", 0),
        ("7 s", 0),
        ("1e3", 0),
        ("soon", 0),
        ("", 0),
        ("\xb2", 0),  # a digit to str.isdigit()
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Mon, 32 Dec 2040 25:61:61 GMT", 0),
    ],
)
def test_retry_after_is_between_nothing_and_an_hour(value: str, seconds: float) -> None:
    assert retry_after(api_error(429, retry_after=value), time_of_day) == seconds


def test_retry_after_may_be_a_date_of_any_of_http_s_three_forms() -> None:
    when = NOON + timedelta(seconds=100)
    for text in (
        format_datetime(when, usegmt=True),
        when.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        when.strftime("%a %b %e %H:%M:%S %Y"),
        format_datetime(when.astimezone(tz=None)),
    ):
        assert retry_after(api_error(503, retry_after=text), time_of_day) == 100, text


@pytest.mark.parametrize("behind", [-86_400, -1, 0, 600, 86_400 * 3650])
def test_a_retry_after_date_is_compared_with_the_date_of_the_same_answer(behind: float) -> None:
    # Both times are by the server's clock, so ours does not matter.
    there = NOON + timedelta(seconds=behind)
    failure = api_error(
        503,
        retry_after=format_datetime(there + timedelta(seconds=100), usegmt=True),
        date=format_datetime(there, usegmt=True),
    )
    assert retry_after(failure, time_of_day) == 100
    failure = api_error(503, retry_after="7", date=format_datetime(there, usegmt=True))
    assert retry_after(failure, time_of_day) == 7


@pytest.mark.parametrize("date", ["", "now", "1767355200", "Mon, 32 Dec 2040 25:61:61 GMT"])
def test_without_a_date_header_retry_after_is_compared_with_the_time_of_day(date: str) -> None:
    failure = api_error(503, retry_after=format_datetime(NOON + timedelta(seconds=100), usegmt=True), date=date)
    assert retry_after(failure, time_of_day) == 100


def test_a_retry_after_date_that_is_over_or_too_far_off_is_cut() -> None:
    past, future = (format_datetime(NOON + timedelta(days=days), usegmt=True) for days in (-1, 1))
    assert retry_after(api_error(503, retry_after=past), time_of_day) == 0
    assert retry_after(api_error(503, retry_after=past, date=future), time_of_day) == 0
    assert retry_after(api_error(503, retry_after=future), time_of_day) == 3600
    assert retry_after(api_error(503, retry_after=future, date=past), time_of_day) == 3600


def test_only_an_answer_of_http_can_have_a_retry_after() -> None:
    assert retry_after(ConnectionLostError("Retry-After: 7"), time_of_day) == 0
    assert retry_after(OSError("retry-after: 7"), time_of_day) == 0
    assert retry_after(api_error(429), time_of_day) == 0


header_texts = st.one_of(
    st.text(st.characters(max_codepoint=255)),
    st.text(),
    st.integers().map(str),
    st.datetimes().map(format_datetime),
    st.from_regex(r"\A[A-Z][a-z]{2}, [0-9]{1,30} (Jan|Feb|Dec) [0-9]{1,30} [0-9:]{1,12} ([+-][0-9]{1,30}|GMT)\Z"),
)


@given(header_texts)
@example("Mon, 01 Jan 2040 00:00:00 +99999999999999999999")
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
def test_no_retry_after_can_raise_or_be_beyond_an_hour(text: str) -> None:
    assert 0 <= retry_after(api_error(429, retry_after=text), time_of_day) <= 3600
    noon = format_datetime(NOON, usegmt=True)
    assert 0 <= retry_after(api_error(429, retry_after=noon, date=text), time_of_day) <= 3600


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_is_a_floor_under_the_wait(
    status: int, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    for seconds in ("7", "0", "1", "20"):  # the jitter alone: 0.5, 1, 2, 4
        fake.faults.reject_handshakes(status, headers=[("Retry-After", seconds)])
    async with stream(fake, enter_timeout=60):
        assert times(fake) == [0, 7, 8, 10, 30]


async def test_retry_after_is_a_floor_below_the_jitter(autojump_clock: MockClock) -> None:
    waits = set()
    for _ in range(30):
        fake = FakeAgentMail()
        fake.faults.reject_handshakes(503, headers=[("Retry-After", "1")])
        async with stream(fake, reconnect=ReconnectPolicy(initial_delay=8)):
            waits.add(times(fake)[1])
    assert 1 <= min(waits) < max(waits) <= 8


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_as_a_date_is_a_floor_under_the_wait(status: int, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        fake.faults.reject_handshakes(status, headers=[("Retry-After", format_datetime(in_seconds(600), usegmt=True))])
        await fake.drop_connections()
        await comes_back(events)
        assert 590 < times(fake)[2] - times(fake)[1] <= 600


@pytest.mark.parametrize("value", ["soon", "-600", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_that_says_nothing_changes_nothing(
    status: int, value: str, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(status, headers=[("Retry-After", value)])
    async with stream(fake):
        assert times(fake) == [0, 0.5]


@pytest.mark.parametrize("value", ["3601", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_retry_after_beyond_an_hour_is_cut_to_an_hour(value: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        fake.faults.reject_handshakes(503, headers=[("Retry-After", value)])
        await fake.drop_connections()
        await comes_back(events)
        assert times(fake)[2] - times(fake)[1] == 3600


async def test_on_entering_a_retry_after_beyond_what_is_left_raises_at_once(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, headers=[("Retry-After", "20")])
    fake.faults.reject_handshakes(429, headers=[("Retry-After", "11")])
    with pytest.raises(ConnectionFailedError) as caught:
        async with stream(fake, enter_timeout=30):
            pass  # pragma: no cover
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.status_code == 429
    assert times(fake) == [0, 20]
    assert trio.current_time() == pytest.approx(fake.record.handshakes[1].at)


async def test_on_entering_a_retry_after_within_what_is_left_is_waited_for(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, headers=[("Retry-After", "20")])
    fake.faults.reject_handshakes(429, headers=[("Retry-After", "9")])
    async with stream(fake, enter_timeout=30):
        assert times(fake) == [0, 20, 29]
