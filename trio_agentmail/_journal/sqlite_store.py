"""The synchronous store of a journal in an SQLite file. Every method may wait for the disk."""

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, assert_never

from trio_agentmail.errors import JournalMismatchError

from . import sqlite_rows
from .file_lock import FileLock
from .file_watch import FileWatch, check_files, make_private
from .protocol import Kept, RunSync
from .read_only import read_only
from .sqlite_file import check_integrity, connect, create, errors_explained, lock
from .sqlite_rows import read_journal
from .sqlite_schema import transaction
from .store import (
    Ack,
    Add,
    BeginAttempt,
    Bury,
    Change,
    DeadRecord,
    Drop,
    Fail,
    Keep,
    Loaded,
    PendingRecord,
    Requeue,
    TakeBackAttempt,
)

__all__ = ["SQLiteStore", "read_journal"]

FORGOTTEN_AT_ONCE = 2_000
"""Maximum number of identities that are deleted in one transaction. This takes a few milliseconds."""

SPARE_PAGES = 4096
"""Number of free pages (of 4 KB) that stay in the file for later events, or as many as are in use, if more are."""

RETURNED_PAGES = 256
"""Maximum number of free pages above that which are returned after each transaction. This takes 1 to 2 milliseconds."""


class SQLiteStore:
    """An open journal file. This object owns the file until `close`."""

    def __init__(self, path: Path, scope: str | None) -> None:
        """Open the file, or create it.

        Args:
            path: The absolute path of the file.
            scope: The scope to which the journal must belong, or `None` for any. A new journal is assigned to it.

        Raises:
            JournalInUseError: The journal has another owner.
            JournalMismatchError: The journal belongs to another scope.
            JournalError: The journal cannot be opened.
        """
        self._path = path
        self._forgotten_until = -math.inf
        """Identities that are older than this may still have to be deleted."""
        with ExitStack() as opened:
            check_files(path)
            opened.callback(lock(path).close)
            create(path, of=path)
            # The order matters. Check that the file is a journal before locking it, and lock it before opening it for
            # writing. Otherwise, if a consumer has lost its POSIX locks, SQLite would take this connection for the last
            # one, and delete the consumer's write-ahead log when this connection is closed.
            read_only(path, _nothing)
            file_lock = FileLock(path)
            opened.callback(file_lock.close)
            file_lock.acquire()
            self._connection = connect(path)
            opened.callback(self._connection.close)
            check_integrity(self._connection, path)
            make_private(path)
            self._watch = FileWatch(path)
            with self._writing():
                with transaction(self._connection):
                    self._claim(scope)
                self._return_pages()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the file. It contains all applied changes."""
        with errors_explained(self._path):
            self._opened.close()

    def check_files(self) -> None:
        """Check that the files have not been replaced or written by another program, as `apply` does.

        Raises:
            JournalError: They have.
        """
        self._watch.check()

    # Changes

    def apply(self, changes: Sequence[Change]) -> list[Any]:
        """See `Store.apply`.

        If it raises, either no change was written, or the file was replaced during the transaction, or only returning
        free pages after the commit has failed.
        """
        with self._writing():
            with transaction(self._connection):
                results = [self._apply(change) for change in changes]
                self._forget()
            self._return_pages()
        return results

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with errors_explained(self._path), self._watch.writing():
            yield

    def _apply(self, change: Change) -> Any:
        match change:
            case Add():
                return self._add(change)
            case BeginAttempt():
                self._execute(
                    "UPDATE events SET attempts = attempts + 1, under_way = 1 WHERE id = ? AND state = 'pending'",
                    change.id,
                )
            case Ack():
                self._ack(change)
            case TakeBackAttempt():
                self._execute(
                    "UPDATE events SET attempts = attempts - 1, under_way = 0 WHERE id = ? AND under_way", change.id
                )
            case Fail():
                self._execute(
                    "UPDATE events SET under_way = 0, error = ? WHERE id = ? AND state = 'pending'",
                    change.error,
                    change.id,
                )
            case Bury():
                self._execute(
                    "UPDATE events SET state = 'dead', under_way = 0, error = ?, ended_at = ?"
                    " WHERE id = ? AND state = 'pending'",
                    change.error,
                    change.ended_at,
                    change.id,
                )
            case Requeue():
                return self._requeue(change)
            case Drop():
                return self._delete(change.id, "dead")
            case Keep():
                self._keep(change)
            case _:  # pragma: no cover  mypy checks that all types are handled
                assert_never(change)
        return None

    def _execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement, parameters)

    def _add(self, change: Add) -> bool:
        record, identity = change.record, change.record.identity
        added = self._execute(
            "INSERT INTO identities (key, recorded_at, push) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING", *identity
        )
        if not added.rowcount:
            return False
        self._execute(
            "INSERT INTO events (id, key, recorded_at, origin, event_type) VALUES (?, ?, ?, ?, ?)",
            change.id,
            identity.key,
            identity.recorded_at,
            record.origin,
            record.event_type,
        )
        self._execute("INSERT INTO texts (id, text) VALUES (?, ?)", change.id, record.text)
        return True

    def _ack(self, change: Ack) -> None:
        self._delete(change.id, "pending")

    def _delete(self, id: int, state: str) -> bool:
        # The identity is kept.
        deleted = self._execute("DELETE FROM events WHERE id = ? AND state = ?", id, state)
        if not deleted.rowcount:
            return False
        self._execute("DELETE FROM texts WHERE id = ?", id)
        return True

    def _requeue(self, change: Requeue) -> PendingRecord | None:
        requeued = self._execute(
            "UPDATE events SET state = 'pending', attempts = 0, error = NULL, ended_at = NULL"
            " WHERE id = ? AND state = 'dead'",
            change.id,
        )
        if not requeued.rowcount:
            return None
        [record] = sqlite_rows.pending(self._connection, "id = ?", change.id)
        return record

    def _keep(self, change: Keep) -> None:
        if change.state is not None:
            self._execute("UPDATE journal SET state = ?", change.state)
        if change.scope is not None:
            self._execute("UPDATE journal SET scope = ?, also = ?", change.scope, change.also)
        if change.forgotten_until > -math.inf:
            self._execute("UPDATE journal SET forgotten_until = ?", change.forgotten_until)
            self._forgotten_until = change.forgotten_until

    # Reading. All of these raise a `JournalError` if the file cannot be read.

    def load(self, run_sync: RunSync) -> Loaded:
        """See `Store.load`. `run_sync` is used to read the identities later."""
        return Loaded(kept=self.kept(run_sync), pending=self.pending(), last_id=self.last_id())

    def kept(self, run_sync: RunSync) -> Kept:
        """Return what the journal has kept from earlier runs."""
        with errors_explained(self._path):
            state, forgotten_until = self._execute("SELECT state, forgotten_until FROM journal").fetchone()
        return Kept(
            identities=sqlite_rows.identities(self._connection, self._path, run_sync),
            forgotten_until=-math.inf if forgotten_until is None else forgotten_until,
            state=state,
        )

    def pending(self) -> list[PendingRecord]:
        """Return the pending events, by ascending id."""
        with errors_explained(self._path):
            return sqlite_rows.pending(self._connection)

    def last_id(self) -> int:
        """Return the highest id that an event has ever had."""
        with errors_explained(self._path):
            return sqlite_rows.last_id(self._connection)

    def texts(self, ids: Sequence[int], limit: int) -> dict[int, bytes]:
        """See `Store.texts`."""
        with errors_explained(self._path):
            return sqlite_rows.texts(self._connection, ids, limit)

    def dead_letters(self) -> list[DeadRecord]:
        """See `Store.dead_letters`."""
        with errors_explained(self._path):
            return sqlite_rows.dead_letters(self._connection)

    # Maintenance

    def _claim(self, scope: str | None) -> None:
        row = self._execute("SELECT scope, also FROM journal").fetchone()
        if row is None:
            self._execute("INSERT INTO journal (scope, state) VALUES (?, x'')", scope or "")
        elif scope is not None and row[0] and scope not in row:
            raise JournalMismatchError(
                f"the journal {self._path} belongs to {row[0]}, and this stream is {scope}: open the stream as before, "
                "or give it a journal of its own"
            )

    def _forget(self) -> None:
        if self._forgotten_until == -math.inf:
            return
        forgotten = self._execute(
            "DELETE FROM identities WHERE key IN (SELECT key FROM identities WHERE recorded_at < ?"
            " AND key NOT IN (SELECT key FROM events) ORDER BY recorded_at LIMIT ?)",
            self._forgotten_until,
            FORGOTTEN_AT_ONCE,
        )
        if forgotten.rowcount < FORGOTTEN_AT_ONCE:
            self._forgotten_until = -math.inf

    def _return_pages(self) -> None:
        # Later events reuse the pages of handled ones. After a burst, many more pages may be free.
        [free] = self._execute("PRAGMA freelist_count").fetchone()
        [pages] = self._execute("PRAGMA page_count").fetchone()
        if free > SPARE_PAGES and free > pages / 2:
            # A script, since each step returns one page, and `execute` takes only the first step.
            self._connection.executescript(f"PRAGMA incremental_vacuum({RETURNED_PAGES})")


def _nothing(connection: sqlite3.Connection) -> None:
    """Do nothing: `read_only` itself makes the checks that are needed."""
