"""The SQLite store: whole transactions or none, one owner, and what is stored."""

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.journals import Call, fail, inline
from tests.helpers.sqlite_stores import (
    NOW,
    SCOPE,
    add,
    batches,
    identities,
    keep,
    key,
    open_store,
    pending,
    row,
    state_of,
)
from trio_agentmail import JournalError, JournalInUseError, JournalMismatchError
from trio_agentmail._journal import sqlite_rows, sqlite_store
from trio_agentmail._journal.sqlite_store import SQLiteStore
from trio_agentmail._journal.store import Ack, Add, BeginAttempt, Bury, Drop, Fail, Requeue, TakeBackAttempt


def keys(store: SQLiteStore) -> list[bytes]:
    return sorted(known.key for known in identities(store))


# The file


def test_the_files_are_for_their_owner_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with open_store(path) as store:
            add(store, 1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["agent.db", "agent.db-wal", "agent.db-shm", "agent.db-lock"], 0o600)


def test_every_commit_waits_for_the_disk_and_goes_to_the_write_ahead_log(path: Path) -> None:
    with open_store(path) as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_applied_changes_are_there_after_closing_and_opening_again(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, text=b"as received \xff")
    with open_store(path) as store:
        assert pending(store) == [1, 2]
        assert store.texts([1, 2], 1000) == {1: b"as received \xff", 2: b"as received \xff"}
        assert store.last_id() == 2


def test_a_transaction_in_which_a_change_fails_is_not_written_at_all(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        with pytest.raises(JournalError):
            store.apply([Ack(1), Add(2, row(3))])  # the number is taken
        assert pending(store) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            store.apply([Ack(1), Call(fail)])
        assert pending(store) == [1, 2]


def test_a_second_owner_is_refused_in_the_same_process_and_does_not_wait(path: Path) -> None:
    with open_store(path) as store:
        for _ in range(2):  # the refusal must not have released the lock
            with pytest.raises(JournalInUseError, match="in use by another process or another stream"):
                SQLiteStore(path, SCOPE)
        add(store, 1)
    with open_store(path):
        pass


def test_when_opening_fails_the_lock_is_released(path: Path) -> None:
    with open_store(path):
        pass
    with pytest.raises(JournalMismatchError):
        SQLiteStore(path, "elsewhere")
    path.write_bytes(b"this is no database, but a letter to my aunt" * 100)
    with pytest.raises(JournalError, match="not an SQLite database"):
        SQLiteStore(path, SCOPE)
    path.unlink()
    with open_store(path):
        pass


def test_a_journal_of_another_scope_is_refused_and_both_are_named(path: Path) -> None:
    with open_store(path):
        pass
    with pytest.raises(
        JournalMismatchError, match=r"belongs to here, everything, and this stream is elsewhere"
    ) as caught:
        SQLiteStore(path, "elsewhere")
    assert "a journal of its own" in str(caught.value)
    with open_store(path, scope=None) as store:
        keep(store, scope="elsewhere")
    with open_store(path, "elsewhere"):
        pass


def test_a_journal_may_belong_to_two_scopes_until_it_is_given_one(path: Path) -> None:
    with open_store(path) as store:
        keep(store, b"marks", scope="there", also=SCOPE)
    for scope in (SCOPE, "there", None):
        with open_store(path, scope) as store:
            assert state_of(store)[0] == b"marks"
    with pytest.raises(JournalMismatchError, match="belongs to there, and this stream is elsewhere"):
        SQLiteStore(path, "elsewhere")
    with open_store(path) as store:
        keep(store, b"other marks")  # this does not change the scope
    with open_store(path, "there") as store:
        keep(store, scope="there")
        assert state_of(store)[0] == b"other marks"
    with pytest.raises(JournalMismatchError, match="belongs to there"):
        SQLiteStore(path, SCOPE)
    with open_store(path, "there"):
        pass


def test_a_journal_that_was_made_without_a_scope_takes_any_until_it_is_given_one(path: Path) -> None:
    with open_store(path, None):
        pass
    with open_store(path, "elsewhere"):
        pass
    with open_store(path) as store:
        keep(store, scope=SCOPE)
    with pytest.raises(JournalMismatchError):
        SQLiteStore(path, "elsewhere")


# Events


def test_an_event_is_stored_once_whether_it_is_handled_or_not(path: Path) -> None:
    with open_store(path) as store:
        assert store.apply([Add(1, row(1)), Add(2, row(1))]) == [True, False]
        store.apply([Ack(1)])
        assert store.apply([Add(3, row(1))]) == [False]
        assert store.apply([Add(3, row(2))]) == [True]
        store.apply([Bury(3, "", NOW)])
        assert store.apply([Add(4, row(2))]) == [False]
        assert store.texts([1, 2, 4], 1000) == {}
    with open_store(path) as store:
        assert store.apply([Add(4, row(1)), Add(5, row(3))]) == [False, True]
        assert pending(store) == [5]


def test_identities_come_back_as_they_were_stored(path: Path) -> None:
    with open_store(path) as store:
        rows = [row(1, recorded_at=NOW + 0.25, push=2**60 - 1), row(2, recorded_at=-1.5, push=~(2**60 - 1)), row(3)]
        store.apply([Add(number, new) for number, new in enumerate(rows, 1)])
        expected = [new.identity for new in (rows[1], rows[2], rows[0])]
        assert identities(store) == expected  # the oldest first
        store.apply([Ack(number) for number in (1, 2, 3)])
    with open_store(path) as store:
        assert identities(store) == expected


def test_identities_are_read_in_batches_the_oldest_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_rows, "BATCH", 3)
    with open_store(path) as store:
        assert batches(store) == []
        store.apply([Add(number, row(number, recorded_at=NOW - number)) for number in range(1, 8)])
        assert [[known.key for known in batch] for batch in batches(store)] == [
            [key(7), key(6), key(5)],
            [key(4), key(3), key(2)],
            [key(1)],
        ]


def test_identities_are_read_through_run_sync_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_running = False
    asked: list[tuple[str, bool]] = []

    async def run_sync(function: Callable[[], Any]) -> Any:
        nonlocal is_running
        is_running = True
        try:
            return await inline(function)
        finally:
            is_running = False

    async def read() -> list[int]:
        kept = store.kept(run_sync)
        store._connection.set_trace_callback(lambda statement: asked.append((statement, is_running)))
        return [len(batch) async for batch in kept.identities]

    monkeypatch.setattr(sqlite_rows, "BATCH", 3)
    with open_store(path) as store:
        add(store, 1, 2, 3, 4)
        assert trio.run(read) == [3, 1]
        assert [was_running for _, was_running in asked] == [True]


def test_identities_that_cannot_be_read_are_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
        store._connection.execute("DROP TABLE identities")
        with pytest.raises(JournalError, match="cannot be used"):
            identities(store)


def test_an_id_is_never_used_again_even_if_all_events_are_handled_and_forgotten(path: Path) -> None:
    with open_store(path) as store:
        assert store.last_id() == 0
        add(store, 1, 2, 7)
        assert store.last_id() == 7
        store.apply([Ack(number) for number in (1, 2, 7)])
        keep(store, forgotten_until=NOW + 1)
        assert (pending(store), identities(store)) == ([], [])
        assert store.last_id() == 7
    with open_store(path) as store:
        assert store.last_id() == 7
        add(store, 8)
        store.apply([Bury(8, "", NOW), Drop(8)])
    with open_store(path) as store:
        assert store.last_id() == 8


def test_only_the_identity_of_a_handled_event_remains(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        store.apply([Ack(1)])
        store.apply([Ack(1)])
        assert store.texts([1, 2], 1000) == {2: b"{}"}
        assert store._connection.execute("SELECT id FROM events").fetchall() == [(2,)]
        assert keys(store) == [key(1), key(2)]


def test_texts_are_read_up_to_a_limit_but_at_least_one(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, 3, text=b"x" * 100)
        assert list(store.texts([3, 1, 2], 1)) == [3]
        assert list(store.texts([3, 1, 2], 101)) == [3, 1]
        assert list(store.texts([3, 1, 2], 1000)) == [3, 1, 2]


def test_an_attempt_begins_is_taken_back_fails_and_makes_a_dead_letter(path: Path) -> None:
    def state() -> tuple[int, bool]:
        [row] = store.pending()
        return row.attempts, row.under_way

    with open_store(path) as store:
        add(store, 1)
        store.apply([BeginAttempt(1)])
        assert state() == (1, True)
        store.apply([TakeBackAttempt(1)])
        store.apply([TakeBackAttempt(1)])
        assert state() == (0, False)
        store.apply([BeginAttempt(1), Fail(1, "ValueError: no")])
        assert state() == (1, False)
        store.apply([BeginAttempt(1), Bury(1, "ValueError: still no", NOW)])
        assert pending(store) == []
        [dead] = store.dead_letters()
        assert (dead.id, dead.attempts, dead.error, dead.ended_at, dead.text) == (
            1,
            2,
            "ValueError: still no",
            NOW,
            b"{}",
        )
        store.apply([Ack(1), BeginAttempt(1), Fail(1, "late")])
        assert [row.error for row in store.dead_letters()] == ["ValueError: still no"]


def test_a_dead_letter_is_requeued_or_dropped_once(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        store.apply([Bury(1, "", NOW), Bury(2, "", NOW)])
        assert [row.id if row else None for row in store.apply([Requeue(1)] * 2)] == [1, None]
        assert store.apply([Drop(2)] * 2) == [True, False]
        assert [(row.id, row.attempts) for row in store.pending()] == [(1, 0)]
        assert store.dead_letters() == []
        assert store.texts([1, 2], 1000) == {1: b"{}"}


def test_the_state_of_recovery_is_stored(path: Path) -> None:
    with open_store(path) as store:
        assert state_of(store) == (b"", -math.inf)
        keep(store, b"high-water marks")
        assert state_of(store) == (b"high-water marks", -math.inf)
    with open_store(path) as store:
        assert state_of(store) == (b"high-water marks", -math.inf)
        keep(store, scope="elsewhere", forgotten_until=NOW)
        assert state_of(store) == (b"high-water marks", NOW)
        keep(store, b"")
    with open_store(path, "elsewhere") as store:
        assert state_of(store) == (b"", NOW)


# Forgetting, and returning pages


def test_identities_are_forgotten_by_time_except_of_pending_events_and_dead_letters(path: Path) -> None:
    with open_store(path) as store:
        store.apply([Add(number, row(number, recorded_at=NOW + number)) for number in range(1, 7)])
        store.apply([Ack(number) for number in (1, 4, 5, 6)])
        store.apply([Bury(2, "", NOW)])
        assert keys(store) == [key(number) for number in (1, 2, 3, 4, 5, 6)]
        keep(store, forgotten_until=NOW + 5)
        assert keys(store) == [key(number) for number in (2, 3, 5, 6)]  # an identity that is exactly as old stays
        assert store.apply([Add(7, row(2)), Add(8, row(3))]) == [False, False]
        assert store.apply([Add(9, row(1))]) == [True]
    with open_store(path) as store:
        assert state_of(store)[1] == NOW + 5
        assert keys(store) == [key(number) for number in (1, 2, 3, 5, 6)]
        # When they have been handled, the next `keep` forgets them.
        store.apply([Ack(3), Ack(9), Drop(2)])
        assert keys(store) == [key(number) for number in (1, 2, 3, 5, 6)]
        keep(store, forgotten_until=NOW + 5)
        assert keys(store) == [key(5), key(6)]


def test_many_identities_are_forgotten_over_several_transactions_the_oldest_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "FORGOTTEN_AT_ONCE", 3)
    with open_store(path) as store:
        store.apply([Add(number, row(number, recorded_at=NOW - number)) for number in range(1, 9)])
        store.apply([Ack(number) for number in range(1, 8)])
        keep(store, forgotten_until=NOW)
        assert keys(store) == [key(number) for number in (1, 2, 3, 4, 8)]
        keep(store, b"state")  # any transaction continues
        assert keys(store) == [key(1), key(8)]
        store.apply([])
        assert keys(store) == [key(8)]
        # When all are forgotten, newly handled events stay until the next `keep`.
        store.apply([Ack(8)])
        assert keys(store) == [key(8)]


def test_forgetting_that_a_crash_interrupted_is_completed_the_next_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "FORGOTTEN_AT_ONCE", 3)
    with open_store(path) as store:
        store.apply([Add(number, row(number, recorded_at=NOW - number)) for number in range(1, 6)])
        store.apply([Ack(number) for number in range(1, 6)])
        keep(store, forgotten_until=NOW)
    with open_store(path) as store:
        assert len(identities(store)) == 2
        keep(store, forgotten_until=NOW)
        assert identities(store) == []


def test_after_a_burst_the_file_shrinks_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "SPARE_PAGES", 100)
    with open_store(path) as store:
        add(store, *range(1, 2001), text=b"x" * 3000)
        for first in range(1, 2001, 50):
            store.apply([Ack(number) for number in range(first, first + 50)])
    assert path.stat().st_size < 1_000_000
