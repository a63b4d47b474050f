"""What other programs do to the files of an open journal: no commit is confirmed that a restart would not find."""

import errno
import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.journals import Call, fail, inline, mail, nothing_for, opened, take
from trio_agentmail import JournalError, JournalInUseError, SQLiteJournal
from trio_agentmail._journal import file_lock, file_watch, sqlite_file
from trio_agentmail._journal import read_only as read_only_module
from trio_agentmail._journal.file_lock import FileLock
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import Ack, Add, Bury

from .test_sqlite_store import NOW, SCOPE, add, open_store, pending, row

SUFFIXES = ("", "-wal", "-shm", "-lock")
ROOT = Path(__file__).parents[2]

posix = pytest.mark.skipif(os.name == "nt", reason="an open file can be removed and renamed on POSIX only")
linux = pytest.mark.skipif(sys.platform != "linux", reason="open file description locks are Linux's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "agent.db"


def files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in SUFFIXES]


def wait_for_another_mtime() -> None:
    """Wait until a write changes the time of a file, which has the resolution of the kernel's tick."""
    time.sleep(0.03)


def child(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Call a function of this module in another process; see `main`."""
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


# What happens to the files while they are open


Move: TypeAlias = Callable[[Path], object]


def remove(suffix: str, path: Path) -> None:
    Path(f"{path}{suffix}").unlink()


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


# Files that another program changes


def restore(path: Path) -> None:
    shutil.copyfile(f"{path}.backup", path)


def truncate_the_log(path: Path) -> None:
    os.truncate(f"{path}-wal", 0)


def write_with_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM events")
        connection.commit()


def checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint")


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


# A second name


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


# Modes


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


# Readers


@pytest.mark.parametrize(
    ("reader", "copied"), [("list", ("",)), ("list", ("-shm",)), ("list", SUFFIXES), ("show", SUFFIXES)], ids=str
)
def test_a_reader_does_no_harm_to_a_consumer_that_has_copied_its_files(
    path: Path, reader: str, copied: tuple[str, ...]
) -> None:
    ended = child("copy and die", path, reader, *copied)
    assert ended.returncode == 9, ended.stderr
    with open_store(path) as store:
        assert pending(store) == [1, 3, 4]
        assert store._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_reader_leaves_no_files_behind(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert read_journal(path) == (1, [])
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@posix
def test_a_reader_of_the_files_of_a_killed_process_changes_nothing_and_sees_all(path: Path) -> None:
    assert child("copy and die", path, "list").returncode == 9
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert "-wal" in "".join(before)
    assert read_journal(path)[0] == 3
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    remove("-shm", path)  # a copy without the index
    assert read_journal(path)[0] == 3


@posix
@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_journal_is_read_from_a_directory_and_file_that_may_only_be_read(state: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.db"
        if state == "closed":
            with open_store(path) as store:
                add(store, 1, 2, 3)
        else:
            child("copy and die", path, "list")
        nobody = ["65534"] if os.geteuid() == 0 else []  # root may write everywhere
        for file in Path(directory).iterdir():
            file.chmod(0o400)
            if nobody:
                os.chown(file, 65534, 65534)
        os.chmod(directory, 0o555)
        try:
            read = child("read", path, *nobody)
            assert read.stdout == "3\n", read.stderr
        finally:
            os.chmod(directory, 0o755)


def test_a_journal_that_is_opened_while_it_is_read_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        add(store, 1)
    read = read_only_module._read
    parameters = []

    def read_while_it_is_opened(path: Path, parameter: str, function: Any) -> Any:
        parameters.append(parameter)
        result = read(path, parameter, function)
        if parameters == ["immutable=1"]:
            consumer.append(SQLiteStore(path, SCOPE))
            add(consumer[0], 2)
        return result

    consumer: list[SQLiteStore] = []
    monkeypatch.setattr(read_only_module, "_read", read_while_it_is_opened)
    assert read_journal(path)[0] == 2
    assert (parameters[0], parameters[-1]) == ("immutable=1", "readonly_shm=1")
    consumer[0].close()


def test_a_reader_is_not_disturbed_by_consumers_that_open_and_close_the_journal(path: Path) -> None:
    with open_store(path) as store:
        add(store, 1)
    command = [sys.executable, "-m", __name__, "read on", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        number = 1
        while reader.poll() is None:
            with open_store(path) as store:
                number += 1
                add(store, number)
        seen = [int(line) for line in reader.stdout]
    assert reader.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert read_journal(path)[0] == number


# In other processes


def main(what: str, path: Path, *arguments: str) -> None:
    function: Callable[..., None] = globals()[what.replace(" ", "_")]
    function(path, *arguments)


def open_it(path: Path) -> None:
    try:
        SQLiteStore(path, SCOPE).close()
    except JournalError as exc:
        print(type(exc).__name__)
    else:
        print("opened")


def fork(path: Path) -> None:
    store = SQLiteStore(path, SCOPE)
    here, there = os.pipe()
    process = os.fork()
    if not process:
        os.write(there, b"!")  # the fork handlers have run
        time.sleep(60)
        os._exit(0)
    os.read(here, 1)
    store.close()
    open_it(path)
    os.kill(process, signal.SIGKILL)


def read(path: Path, user: str | None = None) -> None:
    if user is not None:
        os.setuid(int(user))
    print(read_journal(path)[0])


def read_with_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        print(connection.execute("SELECT count(*) FROM events").fetchone()[0])


def read_on(path: Path) -> None:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        print(read_journal(path)[0], flush=True)


def copy_and_die(path: Path, reader: str, *suffixes: str) -> None:
    """Copy our own files, let the command line read the journal, go on, and die."""
    store = SQLiteStore(path, SCOPE)
    add(store, 1, 2)
    store.apply([Bury(2, "", NOW)])
    for suffix in suffixes:
        shutil.copyfile(f"{path}{suffix}", f"{path}{suffix}.backup")
    arguments = ["journal", reader, str(path), *(["2"] if reader == "show" else [])]
    command = "import sys; from trio_agentmail.cli import main; main()"
    for number in (3, 4):
        subprocess.run([sys.executable, "-c", command, *arguments], check=True, stdout=subprocess.DEVNULL)
        add(store, number)
    os._exit(9)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
