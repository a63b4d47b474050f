"""A journal stores an event before it delivers it, at least once, and never again after its ack."""

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
    Engine,
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
from trio_agentmail._journal import content_cache, lifecycle, open_journal
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail._journal.sqlite_store import SQLiteStore
from trio_agentmail._journal.stored_journal import StoredJournal
from trio_agentmail.testing import FakeAgentMail

GAP = Disconnected(reason="cut")


# With threads, and without


@pytest.fixture(params=["inline", "in threads"])
def run_sync(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Any]]:
    """Both kinds of `run_sync`. Tests with this fixture run on the real clock."""
    return inline if request.param == "inline" else in_a_thread


async def test_events_come_in_order_with_the_notices_in_their_places(engine: Engine, run_sync: Any) -> None:
    async with opened(engine, run_sync=run_sync) as journal:
        journal.notice(Subscribed())
        assert await journal.record(mail(1))
        journal.notice(GAP)
        assert await journal.record(delivered(2))
        events = await take(journal, 4)
    assert ids(events) == ["Subscribed", "event 1", "Disconnected", "delivery 2"]
    assert events[1] == mail(1)
    assert [events[1].origin, events[1].attempt] == ["live", 1]


async def test_at_the_next_start_pending_events_come_first_and_handled_ones_never(
    engine: Engine, run_sync: Any
) -> None:
    async with opened(engine, run_sync=run_sync) as journal:
        for number in range(1, 6):
            await journal.record(mail(number))
        events = await take(journal, 3)
        await journal.ack(events[0])
        await journal.ack(events[0])
        async with journal.processing(events[2]):
            pass
    async with opened(engine, run_sync=run_sync) as journal:
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
    async with opened(engine, run_sync=run_sync) as journal:
        assert await nothing_for(journal, 0.01)


async def test_many_workers_get_through_thousands_of_events(engine: Engine, run_sync: Any) -> None:
    count = 2000
    handled: list[str | None] = []

    async def feed(journal: StoredJournal, send: trio.MemorySendChannel[Event]) -> None:
        async with send:
            for _ in range(count):
                await send.send(await journal.next())

    async def work(journal: StoredJournal, receive: trio.MemoryReceiveChannel[Event]) -> None:
        async with receive:
            async for event in receive:
                async with journal.processing(event):
                    handled.extend(ids([event]))

    async with opened(engine, run_sync=run_sync, max_pending=500) as journal:
        send, receive = trio.open_memory_channel[Event](64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, journal, send)
            for _ in range(8):
                nursery.start_soon(work, journal, receive.clone())
            receive.close()
            for number in range(count):
                await journal.record(mail(number))
    assert sorted(handled, key=str) == sorted((f"event {n}" for n in range(count)), key=str)
    assert engine.read() == (0, [])


async def test_a_slow_disk_does_not_block_the_event_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SQLiteStore.apply

    def slow(store: SQLiteStore, steps: Any) -> list[Any]:
        time.sleep(0.2)  # a slow disk; this runs in a thread
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


# Storing


async def test_an_event_is_stored_before_it_is_delivered_and_record_does_not_wait(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with opened(engine, run_sync=Disk(seconds=1)) as journal:
        began = trio.current_time()
        await journal.record(mail(1))
        assert trio.current_time() == began
        assert await nothing_for(journal, 0.9)
        await take(journal, 1)
        assert trio.current_time() == began + 1
        assert engine.read() == (1, [])


async def test_changes_that_come_during_a_transaction_share_the_next_one(
    engine: Engine, autojump_clock: MockClock
) -> None:
    disk = Disk(seconds=1)
    async with opened(engine, run_sync=disk) as journal:
        await journal.record(mail(0))
        await wait_all_tasks_blocked()
        for number in range(1, 101):
            await journal.record(mail(number))
        events = await take(journal, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.ack, events[0])
            nursery.start_soon(journal.keep, b"state")
        events = await take(journal, 100)
        assert disk.transactions == 3  # the first event; the other events; ack and state
        assert ids(events) == [f"event {number}" for number in range(1, 101)]


async def test_record_waits_while_too_much_waits_for_the_disk(
    engine: Engine, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(engine, run_sync=Disk(seconds=1)) as journal:
        began = trio.current_time()
        monkeypatch.setattr(open_journal, "UNSTORED_EVENTS", 3)
        for number in range(3):
            await journal.record(mail(number))
        assert trio.current_time() == began
        await journal.record(mail(3))
        assert trio.current_time() == began + 1
        monkeypatch.setattr(open_journal, "UNSTORED_BYTES", 1000)
        await journal.record(mail(4, text="x" * 2000))
        await journal.record(mail(5))
        assert trio.current_time() > began + 1
        assert len(await take(journal, 6)) == 6


async def test_record_waits_while_too_many_events_are_pending_and_warns_once(
    engine: Engine, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorded: list[int] = []

    async def record() -> None:
        for number in range(6):
            await journal.record(mail(number))
            recorded.append(number)

    async with opened(engine, max_pending=3, max_attempts=1) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(record)
        events = await take(journal, 3)
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2]
        await journal.ack(events[1])
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2, 3]
        async with journal.processing(events[0]):
            raise ValueError  # the event becomes a dead letter
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2, 3, 4]
        await journal.ack(events[2])
    assert recorded == [0, 1, 2, 3, 4, 5]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "3 events in the journal are unacknowledged (max_pending), and no more are read until some are acknowledged: "
        "3 message.received; events of every type need ack() or processing()"
    ]


async def test_an_event_that_is_pending_or_was_handled_is_not_delivered_as_new(engine: Engine) -> None:
    async with opened(engine) as journal:
        assert await journal.record(mail(1))
        assert not await journal.record(mail(1))
        [event] = await take(journal, 1)
        assert not await journal.record(mail(1))
        await journal.ack(event)
        assert await journal.record(mail(1))  # it turns out to be a duplicate when it is stored
        await journal.record(mail(2))
        assert ids(await take(journal, 1)) == ["event 2"]
        assert journal.waiting == 0


async def test_duplicates_do_not_pile_up_while_the_consumer_sleeps(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        await handle_all(journal, await take(journal, 1))
        for _ in range(50):
            await journal.record(mail(1))
            await journal.keep(b"")
        assert journal._open is not None
        assert len(journal._open._lifecycle._order._others) == 0


async def test_few_events_are_in_memory_and_the_others_are_read_when_they_are_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_memory() -> int:
        assert journal._open is not None
        return sum(entry.content is not None for entry in journal._open._lifecycle._pending.values())

    monkeypatch.setattr(content_cache, "CACHED_EVENTS", 64)
    monkeypatch.setattr(lifecycle, "CACHED_EVENTS", 64)
    async with opened(engine) as journal:
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
        monkeypatch.setattr(content_cache, "CACHED_BYTES", 10_000)
        for number in range(300, 320):
            await journal.record(mail(number, text="x" * 3000))
        await journal.keep(b"")
        assert in_memory() == 3


async def test_an_event_that_is_handled_before_its_delivery_is_not_delivered(engine: Engine) -> None:
    async with opened(engine) as journal:
        for number in range(4):
            await journal.record(mail(number))
        await journal.ack(mail(0))
        await journal.keep(b"")
        await journal.ack(mail(2))
        assert ids(await take(journal, 2)) == ["event 1", "event 3"]
        assert journal.waiting == 0


async def test_an_event_that_is_handled_while_its_text_is_read_is_not_delivered(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        await journal.record(mail(2))
    async with opened(engine, run_sync=Disk(seconds=1)) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.ack, mail(1))
        assert ids(await take(journal, 1)) == ["event 2"]


# What is stored


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
async def test_every_event_is_restored_as_it_came_and_can_be_handled(engine: Engine, event: Event) -> None:
    async with opened(engine) as journal:
        await journal.record(event)
        [first] = await take(journal, 1)
        assert first is event
    async with opened(engine) as journal:
        [again] = await take(journal, 1)
        assert type(again) is type(event)
        assert again.raw == event.raw.encode(errors="backslashreplace").decode()  # type: ignore[union-attr]
        assert again.origin == "redelivered"  # type: ignore[union-attr]
        if isinstance(event, MessageReceivedEvent):
            assert again == event
        await journal.ack(event)
    assert engine.read() == (0, [])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Subscribed(), "Subscribed is a notice"),
        (ErrorEvent(name="oh", raw="{}"), "ErrorEvent is a notice"),
        (MessageReceivedEvent(message=Message(inbox_id="a", message_id="b")), "made by hand"),
    ],
)
async def test_an_event_that_cannot_be_stored_is_refused(engine: Engine, event: Event, message: str) -> None:
    async with opened(engine) as journal:
        with pytest.raises(TypeError, match=message):
            await journal.record(event)


async def test_an_event_that_an_earlier_version_identified_otherwise_can_be_handled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(engine) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("trio_agentmail._journal.protocol.identity", lambda event: digest(event.event_id))
            await journal.record(mail(1))
    async with opened(engine) as journal:
        [event] = await take(journal, 1)
        async with journal.processing(event):
            pass
    assert engine.read() == (0, [])


async def test_state_and_identities_are_given_back_at_the_next_start(engine: Engine) -> None:
    journal = engine.journal()
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
        assert await identities(kept) == [
            KeptIdentity(identity(mail(1)) or b"", now - 1.5, push_record(mail(1))),
            KeptIdentity(identity(delivered(2)) or b"", now, 0),
        ]
    with pytest.raises(JournalMismatchError):
        async with journal.opened(SCOPE, inline, time.time):
            raise AssertionError


async def test_a_journal_may_be_opened_with_either_scope_while_the_scope_changes(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.keep(b"both", scope="new", also=SCOPE)
    for scope in (SCOPE, "new"):
        async with journal.opened(scope, inline, time.time) as kept:
            assert kept.state == b"both"
    async with opened(engine, "new") as journal:
        await journal.keep(scope="new")
    with pytest.raises(JournalMismatchError):
        async with opened(engine):
            raise AssertionError


@pytest.mark.parametrize(
    ("created_at", "is_known"),
    [("2026-01-01T00:00:00Z", True), ("2026-01-02T00:59:59Z", True), ("2026-01-02T01:00:01Z", False), ("soon", False)],
)
async def test_an_identity_is_no_older_than_its_mail_if_the_time_is_plausible(
    engine: Engine, created_at: str, is_known: bool
) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    event = mail(1, created=created_at)
    async with opened(engine, now=lambda: now) as journal:
        await journal.record(event)
        await handle_all(journal, await take(journal, 1))
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        [known] = await identities(kept)
    record = push_record(event)
    if is_known:
        assert known[1:] == (max(now, datetime.fromisoformat(created_at).timestamp()), record)
    else:
        assert known[1:] == (now, ~record)


async def test_a_handled_event_is_known_until_it_is_old_enough_to_be_forgotten(engine: Engine) -> None:
    today = datetime(2026, 1, 1, tzinfo=UTC)
    async with opened(engine, now=lambda: today.timestamp()) as journal:
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


async def test_old_mail_that_is_released_is_known_as_long_as_new_mail_stored_with_it(
    engine: Engine,
) -> None:
    now = datetime(2026, 1, 9, tzinfo=UTC).timestamp()
    held, new = mail(1, created="2026-01-01T00:00:00Z"), mail(2, created="2026-01-09T00:00:00Z")
    journal = engine.journal()
    async with journal.opened(SCOPE, inline, lambda: now):
        assert await journal.record(held)
        assert await journal.record(new)
        await handle_all(journal, await take(journal, 2))
        await journal.keep(forgotten_until=now)
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        memory = Delivered(lambda: now, 86_400.0)
        memory.load(await identities(kept))
        assert not memory.claim(held)  # it is pushed again
        assert not memory.claim(new)
        await journal.record(held)  # even without `Delivered`, the journal does not deliver it again
        assert await nothing_for(journal, 0.1)
        await journal.keep(forgotten_until=now + 0.5)
    async with journal.opened(SCOPE, inline, lambda: now) as kept:
        assert await identities(kept) == []


async def test_an_id_is_never_used_again(engine: Engine) -> None:
    numbers = []
    for number in (1, 2):
        async with opened(engine, max_attempts=1) as journal:
            await journal.record(mail(number))
            [event] = await take(journal, 1)
            async with journal.processing(event):
                raise ValueError
            [letter] = await journal.dead_letters()
            numbers.append(letter.id)
            await journal.drop(letter)
    assert numbers == [1, 2]


async def test_a_second_consumer_is_refused(engine: Engine) -> None:
    async with opened(engine) as journal:
        with pytest.raises(JournalInUseError):
            async with opened(engine):
                raise AssertionError
        with pytest.raises(JournalInUseError):
            async with journal.opened(SCOPE, inline, time.time):
                raise AssertionError
        await journal.record(mail(1))  # the first consumer goes on
        assert ids(await take(journal, 1)) == ["event 1"]


# Settings


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts must be at least 1, not 0"),
        ({"max_attempts": 1.5}, TypeError, "max_attempts takes a whole number, not 1.5"),
        ({"max_attempts": True}, TypeError, "max_attempts takes a whole number, not True"),
        ({"max_pending": -1}, ValueError, "max_pending must be at least 1, not -1"),
        ({"retry_delay": -1.0}, ValueError, "retry_delay must be finite and at least 0, not -1.0"),
        ({"retry_delay": float("inf")}, ValueError, "retry_delay must be finite and at least 0, not inf"),
        ({"retry_delay": float("nan")}, ValueError, "retry_delay must be finite and at least 0, not nan"),
        ({"retry_delay": "1"}, TypeError, "retry_delay takes a number of seconds, not '1'"),
        ({"retry_delay": True}, TypeError, "retry_delay takes a number of seconds, not True"),
        ({"path": ":memory:"}, ValueError, "would keep nothing"),
        ({"path": ""}, ValueError, "would keep nothing"),
        ({"path": "a\0b"}, ValueError, "path must not contain a null character"),
        ({"path": b"agent.db"}, TypeError, "path takes a str or a Path, not bytes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SQLiteJournal(**{"path": "agent.db"} | settings)


async def test_a_symbolic_link_leads_to_the_same_journal(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with opened(path):
        with pytest.raises(JournalInUseError):
            async with opened(link):
                raise AssertionError
    assert repr(SQLiteJournal(path)) == f"SQLiteJournal({str(path)!r})"


# In a stream


async def test_a_stream_redelivers_pending_events_at_its_next_start(path: Path, autojump_clock: MockClock) -> None:
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
