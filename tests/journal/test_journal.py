"""The journal keeps its promises: on disk before anybody has it, at least once, and never again after its ack."""

import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.journals import (
    SCOPE,
    Disk,
    delivered,
    handle_all,
    identities,
    ids,
    in_a_thread,
    inline,
    mail,
    nothing_for,
    opened,
    take,
)
from trio_agentmail import (
    Disconnected,
    ErrorEvent,
    Event,
    JournalInUseError,
    JournalMismatchError,
    Message,
    MessageReceivedEvent,
    SQLiteJournal,
    Subscribed,
    UnknownEvent,
    decode_event,
    open_agentmail_stream,
)
from trio_agentmail._codec import as_unknown
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import digest, identity, push_record
from trio_agentmail._journal import line as line_module
from trio_agentmail._journal import queue as queue_module
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail.testing import FakeAgentMail

GAP = Disconnected(reason="cut")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


# With threads, and without


@pytest.fixture(params=["inline", "in threads"])
def run_sync(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Any]]:
    """Both ways; the tests with this fixture run on the real clock."""
    return inline if request.param == "inline" else in_a_thread


async def test_events_come_in_order_with_the_notices_in_their_places(path: Path, run_sync: Any) -> None:
    async with opened(path, run_sync=run_sync) as journal:
        journal.notice(Subscribed())
        assert await journal.record(mail(1))
        journal.notice(GAP)
        assert await journal.record(delivered(2))
        events = await take(journal, 4)
    assert ids(events) == ["Subscribed", "event 1", "Disconnected", "delivery 2"]
    assert events[1] == mail(1)
    assert [events[1].origin, events[1].attempt] == ["live", 1]


async def test_what_was_not_handled_comes_first_at_the_next_start_and_what_was_never_again(
    path: Path, run_sync: Any
) -> None:
    async with opened(path, run_sync=run_sync) as journal:
        for number in range(1, 6):
            await journal.record(mail(number))
        events = await take(journal, 3)
        await journal.ack(events[0])
        await journal.ack(events[0])
        async with journal.processing(events[2]):
            pass
    async with opened(path, run_sync=run_sync) as journal:
        journal.notice(Subscribed())
        await journal.record(mail(6))
        assert journal.waiting == 5
        events = await take(journal, 5)
        assert ids(events) == ["event 2", "event 4", "event 5", "Subscribed", "event 6"]
        assert events[0].raw == mail(2).raw  # type: ignore[union-attr]
        assert [getattr(event, "origin", "") for event in events] == ["redelivered"] * 3 + ["live"] * 2
        assert {event.attempt for event in events} == {1}  # type: ignore[union-attr]
        await handle_all(journal, events)
        assert journal.waiting == 0
    async with opened(path, run_sync=run_sync) as journal:
        assert await nothing_for(journal, 0.01)


async def test_many_workers_get_through_thousands_of_events(path: Path, run_sync: Any) -> None:
    count = 2000
    handled: list[str | None] = []

    async def feed(journal: SQLiteJournal, send: trio.MemorySendChannel[Event]) -> None:
        async with send:
            for _ in range(count):
                await send.send(await journal.next())

    async def work(journal: SQLiteJournal, receive: trio.MemoryReceiveChannel[Event]) -> None:
        async with receive:
            async for event in receive:
                async with journal.processing(event):
                    handled.extend(ids([event]))

    async with opened(path, run_sync=run_sync, max_pending=500) as journal:
        send, receive = trio.open_memory_channel[Event](64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, journal, send)
            for _ in range(8):
                nursery.start_soon(work, journal, receive.clone())
            receive.close()
            for number in range(count):
                await journal.record(mail(number))
    assert sorted(handled, key=str) == sorted((f"event {n}" for n in range(count)), key=str)
    assert read_journal(path) == (0, [])


async def test_waiting_for_the_disk_does_not_hold_up_the_event_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SQLiteStore.apply

    def slow(store: SQLiteStore, steps: Any) -> list[Any]:
        time.sleep(0.2)  # the disk takes its time: this is in a thread
        return real(store, steps)

    async with opened(path, run_sync=in_a_thread) as journal:
        monkeypatch.setattr(SQLiteStore, "apply", slow)
        await journal.record(mail(1))
        began, turns = time.monotonic(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, journal, 1)
            while nursery.child_tasks:
                await trio.sleep(0.001)
                turns += 1
        assert time.monotonic() - began >= 0.19
        assert turns > 20


# On disk first


async def test_an_event_is_on_disk_before_anybody_gets_it_and_record_does_not_wait_for_that(
    path: Path, autojump_clock: MockClock
) -> None:
    async with opened(path, run_sync=Disk(seconds=1)) as journal:
        began = trio.current_time()
        await journal.record(mail(1))
        assert trio.current_time() == began
        assert await nothing_for(journal, 0.9)
        await take(journal, 1)
        assert trio.current_time() == began + 1
        assert read_journal(path) == (1, [])


async def test_what_comes_while_the_disk_is_busy_is_written_in_one_transaction(
    path: Path, autojump_clock: MockClock
) -> None:
    disk = Disk(seconds=1)
    async with opened(path, run_sync=disk) as journal:
        await journal.record(mail(0))
        await wait_all_tasks_blocked()
        for number in range(1, 101):
            await journal.record(mail(number))
        events = await take(journal, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.ack, events[0])
            nursery.start_soon(journal.keep, b"state")
        events = await take(journal, 100)
        assert disk.transactions == 3  # the first; the others; ack and state together
        assert ids(events) == [f"event {number}" for number in range(1, 101)]


async def test_record_waits_while_too_much_waits_for_the_disk(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, run_sync=Disk(seconds=1)) as journal:
        began = trio.current_time()
        monkeypatch.setattr(queue_module, "UNWRITTEN_EVENTS", 3)
        for number in range(3):
            await journal.record(mail(number))
        assert trio.current_time() == began
        await journal.record(mail(3))
        assert trio.current_time() == began + 1
        monkeypatch.setattr(queue_module, "UNWRITTEN_BYTES", 1000)
        await journal.record(mail(4, text="x" * 2000))
        await journal.record(mail(5))
        assert trio.current_time() > began + 1
        assert len(await take(journal, 6)) == 6


async def test_record_waits_while_too_many_events_are_not_handled_and_says_so_once(
    path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorded: list[int] = []

    async def record() -> None:
        for number in range(6):
            await journal.record(mail(number))
            recorded.append(number)

    async with opened(path, max_pending=3, max_attempts=1) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(record)
        events = await take(journal, 3)
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2]
        await journal.ack(events[1])
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2, 3]
        async with journal.processing(events[0]):
            raise ValueError  # a dead letter now
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2, 3, 4]
        await journal.ack(events[2])
    assert recorded == [0, 1, 2, 3, 4, 5]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "3 events in the journal have not been acknowledged (max_pending), and no more are read until some are: "
        "3 message.received; every event needs ack() or processing(), of whatever type"
    ]


async def test_an_event_that_is_not_handled_yet_or_was_long_ago_is_not_given_again(path: Path) -> None:
    async with opened(path) as journal:
        assert await journal.record(mail(1))
        assert not await journal.record(mail(1))
        [event] = await take(journal, 1)
        assert not await journal.record(mail(1))
        await journal.ack(event)
        assert await journal.record(mail(1))  # that is found out when it is written
        await journal.record(mail(2))
        assert ids(await take(journal, 1)) == ["event 2"]
        assert journal.waiting == 0


async def test_what_is_not_new_does_not_pile_up_before_a_consumer_who_sleeps(path: Path) -> None:
    async with opened(path) as journal:
        await journal.record(mail(1))
        await handle_all(journal, await take(journal, 1))
        for _ in range(50):
            await journal.record(mail(1))
            await journal.keep(b"")
        assert journal._queue is not None
        assert len(journal._queue._line._others) == 0


async def test_few_events_are_in_memory_and_the_others_are_read_when_their_turn_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_memory() -> int:
        assert journal._queue is not None
        return sum(entry.content is not None for entry in journal._queue._entries.values())

    monkeypatch.setattr(line_module, "HELD_EVENTS", 64)
    async with opened(path) as journal:
        for number in range(300):
            event = mail(number)
            await journal.record(event)
            if number == 150:
                journal.notice(GAP)
        await journal.keep(b"")
        assert in_memory() == 64
        events = await take(journal, 65)
        assert in_memory() <= 64
        events += await take(journal, 236)
        assert in_memory() == 0
        expected = [f"event {number}" for number in range(300)]
        assert ids(events) == [*expected[:151], "Disconnected", *expected[151:]]
        assert {event.origin for event in events if not isinstance(event, Disconnected)} == {"live"}  # type: ignore[union-attr]
        monkeypatch.setattr(line_module, "HELD_BYTES", 10_000)
        for number in range(300, 320):
            await journal.record(mail(number, text="x" * 3000))
        await journal.keep(b"")
        assert in_memory() == 3


async def test_what_is_handled_before_its_turn_is_not_given(path: Path) -> None:
    async with opened(path) as journal:
        for number in range(4):
            await journal.record(mail(number))
        await journal.ack(mail(0))
        await journal.keep(b"")
        await journal.ack(mail(2))
        assert ids(await take(journal, 2)) == ["event 1", "event 3"]
        assert journal.waiting == 0


async def test_what_is_handled_while_its_text_is_read_is_not_given(path: Path, autojump_clock: MockClock) -> None:
    async with opened(path) as journal:
        await journal.record(mail(1))
        await journal.record(mail(2))
    async with opened(path, run_sync=Disk(seconds=1)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.ack, mail(1))
        assert ids(await take(journal, 1)) == ["event 2"]


# What is kept


@pytest.mark.parametrize(
    "event",
    [
        mail(1),
        attrs.evolve(mail(1), origin="recovered"),
        mail(1, text="\\ud83d half an emoji \\u0000 \\u202e"),
        decode_event(b'{"type": "event", "event_type": "brand.new", "event_id": "1"}'),
        decode_event(b"\xff not JSON at all"),
        decode_event('{"not": "an event \ud83d"}'),
        UnknownEvent(reason="by hand", raw="no bytes, but text: ü"),
        delivered(1),
        as_unknown(Subscribed(raw=b'{"type": "subscribed"}'), "nobody asked"),
    ],
    ids=["mail", "recovered", "half an emoji", "new", "not JSON", "no event", "str", "delivered", "confirmation"],
)
async def test_every_event_comes_back_from_the_disk_as_it_came_and_can_be_handled(path: Path, event: Event) -> None:
    async with opened(path) as journal:
        await journal.record(event)
        [first] = await take(journal, 1)
        assert first is event
    async with opened(path) as journal:
        [again] = await take(journal, 1)
        assert type(again) is type(event)
        assert again.raw == event.raw.encode(errors="backslashreplace").decode()  # type: ignore[union-attr]
        assert again.origin == "redelivered"  # type: ignore[union-attr]
        if isinstance(event, MessageReceivedEvent):
            assert again == event
        await journal.ack(event)
    assert read_journal(path) == (0, [])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Subscribed(), "Subscribed is a notice"),
        (ErrorEvent(name="oh", raw="{}"), "ErrorEvent is a notice"),
        (MessageReceivedEvent(message=Message(inbox_id="a", message_id="b")), "made by hand"),
    ],
)
async def test_what_cannot_be_kept_is_refused(path: Path, event: Event, message: str) -> None:
    async with opened(path) as journal:
        with pytest.raises(TypeError, match=message):
            await journal.record(event)


async def test_an_event_that_this_version_identifies_otherwise_than_that_which_wrote_it_can_be_handled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("trio_agentmail._journal.entry.identity", lambda event: digest(event.event_id))
            await journal.record(mail(1))
    async with opened(path) as journal:
        [event] = await take(journal, 1)
        async with journal.processing(event):
            pass
    assert read_journal(path) == (0, [])


async def test_what_a_stream_has_to_know_at_its_start_is_kept(path: Path) -> None:
    journal = SQLiteJournal(path)
    now = datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        assert (await identities(kept), kept.state, kept.forgotten_until) == ([], b"", -math.inf)
        await journal.record(mail(1))
        now += 1.5
        await journal.record(delivered(2))
        await journal.keep(b"marks", scope="elsewhere")
        await journal.keep()
        await handle_all(journal, await take(journal, 2))
    async with journal.opened("elsewhere", inline, time.time) as kept:
        assert (kept.state, kept.forgotten_until) == (b"marks", -math.inf)
        assert await identities(kept) == [  # as old as they were written down
            KeptIdentity(identity(mail(1)) or b"", now - 1.5, push_record(mail(1))),
            KeptIdentity(identity(delivered(2)) or b"", now, 0),
        ]
    with pytest.raises(JournalMismatchError):
        async with journal.opened(SCOPE, inline, time.time):
            raise AssertionError


async def test_while_a_change_of_the_subscription_is_not_sure_the_journal_takes_both(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep(b"both", scope="new", also=SCOPE)
    for scope in (SCOPE, "new"):
        async with journal.opened(scope, inline, time.time) as kept:
            assert kept.state == b"both"
    async with opened(path, "new") as journal:
        await journal.keep(scope="new")
    with pytest.raises(JournalMismatchError):
        async with opened(path):
            raise AssertionError


@pytest.mark.parametrize(
    ("created_at", "is_known"),
    [("2026-01-01T00:00:00Z", True), ("2026-01-02T00:59:59Z", True), ("2026-01-02T01:00:01Z", False), ("soon", False)],
)
async def test_a_mail_is_as_old_as_its_recording_and_never_older_than_its_time_if_that_is_plausible(
    path: Path, created_at: str, is_known: bool
) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    event = mail(1, created=created_at)
    async with opened(path, now=lambda: now) as journal:
        await journal.record(event)
        await handle_all(journal, await take(journal, 1))
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        [known] = await identities(kept)
    record = push_record(event)
    if is_known:
        assert known[1:] == (max(now, datetime.fromisoformat(created_at).timestamp()), record)
    else:
        assert known[1:] == (now, ~record)


async def test_what_is_handled_is_known_until_it_is_old_enough_to_be_forgotten(path: Path) -> None:
    today = datetime(2026, 1, 1, tzinfo=UTC)
    async with opened(path, now=lambda: today.timestamp()) as journal:
        for number in (1, 2, 3):
            await journal.record(mail(number, created="2025-12-01T00:00:00Z"))
            today += timedelta(days=1)
        events = await take(journal, 3)
        await journal.ack(events[0])
        await journal.ack(events[1])
        await journal.keep(forgotten_until=datetime(2026, 1, 2, tzinfo=UTC).timestamp())
    async with journal.opened(SCOPE, inline, time.time) as kept:
        assert kept.forgotten_until == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
        assert [known.key for known in await identities(kept)] == [identity(mail(2)), identity(mail(3))]


async def test_a_mail_that_was_held_for_long_is_known_as_long_as_any_that_is_written_down_with_it(path: Path) -> None:
    now = datetime(2026, 1, 9, tzinfo=UTC).timestamp()
    held, new = mail(1, created="2026-01-01T00:00:00Z"), mail(2, created="2026-01-09T00:00:00Z")
    journal = SQLiteJournal(path)
    async with journal.opened(SCOPE, inline, lambda: now):
        assert await journal.record(held)
        assert await journal.record(new)
        await handle_all(journal, await take(journal, 2))
        await journal.keep(forgotten_until=now)
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        memory = Delivered(lambda: now, 86_400.0)
        memory.load(await identities(kept))
        assert not memory.claim(held)  # the same is pushed again
        assert not memory.claim(new)
        await journal.record(held)  # and though nobody asks the memory, the journal does not give it again
        assert await nothing_for(journal, 0.1)
        await journal.keep(forgotten_until=now + 0.5)
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        assert await identities(kept) == []


async def test_a_number_is_never_given_twice_though_what_had_it_is_handled(path: Path) -> None:
    numbers = []
    for number in (1, 2):
        async with opened(path, max_attempts=1) as journal:
            await journal.record(mail(number))
            [event] = await take(journal, 1)
            async with journal.processing(event):
                raise ValueError
            [letter] = await journal.dead_letters()
            numbers.append(letter.id)
            await journal.drop(letter)
    assert numbers == [1, 2]


async def test_a_second_consumer_is_refused(path: Path) -> None:
    async with opened(path) as journal:
        with pytest.raises(JournalInUseError):
            async with opened(path):
                raise AssertionError
        with pytest.raises(JournalInUseError):
            async with journal.opened(SCOPE, inline, time.time):
                raise AssertionError
        await journal.record(mail(1))  # and the first goes on
        assert ids(await take(journal, 1)) == ["event 1"]


# Settings


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts is at least 1, not 0"),
        ({"max_attempts": 1.5}, TypeError, "max_attempts is a whole number, not float"),
        ({"max_attempts": True}, TypeError, "max_attempts is a whole number, not bool"),
        ({"max_pending": -1}, ValueError, "max_pending is at least 1, not -1"),
        ({"retry_delay": -1.0}, ValueError, "retry_delay is a number of seconds, not -1.0"),
        ({"retry_delay": float("inf")}, ValueError, "retry_delay is a number of seconds, not inf"),
        ({"retry_delay": float("nan")}, ValueError, "retry_delay is a number of seconds, not nan"),
        ({"retry_delay": "1"}, TypeError, "retry_delay is a number of seconds, not str"),
        ({"retry_delay": True}, TypeError, "retry_delay is a number of seconds, not bool"),
        ({"path": ":memory:"}, ValueError, "would keep nothing"),
        ({"path": ""}, ValueError, "would keep nothing"),
        ({"path": "a\0b"}, ValueError, "holds a null character"),
        ({"path": b"agent.db"}, TypeError, "the path of a journal is text, not bytes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SQLiteJournal(**{"path": "agent.db"} | settings)


async def test_a_journal_that_is_reached_by_a_link_is_the_same_journal(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with opened(path):
        with pytest.raises(JournalInUseError):
            async with opened(link):
                raise AssertionError
    assert repr(SQLiteJournal(path)) == f"SQLiteJournal({str(path)!r})"


# In a stream


async def test_a_stream_with_a_journal_gives_what_was_not_handled_before_at_its_next_start(
    path: Path, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    subjects: list[tuple[str | None, str, int]] = []
    for _ in range(2):
        journal = SQLiteJournal(path)
        async with open_agentmail_stream(backend=fake, journal=journal, recovery=None) as events:
            if not subjects:
                for number in range(3):
                    await fake.deliver(inbox_id="agent@agentmail.to", from_="jane@x.com", subject=str(number), text="")
            with trio.move_on_after(1):
                async for event in events:
                    async with journal.processing(event):
                        if isinstance(event, MessageReceivedEvent):
                            subjects.append((event.message.subject, event.origin, event.attempt))
                            if len(subjects) == 2:
                                raise ValueError
    assert subjects == [("0", "live", 1), ("1", "live", 1), ("2", "live", 1), ("1", "redelivered", 2)]
