"""Reconnecting: when, how often, for how long, and what the consumer sees."""

from datetime import timedelta
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.reading import B, mail, take, take_all, time_of_day, waits
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import ApiError, ConnectionFailedError, Disconnected, ReconnectPolicy, Subscribe, Subscribed
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail

# When it tries again


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
    # Nearly all waits are drawn from 0 to 30 s, so about 240 are expected, with a standard deviation of 9.
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


# For how long it tries


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


# What every connection sends


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
