"""Transient or fatal: each row of the table in the documentation, as a function and through a stream."""

import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import islice
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    Disconnected,
    ErrorEvent,
    Event,
    PermissionDeniedError,
    ReconnectPolicy,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
)
from trio_agentmail._reconnect import Attempts, Verdict, ceilings, retry_after, verdict
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail

TRANSIENT_STATUSES = [408, 425, 429, 500, 501, 502, 503, 504, 507, 520, 599]
REFUSING_STATUSES = [300, 301, 302, 303, 307, 308, 400, 402, 404, 405, 406, 409, 410, 413, 422, 426, 431, 451, 499]
REFUSED_KEY = [(401, AuthenticationError), (403, PermissionDeniedError)]

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
NAMES_THAT_SAY_NEITHER = [("", ""), ("Teapot", "short and stout"), ("error", "something went wrong")]

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


def not_verified() -> ssl.SSLCertVerificationError:
    return ssl.SSLCertVerificationError(1, "self-signed certificate")


def api_error(status: int, **headers: str) -> ApiError:
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status, ApiError)
    return error(status, {name.replace("_", "-"): value for name, value in headers.items()}, "")


# The function


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


# The same, through a stream


@asynccontextmanager
async def stream(fake: FakeAgentMail, **arguments: Any) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
    """A stream whose first `Subscribed` has been taken."""
    async with open_agentmail_stream(backend=fake, **arguments) as events:
        assert isinstance(await anext(events), Subscribed)
        yield events


async def comes_back(events: trio.MemoryReceiveChannel[Event]) -> Disconnected:
    """Check that the subscription is lost and then in force again."""
    lost = await anext(events)
    assert isinstance(lost, Disconnected)
    assert isinstance(await anext(events), Subscribed)
    return lost


def times(fake: FakeAgentMail) -> list[float]:
    """Return the times of the handshakes, counted from the first."""
    return [round(handshake.at - fake.record.handshakes[0].at, 3) for handshake in fake.record.handshakes]


Fault = Callable[[FakeAgentMail], None]


def rejection(status: int) -> Fault:
    return lambda fake: fake.faults.reject_handshakes(status)


def refusal(name: str, message: str) -> Fault:
    return lambda fake: fake.faults.refuse_subscriptions(name, message)


def close(code: int) -> Fault:
    return lambda fake: fake.faults.close_instead_of_confirming(code)


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


REFUSALS: dict[str, tuple[Callable[[FakeAgentMail, int | None], None], type[Exception]]] = {
    **{
        f"HTTP {status}": (
            partial(lambda status, fake, times: fake.faults.reject_handshakes(status, times=times), status),
            kind,
        )
        for status, kind in [*((status, ApiError) for status in REFUSING_STATUSES), *REFUSED_KEY]
    },
    "certificate": (
        lambda fake, times: fake.faults.fail_connections(not_verified(), times=times),
        ssl.SSLCertVerificationError,
    ),
}
"""Failures that are fatal on entering, and later if they persist: how to make some attempts fail (None: all)."""


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


# Refusals: how long they may persist


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_on_entering_is_raised_at_once(
    refuse: Callable[[FakeAgentMail, int | None], None], error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    refuse(fake, 1)
    with pytest.raises(error) as caught:
        async with stream(fake):
            pass  # pragma: no cover
    assert type(caught.value) is error
    assert fake.record.attempts == 1
    assert getattr(caught.value, "__notes__", []) == []


async def test_a_refusal_on_entering_has_its_body(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(401, body=b"who are you?")
    with pytest.raises(AuthenticationError) as caught:
        async with stream(fake):
            pass  # pragma: no cover
    assert (caught.value.status_code, caught.value.body) == (401, "who are you?")
    assert trio.current_time() == pytest.approx(fake.record.handshakes[0].at)


BEFORE_THE_BLOCK: dict[str, Fault] = {
    "HTTP 503": rejection(503),
    "accepted, then close 1011": close(1011),
    "accepted, then an error": refusal("rate_limit", ""),
    "accepted, then nothing": lambda fake: fake.faults.withhold_confirmations(),
}


@pytest.mark.parametrize("before", BEFORE_THE_BLOCK.values(), ids=BEFORE_THE_BLOCK)
@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_after_another_failure_on_entering_is_raised_at_once(
    refuse: Callable[[FakeAgentMail, int | None], None],
    error: type[Exception],
    before: Fault,
    autojump_clock: MockClock,
) -> None:
    # Also after a handshake that was accepted: nothing has been confirmed, so nothing shows that this ever worked.
    fake = FakeAgentMail()
    before(fake)
    refuse(fake, 1)
    with pytest.raises(error):
        async with stream(fake):
            pass  # pragma: no cover
    assert fake.record.attempts == 2


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_one_refusal_after_a_day_is_survived(
    refuse: Callable[[FakeAgentMail, int | None], None], error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with stream(fake, ping_interval=None) as events:
        await trio.sleep(86_400)
        refuse(fake, 1)
        await fake.drop_connections()
        await comes_back(events)
        event = await fake.deliver(inbox_id="agent")
        assert await anext(events) == event
    assert fake.record.attempts == 3


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_refusals_within_the_grace_are_survived(
    refuse: Callable[[FakeAgentMail, int | None], None],
    error: type[Exception],
    no_jitter: None,
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        refuse(fake, 6)  # at 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5
        await fake.drop_connections()
        await comes_back(events)
        assert fake.record.attempts == 8
        assert times(fake)[-1] == 61.5


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_refusals_beyond_the_grace_end_the_block_with_the_last_of_them(
    refuse: Callable[[FakeAgentMail, int | None], None],
    error: type[Exception],
    no_jitter: None,
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(error) as caught:
        async with stream(fake):
            began = trio.current_time()
            refuse(fake, None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert type(caught.value) is error
    # The first refusal after which 60 s have passed since the one at 0.5 s.
    assert trio.current_time() - began == pytest.approx(61.5)
    assert fake.record.attempts == 1 + 7
    assert caught.value.__notes__ == [
        "The server has refused 7 attempts within 61 s, and accepted none (refusal_grace is 60 s)."
    ]


async def test_refusals_of_all_kinds_are_counted_together(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError) as caught:
        async with stream(fake):
            began = trio.current_time()
            for status in (302, 404, 401, 403, 451, 400, 410):
                fake.faults.reject_handshakes(status)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert caught.value.status_code == 410
    assert trio.current_time() - began == pytest.approx(61.5)


@pytest.mark.parametrize("status", [404, 401])
async def test_it_takes_three_refusals_even_without_any_grace(
    status: int, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError):
        async with stream(fake, reconnect=ReconnectPolicy(refusal_grace=0)) as events:
            fake.faults.reject_handshakes(status, times=2)
            await fake.drop_connections()
            await comes_back(events)
            fake.faults.reject_handshakes(status, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert len(fake.record.handshakes) == 4 + 3


async def test_it_takes_three_refusals_however_far_they_are_apart(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError) as caught:
        async with stream(fake):
            fake.faults.reject_handshakes(404, headers=[("Retry-After", "600")], times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert caught.value.status_code == 404
    assert len(fake.record.handshakes) == 1 + 3
    assert 1200 <= times(fake)[-1] < 1200 + 120


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404])
async def test_a_retry_after_on_a_refusal_is_a_floor_under_the_wait(
    status: int, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        fake.faults.reject_handshakes(status, headers=[("Retry-After", "40")])
        await fake.drop_connections()
        await comes_back(events)
        assert times(fake) == [0, 0.5, 40.5]


async def test_the_grace_begins_with_the_first_refusal_and_not_with_the_outage(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(AuthenticationError):
        async with stream(fake):
            fake.faults.reject_handshakes(503, times=8)  # at 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5
            fake.faults.reject_handshakes(401, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert times(fake)[9:] == [121.5, 151.5, 181.5]


async def test_another_failure_between_refusals_does_not_prolong_the_grace(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(AuthenticationError):
        async with stream(fake):
            fake.faults.reject_handshakes(404, times=2)
            fake.faults.reject_handshakes(503, times=2)
            fake.faults.refuse_connections()
            fake.faults.reject_handshakes(403)
            fake.faults.reject_handshakes(401, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert times(fake)[-1] == 61.5


async def test_an_accepted_handshake_between_refusals_begins_the_grace_anew(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError):
        async with stream(fake):
            fake.faults.reject_handshakes(404, times=5)
            fake.faults.withhold_confirmations()  # accepted at 31.5, given up 10 s later
            fake.faults.reject_handshakes(404, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert times(fake)[5:] == [15.5, 31.5, 71.5, 101.5, 131.5]


async def test_a_confirmed_subscription_between_refusals_begins_the_grace_anew(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        for _ in range(3):
            fake.faults.reject_handshakes(404, times=6)
            await fake.drop_connections()
            await comes_back(events)
            await trio.sleep(30)


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_another_subscription_has_the_grace_as_well(
    refuse: Callable[[FakeAgentMail, int | None], None],
    error: type[Exception],
    no_jitter: None,
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        refuse(fake, 2)
        await session.subscribe(Subscribe(inbox_ids=["other"]))
        assert fake.record.attempts == 1 + 3
        began = trio.current_time()
        refuse(fake, None)
        with pytest.raises(error):
            await session.subscribe(Subscribe(inbox_ids=["third"]))
        assert trio.current_time() - began == pytest.approx(61.5)
        assert session.state == "subscribed"


async def test_another_subscription_that_is_refused_raises_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        fake.faults.refuse_subscriptions("forbidden", "not this one")
        with pytest.raises(SubscriptionRejectedError):
            await session.subscribe(Subscribe(inbox_ids=["other"]))
        assert fake.record.attempts == 2
        assert session.state == "subscribed"


# Refusals that may mean anything


@pytest.mark.parametrize("code", [1008, 4000, 4401, 4999])
async def test_a_close_before_the_confirmation_is_fatal_the_third_time_running_on_entering(
    code: int, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.close_instead_of_confirming(code, "go away", times=None)
    with pytest.raises(SubscriptionRejectedError) as caught:
        async with stream(fake):
            pass  # pragma: no cover
    assert caught.value.name == f"close {code}"
    assert "go away" in caught.value.message
    assert isinstance(caught.value.__cause__, ConnectionLostError)
    assert len(fake.record.handshakes) == 3


@pytest.mark.parametrize("code", [1008, 4000, 4401, 4999])
async def test_a_close_before_the_confirmation_is_fatal_the_third_time_running_later(
    code: int, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(SubscriptionRejectedError, match=f"close {code}"):
        async with stream(fake):
            fake.faults.close_instead_of_confirming(code, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert len(fake.record.handshakes) == 1 + 3


@pytest.mark.parametrize(("name", "message"), NAMES_THAT_SAY_NEITHER)
async def test_an_error_that_says_neither_is_fatal_the_third_time_running(
    name: str, message: str, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_subscriptions(name, message, times=None)
    with pytest.raises(SubscriptionRejectedError) as caught:
        async with stream(fake):
            pass  # pragma: no cover
    assert (caught.value.name, caught.value.message) == (name, message)
    assert len(fake.record.handshakes) == 3
    fake.faults.clear()
    with pytest.raises(SubscriptionRejectedError):
        async with stream(fake):
            fake.faults.refuse_subscriptions(name, message, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert len(fake.record.handshakes) == 3 + 1 + 3


async def test_a_run_of_refusals_need_not_be_of_one_code(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for code in (1008, 4000, 4999):
        fake.faults.close_instead_of_confirming(code)
    with pytest.raises(SubscriptionRejectedError, match="close 4999"):
        async with stream(fake):
            pass  # pragma: no cover


INTERRUPTIONS: dict[str, Fault] = {
    "HTTP 503": rejection(503),
    "nobody there": lambda fake: fake.faults.refuse_connections(),
    "close 1011": close(1011),
    "error rate_limit": refusal("rate_limit", ""),
    "no confirmation": lambda fake: fake.faults.withhold_confirmations(),
    "HTTP 401": rejection(401),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
@pytest.mark.parametrize("refused", [close(1008), close(4000), refusal("Teapot", "")], ids=["1008", "4000", "error"])
async def test_any_other_outcome_ends_a_run_of_refusals(
    refused: Fault, interruption: Fault, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with stream(fake) as events:
        refused(fake)
        refused(fake)
        interruption(fake)
        refused(fake)
        refused(fake)
        await fake.drop_connections()
        await comes_back(events)


@pytest.mark.parametrize("refused", [close(1008), close(4000), refusal("Teapot", "")], ids=["1008", "4000", "error"])
async def test_a_confirmation_ends_a_run_of_refusals(refused: Fault, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    refused(fake)
    refused(fake)
    async with stream(fake) as events:
        for _ in range(3):
            refused(fake)
            refused(fake)
            await fake.drop_connections()
            await comes_back(events)


# Retry-After


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def time_of_day() -> float:
    return NOON.timestamp()


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
    # Both are by the server's clock, however wrong ours is.
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
