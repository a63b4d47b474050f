"""When other programs change the files of an open journal, no commit is confirmed that a restart would not find."""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.journal_process import SUFFIXES, child, files, posix, remove
from tests.helpers.journals import Call, fail, inline, mail, nothing_for, opened, take
from tests.helpers.sqlite_stores import SCOPE, add, open_store, pending, row
from trio_agentmail import JournalError
from trio_agentmail._journal import file_watch, sqlite_file
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import Ack, Add


def wait_for_another_mtime() -> None:
    """Wait until a write changes the time of a file, which has the resolution of the kernel's tick."""
    time.sleep(0.03)


# Files that are removed, renamed or replaced

Move: TypeAlias = Callable[[Path], object]


def remove_all(path: Path) -> None:
    for file in files(path):
        file.unlink()


def rename(suffix: str, path: Path) -> None:
    Path(f"{path}{suffix}").rename(f"{path}{suffix}.old")


def replace_by_a_copy(suffix: str, path: Path) -> None:
    shutil.copy2(f"{path}{suffix}", f"{path}.copy")
    os.replace(f"{path}.copy", f"{path}{suffix}")


def replace_by_a_new_journal(path: Path) -> None:
    with open_store(path.with_name("other.db")):
        pass
    os.replace(path.with_name("other.db"), path)


def replace_by_a_link_to_itself(path: Path) -> None:
    path.rename(f"{path}.moved")
    path.symlink_to(f"{path}.moved")


def rename_the_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("there"))


def remove_the_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_the_directory_by_a_copy(path: Path) -> None:
    rename_the_directory(path)
    shutil.copytree(path.parent.with_name("there"), path.parent)


def replace_the_directory_by_a_file(path: Path) -> None:
    rename_the_directory(path)
    path.parent.touch()


MOVED: dict[str, Move] = {
    **{f"remove {suffix or 'database'}": partial(remove, suffix) for suffix in SUFFIXES},
    **{f"rename {suffix or 'database'}": partial(rename, suffix) for suffix in SUFFIXES},
    **{f"replace {suffix or 'database'}": partial(replace_by_a_copy, suffix) for suffix in SUFFIXES},
    **{
        function.__name__.replace("_", " "): function
        for function in (
            remove_all,
            replace_by_a_new_journal,
            replace_by_a_link_to_itself,
            rename_the_directory,
            remove_the_directory,
            replace_the_directory_by_a_copy,
            replace_the_directory_by_a_file,
        )
    },
}


@posix
@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED.keys())
def test_when_a_file_is_removed_renamed_or_replaced_nothing_more_is_confirmed(path: Path, move: Move) -> None:
    with open_store(path) as store:
        add(store, 1)
        move(path)
        for number in (2, 3):
            with pytest.raises(JournalError, match=r"removed, renamed or replaced while it was open \(.*agent\.db"):
                add(store, number)
        assert pending(store) == [1]  # it is not written either


@posix
@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED.keys())
def test_a_commit_into_a_file_without_a_name_is_not_confirmed(path: Path, move: Move) -> None:
    with open_store(path) as store:
        with pytest.raises(JournalError, match="removed, renamed or replaced"):
            store.apply([Call(partial(move, path))])


@posix
async def test_when_the_journal_is_removed_the_ack_fails_and_so_does_the_stream(path: Path) -> None:
    with pytest.raises(JournalError, match="removed, renamed or replaced"):
        async with opened(path) as journal:
            await journal.record(mail(1))
            [event] = await take(journal, 1)
            remove_all(path)
            with pytest.raises(JournalError, match="removed, renamed or replaced"):
                await journal.ack(event)
            with pytest.raises(JournalError, match="removed, renamed or replaced"):
                await journal.record(mail(2))


@posix
async def test_an_idle_journal_that_is_removed_raises_within_a_minute(path: Path, autojump_clock: MockClock) -> None:
    with pytest.raises(JournalError, match="removed, renamed or replaced"):
        async with opened(path) as journal:
            assert await nothing_for(journal, 200)
            remove_all(path)
            before = trio.current_time()
            with pytest.raises(JournalError, match="removed, renamed or replaced"):
                await journal.next()
            assert trio.current_time() - before <= 60


@posix
async def test_leaving_raises_if_the_files_were_removed_since_the_last_write(path: Path) -> None:
    with pytest.raises(JournalError, match="removed, renamed or replaced"):
        async with opened(path) as journal:
            await journal.record(mail(1))
            await take(journal, 1)
            remove_all(path)


@posix
def test_a_directory_that_was_renamed_has_all_that_was_confirmed(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
        rename_the_directory(path)
        with pytest.raises(JournalError):
            add(store, 2)
    with open_store(path.parent.with_name("there") / "agent.db") as store:
        assert pending(store) == [1]


@posix
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-lock"])
def test_after_the_loss_of_a_file_beside_it_the_journal_has_all_that_was_confirmed(path: Path, suffix: str) -> None:
    with open_store(path) as store:
        add(store, 1)
        remove(suffix, path)
        with pytest.raises(JournalError):
            add(store, 2)
    with open_store(path) as store:
        assert pending(store) == [1]


@posix
def test_an_owner_whose_files_were_removed_does_no_harm_to_the_next_owner(path: Path) -> None:
    first = SQLiteStore(path, SCOPE)
    add(first, 1)
    remove_all(path)
    with open_store(path) as second:
        add(second, 2)
        with pytest.raises(JournalError):
            add(first, 3)
        first.close()
        add(second, 4)
    with open_store(path) as second:
        assert pending(second) == [2, 4]


# Files that another program writes to


@posix
@pytest.mark.parametrize("change", ["restore", "truncate the log", "write with sqlite", "checkpoint"])
def test_when_another_program_writes_to_the_files_nothing_more_is_confirmed(path: Path, change: str) -> None:
    with open_store(path) as store:
        add(store, 1)
    shutil.copyfile(path, f"{path}.backup")
    with open_store(path) as store:
        add(store, 2)
        wait_for_another_mtime()
        changed = child(change, path)  # closing a file in this process would drop its locks
        assert changed.returncode == 0, changed.stderr
        for number in (3, 4):
            with pytest.raises(JournalError, match=r"another program has written to .*agent\.db"):
                add(store, number)


def test_our_own_writes_are_never_taken_for_those_of_another_program(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOG_LIMIT", 2**20)
    big = b"x" * 8 * 2**20  # more than SQLite keeps in memory, so that it goes to the log before the commit
    with open_store(path) as store:
        # There are checkpoints, a log that starts over, returned pages and failed transactions.
        for first in range(1, 3001, 100):
            add(store, *range(first, first + 100), text=b"x" * 3000)
            with pytest.raises(ZeroDivisionError):
                store.apply([Add(10**6, row(10**6, text=big)), Call(fail)])
            store.apply([Ack(number) for number in range(first, first + 100)])
            wait_for_another_mtime()
            read_journal(path)
            store.kept(inline)
            assert pending(store) == []


def test_a_backup_by_sqlite_in_the_same_process_or_another_disturbs_nothing(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with open_store(path) as store:
        add(store, 1)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        add(store, 2)
        wait_for_another_mtime()
        into = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('VACUUM INTO ?', sys.argv[2:])"
        subprocess.run([sys.executable, "-c", into, path, tmp_path / "copy2.db"], check=True)
        add(store, 3)
    assert (read_journal(copy)[0], read_journal(tmp_path / "copy2.db")[0], read_journal(path)[0]) == (1, 2, 3)


# The write-ahead log


def test_a_log_that_a_reader_keeps_growing_is_one_warning_until_it_is_small_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_file, "LOG_LIMIT", 2**20)
    monkeypatch.setattr(file_watch, "LONG_LOG", 8 * 2**20)
    numbers = iter(range(1, 10**6))

    def write() -> None:
        for _ in range(30):
            add(store, next(numbers), text=b"x" * 2**19)

    with open_store(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        write()
        assert caplog.messages == []
        for times in (1, 2):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM events").fetchone()
            write()
            assert len(caplog.messages) == times
            assert caplog.messages[-1].startswith(f"the write-ahead log of the journal {path} has grown to 8 MiB")
            reader.execute("ROLLBACK")
            write()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
