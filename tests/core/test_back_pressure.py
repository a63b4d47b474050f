"""Back-pressure: a slow consumer slows down reading and does not fill the memory. No consumer can deadlock itself."""

import socket
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, wait_all_tasks_blocked

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream, subjects
from tests.helpers.websocket_server import TEXT
from tests.helpers.wires import Pair, opcode, tap_server
from trio_agentmail import (
    Disconnected,
    Event,
    MessageReceivedEvent,
    SQLiteJournal,
    Subscribe,
    Subscribed,
)
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._agentmail.mail.events import received_event

INBOX = "agent@agentmail.to"


def numbers(n: int) -> list[str]:
    return [str(number) for number in range(n)]


async def deliver(fake: FakeAgentMail, n: int, first: int = 0) -> None:
    for number in range(first, n):
        await fake.deliver(inbox_id=INBOX, subject=str(number))


def mail(number: int, text: str = "Hello!") -> MessageReceivedEvent:
    fields: dict[str, Any] = dict.fromkeys(("to", "html", "message_id", "thread_id", "event_id", "timestamp"))
    return received_event(
        inbox_id=INBOX,
        from_="jane@example.com",
        subject=str(number),
        text=text,
        event_type="message.received",
        now=datetime.now(UTC),
        **fields,
    )


# No deadlock


async def test_the_only_consumer_may_subscribe_with_a_full_channel_while_the_server_pushes(
    autojump_clock: MockClock,
) -> None:
    pushed = 0

    async def push() -> None:
        nonlocal pushed
        while True:
            await fake.deliver(inbox_id=INBOX, subject=str(pushed))
            pushed += 1
            await trio.sleep(0.001)

    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=2) as session, trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await trio.sleep(1)
        for number in range(3):
            new = Subscribe(inbox_ids=[INBOX, f"{number}@agentmail.to"])
            with trio.fail_after(1):
                await session.subscribe(new)
            assert fake.record.subscriptions[-1] == new
        nursery.cancel_scope.cancel()
    assert pushed > 900
    assert session.statistics().connections == 4


async def test_events_pushed_while_the_only_consumer_subscribes_are_delivered_in_order(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    new = Subscribe(inbox_ids=[INBOX])
    async with open_agentmail_session(backend=fake, buffer_size=2) as session:
        await deliver(fake, 10)
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await session.subscribe(new)
        await deliver(fake, 20, first=10)
        received = []
        with trio.move_on_after(60):
            async for event in session.events:
                received.append(event)
        assert subjects(received) == numbers(20)
        confirmed = [event for event in received if isinstance(event, Subscribed)]
        assert [event.inbox_ids for event in confirmed] == [None, (INBOX,)]
        assert len(received) == 22
        # What the first connection had received comes before the second's confirmation.
        assert received.index(confirmed[1]) >= 11
        assert fake.connected == 1


@pytest.mark.parametrize("n", [3, 100, 1000])
async def test_more_events_than_the_channel_holds_may_come_before_the_first_confirmation(
    n: int, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(mail(number) for number in range(n)))
    with trio.fail_after(1):
        async with open_agentmail_session(backend=fake, buffer_size=2) as session:
            assert session.statistics().connections == 1
            received = [await session.events.receive() for _ in range(n + 1)]
    assert isinstance(received[0], Subscribed)
    assert subjects(received) == numbers(n)
    assert len(fake.record.handshakes) == 1


async def test_an_attempt_with_too_many_events_before_the_confirmation_is_made_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(mail(number) for number in range(1001)))
    async with open_agentmail_session(backend=fake) as session:
        assert len(fake.record.handshakes) == 2
        assert "1001 events" in str(session.statistics().last_error)


async def test_an_attempt_with_too_much_text_before_the_confirmation_is_made_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(mail(number, "x" * 2**20) for number in range(16)))
    async with open_agentmail_stream(backend=fake):
        assert len(fake.record.handshakes) == 2


async def test_a_loss_behind_a_full_channel_does_not_hold_up_reconnecting(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        await deliver(fake, 1)
        await wait_all_tasks_blocked()
        for _ in range(5):  # the channel is full, and nobody takes anything
            await fake.drop_connections()
            with trio.fail_after(60):
                await fake.wait_subscribed()
        await deliver(fake, 5, first=1)
        received = []
        with trio.move_on_after(60):
            async for event in events:
                received.append(event)
    # One Disconnected and one Subscribed tell of all five losses.
    assert [type(event) for event in received[:4]] == [Subscribed, MessageReceivedEvent, Disconnected, Subscribed]
    assert subjects(received) == numbers(5)
    assert len(received) == 8


# Reading stops and goes on


@pytest.mark.parametrize("with_journal", [False, True], ids=["no journal", "journal"])
async def test_what_waits_in_the_channel_is_bounded_by_its_text(
    with_journal: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Twice `max_message_size`, of events whose number is far from `buffer_size`."""
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db") if with_journal else None
    async with open_agentmail_session(backend=fake, max_message_size=30_000, journal=journal) as session:
        assert isinstance(await session.events.receive(), Subscribed)
        for number in range(20):
            await fake.deliver(inbox_id=INBOX, subject=str(number), text="x" * 6_000)
        await trio.sleep(1000)
        fit = session.events.statistics().current_buffer_used
        assert fit < 20
        events: list[Event] = []
        while len(events) < 20:
            events.append(await session.events.receive())
            await trio.sleep(1)
            waiting = session.events.statistics().current_buffer_used
            assert waiting == min(fit, 20 - len(events))
        assert isinstance(events[0], MessageReceivedEvent)
        assert fit == 60_000 // len(events[0].raw)
        assert subjects(events) == numbers(20)
        assert session.statistics().buffered == 0


async def test_reading_stops_when_buffer_size_events_wait(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=4) as session:
        assert isinstance(await session.events.receive(), Subscribed)
        await deliver(fake, 100)
        await wait_all_tasks_blocked()
        statistics = session.statistics()
        assert (statistics.received, statistics.delivered, statistics.buffered) == (5, 4, 5)
        await trio.sleep(1000)
        assert session.statistics() == statistics


async def test_events_count_as_delivered_when_they_are_handed_over(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=4) as session:
        assert isinstance(await session.events.receive(), Subscribed)
        await deliver(fake, 10)
        await wait_all_tasks_blocked()
        for taken in range(1, 11):
            await session.events.receive()
            await wait_all_tasks_blocked()
            statistics = session.statistics()
            assert statistics.delivered == min(taken + 4, 10)
            assert statistics.received == min(taken + 5, 10)
            assert statistics.buffered == min(5, 10 - taken)


async def test_reading_resumes_where_it_stopped(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=3) as events:
        await deliver(fake, 200)
        await trio.sleep(100)
        received = [await events.receive() for _ in range(50)]
        await trio.sleep(100)
        await deliver(fake, 300, first=200)
        received += [await events.receive() for _ in range(251)]
    assert subjects(received) == numbers(300)


async def test_a_consumer_that_is_slow_with_each_event_gets_all_of_them(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    received = []
    async with open_agentmail_session(backend=fake, buffer_size=3) as session:
        await deliver(fake, 200)
        async for event in session.events:
            received.append(event)
            await trio.sleep(40)  # longer than ping_interval and ping_timeout
            if len(received) == 201:
                break
        assert session.statistics().connections == 1
    assert subjects(received) == numbers(200)
    assert len(received) == 201


@pytest.mark.parametrize("hours", [1, 24])
async def test_no_deadline_of_ours_runs_while_the_consumer_is_stalled(hours: int, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake, buffer_size=3) as session:
        await deliver(fake, 10)
        await trio.sleep(hours * 3600)
        assert session.state == "subscribed"
        received = [await session.events.receive() for _ in range(11)]
        await trio.sleep(3600)
        await deliver(fake, 20, first=10)
        received += [await session.events.receive() for _ in range(10)]
        assert session.statistics().connections == 1
    assert subjects(received) == numbers(20)


async def test_a_server_that_falls_silent_is_noticed_only_when_reading_resumes(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=3, ping_interval=20, ping_timeout=10) as events:
        await deliver(fake, 10)
        await wait_all_tasks_blocked()
        fake.faults.silence_connections()
        await trio.sleep(3600)
        received = [await events.receive() for _ in range(11)]
        resumed = trio.current_time()
        assert isinstance(await events.receive(), Disconnected)
        assert trio.current_time() == pytest.approx(resumed + 30)
    assert subjects(received) == numbers(10)


async def test_what_was_received_before_the_server_cut_a_stalled_consumer_is_delivered(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, buffer_size=3) as events:
        await deliver(fake, 50)
        await wait_all_tasks_blocked()
        await fake.drop_connections(1001)
        await trio.sleep(3600)
        received = []
        with trio.move_on_after(60):
            async for event in events:
                received.append(event)
    kinds = [type(event) for event in received]
    # How much that is depends on the network: here, what fitted into one read.
    delivered = len(subjects(received))
    assert subjects(received) == numbers(delivered)
    assert delivered >= 3
    assert kinds == [Subscribed] + delivered * [MessageReceivedEvent] + [Disconnected, Subscribed]


async def test_a_consumer_that_is_cancelled_while_it_receives_loses_nothing(autojump_clock: MockClock) -> None:
    async def push() -> None:
        for number in range(200):
            await fake.deliver(inbox_id=INBOX, subject=str(number))
            await trio.sleep(0.1)

    fake = FakeAgentMail()
    received: list[Event] = []
    cancelled = 0
    async with open_agentmail_stream(backend=fake, buffer_size=1) as events, trio.open_nursery() as nursery:
        nursery.start_soon(push)
        while len(received) < 201:
            with trio.move_on_after(0.05) as scope:
                received.append(await events.receive())
            cancelled += scope.cancelled_caught
    assert subjects(received) == numbers(200)
    assert cancelled > 100


async def test_several_consumers_share_the_events(autojump_clock: MockClock) -> None:
    async def work(events: trio.MemoryReceiveChannel[Event], seconds: float) -> None:
        async with events:
            async for event in events:
                received.append(event)
                await trio.sleep(seconds)

    fake = FakeAgentMail()
    received: list[Event] = []
    async with open_agentmail_stream(backend=fake, buffer_size=2) as events:
        async with trio.open_nursery() as nursery:
            for seconds in (0.1, 1, 10):
                nursery.start_soon(work, events.clone(), seconds)
            await deliver(fake, 200)
            await trio.sleep(1000)
            nursery.cancel_scope.cancel()
    # Each once; in order, but whoever received first need not have been the first to append.
    assert sorted(map(str, subjects(received))) == sorted(numbers(200))


# The memory


def push_as_taken(fake: FakeAgentMail, mails: Iterable[MessageReceivedEvent], pair: Pair) -> list[int]:
    """Push each mail when the stream below has taken the one before it, or the confirmation.

    So nothing waits in the fake.

    Returns:
        The number of mails that have been taken, as the only item.
    """
    taken = [-1]
    rest = iter(mails)

    async def push_next(data: bytes) -> None:
        if opcode(data) == TEXT:
            taken[0] += 1
            if (event := next(rest, None)) is not None:
                await fake.emit(event)

    tap_server(fake, after=push_next, pair=pair)
    return taken


def tcp_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    client_end, server_end = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
    return client_end, server_end


async def test_with_a_stalled_consumer_the_server_cannot_send_more_than_the_buffer_holds(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    sent = push_as_taken(fake, (mail(number) for number in range(1000)), lockstep_stream_pair)
    async with open_agentmail_stream(backend=fake, buffer_size=8, close_timeout=0) as events:
        await trio.sleep(1000)
        # One more waits for room in the channel, one is being read, and one for being read.
        assert 8 <= sent[0] <= 8 + 3
        received = [await events.receive() for _ in range(101)]
        await trio.sleep(1000)
        assert 100 + 8 <= sent[0] <= 100 + 1 + 8 + 3
    assert subjects(received) == numbers(100)


async def test_with_a_stalled_consumer_the_memory_stays_bounded() -> None:
    fake = FakeAgentMail()
    # All of the text is new, and so comes twice: 100,000 bytes.
    sent = push_as_taken(fake, (mail(number, "x" * 50_000) for number in range(1000)), tcp_pair)
    tracemalloc.start()
    try:
        async with open_agentmail_session(backend=fake, buffer_size=8, close_timeout=0.1) as session:
            before = -1
            while sent[0] != before:
                before = sent[0]
                await trio.sleep(0.2)
            _, peak = tracemalloc.get_traced_memory()
            # The rest waits in the sockets' buffers, which the system bounds.
            assert session.statistics().received == 8  # the Subscribed takes the place of one
            assert 8 <= sent[0] < 1000
    finally:
        tracemalloc.stop()
    # The decoded events that wait are two or three times their size; one or two more are on their way.
    assert peak < (9 + 3) * 4 * 100_000
