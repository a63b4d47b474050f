"""Creates, locks and opens the SQLite file of a journal, and explains SQLite's errors."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trio_agentmail.errors import JournalError

from .file_lock import in_use
from .sqlite_schema import checked_version, migrate

__all__ = ["check_integrity", "connect", "connect_read_only", "create", "errors_explained", "lock"]

BUSY_TIMEOUT = 5.0
"""Seconds to wait while another program writes to the file."""

LOG_LIMIT = 16 * 2**20
"""Bytes to which the write-ahead log is truncated when it starts over."""


# Errors


@contextmanager
def errors_explained(path: Path) -> Iterator[None]:
    """Convert SQLite errors in the block to a `JournalError` that names the file and the problem."""
    try:
        yield
    except sqlite3.Error as exc:
        raise JournalError(f"the journal {path} {_explanation(exc)} ({exc})") from exc


def _explanation(exc: sqlite3.Error) -> str:
    # The extended codes (SQLITE_IOERR_WRITE, SQLITE_READONLY_DIRECTORY, …) begin with the primary ones.
    name = getattr(exc, "sqlite_errorname", None) or ""
    for beginning, explanation in _EXPLANATIONS.items():
        if name.startswith(beginning):
            return explanation
    return "cannot be used"


_EXPLANATIONS = {
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_READONLY": "cannot be written: it is read-only",
    "SQLITE_IOERR": "cannot be read or written: the disk or its file system failed",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_NOTADB": "is not an SQLite database, or its beginning is damaged",
    "SQLITE_BUSY": "is locked by another program",
    "SQLITE_CANTOPEN": "cannot be opened",
}


# Creating and locking


def create(path: Path, of: Path) -> None:
    """Create an empty file if it does not exist.

    Args:
        path: The path of the file.
        of: The path of the journal to which it belongs.

    Raises:
        JournalError: The file cannot be created, read or written.
    """
    # Only the owner may read the file, and SQLite gives the files beside it the same mode. An existing file must not be
    # opened here: closing it would drop all locks that this process has on it, including SQLite's.
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as exc:
        raise JournalError(f"the journal {of} cannot be created or opened: {_reason(exc, of.parent)}") from exc
    if not os.access(path, os.R_OK | os.W_OK):
        raise JournalError(f"the journal {of} cannot be opened: this user may not read and write {path}")


def _reason(exc: OSError, directory: Path) -> str:
    """Return why a file could not be created in this directory, and what to do about it."""
    if exc.errno == errno.ENOENT and not directory.exists():
        return f"the directory {directory} does not exist; create it first"
    if exc.errno == errno.ENOTDIR:
        return f"{directory} is not a directory"
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the directory {directory} cannot be written to, and a journal needs files beside its own"
    return exc.strerror or str(exc)


def lock(path: Path) -> sqlite3.Connection:
    """Lock the journal for one consumer until the returned connection is closed.

    The lock must end with the process on every platform, which an exclusive SQLite transaction does. It locks an empty
    database beside the journal, because a lock on the journal itself would keep readers out.

    Raises:
        JournalInUseError: Another consumer has the journal open.
        JournalError: The lock file cannot be created or opened.
    """
    beside = path.with_name(path.name + "-lock")
    with errors_explained(path):
        create(beside, of=path)
        connection = _connection(f"{beside.as_uri()}?mode=rw", timeout=0.0)
        try:
            connection.execute("PRAGMA journal_mode = MEMORY")  # avoids another file; nothing is ever written
            connection.execute("BEGIN EXCLUSIVE")
        except BaseException as exc:
            connection.close()
            if isinstance(exc, sqlite3.OperationalError) and exc.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise in_use(path) from None
            raise
    return connection


# Opening


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing journal, which may be an empty file, and migrate it to the present schema.

    The connection may be used by several threads, one at a time.

    Raises:
        JournalError: The file cannot be opened, is damaged, is not a journal, or has a newer schema.
    """
    with errors_explained(path):
        connection = _connection(f"{path.as_uri()}?mode=rw", timeout=BUSY_TIMEOUT)
        try:
            # This allows free pages to be returned to the file system. It only affects an empty file.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            version = checked_version(connection, path)
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise JournalError(
                    f"the journal {path} cannot have a write-ahead log: its file system lacks shared memory or locks; "
                    "put it on a local disk"
                )
            connection.execute("PRAGMA synchronous = FULL")
            # SQLite starts the log over every 4 MB. After a burst it may be longer, and is truncated to this size.
            connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
            migrate(connection, version)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_read_only(path: Path, parameter: str) -> sqlite3.Connection:
    """Open an existing journal for reading; see `read_only`.

    Args:
        path: The absolute path of the journal.
        parameter: A further parameter of the URI, or `""`.

    Raises:
        JournalError: The file cannot be opened, is damaged, is not a journal, or has a newer schema.
    """
    with errors_explained(path):
        connection = _connection(f"{path.as_uri()}?mode=ro&{parameter}", timeout=BUSY_TIMEOUT)
        try:
            checked_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _connection(uri: str, timeout: float) -> sqlite3.Connection:
    # With isolation_level=None, sqlite3 never begins a transaction by itself.
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file for damage.

    Raises:
        JournalError: The file is damaged.
    """
    with errors_explained(path), closing(connection.execute("PRAGMA quick_check(1)")) as found:
        [result] = found.fetchone()
    if result != "ok":
        raise JournalError(f"the journal {path} is damaged ({result})")
