"""What is on disk: whole transactions or nothing, one owner, and errors that say what is the matter."""

import math
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from trio_agentmail import JournalError, JournalInUseError, JournalMismatchError
from trio_agentmail._journal import sqlite_file as file_module
from trio_agentmail._journal import sqlite_store as store_module
from trio_agentmail._journal.entry import NewRow
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal

NOW = 1_800_000_000.0
SCOPE = "here, everything"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@contextmanager
def open_store(path: Path, scope: str | None = SCOPE, now: float = NOW) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, scope, now)
    try:
        yield store
    finally:
        store.close()


def row(number: int, kind: str = "message.received", text: bytes = b"{}", created: float | None = NOW) -> NewRow:
    return NewRow(
        kind=kind,
        key=f"key {number}",
        created=created,
        recorded_at=NOW,
        origin="live",
        event_type=kind or "message.sent",
        text=text,
    )


def add(store: SQLiteStore, *numbers: int, kind: str = "message.received", text: bytes = b"{}") -> None:
    store.apply([partial(store.add, number, row(number, kind, text)) for number in numbers])


def pending(store: SQLiteStore) -> list[int]:
    return [row.id for row in store.pending()]


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


def test_what_was_applied_is_there_after_closing_and_opening_again(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, text=b"as received \xff")
    with open_store(path) as store:
        assert pending(store) == [1, 2]
        assert store.texts([1, 2], 1000) == {1: b"as received \xff", 2: b"as received \xff"}
        assert store.last_id() == 2


def test_a_transaction_in_which_something_fails_is_not_written_at_all(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
        with pytest.raises(JournalError):
            store.apply([partial(store.ack, 1, NOW), partial(store.add, 1, row(2))])  # the number is taken
        assert pending(store) == [1]
        with pytest.raises(ZeroDivisionError):
            store.apply([partial(store.ack, 1, NOW), lambda: 1 / 0])
        assert pending(store) == [1]


def test_a_second_owner_is_refused_in_the_same_process_and_does_not_wait(path: Path) -> None:
    with open_store(path) as store:
        for _ in range(2):  # the refused one must not have loosened the lock
            with pytest.raises(JournalInUseError, match="in use by another process or another stream"):
                SQLiteStore(path, SCOPE, NOW)
        add(store, 1)
    with open_store(path):
        pass


def test_when_opening_fails_the_lock_is_free_again(path: Path) -> None:
    with open_store(path):
        pass
    with pytest.raises(JournalMismatchError):
        SQLiteStore(path, "elsewhere", NOW)
    path.write_bytes(b"this is no database, but a letter to my aunt" * 100)
    with pytest.raises(JournalError, match="not an SQLite database"):
        SQLiteStore(path, SCOPE, NOW)
    path.unlink()
    with open_store(path):
        pass


def test_a_journal_of_another_scope_is_refused_and_both_are_named(path: Path) -> None:
    with open_store(path):
        pass
    with pytest.raises(
        JournalMismatchError, match=r"belongs to here, everything, and this stream is elsewhere"
    ) as caught:
        SQLiteStore(path, "elsewhere", NOW)
    assert "a journal of its own" in str(caught.value)
    with open_store(path, scope=None) as store:
        store.apply([partial(store.keep, None, "elsewhere")])
    with open_store(path, "elsewhere"):
        pass


# Errors


def test_a_directory_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be made: No such file or directory"):
        SQLiteStore(tmp_path / "nowhere" / "agent.db", SCOPE, NOW)


def test_a_directory_in_the_place_of_the_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "agent.db").mkdir()
    with pytest.raises(JournalError, match="cannot be opened"):
        SQLiteStore(tmp_path / "agent.db", SCOPE, NOW)


def test_something_else_in_the_place_of_the_lock_is_a_clear_error(path: Path) -> None:
    path.with_name("agent.db-lock").write_bytes(b"a letter to my aunt " * 1000)
    with pytest.raises(JournalError, match="not an SQLite database"):
        SQLiteStore(path, SCOPE, NOW)


def test_a_file_that_is_something_else_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="an SQLite database, but not a journal"):
        SQLiteStore(path, SCOPE, NOW)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    with open_store(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match=r"newer version of trio-agentmail \(schema 99; this one knows 1\)"):
        SQLiteStore(path, SCOPE, NOW)
    with pytest.raises(JournalError, match="newer version"):
        read_journal(path)


def test_an_older_schema_is_brought_up_to_date_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    monkeypatch.setattr(
        file_module, "MIGRATIONS", (*file_module.MIGRATIONS, ("ALTER TABLE events ADD COLUMN colour TEXT",))
    )
    with open_store(path) as store:
        assert store._connection.execute("SELECT colour FROM events").fetchall() == [(None,)]
        assert store._connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            file_module,
            "MIGRATIONS",
            (*file_module.MIGRATIONS, ("ALTER TABLE events ADD COLUMN colour TEXT", "no SQL")),
        )
        with pytest.raises(JournalError):
            SQLiteStore(path, SCOPE, NOW)
    with open_store(path) as store:
        assert pending(store) == [1]


def test_a_damaged_file_is_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        add(store, *range(1, 200), text=b"x" * 3000)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
    path.write_bytes(data)
    with pytest.raises(JournalError, match="is damaged"):
        SQLiteStore(path, SCOPE, NOW)


def test_damage_that_only_the_check_finds_is_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        add(store, *range(1, 200), text=b"x" * 3000)
        [[page]] = store._connection.execute("SELECT max(rootpage) FROM sqlite_schema").fetchall()
    data = bytearray(path.read_bytes())
    end = (page - 1) * 4096
    data[end + 3 : end + 5] = b"\x00\x01"  # how many cells the page has
    path.write_bytes(data)
    with pytest.raises(JournalError, match="is damaged"):
        SQLiteStore(path, SCOPE, NOW)


def test_a_full_disk_is_a_clear_error_and_leaves_what_was_written_before(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 5}")
        with pytest.raises(JournalError, match="the disk is full"):
            add(store, *range(3, 100), text=b"x" * 3000)
    with open_store(path) as store:
        assert pending(store) == [1, 2]


def test_a_journal_that_another_program_has_locked_is_a_clear_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "BUSY_TIMEOUT", 0.01)
    with open_store(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="locked by another program"):
            add(store, 1)
        other.execute("ROLLBACK")
        add(store, 1)
        assert pending(store) == [1]


def test_a_read_only_journal_is_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalError, match="read-only"):
            add(store, 1)


def test_an_error_without_a_code_is_one_of_the_journal_too(path: Path) -> None:
    store = SQLiteStore(path, SCOPE, NOW)
    store.close()
    with pytest.raises(JournalError, match="cannot be used"):
        store.pending()


# Events


def test_the_same_event_is_written_once_whether_it_is_handled_or_not(path: Path) -> None:
    with open_store(path) as store:
        assert store.apply([partial(store.add, 1, row(1)), partial(store.add, 2, row(1))]) == [True, False]
        store.apply([partial(store.ack, 1, NOW)])
        assert store.apply([partial(store.add, 3, row(1))]) == [False]
        assert store.apply([partial(store.add, 3, row(1, kind="message.received.spam"))]) == [True]
        assert pending(store) == [3]


def test_keys_keep_their_type(path: Path) -> None:
    with open_store(path) as store:
        numbers: dict[str | bytes, int] = {"text": 1, b"text": 2}
        for key, number in numbers.items():
            new = NewRow(
                kind="", key=key, created=None, recorded_at=NOW, origin="live", event_type="message.sent", text=b"{}"
            )
            assert store.apply([partial(store.add, number, new)]) == [True]
        assert {row.key: row.id for row in store.pending()} == numbers
        assert [kept.key for kept in store.kept().identities] == ["text", b"text"]


def test_the_text_of_a_handled_event_is_deleted_and_its_identity_kept(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        store.apply([partial(store.ack, 1, NOW)])
        store.apply([partial(store.ack, 1, NOW)])
        assert store.texts([1, 2], 1000) == {2: b"{}"}
        assert [kept.key for kept in store.kept().identities] == ["key 1", "key 2"]


def test_texts_are_read_up_to_a_limit_but_at_least_one(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, 3, text=b"x" * 100)
        assert list(store.texts([3, 1, 2], 1)) == [3]
        assert list(store.texts([3, 1, 2], 101)) == [3, 1]
        assert list(store.texts([3, 1, 2], 1000)) == [3, 1, 2]


def test_an_attempt_is_begun_taken_back_failed_and_ends_as_a_dead_letter(path: Path) -> None:
    def state() -> tuple[int, bool]:
        [row] = store.pending()
        return row.attempts, row.under_way

    with open_store(path) as store:
        add(store, 1)
        store.apply([partial(store.begin_attempt, 1)])
        assert state() == (1, True)
        store.apply([partial(store.take_attempt_back, 1)])
        store.apply([partial(store.take_attempt_back, 1)])
        assert state() == (0, False)
        store.apply([partial(store.begin_attempt, 1), partial(store.fail, 1, "ValueError: no")])
        assert state() == (1, False)
        store.apply([partial(store.begin_attempt, 1), partial(store.bury, 1, "ValueError: still no", NOW)])
        assert pending(store) == []
        [dead] = store.dead()
        assert (dead.id, dead.attempts, dead.error, dead.ended_at, dead.text) == (
            1,
            2,
            "ValueError: still no",
            NOW,
            b"{}",
        )
        store.apply([partial(store.ack, 1, NOW), partial(store.begin_attempt, 1), partial(store.fail, 1, "late")])
        assert [row.error for row in store.dead()] == ["ValueError: still no"]


def test_a_dead_letter_is_requeued_or_dropped_once(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        store.apply([partial(store.bury, 1, "", NOW), partial(store.bury, 2, "", NOW)])
        assert [row.id if row else None for row in store.apply([partial(store.requeue, 1)] * 2)] == [1, None]
        assert store.apply([partial(store.drop, 2, NOW)] * 2) == [True, False]
        assert [(row.id, row.attempts) for row in store.pending()] == [(1, 0)]
        assert store.dead() == []
        assert store.texts([1, 2], 1000) == {1: b"{}"}


def test_what_recovery_has_to_know_is_kept(path: Path) -> None:
    with open_store(path) as store:
        assert (store.kept().state, store.kept().forgotten_until) == (b"", -math.inf)
        store.apply([partial(store.keep, b"high-water marks", None)])
    with open_store(path) as store:
        assert store.kept().state == b"high-water marks"
        store.apply([partial(store.keep, None, "elsewhere")])
        assert store.kept().state == b"high-water marks"


# What is forgotten, and room that is given back


def test_of_handled_mails_and_others_the_newest_are_remembered_and_the_rest_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEPT_HANDLED", 3)
    monkeypatch.setattr(store_module, "PRUNE_EVERY", 5)
    with open_store(path) as store:
        mails = [row(number, created=NOW + number) for number in range(1, 6)]
        mails[1] = row(2, created=None)
        store.apply([partial(store.add, number, mail) for number, mail in enumerate(mails, 1)])
        add(store, *range(6, 11), kind="")
        add(store, 11)
        add(store, 12, kind="")
        store.apply([partial(store.bury, 11, "", NOW)])
        store.apply([partial(store.ack, number, NOW) for number in range(1, 5)])
        assert len(list(store.kept().identities)) == 3 + 3
        store.apply([partial(store.ack, number, NOW) for number in range(5, 11)])
        assert store._connection.execute("SELECT id FROM events ORDER BY id").fetchall() == [
            (id,) for id in (3, 4, 5, 8, 9, 10, 11, 12)
        ]
        assert store.kept().forgotten_until == NOW + 1
        assert [kept.key for kept in store.kept().identities] == [f"key {n}" for n in (4, 5, 9, 10, 11, 12)]
        add(store, 13)
        assert pending(store) == [12, 13]


def test_what_was_handled_long_ago_is_forgotten_at_the_next_start(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        store.apply([partial(store.ack, 1, NOW)])
    with open_store(path, now=NOW + 29 * 86400) as store:
        assert len(list(store.kept().identities)) == 2
    with open_store(path, now=NOW + 31 * 86400) as store:
        assert [kept.key for kept in store.kept().identities] == ["key 2"]
        assert store.kept().forgotten_until == NOW
    with open_store(path, now=NOW + 62 * 86400) as store:
        assert store.kept().forgotten_until == NOW


def test_after_a_burst_the_file_shrinks_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SPARE_PAGES", 100)
    with open_store(path) as store:
        add(store, *range(1, 2001), text=b"x" * 3000)
        for first in range(1, 2001, 50):
            store.apply([partial(store.ack, number, NOW) for number in range(first, first + 50)])
    assert path.stat().st_size < 1_000_000


# Readers


def test_a_journal_is_read_while_it_is_open_and_when_it_is_not(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, 3)
        store.apply([partial(store.bury, 2, "ValueError: no", NOW)])
        pending, [dead] = read_journal(path)
        assert (pending, dead.id, dead.error) == (2, 2, "ValueError: no")
        add(store, 4)
        assert read_journal(path)[0] == 3
    assert read_journal(path)[0] == 3


def test_reading_makes_no_file(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened"):
        read_journal(path)
    assert not path.exists()
