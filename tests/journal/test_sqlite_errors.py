"""Errors of the SQLite store say what is the matter."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sqlite_stores import SCOPE, add, open_store, pending
from trio_agentmail import JournalError
from trio_agentmail._journal import sqlite_file, sqlite_schema
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal


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
