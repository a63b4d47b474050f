"""Reads a journal without endangering an agent that may have it open."""

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
    """Call a function with a read-only connection to the journal, and return its result.

    A writable connection endangers the consumer. When SQLite closes the last connection, it moves the write-ahead log
    into the database and deletes the log. It uses locks to find out whether a connection is the last, and the consumer
    loses its locks if its process copies the file. A read-only connection never deletes the log.

    If no agent has the journal open, there is no log. A read-only connection would then create an empty one, and would
    need a writable directory. So such a journal is opened as immutable, and read again if it has changed meanwhile.

    Args:
        path: The absolute path of the journal.
        read: The function. It may be called more than once.

    Raises:
        JournalError: The file cannot be read, is not a journal, or has a newer schema.
    """
    check_files(path)
    _, log, index, _ = files_of(path)
    if not log.exists():
        with suppress(_ChangedError):
            return _read_unused(path, log, read)
    if index.exists():
        with suppress(JournalError):  # the consumer may just have closed the journal
            # This connection must not write to the index either: one that seems to be the first would truncate it. (The
            # parameter is undocumented. A version of SQLite that does not have it ignores it.)
            return _read(path, "readonly_shm=1", read)
    return _read(path, "", read)


class _ChangedError(Exception):
    """A consumer has opened the journal in the meantime."""


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
    """Return a value that changes when a consumer writes to the file. A consumer writes before it removes the log."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
