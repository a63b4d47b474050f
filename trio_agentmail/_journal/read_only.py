"""Reading a journal that an agent may have open, without touching its files."""

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
    """Call a function with a read-only connection to the journal.

    A connection that may write endangers the consumer. The last connection to be closed moves the write-ahead log into
    the database and deletes it. SQLite tells by locks whether it is the last, and the consumer loses its locks when its
    process copies the file. A read-only connection never does this.

    But if there is no log, since no agent has the journal open, a read-only connection leaves an empty one behind, and
    needs a directory that it may write to. So such a journal is opened as immutable, and read again if it has changed
    meanwhile.

    Args:
        path: Absolute.
        read: May be called more than once.

    Raises:
        JournalError: The file cannot be read, is not a journal, or is of a newer schema.
    """
    check_files(path)
    _, log, index, _ = files_of(path)
    if not log.exists():
        with suppress(_ChangedError):
            return _read_unused(path, log, read)
    if index.exists():
        with suppress(JournalError):  # the consumer may just have closed the journal
            # The index is not written either: a connection that believes to be the first truncates it. (The parameter
            # is undocumented; an SQLite without it would ignore it.)
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
    """Return what changes when a consumer writes to the file, which it does before it removes the log."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
