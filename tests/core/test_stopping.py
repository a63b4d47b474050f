"""`session.stop()`: nothing more is taken from the network, and what has arrived is handled."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import FrameProtocol

from tests.examples import stopping_agent
from tests.helpers.streams import open_agentmail_session, subjects
from trio_agentmail import (
    AgentMailSession,
    Disconnected,
    Event,
    MessageReceivedEvent,
    MessageSentEvent,
    ReconnectPolicy,
    Recovery,
    SQLiteJournal,
    Subscribe,
    Subscribed,
)
from trio_agentmail.testing import FakeAgentMail, encode_event, make_event

INBOX = "agent@agentmail.to"
ONE = Subscribe(inbox_ids=[INBOX])


async def deliver(fake: FakeAgentMail, *names: str) -> None:
    for name in names:
        await fake.deliver(inbox_id=INBOX, subject=name)


def in_frames(events: Sequence[Event]) -> bytes:
    frames = FrameProtocol(client=False, extensions=[])
    return b"".join(bytes(frames.send_data(encode_event(event))) for event in events)


async def deliver_at_once(fake: FakeAgentMail, *names: str) -> None:
    """Deliver mails so that the client gets all of them in one read."""
    await fake.faults.send_bytes(
        in_frames([make_event(MessageReceivedEvent, inbox_id=INBOX, subject=name) for name in names])
    )
    await wait_all_tasks_blocked()


async def rest_of(session: AgentMailSession) -> list[Event]:
    """Return what is still delivered, up to the end of the channel."""
    with trio.fail_after(3600):
        return [event async for event in session.events]


def names(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


# Without a journal


@pytest.mark.parametrize("buffer_size", [1, 3, 64])
async def test_all_that_had_been_read_still_comes_and_nothing_else(buffer_size: int, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=buffer_size) as session:
        await deliver_at_once(fake, *names(1, 10))
        await session.stop()
        assert fake.record.close_codes == [1000]
        await wait_all_tasks_blocked()
        assert session.state == ("closed" if buffer_size == 64 else "stopping")
        await deliver(fake, *names(11, 20))
        assert subjects(await rest_of(session)) == names(1, 10)
        await wait_all_tasks_blocked()
        assert session.state == "closed"
        assert fake.connected == 0
        assert session.statistics().buffered == 0
    assert fake.record.close_codes == [1000]
    assert len(fake.record.handshakes) == 1


async def test_the_only_consumer_may_stop_and_goes_on_to_the_end(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    seen = []
    async with open_agentmail_session(backend=fake, buffer_size=1) as session:
        await deliver_at_once(fake, *names(1, 5))
        async for event in session.events:
            seen.append(event)
            if subjects(seen)[-1:] == ["2"]:
                await session.stop()
    assert subjects(seen) == names(1, 5)


async def test_mail_that_comes_while_the_server_answers_the_close_is_not_taken(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, close_timeout=7) as session, trio.open_nursery() as nursery:
        await deliver(fake, "before")
        await wait_all_tasks_blocked()
        fake.faults.silence_connections()
        began = trio.current_time()
        nursery.start_soon(session.stop)
        await wait_all_tasks_blocked()
        await deliver(fake, "after")
        await session.stop()
        assert trio.current_time() - began == 7
        assert subjects(await rest_of(session)) == ["before"]


async def test_a_second_call_waits_for_the_same_and_after_the_end_nothing_happens(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(session.stop)
        await session.stop()
        await rest_of(session)
        await session.stop()
    await session.stop()
    assert fake.record.close_codes == [1000]


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize("state", ["waiting", "connecting"])
async def test_during_an_outage_no_attempt_is_made_any_more(state: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=100, max_delay=100) if state == "waiting" else ReconnectPolicy()
    async with open_agentmail_session(backend=fake, reconnect=policy, open_timeout=10_000) as session:
        await deliver(fake, "before")
        await wait_all_tasks_blocked()
        fake.faults.hang_handshakes()
        await fake.drop_connections()
        await trio.sleep(1)
        assert session.state == state
        began = trio.current_time()
        await session.stop()
        events = await rest_of(session)
        assert trio.current_time() == began
        assert subjects(events) == ["before"]
        assert [type(event) for event in events if not isinstance(event, MessageReceivedEvent)] == [
            Subscribed,
            Disconnected,
        ]
        await wait_all_tasks_blocked()
        assert session.state == "closed"


async def test_a_subscription_that_is_being_replaced_is_not(autojump_clock: MockClock) -> None:
    async def replace() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(ONE)
        ended.set()

    fake = FakeAgentMail()
    ended = trio.Event()
    async with open_agentmail_session(backend=fake) as session, trio.open_nursery() as nursery:
        await deliver(fake, "before")
        fake.faults.withhold_confirmations()
        nursery.start_soon(replace)
        await wait_all_tasks_blocked()
        await session.stop()
        await ended.wait()
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(ONE)
        assert subjects(await rest_of(session)) == ["before"]


async def test_what_both_connections_had_brought_comes_when_one_takes_over_from_the_other(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=1) as session:
        await deliver_at_once(fake, *names(1, 5))
        fake.faults.push_before_confirming("not JSON")
        await session.subscribe(ONE)
        await session.stop()
        events = await rest_of(session)
        assert subjects(events) == names(1, 5)
        assert [type(event).__name__ for event in events][-2:] == ["Subscribed", "UnknownEvent"]
        assert fake.record.close_codes == [1000, 1000]


async def test_mail_that_was_found_and_waits_for_room_still_comes_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(ONE, backend=fake, buffer_size=1, recovery=Recovery()) as session:
        await trio.sleep(10)
        async with fake.faults.outage():
            await deliver(fake, *names(1, 3))
            await trio.sleep(5)
        await trio.sleep(60)
        await deliver(fake, "live")
        await trio.sleep(1)
        requests = len(fake.record.requests)
        await session.stop()
        came = subjects(await rest_of(session))
        assert "1" in came
        assert "live" in came
        assert len(set(came)) == len(came)
        await trio.sleep(3600)
        assert len(fake.record.requests) == requests


async def test_a_mail_whose_body_is_being_fetched_comes_without_it(autojump_clock: MockClock) -> None:
    async def never(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    fake = FakeAgentMail()
    async with open_agentmail_session(ONE, backend=fake, recovery=Recovery(fetch_bodies=True)) as session:
        await trio.sleep(10)
        fake.faults.answer_requests(never, times=None)
        mails = [make_event(MessageReceivedEvent, inbox_id=INBOX, subject=name, text=None) for name in names(1, 2)]
        await fake.faults.send_bytes(in_frames(mails))
        await trio.sleep(1)
        began = trio.current_time()
        await session.stop()
        assert subjects(await rest_of(session)) == ["1", "2"]
        assert trio.current_time() == began


async def test_an_exception_and_a_cancellation_leave_the_block_while_it_is_being_stopped(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(KeyError):
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            await deliver(fake, *names(1, 5))
            await wait_all_tasks_blocked()
            await session.stop()
            raise KeyError
    with trio.move_on_after(1) as scope:
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            fake.faults.silence_connections()
            await session.stop()
    assert scope.cancelled_caught
    assert fake.connected == 0


async def test_consumers_that_have_gone_are_not_waited_for(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=1) as session:
        await deliver(fake, *names(1, 5))
        await wait_all_tasks_blocked()
        session.events.close()
        await session.stop()
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert session.state == "closed"


async def test_a_stream_stopped_at_any_step_of_a_loss_makes_no_further_attempt(
    autojump_clock: MockClock,
) -> None:
    for steps in range(30):
        fake = FakeAgentMail()
        async with open_agentmail_session(backend=fake) as session:
            await deliver_at_once(fake, "1")
            fake.faults.fail_connections(OSError("the network is down"), times=None)
            await fake.drop_connections()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            stopped = trio.current_time()
            await session.stop()
            assert subjects(await rest_of(session)) == ["1"]
            assert trio.current_time() == stopped
            assert session.statistics().next_attempt_in is None


# With a journal


async def test_with_a_journal_what_has_not_reached_the_channel_comes_at_the_next_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db", retry_delay=1)
    async with open_agentmail_session(backend=fake, buffer_size=3, journal=journal) as session:
        await session.events.receive()
        await deliver(fake, *names(1, 10))
        await trio.sleep(1)
        first = await session.events.receive()
        async with journal.processing(first):
            raise ValueError("to be tried again")
        await session.stop()
        events = await rest_of(session)
        assert subjects(events) == names(2, 4)
        await trio.sleep(100)
        for event in events:
            await journal.ack(event)
    async with open_agentmail_session(backend=fake, journal=journal) as session:
        await trio.sleep(1)
        await session.stop()
        events = await rest_of(session)
    assert subjects(events) == ["1", *names(5, 10)]
    assert [event.attempt for event in events if isinstance(event, MessageReceivedEvent)] == [2, 1, 1, 1, 1, 1, 1]


async def test_what_the_journal_had_no_room_for_is_written_down_as_handlers_make_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db", max_pending=2)
    async with open_agentmail_session(backend=fake, journal=journal) as session:
        await session.events.receive()
        sent = [make_event(MessageSentEvent, inbox_id=INBOX, event_id=f"evt_{number}") for number in range(4)]
        await fake.faults.send_bytes(in_frames(sent))
        await trio.sleep(1)
        await session.stop()
        taken = await rest_of(session)
        assert len(taken) == 2
        for event in taken:
            await journal.ack(event)
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert session.state == "closed"
    async with open_agentmail_session(backend=fake, journal=journal) as session:
        await trio.sleep(1)
        await session.stop()
        assert [event.event_id for event in await rest_of(session) if isinstance(event, MessageSentEvent)] == [
            "evt_2",
            "evt_3",
        ]


# As it is used


@pytest.mark.parametrize("with_journal", [False, True], ids=["no journal", "journal"])
async def test_sigterm_with_workers_that_are_given_a_time_limit(
    with_journal: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Workers finish what they have begun, and what is too slow is cancelled."""
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db")
    handled = []

    async def stop_on_sigterm(session: AgentMailSession, workers: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            ready.set()
            async for _ in signals:
                workers.deadline = trio.current_time() + 30
                await session.stop()
                return

    async def worker(session: AgentMailSession) -> None:
        async with session.events.clone() as events:
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    if with_journal:
                        async with journal.processing(event):
                            await handle(event)
                    else:
                        await handle(event)

    async def handle(event: MessageReceivedEvent) -> None:
        await trio.sleep(1000 if event.message.subject == "slow" else 2)
        handled.append(event.message.subject)

    ready = trio.Event()
    async with open_agentmail_session(backend=fake, journal=journal if with_journal else None) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_sigterm, session, nursery.cancel_scope)
            for _ in range(3):
                nursery.start_soon(worker, session)
            await ready.wait()
            await deliver(fake, "slow", *names(1, 6))
            await trio.sleep(1)
            os.kill(os.getpid(), signal.SIGTERM)
            began = trio.current_time()
        assert trio.current_time() - began == 30
    assert sorted(filter(None, handled)) == names(1, 6)
    if with_journal:
        async with open_agentmail_session(backend=fake, journal=journal) as session:
            await trio.sleep(1)
            await session.stop()
            assert subjects(await rest_of(session)) == ["slow"]


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
async def test_the_example_of_the_docs(
    signal_: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: MockClock,
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeAgentMail()
    with fake.installed():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopping_agent.main)
            await fake.wait_subscribed()
            await deliver(fake, "Hello")
            await trio.sleep(1)
            os.kill(os.getpid(), signal_)
    assert fake.record.close_codes == [1000]
    assert capsys.readouterr().out.count("MessageReceivedEvent") == 1


async def test_it_says_so_when_it_is_called_from_another_run_or_thread(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        for call in (session.stop, partial(session.subscribe, ONE)):
            with pytest.raises(RuntimeError, match=r"outside of the trio\.run\(\).*trio\.from_thread\.run"):
                await trio.to_thread.run_sync(trio.run, call)
        with pytest.raises(RuntimeError, match=r"statistics\(\) was called outside"):
            await trio.to_thread.run_sync(session.statistics)
        assert session.state == "subscribed"
