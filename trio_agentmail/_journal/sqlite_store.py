"""What a journal keeps, in SQLite: the synchronous half. Every method may wait for the disk."""

import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from trio_agentmail.errors import JournalMismatchError

from .entry import DeadRow, NewRow, PendingRow
from .file_lock import FileLock
from .file_watch import FileWatch, check_files, make_private
from .protocol import Kept, KeptIdentity, RunSync
from .read_only import read_only
from .sqlite_file import check, connect, create, errors_explained, lock, transaction

__all__ = ["SQLiteStore", "Step", "read_journal"]

FORGOTTEN_AT_ONCE = 2_000
"""Identities that are deleted in one transaction at the most: it takes some milliseconds."""

BATCH = 2_000
"""Identities that are read at once."""

SPARE_PAGES = 4096
"""Pages (of 4 KB) that are free in the file may stay, for the events to come, and as many as are in use."""

RETURNED_PAGES = 256
"""What is above that is given back, after each transaction so many: moving them takes a millisecond or two."""

Step: TypeAlias = Callable[[], Any]
"""Part of a transaction: one of the methods of `SQLiteStore` that change something."""


class SQLiteStore:
    """One journal file, owned by this object until it is closed.

    The methods that change something are parts of a transaction: they are called by `apply`, and by nothing else.
    """

    def __init__(self, path: Path, scope: str | None) -> None:
        """Open the file, or make it.

        Args:
            path: Absolute.
            scope: What the journal must belong to; a new one belongs to it from now on. `None`: no matter.

        Raises:
            JournalInUseError: it is open elsewhere.
            JournalMismatchError: it belongs to another scope.
            JournalError: it cannot be opened.
        """
        self._path = path
        self._forgotten_until = -math.inf
        """Identities that are older may have to be deleted still."""
        with ExitStack() as opened:
            check_files(path)
            opened.callback(lock(path).close)
            create(path, of=path)
            # Only what is a journal is locked, and only what is locked is opened for writing: SQLite, closing what it
            # takes for unused, would delete the write-ahead log of a consumer that has lost its POSIX locks.
            read_only(path, _nothing)
            file_lock = FileLock(path)
            opened.callback(file_lock.close)
            file_lock.acquire()
            self._connection = connect(path)
            opened.callback(self._connection.close)
            check(self._connection, path)
            make_private(path)
            self._watch = FileWatch(path)
            with self._writing():
                with transaction(self._connection):
                    self._claim(scope)
                self._give_room_back()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Give the file up. What has been applied is in it."""
        with errors_explained(self._path):
            self._opened.close()

    def check_files(self) -> None:
        """Make sure that the files are still the journal's, as `apply` does.

        Raises:
            JournalError: they are not.
        """
        self._watch.check()

    def apply(self, steps: Iterable[Step]) -> list[Any]:
        """Make changes, all in one transaction that is on disk when this returns.

        If it raises, none of them is: they were not made, or the file in which they were is not the journal any more.

        Returns:
            What each step returned.

        Raises:
            JournalError: they cannot be written.
        """
        with self._writing():
            with transaction(self._connection):
                results = [step() for step in steps]
                self._forget()
            self._give_room_back()
        return results

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with errors_explained(self._path), self._watch.writing():
            yield

    # Steps

    def add(self, id: int, row: NewRow) -> bool:
        """Write an event down; False: it has been written down before, and nothing happens."""
        added = self._connection.execute(
            "INSERT INTO identities (key, recorded_at, push) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
            (row.key, row.recorded_at, row.push),
        )
        if not added.rowcount:
            return False
        self._connection.execute(
            "INSERT INTO events (id, key, recorded_at, origin, event_type) VALUES (?, ?, ?, ?, ?)",
            (id, row.key, row.recorded_at, row.origin, row.event_type),
        )
        self._connection.execute("INSERT INTO texts (id, text) VALUES (?, ?)", (id, row.text))
        return True

    def begin_attempt(self, id: int) -> None:
        """An attempt begins: if the process ends before it does, it counts."""
        self._connection.execute(
            "UPDATE events SET attempts = attempts + 1, under_way = 1 WHERE id = ? AND state = 'pending'", (id,)
        )

    def take_attempt_back(self, id: int) -> None:
        """The attempt that was under way was none."""
        self._connection.execute(
            "UPDATE events SET attempts = attempts - 1, under_way = 0 WHERE id = ? AND under_way", (id,)
        )

    def fail(self, id: int, error: str) -> None:
        """The attempt that was under way failed."""
        self._connection.execute(
            "UPDATE events SET under_way = 0, error = ? WHERE id = ? AND state = 'pending'", (error, id)
        )

    def bury(self, id: int, error: str, now: float) -> None:
        """The attempt that was under way failed, and was the last: a dead letter from now on."""
        self._connection.execute(
            "UPDATE events SET state = 'dead', under_way = 0, error = ?, ended_at = ?"
            " WHERE id = ? AND state = 'pending'",
            (error, now, id),
        )

    def ack(self, id: int) -> None:
        """The event is handled; nothing happens if it is already, or is a dead letter."""
        self._handle(id, "pending")

    def drop(self, id: int) -> bool:
        """A dead letter counts as handled; False: there is none of this number."""
        return self._handle(id, "dead")

    def _handle(self, id: int, state: str) -> bool:
        # Its identity stays.
        handled = self._connection.execute("DELETE FROM events WHERE id = ? AND state = ?", (id, state))
        if not handled.rowcount:
            return False
        self._connection.execute("DELETE FROM texts WHERE id = ?", (id,))
        return True

    def requeue(self, id: int) -> PendingRow | None:
        """A dead letter is pending again, as if it had never been tried; None: there is none of this number."""
        requeued = self._connection.execute(
            "UPDATE events SET state = 'pending', attempts = 0, error = NULL, ended_at = NULL"
            " WHERE id = ? AND state = 'dead'",
            (id,),
        )
        if not requeued.rowcount:
            return None
        [row] = self._pending("id = ?", id)
        return row

    def keep(self, state: bytes | None, scope: str | None, also: str | None, forgotten_until: float) -> None:
        """See `Journal.keep`."""
        if state is not None:
            self._connection.execute("UPDATE journal SET state = ?", (state,))
        if scope is not None:
            self._connection.execute("UPDATE journal SET scope = ?, also = ?", (scope, also))
        if forgotten_until > -math.inf:
            self._connection.execute("UPDATE journal SET forgotten_until = ?", (forgotten_until,))
            self._forgotten_until = forgotten_until

    # Reading

    def kept(self, run_sync: RunSync) -> Kept:
        """What a stream has to know at its start.

        Args:
            run_sync: Reads the identities, a batch at a time.

        Raises:
            JournalError: it cannot be read.
        """
        with errors_explained(self._path):
            state, forgotten_until = self._connection.execute("SELECT state, forgotten_until FROM journal").fetchone()
        return Kept(
            identities=self._identities(run_sync),
            forgotten_until=-math.inf if forgotten_until is None else forgotten_until,
            state=state,
        )

    async def _identities(self, run_sync: RunSync) -> AsyncIterator[Sequence[KeptIdentity]]:
        with closing(self._connection.cursor()) as found:

            def first_batch() -> list[KeptIdentity]:
                with errors_explained(self._path):
                    found.execute("SELECT key, recorded_at, push FROM identities ORDER BY recorded_at")
                return next_batch()

            def next_batch() -> list[KeptIdentity]:
                with errors_explained(self._path):
                    return [KeptIdentity._make(row) for row in found.fetchmany(BATCH)]

            batch = await run_sync(first_batch)
            while batch:
                yield batch
                batch = await run_sync(next_batch)

    def pending(self) -> list[PendingRow]:
        """What is not handled, the oldest first.

        Raises:
            JournalError: it cannot be read.
        """
        with errors_explained(self._path):
            return self._pending("true")

    def _pending(self, condition: str, *parameters: Any) -> list[PendingRow]:
        rows = self._connection.execute(
            "SELECT id, key, attempts, under_way, origin, event_type FROM events"
            f" WHERE state = 'pending' AND {condition} ORDER BY id",
            parameters,
        )
        return [
            PendingRow(id, key, attempts, bool(under_way), origin, event_type)
            for id, key, attempts, under_way, origin, event_type in rows
        ]

    def last_id(self) -> int:
        """The highest number that an event has ever had.

        Raises:
            JournalError: it cannot be read.
        """
        with errors_explained(self._path):
            last: int = self._connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
        return last

    def texts(self, ids: Sequence[int], limit: int) -> dict[int, bytes]:
        """The texts of the first of these events: one, and more as long as they have no more bytes than `limit`.

        Raises:
            JournalError: they cannot be read.
        """
        texts: dict[int, bytes] = {}
        size = 0
        with errors_explained(self._path):
            for id in ids:
                row = self._connection.execute("SELECT text FROM texts WHERE id = ?", (id,)).fetchone()
                if row is None:
                    continue  # handled in the meantime
                texts[id] = row[0]
                size += len(row[0])
                if size >= limit:
                    break
        return texts

    def dead(self) -> list[DeadRow]:
        """The dead letters, the oldest first.

        Raises:
            JournalError: they cannot be read.
        """
        return dead_rows(self._connection, self._path)

    # Housekeeping

    def _claim(self, scope: str | None) -> None:
        row = self._connection.execute("SELECT scope, also FROM journal").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO journal (scope, state) VALUES (?, x'')", (scope or "",))
        elif scope is not None and row[0] and scope not in row:
            raise JournalMismatchError(
                f"the journal {self._path} belongs to {row[0]}, and this stream is {scope}: open the stream as before, "
                "or give it a journal of its own"
            )

    def _forget(self) -> None:
        if self._forgotten_until == -math.inf:
            return
        forgotten = self._connection.execute(
            "DELETE FROM identities WHERE key IN (SELECT key FROM identities WHERE recorded_at < ?"
            " AND key NOT IN (SELECT key FROM events) ORDER BY recorded_at LIMIT ?)",
            (self._forgotten_until, FORGOTTEN_AT_ONCE),
        )
        if forgotten.rowcount < FORGOTTEN_AT_ONCE:
            self._forgotten_until = -math.inf

    def _give_room_back(self) -> None:
        # What is handled leaves room that the next events use. After a burst there may be much more of it.
        with errors_explained(self._path):
            [free] = self._connection.execute("PRAGMA freelist_count").fetchone()
            [pages] = self._connection.execute("PRAGMA page_count").fetchone()
            if free > SPARE_PAGES and free > pages / 2:
                # As a script: it gives back one page at each step, and `execute` takes only the first.
                self._connection.executescript(f"PRAGMA incremental_vacuum({RETURNED_PAGES})")


def _nothing(connection: sqlite3.Connection) -> None:
    """What `read_only` checks is enough."""


def dead_rows(connection: sqlite3.Connection, path: Path) -> list[DeadRow]:
    with errors_explained(path):
        rows = connection.execute(
            "SELECT id, attempts, error, ended_at, origin, text FROM events JOIN texts USING (id)"
            " WHERE state = 'dead' ORDER BY id"
        ).fetchall()
    return [DeadRow(*row) for row in rows]


def read_journal(path: Path) -> tuple[int, list[DeadRow]]:
    """How many events are not handled, and the dead letters, of a journal that somebody may have open.

    Raises:
        JournalError: it cannot be read.
    """

    def read(connection: sqlite3.Connection) -> tuple[int, list[DeadRow]]:
        [pending] = connection.execute("SELECT count(*) FROM events WHERE state = 'pending'").fetchone()
        return pending, dead_rows(connection, path)

    return read_only(path, read)
