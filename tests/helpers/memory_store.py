"""A journal in memory: a second engine behind the part of a journal that decides."""

import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, assert_never

import attrs

from trio_agentmail import JournalInUseError, JournalMismatchError
from trio_agentmail._journal.lifecycle import Rules
from trio_agentmail._journal.protocol import Kept, KeptIdentity, RunSync
from trio_agentmail._journal.store import (
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
    NewRecord,
    PendingRecord,
    Requeue,
    Store,
    TakeBackAttempt,
)
from trio_agentmail._journal.stored_journal import StoredJournal


@attrs.define
class Row:
    record: NewRecord
    attempts: int = 0
    under_way: bool = False
    error: str | None = None
    died_at: float | None = None


@attrs.define
class Memory:
    """What such a journal stores: what would be on disk."""

    scopes: set[str | None] = attrs.field(factory=set)
    state: bytes = b""
    forgotten_until: float = -math.inf
    last_id: int = 0
    identities: dict[bytes, KeptIdentity] = attrs.field(factory=dict)
    rows: dict[int, Row] = attrs.field(factory=dict)
    is_open: bool = False

    def pending(self) -> list[PendingRecord]:
        return [self._pending(id, row) for id, row in sorted(self.rows.items()) if row.died_at is None]

    def _pending(self, id: int, row: Row) -> PendingRecord:
        record = row.record
        return PendingRecord(id, record.identity.key, row.attempts, row.under_way, record.origin, record.event_type)

    def dead_letters(self) -> list[DeadRecord]:
        return [
            DeadRecord(id, row.attempts, row.error or "", row.died_at, row.record.origin, row.record.text)
            for id, row in sorted(self.rows.items())
            if row.died_at is not None
        ]

    def texts(self, ids: Iterable[int], limit: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for id in ids:
            if id in self.rows:
                found[id] = self.rows[id].record.text
            if sum(map(len, found.values())) >= limit:
                break
        return found

    def apply(self, changes: Sequence[Change]) -> list[Any]:
        return [self._apply(change) for change in changes]

    def _apply(self, change: Change) -> Any:
        match change:
            case Add():
                self.last_id = max(self.last_id, change.id)
                identity = change.record.identity
                if identity.key in self.identities:
                    return False
                self.identities[identity.key] = identity
                self.rows[change.id] = Row(change.record)
                return True
            case Keep():
                self._keep(change)
            case Drop() | Requeue():
                row = self.rows.get(change.id)
                if row is None or row.died_at is None:
                    return None
                if isinstance(change, Drop):
                    del self.rows[change.id]
                    return True
                self.rows[change.id] = Row(row.record)
                return self._pending(change.id, self.rows[change.id])
            case Ack() | BeginAttempt() | TakeBackAttempt() | Fail() | Bury():
                row = self.rows.get(change.id)
                if row is not None and row.died_at is None:
                    self._end(change, row)
            case _:
                assert_never(change)
        return None

    def _end(self, change: Ack | BeginAttempt | TakeBackAttempt | Fail | Bury, row: Row) -> None:
        match change:
            case Ack():
                del self.rows[change.id]
            case BeginAttempt():
                row.attempts += 1
                row.under_way = True
            case TakeBackAttempt():
                if row.under_way:
                    row.attempts -= 1
                    row.under_way = False
            case Fail():
                row.under_way, row.error = False, change.error
            case Bury():
                row.under_way, row.error, row.died_at = False, change.error, change.ended_at

    def _keep(self, change: Keep) -> None:
        if change.state is not None:
            self.state = change.state
        if change.scope is not None:
            self.scopes = {change.scope, change.also}
        if change.forgotten_until > -math.inf:
            self.forgotten_until = change.forgotten_until
            unhandled = {row.record.identity.key for row in self.rows.values()}
            self.identities = {
                key: known
                for key, known in self.identities.items()
                if known.recorded_at >= self.forgotten_until or key in unhandled
            }


class MemoryStore:
    """`Store` for a `Memory`. It waits as a disk would, so that tests can make it slow, fail, or crash."""

    def __init__(self, memory: Memory, run_sync: RunSync) -> None:
        self._memory = memory
        self._run_sync = run_sync

    async def load(self) -> Loaded:
        memory = self._memory
        kept = Kept(self._identities(), memory.forgotten_until, memory.state)
        return Loaded(kept, await self._run_sync(memory.pending), memory.last_id)

    async def _identities(self) -> AsyncIterator[Sequence[KeptIdentity]]:
        yield sorted(self._memory.identities.values(), key=lambda known: known.recorded_at)

    async def apply(self, changes: Sequence[Change]) -> Sequence[Any]:
        results: list[Any] = await self._run_sync(partial(self._memory.apply, changes))
        return results

    async def texts(self, ids: Sequence[int], limit: int) -> Mapping[int, bytes]:
        texts: dict[int, bytes] = await self._run_sync(partial(self._memory.texts, ids, limit))
        return texts

    async def dead_letters(self) -> Sequence[DeadRecord]:
        return self._memory.dead_letters()

    async def check(self) -> None:
        pass


class MemoryJournal(StoredJournal):
    """`SQLiteJournal` without SQLite."""

    def __init__(
        self, memory: Memory, *, max_attempts: int = 5, retry_delay: float = 60.0, max_pending: int = 10_000
    ) -> None:
        super().__init__(
            f"memory {id(memory)}",
            Rules(max_attempts=max_attempts, retry_delay=retry_delay, max_pending=max_pending),
        )
        self._memory = memory

    @asynccontextmanager
    async def _open_store(self, scope: str, run_sync: RunSync) -> AsyncIterator[Store]:
        memory = self._memory
        if memory.is_open:
            raise JournalInUseError
        if not memory.scopes:
            memory.scopes = {scope}
        if scope not in memory.scopes:
            raise JournalMismatchError
        memory.is_open = True
        try:
            yield MemoryStore(memory, run_sync)
        finally:
            memory.is_open = False
