"""Replacing the subscription: a new connection takes over without a gap."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.reading import A, B, mail, take, take_all, waits
from tests.helpers.streams import open_agentmail_session
from trio_agentmail import AgentMailSession, ApiError, AuthenticationError, Subscribe, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail

C = Subscribe(inbox_ids=["c"])
BOTH = Subscribe(inbox_ids=["a", "b"])


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
        # The only consumer calls `subscribe` while the channel is full. It returns before an event is taken.
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
        # The subscription that was confirmed last is in force.
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
        # No attempt followed at 8.5 s, since the new subscription was in force.
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
    for _ in range(40):  # Trio decides at random which of the two tasks runs first
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
