"""Reading a journal that somebody may have open, without touching its files."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from trio_agentmail.errors import JournalError

from .file_watch import check_files, files_of
from .sqlite_file import connect_read_only, errors_explained

__all__ = ["read_only"]

T = TypeVar("T")


def read_only(path: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    """Call a function with a connection to the journal that can only read.

    A connection that may write is a danger to the consumer: the last one that is closed moves the write-ahead log into
    the database and deletes it, and whether it is the last, SQLite knows by locks, which the consumer loses when it
    copies its own file. A connection that only reads never does this. But where there is no log, since nobody has the
    journal open, it would leave an empty one behind, and it needs a directory that can be written to. So such a journal
    is read as what does not change, and if it has changed meanwhile, it is read again.

    Args:
        path: Absolute.
        read: May be called more than once.

    Raises:
        JournalError: it cannot be read, is no journal, or of a newer schema.
    """
    check_files(path)
    _, log, index, _ = files_of(path)
    if not log.exists():
        with suppress(_ChangedError):
            return _read_unused(path, log, read)
    if index.exists():
        with suppress(JournalError):  # the consumer may just have ended
            # Nor is the index written: whoever believes to be the first to open it truncates it. (It is not among the
            # documented parameters; an SQLite without it would ignore it.)
            return _read(path, "readonly_shm=1", read)
    return _read(path, "", read)


class _ChangedError(Exception):
    """A consumer has opened the journal meanwhile."""


def _read_unused(path: Path, log: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    before = _version(path)
    try:
        return _read(path, "immutable=1", read)
    finally:
        if log.exists() or _version(path) != before:
            raise _ChangedError


def _read(path: Path, parameter: str, read: Callable[[sqlite3.Connection], T]) -> T:
    with closing(connect_read_only(path, parameter)) as connection, errors_explained(path):
        return read(connection)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes when a consumer writes to the file, as the last thing before it removes the log."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
