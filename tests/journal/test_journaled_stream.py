"""A stream with a journal: pending events are redelivered, and mail of a downtime is recovered."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream as open_stream_without_recovery
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    AuthenticationError,
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Event,
    JournalError,
    JournalInUseError,
    JournalMismatchError,
    MessageReceivedEvent,
    ReconnectPolicy,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    UnknownEvent,
    open_agentmail_session,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

A = "a@agentmail.to"
ONE = Subscribe(inbox_ids=[A])
QUICK = ReconnectPolicy(initial_delay=0.1, max_delay=1.0)


@pytest.fixture
def fake() -> FakeAgentMail:
    return FakeAgentMail()


def word(event: Event) -> str:
    """An event in a word. A mail is its subject, with + before it if it was recovered, and =n if it is attempt n."""
    match event:
        case MessageReceivedEvent(message=message, origin=origin, attempt=attempt):
            mark = {"live": "", "recovered": "+", "redelivered": f"={attempt} "}[origin]
            return f"{mark}{message.subject}"
    return {Subscribed: "S", Disconnected: "D", CaughtUp: "C", ErrorEvent: "E"}[type(event)]


@asynccontextmanager
async def session(
    fake: FakeAgentMail, path: Path, subscribe: Subscribe = ONE, **more: Any
) -> AsyncIterator[tuple[AgentMailSession, SQLiteJournal]]:
    journal = SQLiteJournal(path)
    async with open_agentmail_session(
        subscribe, backend=fake, journal=journal, reconnect=QUICK, ping_interval=None, **more
    ) as opened:
        yield opened, journal


async def take(events: trio.MemoryReceiveChannel[Event], seconds: float = 5) -> list[Event]:
    """All events and notices that come within `seconds`."""
    taken = []
    with trio.move_on_after(seconds):
        async for event in events:
            taken.append(event)
    return taken


def story(events: list[Event]) -> str:
    return ", ".join(map(word, events))


async def test_unacknowledged_events_come_first_then_mail_that_came_during_the_downtime(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (first, journal):
        for subject in ("handled", "not handled", "nor this"):
            await fake.deliver(inbox_id=A, subject=subject)
        events = await take(first.events)
        await journal.ack(events[1])
        assert story(events) == "S, handled, not handled, nor this"
    await trio.sleep(80_000)
    await fake.deliver(inbox_id=A, subject="while it was down")
    await trio.sleep(1000)
    async with session(fake, path) as (second, journal):
        events = await take(second.events)
        assert story(events) == "=1 not handled, =1 nor this, S, +while it was down, C"
        for event in events:
            await journal.ack(event)
    async with session(fake, path) as (third, journal):
        assert story(await take(third.events, 1000)) == "S, C"


async def test_the_first_start_recovers_no_older_mail(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    await fake.deliver(inbox_id=A, subject="old")
    await trio.sleep(10)
    async with session(fake, path) as (opened, _):
        assert story(await take(opened.events, 1000)) == "S"


async def test_held_mail_is_remembered_from_one_run_to_the_next(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path, Subscribe(inbox_ids=[A], event_types=["message.received"])) as (opened, _):
        held = await fake.deliver(inbox_id=A, subject="held", held=True)
        await take(opened.events, 1000)
    for _ in range(12):
        await trio.sleep(80_000)  # longer than a sweep reaches back
    await fake.mail.release(A, held.message.message_id)
    async with session(fake, path, Subscribe(inbox_ids=[A], event_types=["message.received"])) as (opened, _):
        assert story(await take(opened.events)) == "S, +held, C"


async def test_reading_does_not_wait_for_the_consumer(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path, buffer_size=1) as (opened, _):
        for number in range(300):
            await fake.deliver(inbox_id=A, subject=f"{number}")
        await trio.sleep(1)
        statistics = opened.statistics()
        assert (statistics.received, statistics.buffered) == (300, 301)
        await fake.drop_connections()
        await trio.sleep(5)
        await fake.deliver(inbox_id=A, subject="300")
        events = await take(opened.events, 10)
        assert story(events) == ", ".join(["S", *map(str, range(300)), "D", "S", "C", "300"])
        assert opened.statistics().delivered == 301
        assert opened.statistics().duplicates == 0


async def test_notices_that_have_not_been_delivered_are_merged(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path, buffer_size=1) as (opened, _):
        await fake.deliver(inbox_id=A, subject="1")
        for _ in range(20):
            await fake.drop_connections()
            await trio.sleep(5)
        assert story(await take(opened.events)) == "S, 1, D, S, C"


async def test_a_duplicate_is_delivered_once_across_runs(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (opened, journal):
        sent = await fake.deliver(inbox_id=A, subject="1")
        await fake.emit(sent)
        events = await take(opened.events)
        await journal.ack(events[1])
        assert opened.statistics().duplicates == 1
    async with session(fake, path) as (opened, journal):
        await fake.emit(sent)
        assert story(await take(opened.events)) == "S, C"
        assert opened.statistics().duplicates == 1


async def test_an_error_event_of_the_server_is_not_stored(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (opened, _):
        await fake.send_raw('{"type": "error", "name": "x", "message": "y"}')
        await fake.deliver(inbox_id=A, subject="1")
        assert story(await take(opened.events)) == "S, E, 1"
    async with session(fake, path) as (opened, _):
        assert story(await take(opened.events)) == "=1 1, S, C"


async def test_endless_error_events_of_a_server_meet_back_pressure(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._journaled_outbox.MAX_WAITING", 20)
    async with session(fake, path) as (opened, _):
        for _ in range(1000):
            await fake.send_raw('{"type": "error", "name": "x", "message": "y"}')
        await trio.sleep(10)
        assert opened.statistics().buffered < 100
        assert story(await take(opened.events)) == ", ".join(["S", *["E"] * 1000])


async def test_a_failed_event_is_redelivered(fake: FakeAgentMail, path: Path, autojump_clock: MockClock) -> None:
    async with session(fake, path) as (opened, journal):
        await fake.deliver(inbox_id=A, subject="difficult")
        words = []
        with trio.move_on_after(200):
            async for event in opened.events:
                words.append(word(event))
                async with journal.processing(event):
                    if isinstance(event, MessageReceivedEvent) and event.attempt < 3:
                        raise ValueError("not yet")
        assert words == ["S", "difficult", "=2 difficult", "=3 difficult"]


# Opening


async def test_a_second_stream_raises_journal_in_use_error(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (first, _):
        for journal in (SQLiteJournal(path), SQLiteJournal(path)):
            with pytest.raises(JournalInUseError):
                async with open_agentmail_stream(ONE, backend=fake, journal=journal):
                    pytest.fail("entered")
        await fake.deliver(inbox_id=A, subject="1")
        assert story(await take(first.events)) == "S, 1"


@pytest.mark.parametrize(
    "other",
    [
        {"subscribe": Subscribe(inbox_ids=["b@agentmail.to"])},
        {"environment": AgentMailEnvironment.EU_PROD},
    ],
    ids=["subscription", "environment"],
)
async def test_a_subscription_or_environment_other_than_the_journals_is_refused(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, other: dict[str, Any]
) -> None:
    async with session(fake, path):
        pass
    with pytest.raises(JournalMismatchError):
        async with session(fake, path, **other):
            pytest.fail("entered")


@pytest.mark.parametrize("recovery", [True, False])
async def test_a_journal_follows_the_subscription(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, recovery: bool
) -> None:
    more: dict[str, Any] = {} if recovery else {"recovery": None}
    other = Subscribe(inbox_ids=["b@agentmail.to"])
    async with session(fake, path, **more) as (opened, _):
        await opened.subscribe(other)
    async with session(fake, path, other, **more) as (opened, _):
        assert isinstance(await opened.events.receive(), Subscribed)
    with pytest.raises(JournalMismatchError):
        async with session(fake, path, **more):
            pytest.fail("entered")


@pytest.mark.parametrize("recovery", [True, False])
async def test_the_former_subscription_is_accepted_until_the_next_start_has_succeeded(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, recovery: bool
) -> None:
    # The process may die after the journal has stored the new subscription, and before the program knows.
    more: dict[str, Any] = {} if recovery else {"recovery": None}
    other, third = Subscribe(inbox_ids=["b@agentmail.to"]), Subscribe(inbox_ids=["c@agentmail.to"])
    async with session(fake, path, **more) as (opened, _):
        await opened.subscribe(other)
    with pytest.raises(JournalMismatchError):
        async with session(fake, path, third, **more):
            pytest.fail("entered")
    fake.faults.reject_handshakes(401)
    with pytest.raises(AuthenticationError):
        async with session(fake, path, other, **more):
            pytest.fail("entered")
    async with session(fake, path, **more) as (opened, _):
        assert isinstance(await opened.events.receive(), Subscribed)
    with pytest.raises(JournalMismatchError):
        async with session(fake, path, other, **more):
            pytest.fail("entered")


async def test_without_recovery_identities_are_forgotten_after_a_day(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path, recovery=None) as (opened, journal):
        assert isinstance(await opened.events.receive(), Subscribed)
        for _ in range(10):
            await fake.deliver(inbox_id="a@agentmail.to")
            await journal.ack(await opened.events.receive())
            await trio.sleep(86_400 / 4)
        assert opened.statistics().remembered < 7
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM identities").fetchone()[0] < 7


async def test_a_subscription_that_is_being_stored_when_the_block_is_left_is_not_in_force(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow_keep(journal: SQLiteJournal, *args: Any, **more: Any) -> None:
        if more.get("also") is not None:
            await trio.sleep(10)

    monkeypatch.setattr(SQLiteJournal, "keep", slow_keep)

    async def subscribe(opened: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await opened.subscribe(Subscribe(inbox_ids=["b@agentmail.to"]))

    async with trio.open_nursery() as nursery:
        async with session(fake, path) as (opened, _):
            nursery.start_soon(subscribe, opened)
            await trio.sleep(5)
    assert fake.connected == 0


@pytest.mark.parametrize("wrong", ["agent.db", Path("agent.db"), SQLiteJournal], ids=repr)
async def test_an_argument_that_is_not_a_journal_is_refused(fake: FakeAgentMail, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"SQLiteJournal\('agent.db'\)"):
        async with open_agentmail_stream(backend=fake, journal=wrong):
            pytest.fail("entered")


@pytest.mark.parametrize("wrong", [True, 300, {"overlap": 300}], ids=repr)
async def test_an_argument_that_is_not_a_recovery_is_refused(fake: FakeAgentMail, wrong: Any) -> None:
    with pytest.raises(TypeError, match="recovery takes a Recovery"):
        async with open_agentmail_stream(backend=fake, recovery=wrong):
            pytest.fail("entered")


# Leaving


async def test_after_the_block_the_journal_is_closed(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (opened, journal):
        await fake.deliver(inbox_id=A, subject="1")
        [_, event] = await take(opened.events)
    with pytest.raises(trio.ClosedResourceError):
        await journal.ack(event)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("leave", ["by its end", "by an exception", "cancelled"])
async def test_received_events_are_stored_however_the_block_is_left(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, leave: str
) -> None:
    class Mishap(Exception):
        pass

    with trio.CancelScope() as scope:
        try:
            async with session(fake, path) as (opened, _):
                await fake.deliver(inbox_id=A, subject="1")
                while opened.statistics().received < 1:
                    await trio.lowlevel.checkpoint()
                if leave == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
                if leave == "by an exception":
                    raise Mishap
        except Mishap:
            assert leave == "by an exception"
    async with open_stream_without_recovery(ONE, backend=fake, journal=SQLiteJournal(path)) as events:
        assert story(await take(events)) == "=1 1, S"


async def test_when_the_last_receiver_is_closed_the_stream_ends(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (opened, _):
        opened.events.close()
        await fake.deliver(inbox_id=A, subject="1")
        await trio.sleep(1)
        await fake.deliver(inbox_id=A, subject="2")
        await trio.sleep(1)
        assert opened.state == "closed"


async def test_when_the_last_receiver_is_closed_a_lost_connection_ends_the_stream(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    async with session(fake, path) as (opened, _):
        opened.events.close()
        await fake.drop_connections()
        await trio.sleep(1)
        assert opened.state == "closed"


def change(path: Path, statement: str) -> None:
    """Change the file while the journal has it open."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


@pytest.mark.parametrize("consumer", ["reads", "sleeps"])
async def test_a_journal_that_fails_ends_the_block_with_that_error_alone(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock, consumer: str
) -> None:
    with pytest.raises(JournalError) as caught:
        async with session(fake, path) as (opened, _):
            assert isinstance(await opened.events.receive(), Subscribed)
            change(path, "DROP TABLE events")
            for _ in range(3):
                await fake.deliver(inbox_id=A)
            if consumer == "reads":
                await take(opened.events, 100)
            await trio.sleep(100)
    assert not isinstance(caught.value, BaseExceptionGroup)
    assert trio.current_time() < 100
    assert fake.connected == 0


async def test_an_ack_that_fails_raises_and_ends_the_block(
    fake: FakeAgentMail, path: Path, autojump_clock: MockClock
) -> None:
    raised = None
    with pytest.raises(JournalError) as caught:
        async with session(fake, path) as (opened, journal):
            await fake.deliver(inbox_id=A)
            [_, event] = await take(opened.events)
            change(path, "DROP TABLE events")
            try:
                await journal.ack(event)
            except JournalError as exc:
                raised = exc
                raise
    assert caught.value is raised


# Threads, on the real clock


async def test_a_journal_works_with_threads_and_real_sockets(fake: FakeAgentMail, path: Path) -> None:
    with trio.fail_after(30):
        async with fake.serve() as environment:
            for run in range(3):
                journal = SQLiteJournal(path)
                async with open_agentmail_stream(
                    ONE, environment=environment, api_key="am_key", journal=journal
                ) as events:
                    for number in range(20):
                        await fake.deliver(inbox_id=A, subject=f"{run} {number}")
                    subjects = []
                    async for event in events:
                        if isinstance(event, MessageReceivedEvent):
                            subjects.append(event.message.subject)
                            async with journal.processing(event):
                                await trio.lowlevel.checkpoint()
                        if len(subjects) == 20 + bool(run):
                            break
                    down = [f"down {run - 1}"] if run else []
                    assert sorted(map(str, subjects)) == sorted([*down, *[f"{run} {number}" for number in range(20)]])
                await fake.deliver(inbox_id=A, subject=f"down {run}")


@pytest.mark.parametrize("frame", ["", b"", " ", "\0"], ids=repr)
async def test_an_empty_message_is_stored_like_any_other(
    frame: str | bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db")
    for attempt in (1, 2):
        async with open_agentmail_stream(backend=fake, journal=journal) as events:
            if attempt == 1:
                await fake.send_raw(frame)
            with trio.fail_after(10):
                while not isinstance(event := await events.receive(), UnknownEvent):
                    pass
            assert event.raw == (frame if isinstance(frame, str) else frame.decode())
            assert event.origin == ("live" if attempt == 1 else "redelivered")
            if attempt == 2:
                async with journal.processing(event):
                    pass
    async with open_agentmail_stream(backend=fake, journal=journal) as events:
        await trio.sleep(1)
        left = [events.receive_nowait() for _ in range(events.statistics().current_buffer_used)]
        assert not any(isinstance(event, UnknownEvent) for event in left)
