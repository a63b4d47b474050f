"""The fake records the pings of a client, and answers them late if a test asks for that."""

import math

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import ApiError, Disconnected, MessageReceivedEvent, Subscribed
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._emulator.emulator import Emulator

INBOX = "agent@agentmail.to"


async def test_pings_of_all_connections_are_told_in_order(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, ping_interval=10):
        await trio.sleep(5)
        async with open_agentmail_stream(backend=fake, ping_interval=10):
            await trio.sleep(22)
    assert fake.record.pings == [10, 15, 20, 25]


async def test_a_ping_can_be_waited_for(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, ping_interval=10):
        assert await fake.wait_for(lambda: fake.record.pings) == [10]
        assert trio.current_time() == 10


async def test_pongs_come_late_and_events_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_pongs(7)  # for a connection to come
    async with open_agentmail_session(backend=fake, ping_interval=10) as session:
        assert isinstance(await session.events.receive(), Subscribed)
        await trio.sleep(12)
        event = await fake.deliver(inbox_id=INBOX)
        assert await session.events.receive() == event
        assert trio.current_time() == 12
        await trio.sleep(40)
        # The pong of the ping at 10 came at 17, and was the last sign of life before the ping at 27, and so on.
        assert fake.record.pings == [10, 27, 44]
        fake.faults.delay_pongs(0)
        await trio.sleep(20)
        assert fake.record.pings == [10, 27, 44, 61, 71]
        assert session.statistics().connections == 1


async def test_pongs_that_never_come_cost_a_connection_until_the_faults_are_cleared(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        fake.faults.delay_pongs(math.inf)
        assert isinstance(await events.receive(), Disconnected)
        assert trio.current_time() == 40
        assert isinstance(await events.receive(), Subscribed)
        fake.faults.clear()
        await trio.sleep(3600)
        assert fake.connected == 1
        assert len(fake.record.handshakes) == 2


async def test_a_late_pong_for_who_has_gone_silent_or_away_is_not_sent(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_pongs(5)
    async with open_agentmail_stream(backend=fake, ping_timeout=10) as events:
        assert isinstance(await events.receive(), Subscribed)
        await fake.wait_for(lambda: fake.record.pings)
        fake.faults.silence_connections()
        assert isinstance(await events.receive(), Disconnected)
        assert trio.current_time() == 30
        assert isinstance(await events.receive(), Subscribed)
        await fake.wait_for(lambda: len(fake.record.pings) == 2)
        await fake.drop_connections()
        await trio.sleep(7)
        assert len(fake.record.handshakes) == 3


@pytest.mark.parametrize("seconds", [0, 30])
async def test_a_pong_is_not_written_into_an_event_that_trickles(seconds: float, autojump_clock: MockClock) -> None:
    async def receive() -> None:
        while True:
            came.append((await websocket.receive(), trio.current_time()))

    came: list[tuple[bytes, float]] = []
    fake = FakeAgentMail()
    fake.faults.delay_pongs(seconds)
    async with (
        fake.open_websocket(
            "wss://x/v0", headers=[("Authorization", "Bearer am_key")], max_message_size=2**20, ssl_context=None
        ) as websocket,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(receive)
        await websocket.send('{"type":"subscribe"}')
        await fake.wait_subscribed()
        fake.faults.slow_down(100)
        await fake.deliver(inbox_id=INBOX, text="x" * 9000)
        await trio.sleep(5)
        await websocket.ping()
        [_, (text, when)] = came
        assert b"x" * 9000 in text
        assert 90 < when <= trio.current_time() < when + 0.2
        nursery.cancel_scope.cancel()
    assert fake.record.pings == [5]


async def test_the_body_of_a_refusal_may_begin_as_a_pong_does(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(400, body=b"\x8a\x00")
    with pytest.raises(ApiError) as caught:
        async with open_agentmail_stream(backend=fake):
            pytest.fail("entered")
    assert caught.value.body == "\ufffd\x00"
    assert fake.record.pings == []


async def test_the_pings_that_an_emulator_records_have_a_bound(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("trio_agentmail.testing._emulator.emulator.MAX_REMEMBERED", 3)
    emulator = Emulator(lambda text: None)
    async with open_agentmail_stream(backend=emulator.fake, ping_interval=1) as events:
        await trio.sleep(9.5)
        await emulator.fake.deliver(inbox_id=INBOX)
        assert emulator.fake.record.pings == [7, 8, 9]
        assert isinstance(await events.receive(), Subscribed)
        assert isinstance(await events.receive(), MessageReceivedEvent)
