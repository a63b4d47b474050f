"""When a journal is closed or its disk fails, every call raises, and no change is stored in part."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.journals import (
    SCOPE,
    Call,
    Disk,
    Engine,
    ids,
    in_a_thread,
    inline,
    mail,
    opened,
    take,
)
from trio_agentmail import (
    Disconnected,
    Event,
    JournalError,
    Subscribed,
)
from trio_agentmail._journal.sqlite_store import SQLiteStore
from trio_agentmail._journal.stored_journal import StoredJournal

GAP = Disconnected(reason="cut")


async def test_recorded_events_are_stored_at_the_end_of_the_block_even_if_it_is_cancelled(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        async with opened(engine, run_sync=in_a_thread) as journal:
            await journal.record(mail(1))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with opened(engine) as journal:
        assert ids(await take(journal, 1)) == ["event 1"]


async def test_the_exception_of_the_block_propagates_unchanged(engine: Engine) -> None:
    exc = ValueError()
    with pytest.raises(ValueError) as caught:
        async with opened(engine):
            raise exc
    assert caught.value is exc


async def test_a_journal_is_closed_before_and_after_its_stream(engine: Engine) -> None:
    journal = engine.journal()
    assert journal.waiting == 0

    async def refused() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await journal.ack(mail(1))
        with pytest.raises(trio.ClosedResourceError):
            journal.processing(mail(1))
        with pytest.raises(trio.ClosedResourceError):
            await journal.next()
        with pytest.raises(trio.ClosedResourceError):
            await journal.dead_letters()

    await refused()
    async with journal.opened(SCOPE, inline, time.time):
        await journal.ack(Subscribed())
    await refused()


async def test_closing_wakes_waiting_tasks_with_closed_resource_error(engine: Engine) -> None:
    async def assert_raises(function: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await function()

    async with trio.open_nursery() as nursery, opened(engine, max_pending=1) as journal:
        await journal.record(mail(1))
        await take(journal, 1)
        nursery.start_soon(assert_raises, journal.next)
        nursery.start_soon(assert_raises, partial(journal.record, mail(2)))
        await wait_all_tasks_blocked()


async def test_an_attempt_that_outlives_the_journal_does_not_count_and_raises(engine: Engine) -> None:
    async with opened(engine) as journal:
        for number in (1, 2, 3):
            await journal.record(mail(number))
        attempts = [journal.processing(event) for event in await take(journal, 3)]
        for attempt in attempts:
            await attempt.__aenter__()
    with pytest.raises(trio.ClosedResourceError):
        await attempts[0].__aexit__(None, None, None)
    exc = ValueError()
    with pytest.raises(trio.ClosedResourceError):
        await attempts[1].__aexit__(ValueError, exc, None)
    assert not await attempts[2].__aexit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    async with opened(engine) as journal:
        assert [event.attempt for event in await take(journal, 3)] == [1, 1, 1]  # type: ignore[union-attr]


async def test_an_attempt_cannot_begin_while_the_journal_is_being_closed(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async def attempt(event: Event) -> None:
        with pytest.raises(trio.ClosedResourceError):
            async with journal.processing(event):
                raise AssertionError

    async with trio.open_nursery() as nursery, opened(engine, run_sync=Disk(seconds=1)) as journal:
        await journal.record(mail(1))
        nursery.start_soon(attempt, (await take(journal, 1))[0])
        await wait_all_tasks_blocked()
    async with opened(engine) as journal:
        assert [event.attempt for event in await take(journal, 1)] == [1]  # type: ignore[union-attr]


# Errors


@asynccontextmanager
async def failing(engine: Engine) -> AsyncIterator[tuple[StoredJournal, list[Event]]]:
    """A journal that has delivered two events, and whose disk fails from now on."""
    disk = Disk()
    with pytest.raises(JournalError, match="the disk is full"):
        async with opened(engine, run_sync=disk) as journal:
            await journal.record(mail(1))
            await journal.record(mail(2))
            events = await take(journal, 2)
            disk.fails = True
            yield journal, events


async def test_when_the_disk_fails_waiting_and_later_calls_raise(engine: Engine) -> None:
    async def assert_raises(function: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(JournalError, match="the disk is full"):
            await function()

    async with failing(engine) as (journal, events):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(assert_raises, journal.next)
            await wait_all_tasks_blocked()
            nursery.start_soon(assert_raises, partial(journal.ack, events[0]))
            nursery.start_soon(assert_raises, partial(journal.keep, b""))
        for function in (
            partial(journal.record, mail(3)),
            partial(journal.ack, events[1]),
            partial(journal.keep, b""),
            journal.next,
        ):
            await assert_raises(function)
        journal.notice(Subscribed())
    async with opened(engine) as journal:
        assert ids(await take(journal, 2)) == ["event 1", "event 2"]


async def test_when_the_disk_fails_changes_that_came_meanwhile_fail_too(
    engine: Engine, autojump_clock: MockClock
) -> None:
    async def assert_ack_raises(event: Event) -> None:
        with pytest.raises(JournalError):
            await journal.ack(event)

    disk = Disk(seconds=1)
    with pytest.raises(JournalError, match="the disk is full"):
        async with opened(engine, run_sync=disk) as journal:
            await journal.record(mail(1))
            await journal.record(mail(2))
            events = await take(journal, 2)
            await journal.keep(b"")
            disk.fails = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(assert_ack_raises, events[0])
                await wait_all_tasks_blocked()
                nursery.start_soon(assert_ack_raises, events[1])


async def test_when_the_disk_fails_an_attempt_does_not_begin(engine: Engine) -> None:
    async with failing(engine) as (journal, events):
        with pytest.raises(JournalError):
            async with journal.processing(events[0]):
                raise AssertionError


async def test_when_the_disk_fails_a_cancelled_attempt_is_still_cancelled(engine: Engine) -> None:
    disk = Disk()
    with pytest.raises(JournalError, match="the disk is full"):
        async with opened(engine, run_sync=disk) as journal:
            await journal.record(mail(1))
            [event] = await take(journal, 1)
            with trio.CancelScope() as scope:
                async with journal.processing(event):
                    disk.fails = True
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught


async def test_a_missing_text_is_reported_as_damage(path: Path) -> None:
    async with opened(path) as journal:
        await journal.record(mail(1))
    store = SQLiteStore(path, SCOPE)
    store.apply([Call(partial(store._connection.execute, "DELETE FROM texts"))])
    store.close()
    async with opened(path) as journal:
        with pytest.raises(JournalError, match=r"damaged: the text of message.received \(number 1"):
            await journal.next()


async def test_when_opening_fails_the_journal_can_be_opened_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise JournalError("oh")

    for method in ("pending", "kept"):
        with monkeypatch.context() as patch:
            patch.setattr(SQLiteStore, method, fail)
            with pytest.raises(JournalError, match="oh"):
                async with opened(path):
                    raise AssertionError
    async with opened(path):
        pass
