"""Which failures are retried and which end the stream, and the delays between attempts."""

import errno
import math
import socket
import ssl
from itertools import islice

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.failures import (
    NAMES_THAT_SAY_NEITHER,
    REFUSED_KEY,
    REFUSING_STATUSES,
    Fault,
    api_error,
    close,
    comes_back,
    not_verified,
    refusal,
    rejection,
    stream,
    time_of_day,
)
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import ApiError, Disconnected, ErrorEvent, ReconnectPolicy, Subscribed, SubscriptionRejectedError
from trio_agentmail._reconnect import Attempts, Verdict, ceilings, verdict
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail

TRANSIENT_STATUSES = [408, 425, 429, 500, 501, 502, 503, 504, 507, 520, 599]

TRANSIENT_NAMES = [
    ("rate_limit", ""),
    ("RateLimitError", "slow down"),
    ("rate limited", ""),
    ("TooManyRequests", ""),
    ("ThrottlingException", ""),
    ("InternalServerError", ""),
    ("internal_error", "invalid state"),
    ("ServiceUnavailable", ""),
    ("Timeout", ""),
    ("", "Rate limit exceeded"),
    ("Error", "an internal fault"),
]
FATAL_NAMES = [
    ("forbidden", "label_spam_read is forbidden"),
    ("PermissionDenied", ""),
    ("insufficient_permissions", ""),
    ("ValidationError", "the rate limit is a number"),
    ("invalid_request", ""),
    ("Unauthorized", ""),
    ("", "validation failed"),
    ("Error", "permission denied"),
]

NETWORK_TROUBLE = [
    socket.gaierror(socket.EAI_NONAME, "no such host"),
    socket.gaierror(socket.EAI_AGAIN, "the name server does not answer"),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.EHOSTUNREACH, "no route to host"),
    OSError(errno.ENETUNREACH, "no network"),
    TimeoutError(errno.ETIMEDOUT, "timed out"),
    BrokenPipeError(errno.EPIPE, "broken pipe"),
    ssl.SSLError(1, "wrong version number"),
    ssl.SSLEOFError(8, "EOF in violation of protocol"),
    trio.BrokenResourceError("TLS failed"),
]
OURSELVES = [ValueError("a bad argument"), TypeError("a bad argument"), KeyError("a bug"), AssertionError("a bug")]


# The function `verdict`


@pytest.mark.parametrize("failure", NETWORK_TROUBLE, ids=repr)
def test_network_failures_are_transient(failure: Exception) -> None:
    assert verdict(failure) is Verdict.TRANSIENT


@pytest.mark.parametrize("status", TRANSIENT_STATUSES)
def test_a_server_that_is_busy_or_broken_is_transient(status: int) -> None:
    assert verdict(api_error(status)) is Verdict.TRANSIENT


@pytest.mark.parametrize("status", REFUSING_STATUSES)
def test_a_redirect_and_any_other_client_error_is_fatal_if_it_persists(status: int) -> None:
    assert verdict(api_error(status)) is Verdict.FATAL_IF_IT_PERSISTS


@pytest.mark.parametrize(("status", "error"), REFUSED_KEY)
def test_a_refused_key_is_fatal_if_it_persists(status: int, error: type[ApiError]) -> None:
    assert verdict(error(status, {}, "")) is Verdict.FATAL_IF_IT_PERSISTS


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 3000, 3999, 5000])
def test_a_connection_that_ends_before_the_confirmation_is_transient(code: int) -> None:
    assert verdict(ConnectionLostError("gone", code)) is Verdict.TRANSIENT


@pytest.mark.parametrize("code", [1008, 4000, 4001, 4401, 4429, 4999])
def test_a_close_that_means_a_policy_or_the_application_is_fatal_the_third_time(code: int) -> None:
    assert verdict(ConnectionLostError("gone", code)) is Verdict.FATAL_THE_THIRD_TIME


@pytest.mark.parametrize(("name", "message"), TRANSIENT_NAMES)
def test_an_error_that_names_a_rate_limit_or_an_internal_fault_is_transient(name: str, message: str) -> None:
    assert verdict(SubscriptionRejectedError(name, message)) is Verdict.TRANSIENT


@pytest.mark.parametrize(("name", "message"), FATAL_NAMES)
def test_an_error_that_names_a_permission_or_a_validation_is_fatal(name: str, message: str) -> None:
    assert verdict(SubscriptionRejectedError(name, message)) is Verdict.FATAL


@pytest.mark.parametrize(
    ("name", "message"), [*NAMES_THAT_SAY_NEITHER, ("UnknownError", ""), ("Error", "an unknown error occurred")]
)
def test_an_error_that_names_neither_is_fatal_the_third_time(name: str, message: str) -> None:
    assert verdict(SubscriptionRejectedError(name, message)) is Verdict.FATAL_THE_THIRD_TIME


def test_a_certificate_that_is_not_verified_is_fatal_if_it_persists() -> None:
    assert verdict(not_verified()) is Verdict.FATAL_IF_IT_PERSISTS


@pytest.mark.parametrize("failure", OURSELVES, ids=repr)
def test_what_no_network_raises_is_fatal(failure: Exception) -> None:
    assert verdict(failure) is Verdict.FATAL


# The same failures, met by a stream


def too_many_events(fake: FakeAgentMail) -> None:
    fake.faults.push_before_confirming(*(f'{{"event_id":"{n}"}}' for n in range(1_001)))


TRANSIENT_FAULTS: dict[str, Fault] = {
    "refused": lambda fake: fake.faults.refuse_connections(),
    "hangs": lambda fake: fake.faults.hang_handshakes(),
    "not a WebSocket server": rejection(200),
    **{f"HTTP {status}": rejection(status) for status in TRANSIENT_STATUSES},
    "no confirmation": lambda fake: fake.faults.withhold_confirmations(),
    "too many events": too_many_events,
    **{f"error {name!r}, {message!r}": refusal(name, message) for name, message in TRANSIENT_NAMES},
    **{f"close {code}": close(code) for code in (1000, 1001, 1002, 1011, 1012, 1013, 3000)},
    "once: close 1008": close(1008),
    "once: close 4000": close(4000),
    "once: error that says neither": refusal("Teapot", "short and stout"),
}
FATAL_FAULTS: dict[str, tuple[Fault, type[Exception]]] = {
    f"error {name!r}, {message!r}": (refusal(name, message), SubscriptionRejectedError) for name, message in FATAL_NAMES
}


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS.values(), ids=TRANSIENT_FAULTS)
async def test_what_is_transient_is_tried_again_on_entering(fault: Fault, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fault(fake)
    async with stream(fake) as events:
        event = await fake.deliver(inbox_id="agent")
        assert await anext(events) == event
        assert fake.connected == 1


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS.values(), ids=TRANSIENT_FAULTS)
async def test_what_is_transient_is_tried_again_later(fault: Fault, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        fault(fake)
        await fake.drop_connections()
        await comes_back(events)
        event = await fake.deliver(inbox_id="agent")
        assert await anext(events) == event
        assert fake.connected == 1


@pytest.mark.parametrize(("fault", "error"), FATAL_FAULTS.values(), ids=FATAL_FAULTS)
async def test_what_is_fatal_is_raised_at_once_on_entering(
    fault: Fault, error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake)
    with pytest.raises(error) as caught:
        async with stream(fake):
            pass  # pragma: no cover
    assert type(caught.value) is error
    assert len(fake.record.handshakes) == 1


@pytest.mark.parametrize(("fault", "error"), FATAL_FAULTS.values(), ids=FATAL_FAULTS)
async def test_what_is_fatal_ends_the_block_later(
    fault: Fault, error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(error) as caught:
        async with stream(fake) as events:
            fault(fake)
            await fake.drop_connections()
            assert isinstance(await anext(events), Disconnected)
            await trio.sleep_forever()
    assert type(caught.value) is error
    assert len(fake.record.handshakes) == 2


@pytest.mark.parametrize("failure", NETWORK_TROUBLE, ids=repr)
async def test_network_failures_are_retried_on_entering_and_later(
    failure: Exception, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.fail_connections(failure)
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        assert fake.record.attempts == 2
        fake.faults.fail_connections(failure, times=2)
        await fake.drop_connections()
        await comes_back(events)
        assert fake.record.attempts == 5


@pytest.mark.parametrize("failure", OURSELVES, ids=repr)
async def test_what_no_network_raises_comes_out_as_itself_on_entering_and_later(
    failure: Exception, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.fail_connections(failure)
    with pytest.raises(type(failure)) as caught:
        async with open_agentmail_stream(backend=fake):
            pass  # pragma: no cover
    assert caught.value is failure
    with pytest.raises(type(failure)) as caught:
        async with open_agentmail_stream(backend=fake):
            fake.faults.fail_connections(failure)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert caught.value is failure
    assert fake.record.attempts == 3


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"HTTP/1.1 204 No Content\r\n\r\n", b""],
    ids=["SSH", "TLS", "HTTP 204", "hangs up"],
)
async def test_what_is_not_a_websocket_server_is_tried_again(greeting: bytes, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.answer_connections(greeting)
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
    assert fake.record.attempts == 2


@pytest.mark.parametrize("code", [None, 1000, 1001, 1003, 1008, 1011, 1012, 1013, 3000, 4000, 4401, 4999])
async def test_a_confirmed_connection_may_be_lost_in_any_way_any_number_of_times(
    code: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        for _ in range(4):
            await fake.drop_connections(code, "so it is")
            lost = await comes_back(events)
            assert lost.code == (code or 1006)
            assert ("so it is" in lost.reason) == (code is not None)


@pytest.mark.parametrize("name", ["forbidden", "ValidationError", "rate_limit", "Teapot", ""])
async def test_an_error_that_answers_nothing_is_an_event_in_the_stream(name: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    error = ErrorEvent(name=name, message="as it happens")
    async with stream(fake) as events:
        for _ in range(3):
            await fake.emit(error)
            assert await anext(events) == error
        event = await fake.deliver(inbox_id="agent")
        assert await anext(events) == event
    assert len(fake.record.handshakes) == 1
    assert fake.record.close_codes == [1000]


# Delays


@st.composite
def policies(draw: st.DrawFn) -> ReconnectPolicy:
    seconds = st.floats(min_value=0, allow_infinity=False)
    first, highest = sorted([draw(seconds), draw(seconds)])
    multiplier = draw(st.floats(min_value=1, allow_infinity=False))
    return ReconnectPolicy(initial_delay=first, max_delay=highest, multiplier=multiplier)


@given(policies())
def test_ceilings_never_shrink_and_never_exceed_the_highest(policy: ReconnectPolicy) -> None:
    first_ones = list(islice(ceilings(policy), 50))
    assert first_ones[0] == policy.initial_delay
    assert first_ones == sorted(first_ones)
    assert first_ones[-1] <= policy.max_delay


@given(policies())
def test_every_delay_is_between_zero_and_its_ceiling(policy: ReconnectPolicy) -> None:
    attempts = Attempts(policy, time_of_day)
    for ceiling in islice(ceilings(policy), 50):
        delay = attempts.delay()
        assert 0 <= delay <= ceiling
        assert math.isfinite(delay)
