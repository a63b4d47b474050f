"""The files of a journal, and what other processes do with them."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.sqlite_stores import NOW, SCOPE, add
from trio_agentmail import JournalError
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import Bury

SUFFIXES = ("", "-wal", "-shm", "-lock")
ROOT = Path(__file__).parents[2]

posix = pytest.mark.skipif(os.name == "nt", reason="an open file can be removed and renamed on POSIX only")


def files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in SUFFIXES]


def command_of(*arguments: object) -> list[str]:
    """Return the command that calls a function of this module in another process; see `main`."""
    return [sys.executable, "-m", __name__, *map(str, arguments)]


def child(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Call a function of this module in another process; see `main`."""
    return subprocess.run(command_of(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60)


def remove(suffix: str, path: Path) -> None:
    Path(f"{path}{suffix}").unlink()


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


def main(what: str, path: Path, *arguments: str) -> None:
    """Call the function of this name, in which spaces stand for underscores."""
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
    """Copy our own files, read the journal with the command line, go on writing, and exit without closing."""
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
