"""Delivery attempts: which of them count, what follows from how they end, and what a crash does."""

from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.journals import (
    Engine,
    begin,
    crashing,
    ids,
    mail,
    nothing_for,
    opened,
    take,
    take_within,
)
from trio_agentmail import (
    Disconnected,
    Event,
    Subscribed,
)
from trio_agentmail._journal.stored_journal import StoredJournal

GAP = Disconnected(reason="cut")


async def test_a_successful_attempt_is_acknowledged_before_the_block_is_left(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        async with journal.processing(event):
            assert engine.read() == (1, [])
        assert engine.read() == (0, [])


async def test_an_exception_is_logged_and_suppressed_and_the_event_is_redelivered(
    engine: Engine, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(engine, retry_delay=60, max_attempts=3) as journal:
        await journal.record(mail(1))
        await journal.record(mail(2))
        began = trio.current_time()
        for attempt in (1, 2):
            [event] = await take_within(journal, 100)
            assert (event.event_id, event.attempt) == ("event 1", attempt)  # type: ignore[union-attr]
            assert event.origin == ("live" if attempt == 1 else "redelivered")  # type: ignore[union-attr]
            async with journal.processing(event):
                raise ValueError(f"number {attempt}")
            if attempt == 1:
                assert ids(await take(journal, 1)) == ["event 2"]
        assert trio.current_time() == began + 60
        assert await nothing_for(journal, 59)
        [event] = await take_within(journal, 2)
        assert event.attempt == 3  # type: ignore[union-attr]
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        (
            "ERROR",
            "attempt 1 of 3 to handle message.received (number 1 in the journal) failed: it is redelivered in 60 s",
        ),
        (
            "ERROR",
            "attempt 2 of 3 to handle message.received (number 1 in the journal) failed: it is redelivered in 60 s",
        ),
    ]
    assert "ValueError: number 1" in caplog.text
    assert "Hello" not in caplog.text


async def test_after_the_last_attempt_an_event_is_a_dead_letter(
    engine: Engine, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(engine, retry_delay=1, max_attempts=2, now=lambda: 1_800_000_000.0) as journal:
        await journal.record(mail(1))
        assert await journal.dead_letters() == ()
        for _ in range(2):
            [event] = await take_within(journal, 2)
            async with journal.processing(event):
                raise ValueError("no\x1b[31m" + "o" * 1000)
        assert await nothing_for(journal, 1000)
        [letter] = await journal.dead_letters()
        assert letter.event == mail(1)
        assert (letter.event.origin, letter.event.attempt) == ("redelivered", 2)
        assert (letter.id, letter.attempts) == (1, 2)
        assert letter.died_at == datetime.fromtimestamp(1_800_000_000, UTC)
        assert letter.error.startswith("ValueError: no [31moooo")
        assert len(letter.error) < 600
        assert "oooo" not in repr(letter)
        await journal.ack(letter.event)
        assert not await is_new(journal, mail(1))
    assert caplog.records[-1].getMessage().endswith("failed: it is a dead letter now")
    async with opened(engine) as journal:
        assert await nothing_for(journal, 1000)
        assert ids(await journal.dead_letters()) == ["event 1"]


async def is_new(journal: StoredJournal, event: Event) -> bool:
    await journal.record(event)
    await journal.keep(None)
    return journal.waiting > 0


async def test_a_dead_letter_is_requeued_as_if_it_had_never_been_tried(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with opened(engine, max_attempts=1) as journal:
        await journal.record(mail(1))
        await journal.record(mail(2))
        for event in await take(journal, 2):
            async with journal.processing(event):
                raise ValueError
        first, second = await journal.dead_letters()
        await journal.requeue(first)
        await journal.requeue(first)
        [event] = await take(journal, 1)
        assert event == mail(1)
        assert (event.origin, event.attempt) == ("redelivered", 1)
        await journal.drop(second)
        await journal.drop(second)
        assert await journal.dead_letters() == ()
        assert await nothing_for(journal, 1000)
        assert not await is_new(journal, mail(2))
        async with journal.processing(event):
            pass
    assert engine.read() == (0, [])


async def test_a_cancelled_attempt_does_not_count(engine: Engine, autojump_clock: MockClock) -> None:
    async with opened(engine, retry_delay=60) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        with trio.move_on_after(1) as scope:
            async with journal.processing(event):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        began = trio.current_time()
        [event] = await take_within(journal, 100)
        assert trio.current_time() == began + 60
        assert event.attempt == 1  # type: ignore[union-attr]
    async with opened(engine) as journal:
        assert [event.attempt for event in await take(journal, 1)] == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "exc",
    [KeyboardInterrupt(), SystemExit(), BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()])],
    ids=["KeyboardInterrupt", "SystemExit", "group"],
)
async def test_an_attempt_that_ends_with_a_base_exception_does_not_count(engine: Engine, exc: BaseException) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        with pytest.raises(type(exc)) as caught:
            async with journal.processing(event):
                raise exc
        assert caught.value is exc
    async with opened(engine) as journal:
        assert [event.attempt for event in await take(journal, 1)] == [1]  # type: ignore[union-attr]


async def test_an_exception_group_is_a_failed_attempt(engine: Engine, autojump_clock: MockClock) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        async with journal.processing(event), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError
        [event] = await take_within(journal, 61)
        assert event.attempt == 2  # type: ignore[union-attr]


async def test_the_end_of_an_attempt_is_stored_even_if_the_block_has_just_been_cancelled(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        await journal.record(mail(2))
        first, second = await take(journal, 2)
        with trio.CancelScope() as scope:
            async with journal.processing(first):
                scope.cancel()
        assert not scope.cancelled_caught
        with trio.CancelScope() as scope:
            async with journal.processing(second):
                scope.cancel()
                raise ValueError
    async with opened(engine) as journal:
        [event] = await take(journal, 1)
        assert (event.event_id, event.attempt) == ("event 2", 2)  # type: ignore[union-attr]


async def test_an_attempt_that_is_cancelled_before_its_block_does_not_count(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with journal.processing(event):
                raise AssertionError
        await journal.keep(None)
    async with opened(engine) as journal:
        assert [event.attempt for event in await take(journal, 1)] == [1]  # type: ignore[union-attr]


async def test_an_event_that_is_acknowledged_in_the_block_is_handled_however_that_ends(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        with pytest.raises(ValueError):
            async with journal.processing(event):
                await journal.ack(event)
                raise ValueError
    assert engine.read() == (0, [])


@pytest.mark.parametrize("event", [Subscribed(), GAP, mail(7)], ids=["Subscribed", "Disconnected", "unknown"])
async def test_for_events_that_are_not_stored_the_block_is_an_ordinary_block(engine: Engine, event: Event) -> None:
    async with opened(engine) as journal:
        await journal.ack(event)
        async with journal.processing(event):
            pass
        with pytest.raises(ValueError):
            async with journal.processing(event):
                raise ValueError


async def test_two_attempts_at_the_same_time_are_refused(engine: Engine) -> None:
    async with opened(engine) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        async with journal.processing(event):
            with pytest.raises(RuntimeError, match=r"number 1 in the journal.* is being processed already"):
                async with journal.processing(event):
                    raise AssertionError


async def test_an_event_that_the_consumer_tries_again_early_is_not_redelivered_meanwhile(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with opened(engine, retry_delay=60) as journal:
        await journal.record(mail(1))
        [event] = await take(journal, 1)
        async with journal.processing(event):
            raise ValueError
        await trio.sleep(30)
        async with journal.processing(event):
            assert await nothing_for(journal, 100)
            raise ValueError
        assert await nothing_for(journal, 59)
        [event] = await take_within(journal, 2)
        assert event.attempt == 3  # type: ignore[union-attr]
        async with journal.processing(event):
            raise ValueError
        await journal.ack(event)
        assert await nothing_for(journal, 1000)


# Crashes


async def test_a_crash_loses_nothing_and_counts_as_an_attempt(engine: Engine, autojump_clock: MockClock) -> None:
    async with crashing(engine) as journal:
        for number in range(1, 4):
            await journal.record(mail(number))
        first, second = await take(journal, 2)
        await journal.ack(first)
        await begin(journal, second)
    async with opened(engine) as journal:
        [event] = await take(journal, 1)
        assert (event.event_id, event.attempt, event.origin) == ("event 2", 2, "redelivered")  # type: ignore[union-attr]


async def test_suspects_are_delivered_first_and_alone(engine: Engine, autojump_clock: MockClock) -> None:
    async with crashing(engine) as journal:
        for number in range(1, 7):
            await journal.record(mail(number))
        events = await take(journal, 6)
        for number in (2, 4, 6):
            await begin(journal, events[number - 1])
    async with opened(engine, retry_delay=60) as journal:
        journal.notice(Subscribed())
        began = trio.current_time()
        [event] = await take(journal, 1)
        assert event == mail(2)
        assert await nothing_for(journal, 59)
        async with journal.processing(event):
            assert await nothing_for(journal, 1000)  # however long the attempt takes
        [event] = await take(journal, 1)
        assert event == mail(4)
        async with journal.processing(event):
            raise ValueError
        [event] = await take(journal, 1)
        assert event == mail(6)
        with trio.CancelScope() as scope:
            async with journal.processing(event):
                scope.cancel()
                await trio.sleep_forever()
        assert ids(await take(journal, 4)) == ["event 1", "event 3", "event 5", "Subscribed"]
        assert trio.current_time() == began + 1059
        assert ids(await take_within(journal, 61) + await take_within(journal, 1)) == ["event 4", "event 6"]


async def test_a_consumer_without_attempts_waits_a_minute_for_the_others(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with crashing(engine) as journal:
        for number in (1, 2, 3):
            await journal.record(mail(number))
        for event in (await take(journal, 3))[:2]:
            await begin(journal, event)
    async with opened(engine) as journal:
        began = trio.current_time()
        [event] = await take(journal, 1)
        await journal.ack(event)  # not in an attempt
        await take(journal, 1)
        assert trio.current_time() == began
        assert ids(await take_within(journal, 61)) == ["event 3"]
        assert trio.current_time() == began + 60


async def test_a_suspect_whose_attempt_begins_late_is_alone_from_then_on(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async with crashing(engine) as journal:
        for number in (1, 2, 3):
            await journal.record(mail(number))
        await begin(journal, (await take(journal, 1))[0])
    async with opened(engine) as journal:
        [suspect] = await take(journal, 1)
        assert ids(await take_within(journal, 61)) == ["event 2"]
        async with journal.processing(suspect):
            assert await nothing_for(journal, 1000)
        assert ids(await take_within(journal, 1)) == ["event 3"]


async def test_a_suspect_that_is_handled_before_its_delivery_is_not_delivered(engine: Engine) -> None:
    async with crashing(engine) as journal:
        await journal.record(mail(1))
        await begin(journal, (await take(journal, 1))[0])
    async with opened(engine) as journal:
        assert journal.waiting == 1
        await journal.ack(mail(1))
        await journal.record(mail(2))
        assert ids(await take(journal, 1)) == ["event 2"]


async def test_a_mail_that_crashes_the_process_is_the_only_dead_letter(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    poison, handled, starts = "event 2", [], 0
    async with crashing(engine, max_attempts=4) as journal:
        for number in range(1, 7):
            await journal.record(mail(number))
        for event in (await take(journal, 6))[:4]:  # four workers
            await begin(journal, event)
    while engine.read()[0]:
        starts += 1
        async with crashing(engine, max_attempts=4) as journal:
            while journal.waiting:
                [event] = await take(journal, 1)
                if ids([event]) == [poison]:
                    await begin(journal, event)
                    break
                async with journal.processing(event):
                    handled.append((*ids([event]), event.attempt))  # type: ignore[union-attr]
    _, [dead] = engine.read()
    assert (dead.id, dead.attempts, dead.error) == (2, 4, "the process ended during the attempt")
    # The innocent suspects needed a second attempt, the others one.
    assert sorted(handled) == [("event 1", 2), ("event 3", 2), ("event 4", 2), ("event 5", 1), ("event 6", 1)]
    assert starts == 4
    assert [record.getMessage() for record in caplog.records] == [
        "message.received (number 2 in the journal) is a dead letter now: the process ended during the attempt"
    ]


async def test_a_suspect_without_an_attempt_stays_one(engine: Engine) -> None:
    async with crashing(engine) as journal:
        await journal.record(mail(1))
        await begin(journal, (await take(journal, 1))[0])
    for _ in range(3):
        async with opened(engine, max_attempts=2) as journal:
            [event] = await take(journal, 1)
            assert event.attempt == 2  # type: ignore[union-attr]
    assert engine.read() == (1, [])
