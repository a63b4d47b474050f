"""The SQLite store: whole transactions or none, one owner, and errors that say what is the matter."""

import errno
import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.journals import Call, fail, inline
from trio_agentmail import JournalError, JournalInUseError, JournalMismatchError, Message, MessageReceivedEvent
from trio_agentmail._codec import encode_object
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import digest, identity
from trio_agentmail._journal import sqlite_file, sqlite_rows, sqlite_schema, sqlite_store
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import (
    Ack,
    Add,
    BeginAttempt,
    Bury,
    DeadRecord,
    Drop,
    Fail,
    Keep,
    NewRecord,
    PendingRecord,
    Requeue,
    TakeBackAttempt,
)
from trio_agentmail._recovery.progress import decode_progress
from trio_agentmail._recovery.source import Target

NOW = 1_800_000_000.0
SCOPE = "here, everything"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@contextmanager
def open_store(path: Path, scope: str | None = SCOPE) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, scope)
    try:
        yield store
    finally:
        store.close()


def key(number: int) -> bytes:
    return f"key {number}".encode()


def row(number: int, text: bytes = b"{}", recorded_at: float = NOW, push: int = 0) -> NewRecord:
    return NewRecord(
        identity=KeptIdentity(key(number), recorded_at, push),
        origin="live",
        event_type="message.received",
        text=text,
    )


def add(store: SQLiteStore, *numbers: int, text: bytes = b"{}") -> None:
    store.apply([Add(number, row(number, text)) for number in numbers])


def keep(
    store: SQLiteStore,
    state: bytes | None = None,
    *,
    scope: str | None = None,
    also: str | None = None,
    forgotten_until: float = -math.inf,
) -> None:
    store.apply([Keep(state, scope, also, forgotten_until)])


def identities(store: SQLiteStore) -> list[KeptIdentity]:
    """All identities in the store."""
    return [known for batch in batches(store) for known in batch]


def batches(store: SQLiteStore) -> list[Sequence[KeptIdentity]]:
    async def read() -> list[Sequence[KeptIdentity]]:
        return [batch async for batch in store.kept(inline).identities]

    return trio.run(read)


def keys(store: SQLiteStore) -> list[bytes]:
    return sorted(known.key for known in identities(store))


def state_of(store: SQLiteStore) -> tuple[bytes, float]:
    kept = store.kept(inline)
    return kept.state, kept.forgotten_until


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


# Errors


def test_a_directory_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError) as caught:
        SQLiteStore(tmp_path / "nowhere" / "agent.db", SCOPE)
    path, directory = tmp_path / "nowhere" / "agent.db", tmp_path / "nowhere"
    assert str(caught.value) == (
        f"the journal {path} cannot be created or opened: the directory {directory} does not exist; create it first"
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "exists"])
def test_a_directory_that_cannot_be_written_to_is_named_and_not_the_lock(
    code: int, exists: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, since root may run the tests, and no directory is read-only for root."""

    def refuse(file: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and not Path(file).exists():
            raise OSError(code, os.strerror(code), str(file))
        return real_open(file, flags, mode)

    real_open = os.open
    if exists:
        SQLiteStore(path, SCOPE).close()
        path.with_name(path.name + "-lock").unlink()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JournalError) as caught:
        SQLiteStore(path, SCOPE)
    assert str(caught.value) == (
        f"the journal {path} cannot be created or opened: the directory {path.parent} cannot be written to, and a "
        "journal needs files beside its own"
    )


def test_a_file_that_may_not_be_read_or_written_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, like read-only directories."""
    SQLiteStore(path, SCOPE).close()
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file) != path)
    with pytest.raises(JournalError) as caught:
        SQLiteStore(path, SCOPE)
    assert str(caught.value) == f"the journal {path} cannot be opened: this user may not read and write {path}"


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"file/agent\.db cannot be created or opened: .*/file is not a directory"):
        SQLiteStore(tmp_path / "file" / "agent.db", SCOPE)


def test_any_other_reason_is_the_text_of_the_operating_system(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=os.strerror(errno.ENAMETOOLONG)):
        SQLiteStore(tmp_path / ("a" * 300), SCOPE)


def test_a_directory_in_the_place_of_the_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "agent.db").mkdir()
    with pytest.raises(JournalError, match="cannot be opened"):
        SQLiteStore(tmp_path / "agent.db", SCOPE)


def test_something_else_in_the_place_of_the_lock_is_a_clear_error(path: Path) -> None:
    path.with_name("agent.db-lock").write_bytes(b"a letter to my aunt " * 1000)
    with pytest.raises(JournalError, match="not an SQLite database"):
        SQLiteStore(path, SCOPE)


def test_a_file_that_is_something_else_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="an SQLite database, but not a journal"):
        SQLiteStore(path, SCOPE)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    with open_store(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match=r"newer version of trio-agentmail \(schema 99; this one knows 2\)"):
        SQLiteStore(path, SCOPE)
    with pytest.raises(JournalError, match="newer version"):
        read_journal(path)


def test_an_older_schema_is_brought_up_to_date_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    monkeypatch.setattr(
        sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, ("ALTER TABLE events ADD COLUMN colour TEXT",))
    )
    with open_store(path) as store:
        assert store._connection.execute("SELECT colour FROM events").fetchall() == [(None,)]
        assert store._connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite_schema,
            "MIGRATIONS",
            (*sqlite_schema.MIGRATIONS, ("ALTER TABLE events ADD COLUMN colour TEXT", "no SQL")),
        )
        with pytest.raises(JournalError):
            SQLiteStore(path, SCOPE)
    with open_store(path) as store:
        assert pending(store) == [1]


def test_a_damaged_file_is_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        add(store, *range(1, 200), text=b"x" * 3000)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
    path.write_bytes(data)
    with pytest.raises(JournalError, match="is damaged"):
        SQLiteStore(path, SCOPE)


def test_damage_that_only_the_check_finds_is_a_clear_error(path: Path) -> None:
    with open_store(path) as store:
        add(store, *range(1, 200), text=b"x" * 3000)
        [[page]] = store._connection.execute("SELECT max(rootpage) FROM sqlite_schema").fetchall()
    data = bytearray(path.read_bytes())
    end = (page - 1) * 4096
    data[end + 3 : end + 5] = b"\x00\x01"  # how many cells the page has
    path.write_bytes(data)
    with pytest.raises(JournalError, match="is damaged"):
        SQLiteStore(path, SCOPE)


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
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.01)
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


def test_an_error_without_a_code_is_a_journal_error_too(path: Path) -> None:
    store = SQLiteStore(path, SCOPE)
    store.close()
    with pytest.raises(JournalError, match="cannot be used"):
        store.pending()


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


# Schema 1

FIRST_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE journal (scope TEXT NOT NULL, state BLOB NOT NULL, forgotten_until REAL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key NOT NULL,
    created REAL,
    recorded_at REAL NOT NULL,
    origin TEXT NOT NULL,
    event_type TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'handled', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    under_way INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    ended_at REAL,
    UNIQUE (kind, key)
);
CREATE INDEX unhandled ON events (state, id) WHERE state != 'handled';
CREATE TABLE texts (id INTEGER PRIMARY KEY, text BLOB NOT NULL);
PRAGMA application_id = 1097289066;
PRAGMA user_version = 1;
"""

RECEIVED, SPAM = "message.received", "message.received.spam"


def first_key(message_id: str) -> str:
    return f"agent@agentmail.to\0<{message_id}@example.com>"


def new_key(message_id: str, event_type: str = RECEIVED) -> bytes:
    event = MessageReceivedEvent(
        event_type=event_type,
        message=Message(inbox_id="agent@agentmail.to", message_id=f"<{message_id}@example.com>"),
    )
    known = identity(event)
    assert known is not None
    return known


@contextmanager
def first_journal(path: Path, scope: str = SCOPE, state: bytes = b"", floor: float | None = None) -> Iterator[Any]:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_SCHEMA)
        connection.execute("INSERT INTO journal VALUES (?, ?, ?)", (scope, state, floor))
        yield connection
        connection.commit()


def test_a_journal_of_schema_1_is_migrated_with_all_that_it_contains(path: Path) -> None:
    at = NOW - 1000
    long_id = "x" * 300
    with first_journal(path) as connection:
        rows: list[tuple[Any, ...]] = [
            # id, kind, key, created, recorded_at, origin, event_type, state, attempts, under_way, error, ended_at
            (1, RECEIVED, first_key("handled"), at - 50, at, "live", RECEIVED, "handled", 1, 0, None, NOW),
            (2, SPAM, first_key("pending"), at - 49, at + 1, "recovered", SPAM, "pending", 0, 0, None, None),
            (3, RECEIVED, digest(first_key(long_id)), at - 48, at + 2, "live", RECEIVED, "dead", 5, 0, "no", NOW + 9),
            (4, "", "event 4", None, at + 3, "live", "message.sent", "handled", 0, 0, None, NOW),
            (5, "", digest("no JSON"), None, at + 4, "live", "an unknown event", "pending", 0, 0, None, None),
            (7, RECEIVED, first_key("suspect"), at - 45, at + 5, "live", RECEIVED, "pending", 2, 1, "once", None),
            (8, RECEIVED, first_key("pending"), at - 44, at + 6, "live", RECEIVED, "handled", 0, 0, None, NOW),
            (9, "", digest("y" * 300), None, at + 7, "live", "message.sent", "handled", 0, 0, None, NOW),
        ]
        connection.executemany(f"INSERT INTO events VALUES ({', '.join('?' * 12)})", rows)
        texts = [(2, b"two"), (3, b"three \xff"), (5, b"no JSON"), (7, b"seven")]
        connection.executemany("INSERT INTO texts VALUES (?, ?)", texts)
    for _ in range(2):
        with open_store(path) as store:
            assert identities(store) == [
                KeptIdentity(new_key("handled"), at, 0),
                KeptIdentity(new_key("pending", SPAM), at + 1, 0),
                KeptIdentity(new_key(long_id), at + 2, 0),
                KeptIdentity(digest("event 4"), at + 3, 0),
                KeptIdentity(digest("no JSON"), at + 4, 0),
                KeptIdentity(new_key("suspect"), at + 5, 0),
                KeptIdentity(new_key("pending"), at + 6, 0),
                KeptIdentity(digest("y" * 300), at + 7, 0),
            ]
            assert store.pending() == [
                PendingRecord(2, new_key("pending", SPAM), 0, False, "recovered", SPAM),
                PendingRecord(5, digest("no JSON"), 0, False, "live", "an unknown event"),
                PendingRecord(7, new_key("suspect"), 2, True, "live", RECEIVED),
            ]
            assert store.dead_letters() == [DeadRecord(3, 5, "no", NOW + 9, "live", b"three \xff")]
            assert store.texts(range(1, 10), 1000) == dict(texts)
            assert store.last_id() == 9  # that event was handled
            assert state_of(store) == (b"", -math.inf)
            assert store._connection.execute("PRAGMA user_version").fetchone() == (2,)
            assert store._connection.execute("SELECT id FROM events ORDER BY id").fetchall() == [(2,), (3,), (5,), (7,)]
    assert read_journal(path)[0] == 3
    with open_store(path) as store:
        store.apply([Ack(number) for number in (2, 5, 7)])
        store.apply([Drop(3)])
        add(store, 10)
        assert (pending(store), store.dead_letters(), store.last_id()) == ([10], [], 10)
    with pytest.raises(JournalMismatchError, match="belongs to here"):
        SQLiteStore(path, "elsewhere")


def test_events_in_a_journal_of_schema_1_are_not_delivered_again_as_new(path: Path) -> None:
    with first_journal(path) as connection:
        for id, kind in ((1, RECEIVED), (2, SPAM)):
            connection.execute(
                "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
                " VALUES (?, ?, ?, ?, ?, 'live', ?, 'handled')",
                (id, kind, first_key(str(id)), NOW, NOW, kind),
            )
    delivered = Delivered(lambda: NOW, keep=3600)
    with open_store(path) as store:
        delivered.load(identities(store))
    for number in (1, 2):
        for event_type in (RECEIVED, SPAM):
            mail = Message(inbox_id="agent@agentmail.to", message_id=f"<{number}@example.com>")
            assert not delivered.claim(MessageReceivedEvent(event_type=event_type, message=mail))


def test_a_mail_without_a_time_in_schema_1_is_as_old_as_its_recording(path: Path) -> None:
    with first_journal(path) as connection:
        connection.execute(
            "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
            " VALUES (1, ?, ?, NULL, ?, 'live', ?, 'handled')",
            (RECEIVED, first_key("1"), NOW - 5, RECEIVED),
        )
    with open_store(path) as store:
        [known] = identities(store)
        assert known == KeptIdentity(new_key("1"), NOW - 5, -1)


def test_no_identity_in_schema_1_is_older_than_its_mail(path: Path) -> None:
    # AgentMail's clock was ahead. Identities are forgotten by it, and a listing has all mail that was created later.
    with first_journal(path) as connection:
        connection.execute(
            "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
            " VALUES (1, ?, ?, ?, ?, 'live', ?, 'handled')",
            (RECEIVED, first_key("1"), NOW + 90, NOW, RECEIVED),
        )
    with open_store(path) as store:
        keep(store, forgotten_until=NOW + 60)
        assert identities(store) == [KeptIdentity(new_key("1"), NOW + 90, 0)]


def test_the_state_of_recovery_in_schema_1_is_migrated(path: Path) -> None:
    kept = {
        "targets": [
            ["a@agentmail.to", None, {RECEIVED: NOW - 500}, NOW - 100, NOW - 200],
            [None, "pod", {RECEIVED: NOW - 500, SPAM: NOW - 50}, NOW - 300, NOW - 400],
            [None, None, {}, NOW, NOW],
        ],
        "source": {"threads": {"a": 1}},
    }
    with first_journal(path, state=encode_object(kept), floor=NOW - 1000):
        pass
    with open_store(path) as store:
        state, forgotten_until = state_of(store)
    assert NOW - 1000 <= forgotten_until < NOW - 999
    decoded = decode_progress(state)
    assert decoded is not None
    progress, clock_is_known, source = decoded
    assert clock_is_known
    assert source == {"threads": {"a": 1}}
    assert {
        target: (its.wanted, its.gap, its.complete_until, its.swept_until, its.gap_scan, its.sweep)
        for target, its in progress.items()
    } == {
        Target("a@agentmail.to", None): ({RECEIVED: NOW - 500}, NOW - 100, NOW - 100, NOW - 200, None, None),
        Target(None, "pod"): ({RECEIVED: NOW - 500, SPAM: NOW - 50}, NOW - 300, NOW - 300, NOW - 400, None, None),
        Target(None, None): ({}, NOW, NOW, NOW, None, None),
    }


def test_an_empty_journal_of_schema_1_is_like_a_new_one(path: Path) -> None:
    with first_journal(path):
        pass
    with open_store(path) as store:
        assert (store.last_id(), identities(store), state_of(store)) == (0, [], (b"", -math.inf))
        add(store, 1)
        store.apply([Ack(1)])
    with open_store(path) as store:
        assert store.last_id() == 1


def test_a_journal_of_schema_1_with_a_damaged_state_is_left_as_it_was(path: Path) -> None:
    with first_journal(path, state=b'{"targets": 7}'):
        pass
    for _ in range(2):
        with pytest.raises(JournalError):
            SQLiteStore(path, SCOPE)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT state FROM journal").fetchone() == (b'{"targets": 7}',)


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


# Readers


def test_a_journal_is_read_while_it_is_open_and_when_it_is_not(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1, 2, 3)
        store.apply([Bury(2, "ValueError: no", NOW)])
        pending, [dead] = read_journal(path)
        assert (pending, dead.id, dead.error) == (2, 2, "ValueError: no")
        add(store, 4)
        assert read_journal(path)[0] == 3
    assert read_journal(path)[0] == 3


def test_reading_creates_no_file(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened"):
        read_journal(path)
    assert not path.exists()
