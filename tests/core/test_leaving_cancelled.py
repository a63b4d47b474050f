"""A block that is cancelled is left at once, and nothing stays behind."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.leaving import Mishap, Opener, leaving_nothing, refuse_for_good, with_both
from tests.helpers.streams import open_agentmail_session
from tests.helpers.taking import taking
from trio_agentmail import AgentMailSession, MessageReceivedEvent, Subscribe, Subscribed, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._faults.table import Faults

INBOX = "agent@agentmail.to"


@with_both
@pytest.mark.parametrize(
    "fault",
    [
        Faults.hang_handshakes,
        Faults.withhold_confirmations,
        partial(Faults.reject_handshakes, status=503, headers=[("Retry-After", "20")]),
        partial(Faults.refuse_connections, times=None),
    ],
    ids=["connecting", "awaiting the confirmation", "told to wait", "backing off"],
)
async def test_cancelled_on_entering_it_leaves_at_once(
    opener: Opener, fault: Callable[[Faults], None], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake.faults)
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake):
                pytest.fail("not entered")
        assert scope.cancelled_caught


@with_both
@pytest.mark.parametrize(
    "fault",
    [
        None,
        Faults.hang_handshakes,
        Faults.withhold_confirmations,
        partial(Faults.reject_handshakes, status=503, headers=[("Retry-After", "20")]),
        partial(Faults.refuse_connections, times=None),
    ],
    ids=["idle", "connecting", "awaiting the confirmation", "told to wait", "backing off"],
)
async def test_cancelled_in_the_body_it_leaves_at_once(
    opener: Opener, fault: Callable[[Faults], None] | None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake):
                if fault is not None:
                    fault(fake.faults)
                    await fake.drop_connections()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None] if fault is None else 1000 not in fake.record.close_codes


@with_both
async def test_cancelled_while_it_waits_for_room_in_the_channel_it_leaves_at_once(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake, buffer_size=1):
                for _ in range(10):
                    await fake.deliver(inbox_id=INBOX)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None]


@with_both
async def test_cancelled_while_it_closes_it_leaves_at_once(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(2):
        with trio.move_on_after(2) as scope:
            async with opener(backend=fake, close_timeout=60):
                fake.faults.silence_connections()
        assert scope.cancelled_caught


@with_both
async def test_a_block_cancelled_while_closing_leaves_at_once_with_the_bodys_exception(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake), taking(2):
        with trio.move_on_after(2):
            with pytest.raises(Mishap) as caught:
                async with opener(backend=fake, close_timeout=60):
                    fake.faults.silence_connections()
                    raise error
            assert caught.value is error
            assert error.__context__ is None


@with_both
async def test_cancelled_before_it_begins_it_makes_no_connection(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with trio.move_on_after(0) as scope:
            async with opener(backend=fake):
                pytest.fail("not entered")
        assert scope.cancelled_caught
        assert fake.record.handshakes == []


@with_both
async def test_a_deadline_at_the_very_moment_of_entering_leaves_nothing(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, headers=[("Retry-After", "7")])
    async with leaving_nothing(fake), taking(7):
        with trio.move_on_after(7) as scope:
            async with opener(backend=fake):
                await trio.sleep_forever()
        assert scope.cancelled_caught


@with_both
async def test_cancelled_between_any_two_steps_it_leaves_nothing(opener: Opener) -> None:
    """Entering takes some dozens of scheduling steps. It is cancelled after each of them in turn."""

    async def cancel_after(steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    fake = FakeAgentMail()
    entered = 0
    async with leaving_nothing(fake):
        for steps in range(60):
            async with leaving_nothing(fake), trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_after, steps)
                    async with opener(backend=fake):
                        entered += 1
                        await trio.sleep_forever()
                assert scope.cancelled_caught
    assert 0 < entered < 60


async def test_subscribe_cancelled_changes_nothing(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), open_agentmail_session(backend=fake) as session:
        fake.faults.withhold_confirmations()
        async with taking(3):
            with trio.move_on_after(3) as scope:
                await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
        assert scope.cancelled_caught
        await fake.wait_subscribed(1)
        await fake.deliver(inbox_id=INBOX, subject="still here")
        assert isinstance(await session.events.receive(), Subscribed)
        event = await session.events.receive()
        assert isinstance(event, MessageReceivedEvent)
        assert event.message.subject == "still here"
        assert session.statistics().connections == 1
        await trio.sleep(1)
        assert fake.connected == 1


async def test_the_block_cancelled_in_subscribe_leaves_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with open_agentmail_session(backend=fake) as session:
                fake.faults.withhold_confirmations()
                await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None, None]


async def test_the_block_may_be_left_while_a_task_is_in_subscribe(autojump_clock: MockClock) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.withhold_confirmations()
            nursery.start_soon(subscribe, session)
            await wait_all_tasks_blocked()
        assert sorted(fake.record.close_codes, key=str) == [1000, None]


async def test_the_block_may_be_left_while_subscribe_waits_for_the_end_of_an_outage(
    autojump_clock: MockClock,
) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.refuse_connections(None)
            await fake.drop_connections()
            await wait_all_tasks_blocked()
            nursery.start_soon(subscribe, session)
            await wait_all_tasks_blocked()


async def test_subscribe_after_the_end_of_the_block_says_that_it_is_closed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        pass
    assert session.state == "closed"
    with pytest.raises(trio.ClosedResourceError):
        await session.subscribe(Subscribe())
    assert session.statistics().connections == 1


@pytest.mark.parametrize("where", ["in the body", "in a task outside"])
async def test_a_fatal_error_ends_a_subscribe_that_waits(where: str, autojump_clock: MockClock) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        with pytest.raises(SubscriptionRejectedError):
            async with open_agentmail_session(backend=fake) as session:
                fake.faults.reject_handshakes(503, headers=[("Retry-After", "60")])
                await refuse_for_good(fake)
                await trio.sleep(1)
                assert session.state == "waiting"
                if where == "in the body":
                    await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
                nursery.start_soon(subscribe, session)
                await trio.sleep_forever()
