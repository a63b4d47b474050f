"""How long refusals may persist before they end the stream."""

import ssl
from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.failures import (
    NAMES_THAT_SAY_NEITHER,
    REFUSED_KEY,
    REFUSING_STATUSES,
    Fault,
    close,
    comes_back,
    not_verified,
    refusal,
    rejection,
    stream,
    times,
)
from tests.helpers.streams import open_agentmail_session
from trio_agentmail import ApiError, AuthenticationError, ReconnectPolicy, Subscribe, SubscriptionRejectedError
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail

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


# Refusals that say why


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
    # This also holds after an accepted handshake. Without a confirmation, nothing shows that this ever worked.
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
    # The first refusal that is 60 s or more after the one at 0.5 s.
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


# Refusals that do not say why


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
