"""Reconnecting: when, how often, and what the consumer sees."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    AgentMailSession,
    ApiError,
    AuthenticationError,
    CaughtUp,
    ConnectionFailedError,
    Disconnected,
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    RecoveryFailed,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
    UnknownEvent,
)
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail

A = Subscribe(inbox_ids=["a"])
B = Subscribe(inbox_ids=["b"])
C = Subscribe(inbox_ids=["c"])
BOTH = Subscribe(inbox_ids=["a", "b"])


def word(event: Event) -> str:
    """Return an event as a word: S(ubscribed, with its inboxes), D(isconnected), or the subject of a mail."""
    match event:
        case Subscribed(inbox_ids=inbox_ids):
            return "S" + "".join(inbox_ids or ())
        case Disconnected():
            return "D"
        case MessageReceivedEvent(message=message):
            return message.subject or ""
        case ErrorEvent(name=name):
            return f"error {name}"
        case UnknownEvent(event_type=event_type):
            return f"unknown {event_type}"
        case CaughtUp() | RecoveryFailed():  # pragma: no cover
            raise AssertionError(event)
    return event.event_type


async def take(events: trio.MemoryReceiveChannel[Event], number: int) -> str:
    """Return this many events, as words."""
    return " ".join([word(await anext(events)) for _ in range(number)])


async def take_all(events: trio.MemoryReceiveChannel[Event]) -> str:
    """Return what waits and what arrives within a minute, as words."""
    words = []
    with trio.move_on_after(60):
        async for event in events:
            words.append(word(event))
    return " ".join(words)


async def mail(fake: FakeAgentMail, *subjects: str, inbox_id: str = "a") -> None:
    for subject in subjects:
        await fake.deliver(inbox_id=inbox_id, subject=subject)


def time_of_day(fake: FakeAgentMail) -> datetime:
    """It passes as Trio's clock does, so here in exact steps."""
    return datetime.fromtimestamp(fake.now(), UTC)


def waits(fake: FakeAgentMail) -> list[float]:
    """Seconds from each handshake to the next."""
    return [round(later.at - earlier.at, 3) for earlier, later in pairwise(fake.record.handshakes)]


# When


async def test_the_waits_double_up_to_the_highest(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.reject_handshakes(503, times=10)
        await fake.drop_connections()
        assert await take(events, 3) == "S D S"
    assert waits(fake) == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


async def test_the_first_attempt_on_entering_does_not_wait(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, times=4)
    began = trio.current_time()
    async with open_agentmail_stream(backend=fake):
        assert fake.record.handshakes[0].at == pytest.approx(began)
        assert waits(fake) == [0.5, 1, 2, 4]


async def test_the_policy_says_how_the_waits_grow(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=3, multiplier=10, max_delay=100)
    async with open_agentmail_stream(backend=fake, reconnect=policy) as events:
        fake.faults.reject_handshakes(503, times=3)
        await fake.drop_connections()
        assert await take(events, 3) == "S D S"
    assert waits(fake) == [3, 30, 100, 100]


async def test_each_wait_is_drawn_from_zero_to_its_ceiling(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high / 4

    monkeypatch.setattr("trio_agentmail._reconnect.random.uniform", uniform)
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.reject_handshakes(503, times=3)
        await fake.drop_connections()
        assert await take(events, 3) == "S D S"
    assert waits(fake) == [0.125, 0.25, 0.5, 1]
    assert drawn[:4] == [(0, 0.5), (0, 1), (0, 2), (0, 4)]


async def test_a_subscription_that_did_not_last_does_not_start_the_waits_over(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert await take(events, 1) == "S"
        for _ in range(4):
            await trio.sleep(29)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
    assert waits(fake) == [29.5, 30, 31, 33]


async def test_a_subscription_that_lasted_starts_the_waits_over(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert await take(events, 1) == "S"
        for _ in range(3):
            fake.faults.reject_handshakes(503, times=2)
            await trio.sleep(31)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
    assert waits(fake) == [31.5, 1, 2] * 3


async def test_how_long_a_subscription_must_last_is_said_by_the_policy(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(stable_after=5)) as events:
        assert await take(events, 1) == "S"
        for seconds in (4, 4, 5, 4):
            await trio.sleep(seconds)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
    assert waits(fake) == [4.5, 5, 5.5, 5]


async def test_failures_on_entering_count_until_a_subscription_has_lasted(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, times=2)
    async with open_agentmail_stream(backend=fake) as events:
        await fake.drop_connections()
        assert await take(events, 3) == "S D S"
    assert waits(fake) == [0.5, 1, 2]


@pytest.mark.parametrize("consumer", ["takes everything", "sleeps"])
async def test_a_server_that_accepts_and_drops_for_an_hour_is_not_hammered(
    consumer: str, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.drop_after_confirming(times=None)
    async with open_agentmail_stream(backend=fake) as events:
        with trio.move_on_after(3600):
            if consumer == "sleeps":
                await trio.sleep_forever()
            async for _ in events:
                pass
    # Nearly all waits are drawn from 0 to 30 s, so 240 are to be expected, give or take 9.
    assert 180 < len(fake.record.handshakes) < 300


async def test_a_server_that_accepts_and_drops_sees_two_connections_a_minute_at_worst(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.drop_after_confirming(times=None)
    async with open_agentmail_stream(backend=fake):
        await trio.sleep(3600)
    assert len(fake.record.handshakes) == 1 + 6 + 118


async def test_a_message_that_is_always_too_large_starts_no_loop(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, max_message_size=1_000) as events:
        fake.faults.push_before_confirming("x" * 1_001, times=None)
        await fake.drop_connections()
        with trio.move_on_after(3600):
            assert await take(events, 3) == "never"
    assert len(fake.record.handshakes) < 130


# What the consumer sees


async def test_a_loss_is_one_disconnected_and_one_subscribed_however_many_attempts_fail(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.refuse_connections(times=3)
        fake.faults.reject_handshakes(503, times=3)
        fake.faults.hang_handshakes()
        fake.faults.withhold_confirmations()
        fake.faults.close_instead_of_confirming(1011)
        fake.faults.refuse_subscriptions("rate_limit", "slow down")
        await fake.drop_connections()
        await fake.wait_subscribed(within=600)
        await mail(fake, "after")
        assert await take_all(events) == "S D S after"


async def test_events_stand_on_their_side_of_the_loss(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        for n in range(3):
            await mail(fake, f"{n}.1", f"{n}.2")
            await fake.drop_connections(1001)
            await mail(fake, "nobody listens")
            await fake.wait_subscribed()
        await mail(fake, "3.1")
        assert await take_all(events) == "S 0.1 0.2 D S 1.1 1.2 D S 2.1 2.2 D S 3.1"


@pytest.mark.parametrize("code", [None, 1001])
async def test_what_was_received_before_the_loss_comes_before_it_to_a_slow_consumer(
    code: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=1) as events:
        await mail(fake, "1", "2", "3", "4", "5")
        await fake.drop_connections(code)
        await trio.sleep(600)
        assert await take_all(events) == "S 1 2 3 4 5 D S"


async def test_a_disconnected_says_what_happened_and_since_when(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_stream(backend=fake, ping_interval=None) as events:
        assert await take(events, 1) == "S"
        await trio.sleep(100)
        await mail(fake, "a sign of life")
        await trio.sleep(50)
        await fake.drop_connections(1012, "service restart")
        assert await take(events, 1) == "a sign of life"
        lost = await anext(events)
        assert isinstance(lost, Disconnected)
        assert lost.code == 1012
        assert "service restart" in lost.reason
        # The close frame was a sign of life as well.
        assert lost.last_received == began + timedelta(seconds=150)


async def test_a_cut_is_distinguished_from_a_close(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_stream(backend=fake, ping_interval=None) as events:
        await trio.sleep(100)
        await mail(fake, "a sign of life")
        await trio.sleep(50)
        await fake.drop_connections()
        assert await take(events, 2) == "S a sign of life"
        lost = await anext(events)
        assert isinstance(lost, Disconnected)
        assert lost.code == 1006
        assert lost.last_received == began + timedelta(seconds=100)


async def test_an_oversized_message_costs_the_connection_and_nothing_before_it(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, max_message_size=10_000, buffer_size=1) as events:
        await mail(fake, "1", "2", "3")
        await fake.send_raw("x" * 10_001)
        assert await take(events, 4) == "S 1 2 3"
        lost = await anext(events)
        assert isinstance(lost, Disconnected)
        assert lost.code == 1009
        assert await take(events, 1) == "S"


# What is said again on every connection


async def test_the_same_subscription_is_sent_and_confirmed_on_every_connection(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    subscribe = Subscribe(inbox_ids=["b", "a"], pod_ids=["pod"], event_types=["message.received", "message.sent"])
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        confirmed = [await anext(events)]
        for _ in range(3):
            await fake.drop_connections()
            assert isinstance(await anext(events), Disconnected)
            confirmed.append(await anext(events))
    assert fake.record.subscriptions == [subscribe] * 4
    assert (
        confirmed == [Subscribed(inbox_ids=("b", "a"), pod_ids=("pod",), event_types=subscribe.event_types or ())] * 4
    )


async def test_a_callable_for_the_key_is_asked_for_every_connection(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    numbers = count()
    fake.faults.reject_handshakes(503)
    async with open_agentmail_session(backend=fake, api_key=lambda: f"am_{next(numbers)}") as session:
        await fake.drop_connections()
        assert await take(session.events, 3) == "S D S"
        await session.subscribe(B)
    assert [handshake.headers["authorization"] for handshake in fake.record.handshakes] == [
        "Bearer am_0",
        "Bearer am_1",
        "Bearer am_2",
        "Bearer am_3",
    ]


# For how long


async def test_after_give_up_after_the_block_ends_with_connection_failed_alone(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    lost_at = 0.0
    with pytest.raises(ConnectionFailedError, match=r"give_up_after.*100") as caught:
        async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(give_up_after=100)):
            fake.faults.reject_handshakes(503, times=None)
            await trio.sleep(1_000)
            await fake.drop_connections()
            lost_at = trio.current_time()
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.status_code == 503
    assert trio.current_time() - lost_at == pytest.approx(100)


async def test_give_up_after_cuts_an_attempt_that_is_under_way(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    lost_at = 0.0
    with pytest.raises(ConnectionFailedError) as caught:
        async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(give_up_after=13)):
            fake.faults.hang_handshakes(times=None)  # from 0.5 to 10.5, and from 11.5
            await fake.drop_connections()
            lost_at = trio.current_time()
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ConnectionLostError)
    assert len(fake.record.handshakes) == 3
    assert trio.current_time() - lost_at == pytest.approx(13)
    await fake.wait_connected(0)


async def test_give_up_after_counts_one_outage_and_not_all_of_them(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(give_up_after=20)) as events:
        assert await take(events, 1) == "S"
        for _ in range(10):
            fake.faults.reject_handshakes(503, times=4)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
            await trio.sleep(30)


async def test_without_give_up_after_an_outage_may_last_for_a_week(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(
        backend=fake, reconnect=ReconnectPolicy(initial_delay=3600, max_delay=3600)
    ) as events:
        fake.faults.refuse_connections(times=None)
        await fake.drop_connections()
        assert await take(events, 2) == "S D"
        await trio.sleep(7 * 24 * 3600)
        fake.faults.clear()
        assert await take(events, 1) == "S"


# State, statistics and log


async def test_the_state_tells_where_in_its_life_the_stream_is(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:

        def state() -> str:
            return session.state

        assert state() == "subscribed"
        fake.faults.hang_handshakes()
        await fake.drop_connections()
        await trio.sleep(0.2)
        assert state() == "waiting"
        assert session.statistics().next_attempt_in == pytest.approx(0.3)
        await trio.sleep(0.4)
        assert state() == "connecting"
        assert session.statistics().next_attempt_in is None
        await trio.sleep(10)
        assert state() == "waiting"
        assert session.statistics().next_attempt_in == pytest.approx(0.9)
        await trio.sleep(1)
        assert state() == "subscribed"
        assert session.statistics().next_attempt_in is None
    assert state() == "closed"


async def test_the_state_is_closed_when_the_block_ends_by_an_error(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ApiError):
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.reject_handshakes(402, times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert session.state == "closed"


async def test_statistics_count_what_came_and_what_was_made_of_it(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        empty = session.statistics()
        assert (empty.connections, empty.received, empty.delivered, empty.duplicates, empty.unknown) == (1, 0, 0, 0, 0)
        assert (empty.buffered, empty.last_error, empty.next_attempt_in) == (1, None, None)
        event = await fake.deliver(inbox_id="a")
        await fake.emit(event)
        await fake.send_raw("not JSON")
        await fake.send_raw('{"type":"event","event_type":"message.telepathic"}')
        await fake.emit(ErrorEvent(name="rate_limit"))
        await fake.drop_connections(1012, "service restart")
        await fake.wait_subscribed()
        await fake.emit(event)
        await wait_all_tasks_blocked()
        full = session.statistics()
        assert (full.connections, full.received, full.delivered, full.duplicates, full.unknown) == (2, 6, 4, 2, 2)
        assert full.buffered == 7
        assert full.last_error is not None
        assert "service restart" in full.last_error
        await take(session.events, 5)
        assert session.statistics().buffered == 2
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            full.received = 0  # type: ignore[misc]


async def test_statistics_tell_the_last_sign_of_life_and_the_last_error(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_session(backend=fake, ping_interval=None) as session:
        assert session.statistics().last_received == began
        await trio.sleep(100)
        await mail(fake, "1")
        await trio.sleep(20)
        assert session.statistics().last_received == began + timedelta(seconds=100)
        fake.faults.reject_handshakes(503, body=b"come\x1b[31m back\r\nlater", times=None)
        await fake.drop_connections()
        await trio.sleep(20)
        outage = session.statistics()
        assert outage.last_received == began + timedelta(seconds=100)
        assert outage.last_error == "ApiError: HTTP status 503: come [31m back later"


async def test_a_healthy_stream_shows_no_error_of_the_past(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_session(backend=fake, ping_interval=None) as session:
        assert (session.statistics().last_error, session.statistics().last_error_at) == (None, None)
        await trio.sleep(100)
        await fake.drop_connections(1012, "service restart")
        await trio.sleep(20)
        recent = session.statistics()
        assert session.state == "subscribed"
        assert "service restart" in (recent.last_error or "")
        assert recent.last_error_at == began + timedelta(seconds=100)
        await trio.sleep(20)
        assert (session.statistics().last_error, session.statistics().last_error_at) == (None, None)
        fake.faults.reject_handshakes(503, times=None)
        with trio.move_on_after(40):
            await session.subscribe(Subscribe(inbox_ids=["a"]))
        assert "503" in (session.statistics().last_error or "")
        await trio.sleep(40)
        assert session.statistics().last_error is None
        await fake.drop_connections()
        await trio.sleep(100)
        assert "503" in (session.statistics().last_error or "")


async def test_each_change_of_state_is_one_line_of_log(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_agentmail")
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503)
    async with open_agentmail_stream(backend=fake, api_key="am_secret") as events:
        await mail(fake, "private")
        fake.faults.reject_handshakes(503)
        await fake.drop_connections(1012, "service restart")
        assert await take(events, 4) == "S private D S"
    records = [record for record in caplog.records if record.name == "trio_agentmail"]
    assert {record.levelname for record in records} == {"INFO"}
    texts = [record.getMessage() for record in records]
    assert [text.split()[0] for text in texts] == [
        *("connecting", "waiting", "connecting", "subscribed"),
        *("waiting", "connecting", "waiting", "connecting", "subscribed", "closed"),
    ]
    assert "0.5 s" in texts[1]
    assert "503" in texts[1]
    assert "service restart" in texts[4]
    assert "am_secret" not in caplog.text
    assert "private" not in caplog.text


async def test_each_outage_that_lasts_is_one_warning(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    warnings = []
    async with open_agentmail_stream(backend=fake, reconnect=ReconnectPolicy(stable_after=0)) as events:
        assert await take(events, 1) == "S"
        for failures in (5, 9, 20):  # subscribed again 31.5, 151.5 and 481.5 s after the loss
            caplog.clear()
            fake.faults.reject_handshakes(503, times=failures)
            await fake.drop_connections()
            assert await take(events, 2) == "D S"
            warnings.append([record.getMessage() for record in caplog.records if record.levelname == "WARNING"])
    assert warnings[0] == []
    assert len(warnings[1]) == len(warnings[2]) == 1
    assert "503" in warnings[1][0]


async def test_a_server_that_keeps_dropping_is_a_warning_too(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.drop_after_confirming(times=20)
        await fake.drop_connections()
        await trio.sleep(1_000)
        assert await take_all(events) == "S D S"
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "cut" in warning


async def test_an_outage_is_a_warning_after_a_minute_also_between_attempts(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake):
        fake.faults.reject_handshakes(503, headers=[("Retry-After", "3000")])
        await fake.drop_connections()
        await trio.sleep(59)
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []
        await trio.sleep(2)
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "503" in warning


async def test_a_new_subscription_inherits_how_long_the_old_one_has_been_in_force(
    no_jitter: None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, times=4)
    async with open_agentmail_session(A, backend=fake) as session:
        await trio.sleep(3600)
        await session.subscribe(B)
        await trio.sleep(5)
        await fake.drop_connections()
        await trio.sleep(5)
        assert session.state == "subscribed"
    assert waits(fake)[-1] == 5.5  # the first wait is as short as after an hour
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


# Each event once


async def test_the_same_mail_again_is_not_delivered_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        event = await fake.deliver(inbox_id="a", subject="once")
        await fake.emit(event)
        await fake.emit(attrs.evolve(event, event_id="another"))
        await fake.emit(attrs.evolve(event, message=attrs.evolve(event.message, subject="another")))
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.emit(event)
        await mail(fake, "other")
        assert await take_all(session.events) == "S once D S other"
        assert session.statistics().duplicates == 4


async def test_the_same_mail_as_spam_or_in_another_inbox_is_another_event(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    subscribe = Subscribe(event_types=["message.received", "message.received.spam"])
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        for event_type in ("message.received", "message.received.spam", "message.received.spam"):
            await fake.deliver(inbox_id="a", event_type=event_type, message_id="<1@x>", event_id="1", subject="mail")
        await fake.deliver(inbox_id="b", message_id="<1@x>", event_id="1", subject="mail")
        assert await take_all(events) == "S mail mail mail"


async def test_an_event_that_is_no_mail_is_known_by_its_event_id(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        sent = '{"type":"event","event_type":"message.sent","event_id":"1","send":{"inbox_id":"a","subject":"%s"}}'
        await fake.send_raw(sent % "x")
        await fake.send_raw(sent % "y")
        await fake.send_raw(sent.replace('"1"', '"2"') % "x")
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.send_raw(sent % "x")
        assert await take_all(session.events) == "S message.sent message.sent D S"
        assert session.statistics().duplicates == 2


async def test_an_event_without_an_id_is_known_by_its_text(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        sent = '{"type":"event","event_type":"message.sent","send":{"inbox_id":"a"}}'
        for text in (sent, sent, sent + " ", "not JSON", "not JSON"):
            await fake.send_raw(text)
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.send_raw(sent)
        await fake.send_raw("not JSON")
        assert await take_all(session.events) == "S message.sent message.sent unknown None D S"
        assert session.statistics().duplicates == 4


async def test_complaints_of_the_server_are_never_the_same(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await fake.emit(ErrorEvent(name="rate_limit", message="slow down"))
        await fake.emit(ErrorEvent(name="rate_limit", message="slow down"))
        assert await take_all(events) == "S error rate_limit error rate_limit"


async def test_the_memory_of_what_was_delivered_is_bounded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 3)
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        mails = [await fake.deliver(inbox_id="a", subject=str(n)) for n in range(4)]
        for event in reversed(mails):
            await fake.emit(event)
        assert await take_all(events) == "S 0 1 2 3 0"


# In front of a consumer that sleeps


async def test_losses_that_have_not_been_seen_are_merged(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    began = time_of_day(fake)
    async with open_agentmail_stream(backend=fake, ping_interval=None) as events:
        for code in (1001, 1002, 1011, 1012, 1013):
            await trio.sleep(100)
            await fake.drop_connections(code)
            await fake.wait_subscribed()
        await trio.sleep(100)
        assert len(fake.record.handshakes) == 6
        assert await take(events, 1) == "S"
        lost = await anext(events)
        assert isinstance(lost, Disconnected)
        # The gap may have begun when the first connection was lost.
        assert lost.code == 1001
        assert lost.last_received == began + timedelta(seconds=100)
        await mail(fake, "after")
        assert await take_all(events) == "S after"


async def test_losses_with_an_event_between_them_are_not_one(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        for subject in ("1", "2"):
            for _ in range(3):
                await fake.drop_connections()
                await fake.wait_subscribed()
            await mail(fake, subject)
            await wait_all_tasks_blocked()
        await fake.drop_connections()
        assert await take_all(events) == "S D S 1 D S 2 D S"


async def test_losses_are_one_though_the_second_outage_goes_on(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await fake.drop_connections()
        await fake.wait_subscribed()
        await wait_all_tasks_blocked()
        fake.faults.refuse_connections(times=None)
        await fake.drop_connections()
        await trio.sleep(600)
        assert await take_all(events) == "S D"
        fake.faults.clear()
        assert await take(events, 1) == "S"


async def test_reconnecting_goes_on_while_the_channel_is_full(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=2) as session:
        assert await take(session.events, 1) == "S"
        await mail(fake, "1", "2")
        await wait_all_tasks_blocked()
        for _ in range(20):
            await fake.drop_connections()
            await fake.wait_subscribed()
            await wait_all_tasks_blocked()
        assert session.state == "subscribed"
        assert len(fake.record.handshakes) == 21
        assert session.statistics().buffered == 4
        await mail(fake, "3", "4", "5")
        assert await take_all(session.events) == "1 2 D S 3 4 5"


async def test_a_consumer_that_works_with_clones_sees_the_same_losses(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=4) as events:
        clone = events.clone()
        await events.aclose()
        assert await take(clone, 1) == "S"
        for _ in range(20):
            await fake.drop_connections()
            await fake.wait_subscribed()
            await wait_all_tasks_blocked()
        await mail(fake, "after")
        words = (await take_all(clone)).split()
        # Nothing can be taken back out of the channel then, so up to its size the notices are not merged.
        assert words[-1] == "after"
        assert words[:-1] == ["D", "S"] * (len(words) // 2)
        assert len(words) <= 4 + 4 + 1


# Another subscription


async def test_another_subscription_replaces_the_first_exactly(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        await mail(fake, "1")
        await session.subscribe(B)
        await wait_all_tasks_blocked()
        await mail(fake, "not wanted any more")
        await mail(fake, "2", inbox_id="b")
        assert await take_all(session.events) == "Sa 1 Sb 2"
        assert fake.record.subscriptions == [A, B]
        assert (fake.connected, fake.record.close_codes) == (1, [1000])
        assert session.statistics().connections == 2


async def test_what_is_pushed_on_both_connections_is_delivered_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session, trio.open_nursery() as nursery:

        async def push_while_there_are_two() -> None:
            await fake.wait_subscribed(2)
            await mail(fake, "1", "2", "3")

        nursery.start_soon(push_while_there_are_two)
        await session.subscribe(BOTH)
        await mail(fake, "4", inbox_id="b")
        assert await take_all(session.events) == "Sa 1 2 3 Sab 4"
        assert session.statistics().duplicates == 3


async def test_what_was_delivered_before_is_not_delivered_again_on_the_new_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        event = await fake.deliver(inbox_id="a", subject="1")
        fake.faults.push_before_confirming(event)
        await session.subscribe(BOTH)
        await fake.emit(event)
        assert await take_all(session.events) == "Sa 1 Sab"


async def test_what_the_old_connection_had_received_comes_first_to_a_slow_consumer(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake, buffer_size=1) as session:
        await mail(fake, "1", "2", "3", "4", "5")
        await trio.sleep(600)
        # The only consumer calls it, with the channel full: it returns before anything is taken.
        await session.subscribe(B)
        await mail(fake, "6", "7", "8", inbox_id="b")
        await trio.sleep(600)
        assert await take_all(session.events) == "Sa 1 2 3 4 5 Sb 6 7 8"
        assert fake.connected == 1


async def test_the_new_subscription_is_the_one_that_is_sent_later(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        await session.subscribe(B)
        await trio.sleep(60)
        for _ in range(2):
            await fake.drop_connections()
            await fake.wait_subscribed()
        assert await take_all(session.events) == "Sa Sb D Sb"
        assert fake.record.subscriptions == [A, B, B, B]


REFUSALS: dict[str, tuple[Callable[[FakeAgentMail], None], type[Exception]]] = {
    "error forbidden": (lambda fake: fake.faults.refuse_subscriptions("forbidden", "no"), SubscriptionRejectedError),
    "close 4403, three times": (
        lambda fake: fake.faults.close_instead_of_confirming(4403, times=3),
        SubscriptionRejectedError,
    ),
    "HTTP 402 for long": (lambda fake: fake.faults.reject_handshakes(402, times=None), ApiError),
    "HTTP 401 for long": (lambda fake: fake.faults.reject_handshakes(401, times=None), AuthenticationError),
}


@pytest.mark.parametrize(("refuse", "error"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refused_subscription_raises_to_the_caller_and_the_old_one_stays(
    refuse: Callable[[FakeAgentMail], None], error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        refuse(fake)
        with pytest.raises(error):
            await session.subscribe(B)
        fake.faults.clear()
        assert session.state == "subscribed"
        assert fake.connected == 1
        await mail(fake, "1")
        await fake.drop_connections()
        await fake.wait_subscribed()
        await mail(fake, "2")
        assert await take_all(session.events) == "Sa 1 D Sa 2"
        assert fake.record.subscriptions[-1] == A
        await session.subscribe(B)
        assert await take_all(session.events) == "Sb"


async def test_refusing_a_new_subscription_does_not_wear_out_the_old_one(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        for _ in range(5):
            fake.faults.refuse_subscriptions("Teapot", "", times=2)
            await session.subscribe(B)
            fake.faults.close_instead_of_confirming(1008, times=2)
            await fake.drop_connections()
            await fake.wait_subscribed()
            await trio.sleep(60)
        assert session.state == "subscribed"


async def test_transient_failures_of_the_new_subscription_are_retried(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        fake.faults.reject_handshakes(503)
        fake.faults.reject_handshakes(429, headers=[("Retry-After", "40")])
        fake.faults.withhold_confirmations()
        fake.faults.refuse_subscriptions("rate_limit", "")
        await session.subscribe(B)
        assert waits(fake) == [0, 0.5, 40, 12, 4]
        assert await take_all(session.events) == "Sa Sb"
        assert fake.connected == 1


async def test_during_an_outage_a_new_subscription_waits(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        fake.faults.reject_handshakes(503, times=3)
        await fake.drop_connections()
        await trio.sleep(0.25)
        began = trio.current_time()
        await session.subscribe(B)
        assert trio.current_time() - began == pytest.approx(7.25)
        await mail(fake, "1", inbox_id="b")
        assert await take_all(session.events) == "Sa D Sa Sb 1"


OBSTACLES: dict[str, Callable[[FakeAgentMail], None]] = {
    "the handshake hangs": lambda fake: fake.faults.hang_handshakes(times=None),
    "the confirmation does not come": lambda fake: fake.faults.withhold_confirmations(times=None),
    "the server is busy": lambda fake: fake.faults.reject_handshakes(503, times=None),
}


@pytest.mark.parametrize("outage", [False, True], ids=["connected", "in an outage"])
@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
async def test_a_new_subscription_that_is_cancelled_changes_nothing(
    obstacle: Callable[[FakeAgentMail], None], outage: bool, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        obstacle(fake)
        if outage:
            await fake.drop_connections()
        with trio.move_on_after(25) as scope:
            await session.subscribe(B)
        assert scope.cancelled_caught
        fake.faults.clear()
        await fake.wait_subscribed()
        await wait_all_tasks_blocked()
        assert session.state == "subscribed"
        assert fake.connected == 1
        await mail(fake, "1")
        await mail(fake, "not asked for", inbox_id="b")
        await fake.drop_connections()
        assert await take_all(session.events) == ("Sa D Sa 1 D Sa" if outage else "Sa 1 D Sa")
        assert fake.record.subscriptions[-1] == A


async def test_two_new_subscriptions_in_a_row_come_into_force_in_a_row(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake, buffer_size=1) as session:
        await mail(fake, "1", "2", "3")
        await wait_all_tasks_blocked()
        await session.subscribe(B)
        await mail(fake, "4", "5", "6", inbox_id="b")
        await session.subscribe(C)
        await mail(fake, "7", "8", inbox_id="c")
        assert await take_all(session.events) == "Sa 1 2 3 Sb 4 5 6 Sc 7 8"
        assert fake.connected == 1
        assert fake.record.close_codes == [1000, 1000]


async def test_new_subscriptions_from_many_tasks_come_into_force_one_after_the_other(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(session.subscribe, Subscribe(inbox_ids=[str(n)]))
        words = (await take_all(session.events)).split()
        assert words[0] == "Sa"
        assert sorted(words[1:]) == ["S0", "S1", "S2", "S3", "S4"]
        assert fake.connected == 1
        await fake.drop_connections()
        # In force is what was confirmed last.
        assert await take(session.events, 2) == f"D {words[-1]}"


async def test_the_old_connection_may_be_lost_while_the_new_subscription_is_confirmed(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    down = OSError("the network is down")
    async with open_agentmail_session(A, backend=fake) as session, trio.open_nursery() as nursery:
        fake.faults.delay_connections(5)
        fake.faults.fail_connections(down, times=3)

        async def lose_the_first() -> None:
            await trio.sleep(1)
            await mail(fake, "1")
            await fake.drop_connections()

        nursery.start_soon(lose_the_first)
        began = trio.current_time()
        await session.subscribe(B)
        assert trio.current_time() - began == pytest.approx(5)
        await mail(fake, "2", inbox_id="b")
        assert await take_all(session.events) == "Sa 1 D Sb 2"
        # At 8.5 s nobody tried again: the new one is in force.
        assert (fake.record.attempts, fake.connected) == (5, 1)
        assert session.state == "subscribed"
        await fake.drop_connections()
        assert await take(session.events, 2) == "D Sb"


async def test_the_old_connection_may_be_made_again_during_a_confirmation(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session, trio.open_nursery() as nursery:
        fake.faults.delay_connections(5)

        async def lose_the_first() -> None:
            await trio.sleep(1)
            await fake.drop_connections()

        nursery.start_soon(lose_the_first)
        await session.subscribe(B)
        await mail(fake, "1", inbox_id="b")
        assert await take_all(session.events) == "Sa D Sa Sb 1"
        assert fake.connected == 1


async def test_the_old_subscription_may_be_confirmed_again_together_with_the_new_one(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    stories = set()
    for _ in range(40):  # Trio draws which of the two tasks runs first
        fake = FakeAgentMail()
        async with open_agentmail_session(A, backend=fake) as session, trio.open_nursery() as nursery:
            fake.faults.delay_connections(5)
            fake.faults.delay_connections(4.5)
            nursery.start_soon(session.subscribe, B)
            await wait_all_tasks_blocked()
            await fake.drop_connections()
            await trio.sleep(5.5)
            await mail(fake, "1", inbox_id="b")
            stories.add(await take_all(session.events))
            assert fake.connected == 1
            assert session.state == "subscribed"
    assert stories == {"Sa D Sb 1", "Sa D Sa Sb 1"}


async def test_the_old_connection_may_end_before_its_last_event_has_found_room(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake, buffer_size=1) as session:
        await mail(fake, "1", "2")
        await session.subscribe(B)
        await mail(fake, "3", inbox_id="b")
        await fake.drop_connections()
        assert await take(session.events, 1) == "Sa"
        await wait_all_tasks_blocked()  # the end has been read, and the second mail still waits for room
        assert await take_all(session.events) == "1 2 D Sb 3 D Sb"


async def test_the_old_connection_may_have_been_idle_for_longer_than_a_pong_may_take(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake, ping_interval=None, ping_timeout=5) as session:
        await trio.sleep(100)
        await session.subscribe(B)
        assert await take_all(session.events) == "Sa Sb"


async def test_a_new_subscription_that_ends_an_outage_shows_that_the_key_is_good(
    no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    refused = AuthenticationError(401, {}, "")
    async with open_agentmail_session(A, backend=fake) as session, trio.open_nursery() as nursery:
        fake.faults.delay_connections(5)
        fake.faults.fail_connections(refused)
        fake.faults.fail_connections(OSError("down"), times=2)
        nursery.start_soon(session.subscribe, B)
        await wait_all_tasks_blocked()
        await fake.drop_connections()
        await trio.sleep(500)
        assert session.state == "subscribed"
        fake.faults.clear()
        fake.faults.fail_connections(refused)
        attempts = fake.record.attempts
        await fake.drop_connections()  # and a single 401 follows, long after the first
        await trio.sleep(10)
        assert session.state == "subscribed"
        assert fake.record.attempts == attempts + 2


async def test_the_old_connection_may_be_half_open(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake, ping_interval=None, ping_timeout=20) as session:
        await mail(fake, "1")
        await wait_all_tasks_blocked()
        fake.faults.silence_connections()
        await session.subscribe(B)
        began = trio.current_time()
        await mail(fake, "2", inbox_id="b")
        # What the old connection may have missed is unknown, so there is a gap.
        assert await take(session.events, 5) == "Sa 1 D Sb 2"
        assert trio.current_time() - began <= 20.1
        assert fake.record.subscriptions == [A, B]


async def test_a_stream_that_was_left_takes_no_new_subscription(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await session.subscribe(B)
    assert len(fake.record.handshakes) == 1


@pytest.mark.parametrize("wrong", [None, {"inbox_ids": ["a"]}, ["a"], "a"])
async def test_what_is_no_subscription_is_refused_at_once(wrong: object, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(A, backend=fake) as session:
        with pytest.raises(TypeError, match=f"Subscribe, not {type(wrong).__name__}"):
            await session.subscribe(wrong)  # type: ignore[arg-type]
        assert isinstance(session, AgentMailSession)
    assert len(fake.record.handshakes) == 1
