"""Reads the rows of a journal, through a writable or a read-only connection."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .protocol import KeptIdentity, RunSync
from .read_only import read_only
from .sqlite_file import errors_explained
from .store import DeadRecord, PendingRecord

__all__ = ["dead_letters", "identities", "last_id", "pending", "read_journal", "texts"]

BATCH = 2_000
"""Number of identities in one read."""


async def identities(
    connection: sqlite3.Connection, path: Path, run_sync: RunSync
) -> AsyncIterator[Sequence[KeptIdentity]]:
    """Yield all identities in batches, the oldest first.

    Args:
        run_sync: Runs the read of each batch, which waits for the disk.
    """
    with closing(connection.cursor()) as found:

        def first_batch() -> list[KeptIdentity]:
            with errors_explained(path):
                found.execute("SELECT key, recorded_at, push FROM identities ORDER BY recorded_at")
            return next_batch()

        def next_batch() -> list[KeptIdentity]:
            with errors_explained(path):
                return [KeptIdentity._make(row) for row in found.fetchmany(BATCH)]

        batch = await run_sync(first_batch)
        while batch:
            yield batch
            batch = await run_sync(next_batch)


def pending(connection: sqlite3.Connection, condition: str = "true", *parameters: Any) -> list[PendingRecord]:
    """Return the pending events that meet an SQL condition, by ascending id."""
    rows = connection.execute(
        "SELECT id, key, attempts, under_way, origin, event_type FROM events"
        f" WHERE state = 'pending' AND {condition} ORDER BY id",
        parameters,
    )
    return [
        PendingRecord(id, key, attempts, bool(under_way), origin, event_type)
        for id, key, attempts, under_way, origin, event_type in rows
    ]


def last_id(connection: sqlite3.Connection) -> int:
    """Return the highest id that an event has ever had."""
    last: int = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
    return last


def texts(connection: sqlite3.Connection, ids: Sequence[int], limit: int) -> dict[int, bytes]:
    """See `Store.texts`."""
    found: dict[int, bytes] = {}
    size = 0
    for id in ids:
        row = connection.execute("SELECT text FROM texts WHERE id = ?", (id,)).fetchone()
        if row is None:
            continue  # handled in the meantime
        found[id] = row[0]
        size += len(row[0])
        if size >= limit:
            break
    return found


def dead_letters(connection: sqlite3.Connection) -> list[DeadRecord]:
    """Return the dead letters, by ascending id."""
    rows = connection.execute(
        "SELECT id, attempts, error, ended_at, origin, text FROM events JOIN texts USING (id)"
        " WHERE state = 'dead' ORDER BY id"
    ).fetchall()
    return [DeadRecord(*row) for row in rows]


def read_journal(path: Path) -> tuple[int, list[DeadRecord]]:
    """Return the number of pending events and the dead letters of a journal that an agent may have open.

    Raises:
        JournalError: The journal cannot be read.
    """

    def read(connection: sqlite3.Connection) -> tuple[int, list[DeadRecord]]:
        [count] = connection.execute("SELECT count(*) FROM events WHERE state = 'pending'").fetchone()
        return count, dead_letters(connection)

    return read_only(path, read)
