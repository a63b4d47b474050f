"""The heartbeat: when pings are sent, what counts as a sign of life, and when a connection is given up."""

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from tests.helpers.websocket_server import BINARY, PING, PONG, TEXT, close_frame, frame
from tests.helpers.wires import opcode, tap_client
from trio_agentmail import Disconnected, Event, Subscribed, UnknownEvent
from trio_agentmail.testing import FakeAgentMail


def fake_without_pongs() -> FakeAgentMail:
    fake = FakeAgentMail()
    fake.faults.delay_pongs(math.inf)
    return fake


async def next_loss(events: trio.MemoryReceiveChannel[Event]) -> Disconnected:
    async for event in events:
        if isinstance(event, Disconnected):
            return event
    raise AssertionError("the stream ended")  # pragma: no cover


# Pings


async def test_after_each_silence_a_ping_goes_out(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake):
        await trio.sleep(110)
    assert fake.record.pings == [20, 40, 60, 80, 100]


async def test_how_long_a_silence_may_last_can_be_chosen(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, ping_interval=7, ping_timeout=100):
        await trio.sleep(30)
    assert fake.record.pings == [7, 14, 21, 28]


async def test_a_silence_begins_with_the_last_byte(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_pongs(3)
    async with open_agentmail_stream(backend=fake):
        await trio.sleep(5)
        await fake.send_raw("{}")
        await trio.sleep(95)
    assert fake.record.pings == [25, 48, 71, 94]


async def test_without_an_interval_there_are_no_pings_and_no_deadline(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake, ping_interval=None) as events:
        await trio.sleep(7 * 24 * 3600)
        await fake.send_raw("{}")
        assert isinstance(await anext(events), Subscribed)
        assert isinstance(await anext(events), UnknownEvent)
    assert fake.record.pings == []
    assert len(fake.record.handshakes) == 1


async def test_an_idle_day_is_survived_by_pings(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        await trio.sleep(24 * 3600 + 1)
        assert session.state == "subscribed"
        assert session.statistics().connections == 1
    assert len(fake.record.pings) == 24 * 3600 / 20
    assert len(fake.record.handshakes) == 1


# Signs of life


async def test_while_events_come_no_ping_goes_out(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        for n in range(40):
            await trio.sleep(15)
            await fake.send_raw(str(n))
            assert isinstance(await anext(events), UnknownEvent)
    assert fake.record.pings == []


async def test_the_servers_own_pings_are_a_sign_of_life_and_are_answered(autojump_clock: MockClock) -> None:
    pongs = 0

    async def count(data: bytes) -> None:
        nonlocal pongs
        pongs += opcode(data) == PONG

    fake = fake_without_pongs()
    tap_client(fake, after=count)
    async with open_agentmail_stream(backend=fake):
        for _ in range(40):
            await trio.sleep(15)
            await fake.faults.send_bytes(frame(PING, b"are you there?"))
        await wait_all_tasks_blocked()
    assert fake.record.pings == []
    assert pongs == 40
    assert len(fake.record.handshakes) == 1


async def test_a_large_message_that_trickles_in_is_no_silence(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        for byte in frame(TEXT, b"not JSON, but a message all the same"):
            await trio.sleep(19)
            await fake.faults.send_bytes(bytes([byte]))
        event = await anext(events)
        assert isinstance(event, UnknownEvent)
        assert event.raw == "not JSON, but a message all the same"
    assert fake.record.pings == []


async def test_the_parts_of_a_message_that_comes_slowly_are_an_answer_to_a_ping(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        for n in range(10):
            await trio.sleep(39)
            await fake.faults.send_bytes(frame(0 if n else BINARY, b" ", fin=n == 9))
        assert isinstance(await anext(events), UnknownEvent)
    # Twenty seconds after the confirmation, and then after each part.
    assert fake.record.pings == [20 + 39 * n for n in range(10)]
    assert len(fake.record.handshakes) == 1


async def test_a_pong_may_take_as_long_as_ping_timeout(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_pongs(19.9)
    async with open_agentmail_stream(backend=fake):
        await trio.sleep(3600)
    assert len(fake.record.handshakes) == 1
    assert fake.record.pings[:3] == pytest.approx([20, 59.9, 99.8])


# Giving up


async def test_a_server_that_answers_no_ping_is_given_up_after_interval_and_timeout(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake) as events:
        lost = await next_loss(events)
        assert trio.current_time() == 40
        assert lost.code == 1006
        assert "20" in lost.reason
        assert "ping" in lost.reason
        assert isinstance(await anext(events), Subscribed)
        again = trio.current_time()
        await next_loss(events)
        assert trio.current_time() - again == pytest.approx(40)
    assert fake.record.pings == pytest.approx([20, again + 20])


async def test_interval_and_timeout_can_be_chosen(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake, ping_interval=5, ping_timeout=3) as events:
        await fake.send_raw("{}")
        await trio.sleep(2)
        await fake.send_raw("[]")
        await next_loss(events)
        assert trio.current_time() == 2 + 5 + 3


async def test_a_half_open_connection_is_noticed_and_made_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        before = await fake.deliver(inbox_id="a")
        await wait_all_tasks_blocked()
        silent_since = trio.current_time()
        fake.faults.silence_connections()
        await fake.deliver(inbox_id="a", subject="nobody will ever see this")
        assert isinstance(await anext(events), Subscribed)
        assert await anext(events) == before
        assert isinstance(await anext(events), Disconnected)
        assert trio.current_time() - silent_since == pytest.approx(40)
        assert isinstance(await anext(events), Subscribed)
        after = await fake.deliver(inbox_id="a")
        assert await anext(events) == after
        assert fake.connected == 1


async def test_what_had_come_before_the_silence_is_not_lost_to_a_slow_consumer(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        mails = [await fake.deliver(inbox_id="a", subject=str(n)) for n in range(10)]
        fake.faults.silence_connections()
        await trio.sleep(3600)
        assert isinstance(await anext(events), Subscribed)
        assert [await anext(events) for _ in mails] == mails
        resumed = trio.current_time()
        assert isinstance(await anext(events), Disconnected)
        assert trio.current_time() - resumed == pytest.approx(40)


# Back-pressure is not silence


@pytest.mark.parametrize("ping_timeout", [0.5, 20])
async def test_while_the_consumer_sleeps_with_a_full_channel_no_deadline_of_ours_runs(
    ping_timeout: float, autojump_clock: MockClock
) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake, buffer_size=2, ping_timeout=ping_timeout) as events:
        for n in range(10):
            await fake.send_raw(str(n))
        await trio.sleep(3600)
        assert len(fake.record.handshakes) == 1
        assert fake.record.pings == []
        fake.faults.delay_pongs(0)
        # Reading goes on where it stopped: nothing is missing.
        assert isinstance(await anext(events), Subscribed)
        received = [await anext(events) for _ in range(10)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        await trio.sleep(50)
    # And so does the heartbeat, from then on.
    assert fake.record.pings == [3600 + 20, 3600 + 40]
    assert len(fake.record.handshakes) == 1


async def test_back_pressure_between_a_ping_and_its_pong_is_no_silence(autojump_clock: MockClock) -> None:
    fake = fake_without_pongs()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        await trio.sleep(30)
        assert fake.record.pings == [20]
        for n in range(10):
            await fake.send_raw(str(n))
        await trio.sleep(3600)
        assert len(fake.record.handshakes) == 1
        for _ in range(11):
            assert not isinstance(await anext(events), Disconnected)


async def test_a_channel_that_is_just_full_does_not_stop_the_heartbeat(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=2) as session:
        await fake.send_raw("{}")
        await wait_all_tasks_blocked()
        assert session.statistics().buffered == 2
        await trio.sleep(70)
        assert fake.record.pings == [20, 40, 60]


async def test_a_server_that_cuts_a_sleeping_consumer_off_costs_nothing_that_was_received(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        for n in range(10):
            await fake.send_raw(str(n))
        await trio.sleep(3600)
        await fake.drop_connections()
        await trio.sleep(3600)
        assert isinstance(await anext(events), Subscribed)
        received = [await anext(events) for _ in range(10)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        assert isinstance(await anext(events), Disconnected)
        assert isinstance(await anext(events), Subscribed)


async def test_answering_a_ping_of_a_server_that_has_gone_costs_nothing_that_was_received(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        for n in range(10):
            await fake.send_raw(str(n))
            await fake.faults.send_bytes(frame(PING))
        await fake.drop_connections()
        await trio.sleep(3600)
        assert isinstance(await anext(events), Subscribed)
        received = []
        with trio.move_on_after(60):
            received = [await anext(events) for _ in range(12)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        assert [type(event) for event in received[10:]] == [Disconnected, Subscribed]


async def test_a_close_frame_that_has_not_been_read_is_not_a_silence(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        for n in range(2):
            await fake.send_raw(str(n))
        await fake.faults.send_bytes(close_frame(1001, "going away"))
        await trio.sleep(3600)  # one event has no room; the close frame is behind it, and the stream stays open
        assert [type(await anext(events)) for _ in range(3)] == [Subscribed, UnknownEvent, UnknownEvent]
        loss = await next_loss(events)
        assert (loss.code, loss.reason) == (1001, "the WebSocket was closed: going away")
