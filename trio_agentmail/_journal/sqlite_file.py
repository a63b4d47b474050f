"""An SQLite file that is a journal: how it is made, opened, locked and brought up to date, and what its errors mean."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._identity import digest, variant
from trio_agentmail.errors import JournalError

from .file_lock import in_use

__all__ = ["check", "connect", "connect_read_only", "create", "errors_explained", "lock", "transaction"]

APPLICATION_ID = 0x41674D6A
"""What SQLite files have in their header to say whose they are: "AgMj"."""

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another program that writes to the file, which is none of ours."""

LOG_LIMIT = 16 * 2**20
"""Bytes to which the write-ahead log is cut back when it starts over."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # One row: whose journal this is, and what recovery has to know.
        "CREATE TABLE journal (scope TEXT NOT NULL, state BLOB NOT NULL, forgotten_until REAL)",
        # One row for each event, small, so that marking one does not write its text anew. `ended_at` is when it was
        # handled, or became a dead letter.
        """
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
        )
        """,
        "CREATE INDEX unhandled ON events (state, id) WHERE state != 'handled'",
        # The text of each that is not handled.
        "CREATE TABLE texts (id INTEGER PRIMARY KEY, text BLOB NOT NULL)",
    ),
    (
        # Of each event that was ever written down, until it is forgotten: what tells that it is not new.
        """
        CREATE TABLE identities (
            key BLOB PRIMARY KEY,
            recorded_at REAL NOT NULL,
            push INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX identities_by_age ON identities (recorded_at)",
        "INSERT OR IGNORE INTO identities SELECT identity(kind, key), max(recorded_at, coalesce(created, recorded_at)),"
        " CASE WHEN kind != '' AND created IS NULL THEN -1 ELSE 0 END FROM events",
        # One row for each event that is not handled. A number is never given twice.
        """
        CREATE TABLE unhandled_events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            key BLOB NOT NULL,
            recorded_at REAL NOT NULL,
            origin TEXT NOT NULL,
            event_type TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'dead')),
            attempts INTEGER NOT NULL DEFAULT 0,
            under_way INTEGER NOT NULL DEFAULT 0,
            error TEXT,
            ended_at REAL
        )
        """,
        """
        INSERT INTO unhandled_events
        SELECT id, identity(kind, key), recorded_at, origin, event_type, state, attempts, under_way, error, ended_at
        FROM events WHERE state != 'handled'
        """,
        "INSERT INTO sqlite_sequence SELECT 'unhandled_events', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence)",
        "UPDATE sqlite_sequence SET seq = (SELECT coalesce(max(id), 0) FROM events)",
        "DROP TABLE events",
        "ALTER TABLE unhandled_events RENAME TO events",
        # It was up to then, and is before now.
        "UPDATE journal SET state = recovery_state(state), forgotten_until = forgotten_until + 0.001",
        "ALTER TABLE journal ADD COLUMN also TEXT",
    ),
)
"""What brings a file from each schema version to the next. Whoever changes the schema adds a step, and changes none."""


@contextmanager
def errors_explained(path: Path) -> Iterator[None]:
    """Whatever SQLite complains of in the block is a `JournalError` that says what is the matter with which file."""
    try:
        yield
    except sqlite3.Error as exc:
        raise JournalError(f"the journal {path} {_explanation(exc)} ({exc})") from exc


def _explanation(exc: sqlite3.Error) -> str:
    # The extended codes (SQLITE_IOERR_WRITE, SQLITE_READONLY_DIRECTORY, …) begin with the plain ones.
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


def lock(path: Path) -> sqlite3.Connection:
    """Become the only owner of the journal, for as long as the connection is open.

    A lock of the operating system that ends with the process, on every platform, is what SQLite has: an exclusive
    transaction in an empty database beside the journal. In the journal itself it would keep readers out.

    Raises:
        JournalInUseError: somebody else is.
        JournalError: the file cannot be made or opened.
    """
    beside = path.with_name(path.name + "-lock")
    with errors_explained(path):
        create(beside, of=path)
        connection = _connection(f"{beside.as_uri()}?mode=rw", timeout=0.0)
        try:
            connection.execute("PRAGMA journal_mode = MEMORY")  # nothing is ever written: one file less beside it
            connection.execute("BEGIN EXCLUSIVE")
        except BaseException as exc:
            connection.close()
            if isinstance(exc, sqlite3.OperationalError) and exc.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise in_use(path) from None
            raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the journal, which exists, if only as an empty file, and is brought up to date.

    Used by one thread at a time, not always the same.

    Raises:
        JournalError: it cannot be opened, is damaged, no journal, or of a newer schema.
    """
    with errors_explained(path):
        connection = _connection(f"{path.as_uri()}?mode=rw", timeout=BUSY_TIMEOUT)
        try:
            # Has an effect on a file that is still empty only: room that is free can be given back.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            version = _checked_version(connection, path)
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise JournalError(
                    f"the journal {path} cannot have a write-ahead log: its file system lacks shared memory or locks; "
                    "put it on a local disk"
                )
            connection.execute("PRAGMA synchronous = FULL")
            # After a burst the log is cut back to this. (It is written to the file every 4 MB.)
            connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
            _migrate(connection, version)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_read_only(path: Path, parameter: str) -> sqlite3.Connection:
    """A connection that can only read, to a journal that exists: see `read_only`.

    Args:
        path: Absolute.
        parameter: How SQLite opens it, besides; part of the URI.

    Raises:
        JournalError: it cannot be opened, is damaged, no journal, or of a newer schema.
    """
    with errors_explained(path):
        connection = _connection(f"{path.as_uri()}?mode=ro&{parameter}", timeout=BUSY_TIMEOUT)
        try:
            _checked_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def create(path: Path, of: Path) -> None:
    """Make the file, empty, if it does not exist.

    Args:
        of: The journal that it is or belongs to.

    Raises:
        JournalError: it cannot be made.
    """
    # For its owner alone; SQLite gives the files that it makes beside it the same mode. One that exists must not even
    # be opened: closing a file drops all locks that this process has on it, those of other connections too.
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as exc:
        raise JournalError(f"the journal {of} cannot be made or opened: {_reason(exc, of.parent)}") from exc
    if not os.access(path, os.R_OK | os.W_OK):
        raise JournalError(f"the journal {of} cannot be opened: this user may not read and write {path}")


def _reason(exc: OSError, directory: Path) -> str:
    """Why a file could not be made in this directory, and what to do about it."""
    if exc.errno == errno.ENOENT and not directory.exists():
        return f"the directory {directory} does not exist; make it first"
    if exc.errno == errno.ENOTDIR:
        return f"{directory} is not a directory"
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the directory {directory} cannot be written to, and a journal needs files beside its own"
    return exc.strerror or str(exc)


def _connection(uri: str, timeout: float) -> sqlite3.Connection:
    # isolation_level=None: transactions begin where we say BEGIN, and nowhere else.
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def _checked_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version; 0 for a file that is still empty."""
    application_id: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID:
        if application_id or version or connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            raise JournalError(f"{path} is an SQLite database, but not a journal: give the journal a file of its own")
        return 0
    if version > len(MIGRATIONS):
        raise JournalError(
            f"the journal {path} was written by a newer version of trio-agentmail (schema {version}; this one knows "
            f"{len(MIGRATIONS)}): update trio-agentmail"
        )
    return version


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.create_function("identity", 2, _identity)
    connection.create_function("recovery_state", 1, _recovery_state)
    for number, steps in enumerate(MIGRATIONS[version:], start=version + 1):
        with transaction(connection):
            for statement in steps:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def _identity(kind: str, key: str | bytes) -> bytes:
    """The identity of an event that schema 1 wrote down, which had no time of a mail."""
    hashed = key if isinstance(key, bytes) else digest(key)
    return hashed + variant(kind) if kind else hashed


def _recovery_state(kept: bytes) -> bytes:
    """What recovery remembered in schema 1, as it remembers it now."""
    state = parse_object(kept)
    if state is None:
        return kept
    fields = ("inbox_id", "pod_id", "wanted", "missing_since", "swept_until")
    targets = [dict(zip(fields, target, strict=True)) | {"look": None, "sweep": None} for target in state["targets"]]
    return encode_object({"targets": targets, "clock_is_known": True, "source": state["source"]})


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """The block is written as a whole, or if it raises not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Look for damage."""
    with errors_explained(path), closing(connection.execute("PRAGMA quick_check(1)")) as found:
        [result] = found.fetchone()
    if result != "ok":
        raise JournalError(f"the journal {path} is damaged ({result})")
