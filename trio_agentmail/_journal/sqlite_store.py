"""What a journal keeps, in SQLite: the synchronous half. Every method may wait for the disk."""

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from trio_agentmail.errors import JournalMismatchError

from .entry import DeadRow, NewRow, PendingRow
from .file_lock import FileLock
from .file_watch import FileWatch, check_files, make_private
from .protocol import Kept, KeptIdentity
from .read_only import read_only
from .sqlite_file import check, connect, create, errors_explained, lock, transaction

__all__ = ["SQLiteStore", "Step", "read_journal"]

KEPT_HANDLED = 2**15
"""How many identities of handled events are kept, of received mails and as many of others: as many as the stream
remembers. A row takes 250 bytes, so that is 16 MB at the most."""

KEPT_HANDLED_FOR = 30 * 86400.0
"""Seconds. The identities of what was handled longer ago are forgotten."""

PRUNE_EVERY = 1000
"""Handled events. It takes a few milliseconds."""

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

    def __init__(self, path: Path, scope: str | None, now: float) -> None:
        """Open the file, or make it.

        Args:
            path: Absolute.
            scope: What the journal must belong to; a new one belongs to it from now on. `None`: no matter.
            now: In seconds since the epoch.

        Raises:
            JournalInUseError: it is open elsewhere.
            JournalMismatchError: it belongs to another scope.
            JournalError: it cannot be opened.
        """
        self._path = path
        self._handled_since_pruning = 0
        self._last_handled = now
        with ExitStack() as opened:
            check_files(path)
            opened.callback(lock(path).close)
            create(path)
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
                    self._prune(now)
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
                if self._handled_since_pruning >= PRUNE_EVERY:
                    self._prune(self._last_handled)
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
            "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (kind, key) DO NOTHING",
            (id, row.kind, row.key, row.created, row.recorded_at, row.origin, row.event_type),
        )
        if not added.rowcount:
            return False
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

    def ack(self, id: int, now: float) -> None:
        """The event is handled; nothing happens if it is already, or is a dead letter."""
        self._handle(id, "pending", now)

    def drop(self, id: int, now: float) -> bool:
        """A dead letter counts as handled; False: there is none of this number."""
        return self._handle(id, "dead", now)

    def _handle(self, id: int, state: str, now: float) -> bool:
        handled = self._connection.execute(
            "UPDATE events SET state = 'handled', under_way = 0, error = NULL, ended_at = ? WHERE id = ? AND state = ?",
            (now, id, state),
        )
        if not handled.rowcount:
            return False
        self._connection.execute("DELETE FROM texts WHERE id = ?", (id,))
        self._handled_since_pruning += 1
        self._last_handled = now
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

    def keep(self, state: bytes | None, scope: str | None) -> None:
        """What recovery has to know, what the journal belongs to from now on, or both."""
        self._connection.execute(
            "UPDATE journal SET state = coalesce(?, state), scope = coalesce(?, scope)", (state, scope)
        )

    # Reading

    def kept(self) -> Kept:
        """What a stream has to know at its start.

        Raises:
            JournalError: it cannot be read.
        """
        newest = "SELECT id, kind, key, created FROM events WHERE kind {} '' ORDER BY id DESC LIMIT ?"
        query = f"SELECT * FROM ({newest.format('!=')}) UNION ALL SELECT * FROM ({newest.format('=')}) ORDER BY id"
        with errors_explained(self._path):
            rows = self._connection.execute(query, (KEPT_HANDLED, KEPT_HANDLED)).fetchall()
            state, forgotten_until = self._connection.execute("SELECT state, forgotten_until FROM journal").fetchone()
        return Kept(
            identities=[KeptIdentity(kind, key, created) for _, kind, key, created in rows],
            forgotten_until=-math.inf if forgotten_until is None else forgotten_until,
            state=state,
        )

    def pending(self) -> list[PendingRow]:
        """What is not handled, the oldest first.

        Raises:
            JournalError: it cannot be read.
        """
        with errors_explained(self._path):
            return self._pending("true")

    def _pending(self, condition: str, *parameters: Any) -> list[PendingRow]:
        rows = self._connection.execute(
            "SELECT id, kind, key, attempts, under_way, origin, event_type FROM events"
            f" WHERE state = 'pending' AND {condition} ORDER BY id",
            parameters,
        )
        return [
            PendingRow(id, kind, key, attempts, bool(under_way), origin, event_type)
            for id, kind, key, attempts, under_way, origin, event_type in rows
        ]

    def last_id(self) -> int:
        """The highest number that an event has.

        Raises:
            JournalError: it cannot be read.
        """
        with errors_explained(self._path):
            last: int = self._connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
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
        row = self._connection.execute("SELECT scope FROM journal").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO journal (scope, state) VALUES (?, x'')", (scope or "",))
        elif scope is not None and row[0] not in ("", scope):
            raise JournalMismatchError(
                f"the journal {self._path} belongs to {row[0]}, and this stream is {scope}: open the stream as before, "
                "or give it a journal of its own"
            )

    def _prune(self, now: float) -> None:
        doomed: list[int] = []
        forgotten = []
        for comparison in ("!=", "="):  # received mails, and others: many of one do not push out the other
            handled = f"FROM events WHERE kind {comparison} '' AND state = 'handled'"
            rows = self._connection.execute(
                f"SELECT id, coalesce(created, recorded_at) {handled} AND (ended_at < ? OR id <= coalesce("
                f"(SELECT id {handled} ORDER BY id DESC LIMIT 1 OFFSET ?), 0))",
                (now - KEPT_HANDLED_FOR, KEPT_HANDLED),
            ).fetchall()
            doomed += [id for id, _ in rows]
            if comparison == "!=":
                forgotten = [created for _, created in rows]
        self._connection.executemany("DELETE FROM events WHERE id = ?", [(id,) for id in doomed])
        if forgotten:
            self._connection.execute(
                "UPDATE journal SET forgotten_until = max(coalesce(forgotten_until, ?1), ?1)", (max(forgotten),)
            )
        self._handled_since_pruning = 0

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
