"""The tables of a journal, and the migration of files with an earlier schema."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._identity import digest, variant
from trio_agentmail.errors import JournalError

__all__ = ["checked_version", "migrate", "transaction"]

APPLICATION_ID = 0x41674D6A
"""The number in the header of an SQLite file that marks it as a journal: "AgMj"."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # One row: the scope of the journal, and the state of recovery.
        "CREATE TABLE journal (scope TEXT NOT NULL, state BLOB NOT NULL, forgotten_until REAL)",
        # One row for each event. The text is in another table, so that an update does not write it again. `ended_at` is
        # when the event was handled or became a dead letter.
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
        # The texts of events that are not handled.
        "CREATE TABLE texts (id INTEGER PRIMARY KEY, text BLOB NOT NULL)",
    ),
    (
        # The identity of each event that was ever stored, until it is forgotten. An event with a stored identity is a
        # duplicate.
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
        # One row for each event that is not handled. AUTOINCREMENT: an id is never used twice.
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
        # In schema 1 `forgotten_until` was inclusive. Now it is exclusive.
        "UPDATE journal SET state = recovery_state(state), forgotten_until = forgotten_until + 0.001",
        "ALTER TABLE journal ADD COLUMN also TEXT",
    ),
)
"""For each schema version, the statements that migrate a file to the next one.

To change the schema, add a step. Do not change existing steps.
"""


def checked_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of a file; 0 if it is still empty.

    Raises:
        JournalError: The file is not a journal, or has a newer schema.
    """
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


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Migrate a file from this schema version to the present one, each step in its own transaction."""
    connection.create_function("identity", 2, _identity)
    connection.create_function("recovery_state", 1, _recovery_state)
    for number, steps in enumerate(MIGRATIONS[version:], start=version + 1):
        with transaction(connection):
            for statement in steps:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def _identity(kind: str, key: str | bytes) -> bytes:
    """Return the identity of an event from schema 1, which did not store the time of a mail."""
    hashed = key if isinstance(key, bytes) else digest(key)
    return hashed + variant(kind) if kind else hashed


def _recovery_state(kept: bytes) -> bytes:
    """Convert the recovery state of schema 1 to its present form."""
    state = parse_object(kept)
    if state is None:
        return kept
    fields = ("inbox_id", "pod_id", "wanted", "missing_since", "swept_until")
    targets = [dict(zip(fields, target, strict=True)) | {"look": None, "sweep": None} for target in state["targets"]]
    return encode_object({"targets": targets, "clock_is_known": True, "source": state["source"]})


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a transaction, which is rolled back if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
