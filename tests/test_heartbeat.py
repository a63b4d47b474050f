"""Silence is noticed: when pings go out, what counts as a sign of life, and when a connection is given up."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import wsproto
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from tests.backends import FakeBackend
from tests.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import Disconnected, Event, Subscribed, UnknownEvent
from trio_agentmail._nursery import background_nursery
from trio_agentmail._websocket import WebSocket, client_websocket
from trio_agentmail.testing import FakeAgentMail


class Peer(FakeBackend):
    """A server made by hand, which writes down when pings come, counted from the last subscription."""

    def __init__(self, *, answers: bool = True, delay: float = 0) -> None:
        super().__init__()
        self.answers = answers
        self.delay = delay
        self.pings: list[float] = []
        self.pongs = 0
        self.connections = 0
        self.subscribed_at = 0.0

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        ours, theirs = memory_stream_pair()
        async with background_nursery() as nursery:
            nursery.start_soon(self._serve, theirs)
            async with client_websocket(
                ours, host="peer", target="/v0", headers=headers, max_message_size=max_message_size
            ) as websocket:
                yield websocket

    async def _serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        self.stream = stream
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await stream.receive_some():
                self.protocol.receive_data(bytes(data))
                for event in self.protocol.events():
                    await self._answer(event)

    async def _answer(self, event: wsproto.events.Event) -> None:
        match event:
            case Request():
                await self.send(AcceptConnection())
            case Message():
                await self.push('{"type":"subscribed"}')
                self.subscribed_at = trio.current_time()
            case Ping():
                self.pings.append(round(self.subscribed_for, 3))
                if self.answers:
                    await trio.sleep(self.delay)
                    await self.send(event.response())
            case Pong():
                self.pongs += 1
            case CloseConnection() if self.protocol.state is ConnectionState.REMOTE_CLOSING:
                await self.send(event.response())

    @property
    def subscribed_for(self) -> float:
        return trio.current_time() - self.subscribed_at

    async def send(self, event: wsproto.events.Event) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def push(self, text: str) -> None:
        await self.send(TextMessage(text))


async def next_loss(events: trio.MemoryReceiveChannel[Event]) -> Disconnected:
    async for event in events:
        if isinstance(event, Disconnected):
            return event
    raise AssertionError("the stream ended")  # pragma: no cover


# Pings


async def test_after_each_silence_a_ping_goes_out(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer):
        await trio.sleep(110)
    assert peer.pings == [20, 40, 60, 80, 100]


async def test_how_long_a_silence_may_last_can_be_chosen(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer, ping_interval=7, ping_timeout=100):
        await trio.sleep(30)
    assert peer.pings == [7, 14, 21, 28]


async def test_a_silence_begins_with_the_last_byte(autojump_clock: MockClock) -> None:
    peer = Peer(delay=3)
    async with open_agentmail_stream(backend=peer):
        await trio.sleep(5)
        await peer.push("{}")
        await trio.sleep(95)
    assert peer.pings == [25, 48, 71, 94]


async def test_without_an_interval_there_are_no_pings_and_no_deadline(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer, ping_interval=None) as events:
        await trio.sleep(7 * 24 * 3600)
        await peer.push("{}")
        assert isinstance(await anext(events), Subscribed)
        assert isinstance(await anext(events), UnknownEvent)
    assert peer.pings == []
    assert peer.connections == 1


async def test_an_idle_day_is_survived_by_pings(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_session(backend=peer) as session:
        await trio.sleep(24 * 3600 + 1)
        assert session.state == "subscribed"
        assert session.statistics().connections == 1
    assert len(peer.pings) == 24 * 3600 / 20
    assert peer.connections == 1


# Signs of life


async def test_while_events_come_no_ping_goes_out(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer) as events:
        assert isinstance(await anext(events), Subscribed)
        for n in range(40):
            await trio.sleep(15)
            await peer.push(str(n))
            assert isinstance(await anext(events), UnknownEvent)
    assert peer.pings == []


async def test_the_servers_own_pings_are_a_sign_of_life_and_are_answered(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer):
        for _ in range(40):
            await trio.sleep(15)
            await peer.send(Ping(b"are you there?"))
        await wait_all_tasks_blocked()
    assert peer.pings == []
    assert peer.pongs == 40
    assert peer.connections == 1


async def test_a_large_message_that_trickles_in_is_no_silence(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer) as events:
        assert isinstance(await anext(events), Subscribed)
        for byte in peer.protocol.send(TextMessage("not JSON, but a message all the same")):
            await trio.sleep(19)
            await peer.stream.send_all(bytes([byte]))
        event = await anext(events)
        assert isinstance(event, UnknownEvent)
        assert event.raw == "not JSON, but a message all the same"
    assert peer.pings == []


async def test_the_parts_of_a_message_that_comes_slowly_are_an_answer_to_a_ping(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer) as events:
        assert isinstance(await anext(events), Subscribed)
        for n in range(10):
            await trio.sleep(39)
            await peer.send(BytesMessage(b" ", message_finished=n == 9))
        assert isinstance(await anext(events), UnknownEvent)
    # Twenty seconds after the confirmation, and then after each part.
    assert peer.pings == [20 + 39 * n for n in range(10)]
    assert peer.connections == 1


async def test_a_pong_may_take_as_long_as_ping_timeout(autojump_clock: MockClock) -> None:
    peer = Peer(delay=19.9)
    async with open_agentmail_stream(backend=peer):
        await trio.sleep(3600)
    assert peer.connections == 1
    assert peer.pings[:3] == [20, 59.9, 99.8]


# Giving up


async def test_a_server_that_answers_no_ping_is_given_up_after_interval_and_timeout(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer) as events:
        lost = await next_loss(events)
        assert peer.subscribed_for == pytest.approx(40)
        assert lost.code == 1006
        assert "20" in lost.reason
        assert "ping" in lost.reason
        assert isinstance(await anext(events), Subscribed)
        await next_loss(events)
        assert peer.subscribed_for == pytest.approx(40)
    assert peer.pings == [20, 20]


async def test_interval_and_timeout_can_be_chosen(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer, ping_interval=5, ping_timeout=3) as events:
        await peer.push("{}")
        await trio.sleep(2)
        await peer.push("[]")
        await next_loss(events)
        assert peer.subscribed_for == pytest.approx(2 + 5 + 3)


async def test_a_half_open_connection_is_noticed_and_made_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        before = await fake.deliver(inbox_id="a")
        await wait_all_tasks_blocked()
        silent_since = trio.current_time()
        fake.go_silent()
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
        fake.go_silent()
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
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer, buffer_size=2, ping_timeout=ping_timeout) as events:
        for n in range(10):
            await peer.push(str(n))
        await trio.sleep(3600)
        assert peer.connections == 1
        assert peer.pings == []
        peer.answers = True
        # Reading goes on where it stopped: nothing is missing.
        assert isinstance(await anext(events), Subscribed)
        received = [await anext(events) for _ in range(10)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        await trio.sleep(50)
    # And so does the heartbeat, from then on.
    assert peer.pings == [3600 + 20, 3600 + 40]
    assert peer.connections == 1


async def test_back_pressure_between_a_ping_and_its_pong_is_no_silence(autojump_clock: MockClock) -> None:
    peer = Peer(answers=False)
    async with open_agentmail_stream(backend=peer, buffer_size=2) as events:
        await trio.sleep(30)
        assert peer.pings == [20]
        for n in range(10):
            await peer.push(str(n))
        await trio.sleep(3600)
        assert peer.connections == 1
        for _ in range(11):
            assert not isinstance(await anext(events), Disconnected)


async def test_a_channel_that_is_just_full_does_not_stop_the_heartbeat(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_session(backend=peer, buffer_size=2) as session:
        await peer.push("{}")
        await wait_all_tasks_blocked()
        assert session.statistics().buffered == 2
        await trio.sleep(70)
        assert peer.pings == [20, 40, 60]


async def test_a_server_that_cuts_a_sleeping_consumer_off_costs_nothing_that_was_received(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer, buffer_size=2) as events:
        for n in range(10):
            await peer.push(str(n))
        await trio.sleep(3600)
        await peer.stream.aclose()
        await trio.sleep(3600)
        assert isinstance(await anext(events), Subscribed)
        received = [await anext(events) for _ in range(10)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        assert isinstance(await anext(events), Disconnected)
        assert isinstance(await anext(events), Subscribed)


async def test_answering_a_ping_of_a_server_that_has_gone_costs_nothing_that_was_received(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer, buffer_size=2) as events:
        for n in range(10):
            await peer.push(str(n))
            await peer.send(Ping())
        await peer.stream.aclose()
        await trio.sleep(3600)
        assert isinstance(await anext(events), Subscribed)
        received = []
        with trio.move_on_after(60):
            received = [await anext(events) for _ in range(12)]
        assert [event.raw for event in received if isinstance(event, UnknownEvent)] == [str(n) for n in range(10)]
        assert [type(event) for event in received[10:]] == [Disconnected, Subscribed]


async def test_a_close_that_nobody_has_read_yet_is_not_turned_into_a_silence(autojump_clock: MockClock) -> None:
    peer = Peer()
    async with open_agentmail_stream(backend=peer, buffer_size=2) as events:
        for n in range(2):
            await peer.push(str(n))
        await peer.send(CloseConnection(code=1001, reason="going away"))
        await trio.sleep(3600)  # one event has no room; the close frame is behind it, and the stream stays open
        assert [type(await anext(events)) for _ in range(3)] == [Subscribed, UnknownEvent, UnknownEvent]
        loss = await next_loss(events)
        assert (loss.code, loss.reason) == (1001, "the WebSocket was closed: going away")
