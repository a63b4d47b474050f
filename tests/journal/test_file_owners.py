"""A journal has one consumer, and its files belong to their owner alone."""

import errno
import logging
import os
import shutil
import sqlite3
import stat
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.journal_process import SUFFIXES, child, files, posix, remove
from tests.helpers.sqlite_stores import SCOPE, add, open_store, pending
from trio_agentmail import JournalError, JournalInUseError, SQLiteJournal
from trio_agentmail._journal import file_lock, sqlite_file
from trio_agentmail._journal.file_lock import FileLock
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal

linux = pytest.mark.skipif(sys.platform != "linux", reason="open file description locks are Linux's")


# A file with a second name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_with_two_names_is_refused_by_either(path: Path, suffix: str) -> None:
    with open_store(path):
        for file in files(path)[1:3]:
            shutil.copyfile(file, f"{file}.kept")
    for file in files(path)[1:3]:
        os.replace(f"{file}.kept", file)
    names = [path, path.with_name("other.db")]
    os.link(f"{path}{suffix}", f"{names[1]}{suffix}")
    for name in names if not suffix else names[:1]:
        for function in (partial(SQLiteStore, name, SCOPE), partial(read_journal, name)):
            with pytest.raises(JournalError, match="has 2 names"):
                function()
    os.unlink(f"{names[1]}{suffix}")
    with open_store(path):
        pass


def test_a_second_name_that_is_made_later_admits_no_consumer_and_is_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = path.with_name("other.db")
    with open_store(path) as store:
        for first in (1, 3):
            os.link(path, other)
            with pytest.raises(JournalError, match="has 2 names"):
                SQLiteStore(other, SCOPE)
            add(store, first)
            add(store, first + 1)
            assert len(caplog.messages) == (1 if first == 1 else 2)
            assert "a second name (a hard link)" in caplog.text
            other.unlink()
            add(store, first + 10)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.skipif(os.name == "nt", reason="Windows has symbolic links for some users only")
def test_a_symbolic_link_leads_to_the_same_journal_and_the_lock_may_not_be_one(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    assert repr(SQLiteJournal(link)) == repr(SQLiteJournal(path))
    path.with_name("agent.db-lock").symlink_to("elsewhere")
    with pytest.raises(JournalError, match=r"agent\.db-lock is a symbolic link"):
        SQLiteStore(path, SCOPE)
    assert sorted(file.name for file in path.parent.iterdir()) == ["agent.db-lock", "link.db"]


# A second consumer


@linux
@pytest.mark.parametrize("where", ["this process", "another process"])
def test_a_second_consumer_is_refused_even_without_the_lock_file(path: Path, where: str) -> None:
    with open_store(path) as store:
        add(store, 1)
        remove("-lock", path)
        if where == "this process":
            with pytest.raises(JournalInUseError):
                SQLiteStore(path, SCOPE)
        else:
            assert child("open it", path).stdout == "JournalInUseError\n"
        with pytest.raises(JournalError, match="removed, renamed or replaced"):
            add(store, 2)
    assert child("open it", path).stdout == "opened\n"


@linux
def test_a_process_that_copies_its_own_files_keeps_its_lock(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        shutil.copytree(path.parent, tmp_path / "backup")  # closing the files drops all POSIX locks of this process
        for _ in range(2):
            assert child("open it", path).stdout == "JournalInUseError\n"
        add(store, 1)


@posix
@pytest.mark.parametrize("copied", [("",), SUFFIXES], ids=str)
def test_nothing_confirmed_is_lost_if_another_program_deletes_the_log(path: Path, copied: tuple[str, ...]) -> None:
    with open_store(path) as store:
        add(store, 1, 2)
        for suffix in copied:
            shutil.copyfile(f"{path}{suffix}", f"{path}{suffix}.backup")
        assert child("read with sqlite", path).stdout == "2\n"
        assert not path.with_name("agent.db-wal").exists()  # otherwise this tests nothing
        assert pending(store) == [1, 2]
        with pytest.raises(JournalError, match="removed, renamed or replaced"):
            add(store, 3)
    with open_store(path) as store:
        assert pending(store) == [1, 2]


@linux
def test_a_forked_child_does_not_keep_the_lock_after_its_parent(path: Path) -> None:
    forked = child("fork", path)
    assert forked.stdout == "opened\n", forked.stderr


@linux
def test_in_a_forked_child_the_descriptors_of_locks_are_closed(path: Path) -> None:
    path.touch()
    lock = FileLock(path)
    lock.acquire()
    descriptor = lock._descriptor
    assert descriptor is not None
    file_lock._close_all()  # what is called in the child
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@linux
def test_without_open_file_description_locks_the_lock_file_is_enough(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fcntl(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("fcntl.fcntl", fcntl)
    with open_store(path):
        with pytest.raises(JournalInUseError):
            SQLiteStore(path, SCOPE)


@linux
def test_a_file_that_may_not_be_written_is_a_clear_error(path: Path) -> None:
    path.mkdir()
    lock = FileLock(path)
    with pytest.raises(JournalError, match="cannot be opened: Is a directory"):
        lock.acquire()
    lock.close()


@posix
def test_a_file_system_without_write_ahead_logs_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite_file._connection
    monkeypatch.setattr(sqlite_file, "_connection", lambda uri, timeout: connection(f"{uri}&vfs=unix-dotfile", timeout))
    with pytest.raises(JournalError, match="cannot have a write-ahead log"):
        SQLiteStore(path, SCOPE)


# Modes of the files


@posix
def test_files_that_existed_become_accessible_to_their_owner_alone(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
        for file in files(path):
            shutil.copyfile(file, path.parent.parent / file.name)
    path = path.parent.parent / path.name  # as after a crash: with a log
    for file in files(path):
        file.chmod(0o666)
    with open_store(path) as store:
        assert {stat.S_IMODE(file.stat().st_mode) for file in files(path)} == {0o600}
        assert pending(store) == [1]


@posix
def test_a_file_that_is_no_journal_keeps_its_mode(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.commit()
    path.chmod(0o664)
    with pytest.raises(JournalError, match="not a journal"):
        SQLiteStore(path, SCOPE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


@posix
@pytest.mark.parametrize("error", [PermissionError("not the owner"), None])
def test_a_mode_that_cannot_be_changed_is_a_warning(
    path: Path, error: OSError | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def chmod(*_: Any) -> None:
        if error is not None:
            raise error

    path.touch(0o600)
    path.chmod(0o640)
    monkeypatch.setattr(os, "chmod", chmod)
    with open_store(path):
        pass
    assert caplog.messages[0] == f"other users may open {path}, which contains mail, and its mode cannot be changed"
