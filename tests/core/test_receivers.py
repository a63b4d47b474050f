"""Clones of the channel, and a stream whose last receiver is closed."""

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.leaving import Mishap, Opener, leaving_nothing, refuse_for_good, with_both
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import AgentMailSession, Event, MessageReceivedEvent, Subscribe, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


# Clones of the channel


@with_both
@pytest.mark.parametrize("way", ["in peace", "by an exception", "cancelled", "fatal"])
async def test_clones_in_worker_tasks_come_to_their_end_after_what_was_delivered(
    opener: Opener, way: str, autojump_clock: MockClock
) -> None:
    async def work(events: trio.MemoryReceiveChannel[Event]) -> None:
        async with events:
            async for event in events:
                received.append(event)
                await trio.sleep(1)
        ends.append(trio.current_time())

    fake = FakeAgentMail()
    received: list[Event] = []
    ends: list[float] = []
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        with suppress(Mishap, SubscriptionRejectedError):
            with trio.CancelScope() as scope:
                async with opener(backend=fake) as opened:
                    events = opened.events if isinstance(opened, AgentMailSession) else opened
                    nursery.start_soon(work, events.clone())
                    nursery.start_soon(work, events.clone())
                    for _ in range(9):
                        await fake.deliver(inbox_id=INBOX)
                    await wait_all_tasks_blocked()
                    match way:
                        case "by an exception":
                            raise Mishap
                        case "cancelled":
                            scope.cancel()
                            await trio.sleep_forever()
                        case "fatal":
                            await refuse_for_good(fake)
                            await trio.sleep_forever()
        assert len(ends) == 0
    assert sum(isinstance(event, MessageReceivedEvent) for event in received) == 9
    assert len(ends) == 2


async def test_a_worker_in_the_block_that_has_its_own_clone_ends_with_its_nursery(autojump_clock: MockClock) -> None:
    async def work(events: trio.MemoryReceiveChannel[Event]) -> None:
        async with events:
            async for event in events:
                received.append(event)

    fake = FakeAgentMail()
    received: list[Event] = []
    async with leaving_nothing(fake):
        async with open_agentmail_stream(backend=fake) as events:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(work, events.clone())
                for _ in range(30):
                    await fake.deliver(inbox_id=INBOX)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert len(received) == 31


# The last receiver is closed


async def test_once_the_last_receiver_is_closed_the_next_event_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, ping_interval=None) as session:
            session.events.close()
            await trio.sleep(1000)
            assert (session.state, fake.connected) == ("subscribed", 1)
            await fake.deliver(inbox_id=INBOX)
            await trio.sleep(1)
            assert (session.state, fake.connected) == ("closed", 0)
            assert fake.record.close_codes == [1000]
            with pytest.raises(trio.ClosedResourceError):
                await session.subscribe(Subscribe())
            await trio.sleep(1000)  # the body goes on
        assert fake.record.close_codes == [1000]


async def test_once_the_last_receiver_is_closed_the_next_ping_closes_the_connection(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, ping_interval=20) as session:
            session.events.close()
            await trio.sleep(19)
            assert (session.state, fake.connected) == ("subscribed", 1)
            await trio.sleep(2)
            assert (session.state, fake.connected) == ("closed", 0)
            assert fake.record.close_codes == [1000]
            with pytest.raises(trio.ClosedResourceError):
                await session.subscribe(Subscribe())
            await trio.sleep(1000)


async def test_once_the_last_receiver_is_closed_no_lost_connection_is_made_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            session.events.close()
            await fake.drop_connections()
            await trio.sleep(1000)
            assert session.state == "closed"
        assert len(fake.record.handshakes) == 1


async def test_once_the_last_receiver_is_closed_in_an_outage_it_ends(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.reject_handshakes(503, headers=[("Retry-After", "60")], times=None)
            await fake.drop_connections()
            await trio.sleep(30)
            assert (session.state, len(fake.record.handshakes)) == ("waiting", 2)
            session.events.close()
            await trio.sleep(60)
            assert session.state == "closed"
            await trio.sleep(1000)
        assert len(fake.record.handshakes) == 2


async def test_without_receivers_a_sender_that_waits_for_room_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            for _ in range(5):
                await fake.deliver(inbox_id=INBOX)
            await wait_all_tasks_blocked()
            session.events.close()
            await wait_all_tasks_blocked()
            assert (session.state, fake.record.close_codes) == ("closed", [1000])


async def test_without_receivers_an_event_behind_notices_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            await fake.drop_connections()
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX)
            await wait_all_tasks_blocked()
            session.events.close()
            await wait_all_tasks_blocked()
            assert (session.state, fake.record.close_codes) == ("closed", [1000])


async def test_as_long_as_a_clone_is_open_nothing_is_closed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            clone = session.events.clone()
            session.events.close()
            await fake.deliver(inbox_id=INBOX)
            await trio.sleep(1000)
            await fake.drop_connections()
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, subject="after the loss")
            async with clone:
                async for event in clone:
                    if isinstance(event, MessageReceivedEvent) and event.message.subject == "after the loss":
                        break
            assert (session.state, fake.connected) == ("subscribed", 1)
            await trio.sleep(1000)
            assert (session.state, fake.connected) == ("closed", 0)


async def test_changing_the_subscription_does_not_outlive_the_stream(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), open_agentmail_session(backend=fake) as session:
        fake.faults.reject_handshakes(503, headers=[("Retry-After", "3000")])
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await session.subscribe(Subscribe(inbox_ids=[INBOX]))

            nursery.start_soon(change)
            await wait_all_tasks_blocked()
            session.events.close()
        assert trio.current_time() - began <= 20  # the next ping


async def test_a_body_that_raises_after_the_stream_has_closed_itself_is_left_as_ever(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with open_agentmail_stream(backend=fake) as events:
                events.close()
                await trio.sleep(1000)
                raise error
    assert caught.value is error
    assert error.__context__ is None
