"""A consumer that is behind sees the losses that it missed as one."""

from datetime import timedelta

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.reading import mail, take, take_all, time_of_day
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import Disconnected
from trio_agentmail.testing import FakeAgentMail


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
        # With clones, notices are not taken back out of the channel, so those in it are not merged.
        assert words[-1] == "after"
        assert words[:-1] == ["D", "S"] * (len(words) // 2)
        assert len(words) <= 4 + 4 + 1
