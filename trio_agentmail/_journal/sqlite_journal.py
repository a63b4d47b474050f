"""`SQLiteJournal`: a journal in an SQLite file, for a stream that must not lose events when its process dies."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from .lifecycle import Rules
from .protocol import RunSync
from .sqlite_store import SQLiteStore
from .store import Change, DeadRecord, Loaded, Store
from .stored_journal import DeadLetter, StoredJournal

__all__ = ["DeadLetter", "SQLiteJournal"]


class SQLiteJournal(StoredJournal):
    """Stores events in an SQLite file from their arrival until they are handled.

        journal = SQLiteJournal("agent.db")
        async with open_agentmail_stream(journal=journal) as events:
            async for event in events:
                async with journal.processing(event):
                    await handle(event)

    An event is on disk before the consumer gets it. Events that are unacknowledged when the process ends are
    redelivered at the next start, before new events. So each event is delivered at least once, and never again after
    `ack`. See docs/journal.md.

    Args:
        path: The path of the file. If it does not exist, it is created with permissions for its owner only. Files
            ending in `-wal`, `-shm` and `-lock` are created beside it.
        max_attempts: Number of failed attempts after which an event is a dead letter.
        retry_delay: Seconds from a failed attempt to the redelivery.
        max_pending: Maximum number of unacknowledged events. When it is reached, reading from the network waits.

    Raises:
        TypeError, ValueError: An argument is invalid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_attempts: int = 5,
        retry_delay: float = 60.0,
        max_pending: int = 10_000,
    ) -> None:
        self._path = _checked_path(path)
        rules = Rules(max_attempts=max_attempts, retry_delay=retry_delay, max_pending=max_pending)
        super().__init__(str(self._path), rules)

    def __repr__(self) -> str:
        return f"SQLiteJournal({str(self._path)!r})"

    @asynccontextmanager
    async def _open_store(self, scope: str, run_sync: RunSync) -> AsyncIterator[Store]:
        store = await run_sync(partial(SQLiteStore, self._path, scope))
        try:
            yield _AsyncStore(store, run_sync)
        finally:
            with trio.CancelScope(shield=True):
                await run_sync(store.close)


class _AsyncStore:
    """An `SQLiteStore` as a `Store`. Each call runs through `run_sync`, in a thread, since it may wait for the disk."""

    def __init__(self, store: SQLiteStore, run_sync: RunSync) -> None:
        self._store = store
        self._run_sync = run_sync

    async def load(self) -> Loaded:
        loaded: Loaded = await self._run_sync(partial(self._store.load, self._run_sync))
        return loaded

    async def apply(self, changes: Sequence[Change]) -> Sequence[Any]:
        results: list[Any] = await self._run_sync(partial(self._store.apply, changes))
        return results

    async def texts(self, ids: Sequence[int], limit: int) -> Mapping[int, bytes]:
        texts: dict[int, bytes] = await self._run_sync(partial(self._store.texts, ids, limit))
        return texts

    async def dead_letters(self) -> Sequence[DeadRecord]:
        records: list[DeadRecord] = await self._run_sync(self._store.dead_letters)
        return records

    async def check(self) -> None:
        await self._run_sync(self._store.check_files)


def _checked_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path takes a str or a Path, not {type(text).__name__}")
    if text in ("", ":memory:"):
        raise ValueError(f"path must name a file: {text!r} would keep nothing")
    if "\0" in text:
        raise ValueError("path must not contain a null character")
    # Symbolic links are resolved here, so that all names of a file lead to the same lock file.
    return Path(os.path.realpath(text))
