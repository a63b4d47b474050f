"""Faults, one by one and as chaos, and how a stream handles them."""

import httpx2
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trio_agentmail
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from tests.helpers.websocket_server import PING, PONG, TEXT, close_frame, frame
from tests.helpers.wires import opcode, tap_client
from trio_agentmail import CaughtUp, Disconnected, MessageReceivedEvent, ReconnectPolicy, Subscribed, UnknownEvent
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._faults.table import CHAOS, GARBAGE
from trio_agentmail.testing._wire.slow_stream import SlowStream

INBOX = "agent@agentmail.to"


async def test_a_corrupt_push_is_no_json_and_the_next_one_is_in_order(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.corrupt_pushes()
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()
        await fake.deliver(inbox_id=INBOX)
        event = await fake.deliver(inbox_id=INBOX)
        corrupt = await events.receive()
        assert isinstance(corrupt, UnknownEvent)
        assert "not JSON" in corrupt.reason
        assert await events.receive() == event
    assert "fault corrupt_pushes()" in fake.explain()


async def test_garbage_on_the_wire_costs_the_connection_but_not_what_came_before(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()
        event = await fake.deliver(inbox_id=INBOX)
        await fake.faults.send_bytes(GARBAGE)
        assert await events.receive() == event
        assert isinstance(await events.receive(), Disconnected)
        assert isinstance(await events.receive(), Subscribed)


async def test_frames_that_are_sent_as_bytes_come_in_order_and_upset_nothing(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    pongs: list[bytes] = []

    async def note(data: bytes) -> None:
        if opcode(data) == PONG:
            pongs.append(data)

    tap_client(fake, after=note)
    async with open_agentmail_session(backend=fake) as session:
        events = session.events
        assert isinstance(await events.receive(), Subscribed)
        first = await fake.deliver(inbox_id=INBOX)
        await fake.faults.send_bytes(frame(PING))
        await fake.faults.send_bytes(frame(TEXT, b"no", fin=False))
        rest = frame(0, b" JSON")
        await fake.faults.send_bytes(frame(PING, b"?") + rest[:1])
        await trio.sleep(10)
        await fake.faults.send_bytes(rest[1:])
        second = await fake.deliver(inbox_id=INBOX)
        assert await events.receive() == first
        text = await events.receive()
        assert isinstance(text, UnknownEvent)
        assert text.raw == "no JSON"
        assert await events.receive() == second
        assert [len(pong) for pong in pongs] == [6, 7]
        await trio.sleep(3600)
        third = await fake.deliver(inbox_id=INBOX)
        assert await events.receive() == third
        assert session.statistics().connections == 1
    assert fake.record.close_codes == [1000]


async def test_a_close_frame_that_is_sent_as_bytes_is_answered(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        await fake.faults.send_bytes(close_frame(4000))
        lost = await events.receive()
        assert isinstance(lost, Disconnected)
        assert lost.code == 4000
        assert isinstance(await events.receive(), Subscribed)
    assert fake.record.close_codes == [4000, 1000]


async def test_bytes_are_not_sent_on_silent_connections_or_before_the_handshake(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()
    async with open_agentmail_stream(backend=fake) as events, trio.open_nursery() as nursery:
        await events.receive()
        fake.faults.hang_handshakes()
        nursery.start_soon(_open, fake)
        fake.faults.silence_connections()
        await fake.wait_for(lambda: len(fake.record.handshakes) == 3)
        await fake.faults.send_bytes(GARBAGE)
        await fake.drop_connections()
        nursery.cancel_scope.cancel()
        assert isinstance(await events.receive(), Disconnected)


async def _open(fake: FakeAgentMail) -> None:
    async with open_agentmail_stream(backend=fake):
        pass


async def test_on_a_slow_network_bytes_trickle_which_counts_as_a_sign_of_life(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()
        began = trio.current_time()
        fake.faults.slow_down(100)
        event = await fake.deliver(inbox_id=INBOX, text="x" * 10_000)  # which is new, and so comes twice
        assert await events.receive() == event
        assert trio.current_time() - began == pytest.approx(200, rel=0.1)
        fake.faults.slow_down(None)
        began = trio.current_time()
        await fake.deliver(inbox_id=INBOX)
        await events.receive()
        assert trio.current_time() == began


async def test_on_a_slow_network_a_ping_is_answered_after_what_was_sent_before(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, ping_interval=1) as events:
        await events.receive()
        await fake.deliver(inbox_id=INBOX)
        fake.faults.slow_down(1)
        await trio.sleep(10)
        fake.faults.slow_down(None)
        await trio.sleep(60)
        assert isinstance(await events.receive(), MessageReceivedEvent)
    assert len(fake.record.handshakes) == 1


async def test_in_an_outage_nothing_answers_and_mail_is_kept(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with trio_agentmail.open_agentmail_stream(backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        await trio.sleep(60)  # what comes in the moment of the start is no news
        async with fake.faults.outage():
            await fake.deliver(inbox_id=INBOX, subject="meanwhile")
            await trio.sleep(3600)
            assert fake.connected == 0
            async with httpx2.AsyncClient(transport=fake.http_transport()) as client:
                with pytest.raises(httpx2.ReadError):
                    await client.get("https://x/v0/inboxes")
        assert isinstance(await events.receive(), Disconnected)
        # Requests are answered as soon as WebSockets can be opened: which comes first is a matter of the jitter.
        came = [await events.receive() for _ in range(2)]
        [mail] = [event for event in came if isinstance(event, MessageReceivedEvent)]
        assert (mail.message.subject, mail.origin) == ("meanwhile", "recovered")
        assert [type(event) for event in came if event is not mail] == [Subscribed]
        assert isinstance(await events.receive(), CaughtUp)


async def test_a_connection_that_is_being_made_when_an_outage_begins_comes_to_nothing(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_connections(8)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        opened = await nursery.start(_open_and_say_so, fake)
        await trio.sleep(5)
        async with fake.faults.outage():
            await trio.sleep(10)
            assert fake.record.attempts > 1  # it was tried again
            assert not fake.record.handshakes
        await opened.wait()
        assert trio.current_time() - began > 15
        nursery.cancel_scope.cancel()


async def _open_and_say_so(fake: FakeAgentMail, *, task_status: trio.TaskStatus[trio.Event]) -> None:
    opened = trio.Event()
    task_status.started(opened)
    async with open_agentmail_stream(backend=fake, enter_timeout=600):
        opened.set()
        await trio.sleep_forever()


async def chaos_for(hours: float, seed: int) -> list[tuple[float, str]]:
    fake = FakeAgentMail()
    async with trio_agentmail.open_agentmail_stream(backend=fake):
        async with fake.chaos(seed) as happened:
            await trio.sleep(hours * 3600)
    return happened


async def test_chaos_is_the_same_for_the_same_seed_and_has_every_fault(autojump_clock: MockClock) -> None:
    happened = await chaos_for(3, seed=7)
    assert await chaos_for(3, seed=7) == happened
    assert (await chaos_for(1, seed=8))[0] != happened[0]
    assert {fault for _, fault in happened} == CHAOS.keys()
    assert len(happened) == pytest.approx(180, rel=0.2)


async def test_chaos_has_only_the_faults_that_it_is_asked_for(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with fake.chaos(1, every=1, faults={"drop_connections", "swallow_pushes"}) as happened:
        await trio.sleep(60)
    assert {fault for _, fault in happened} == {"drop_connections", "swallow_pushes"}
    for faults in ({"drop_connections", "flood"}, set[str]()):
        with pytest.raises(ValueError, match="faults are some of drop_connections, close_connections, "):
            async with fake.chaos(1, faults=faults):
                pass


@pytest.mark.parametrize("seed", range(3))
async def test_through_chaos_every_mail_comes_once(seed: int, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    came: list[str] = []
    async with trio_agentmail.open_agentmail_stream(backend=fake) as events, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def consume() -> None:
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    came.append(event.message.message_id)

        async with fake.chaos(seed):
            sent = []
            for _ in range(60):
                await trio.sleep(60)
                sent.append((await fake.deliver(inbox_id=INBOX)).message.message_id)
        await trio.sleep(700)  # two sweeps
        nursery.cancel_scope.cancel()
    assert sorted(came) == sorted(sent), fake.explain()


async def test_on_a_slow_network_senders_take_turns(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    slow = SlowStream(ours, lambda: 10)
    await slow.wait_send_all_might_not_block()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.send_all, b"first" * 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(slow.send_all, b"second")
    assert await theirs.receive_some() == b"firstfirstsecond"
    assert trio.current_time() == pytest.approx(1.6)


async def test_behind_ports_too_a_connection_is_late_or_is_one_to_something_else() -> None:
    fake = FakeAgentMail()
    fake.faults.fail_connections(OSError("gone"))
    fake.faults.answer_connections(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    fake.faults.delay_connections(0.01)
    with trio.fail_after(20):
        async with fake.serve() as environment:
            policy = ReconnectPolicy(initial_delay=0, max_delay=0)
            async with open_agentmail_stream(environment=environment, api_key="am_key", reconnect=policy) as events:
                assert isinstance(await events.receive(), Subscribed)
    assert (fake.record.attempts, len(fake.record.handshakes)) == (3, 1)
