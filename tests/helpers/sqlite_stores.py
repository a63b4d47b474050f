"""Shorthands for an SQLite store and its contents."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.helpers.journals import inline
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail._journal.sqlite_store import SQLiteStore
from trio_agentmail._journal.store import Add, Keep, NewRecord

NOW = 1_800_000_000.0
SCOPE = "here, everything"


@contextmanager
def open_store(path: Path, scope: str | None = SCOPE) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, scope)
    try:
        yield store
    finally:
        store.close()


def key(number: int) -> bytes:
    return f"key {number}".encode()


def row(number: int, text: bytes = b"{}", recorded_at: float = NOW, push: int = 0) -> NewRecord:
    return NewRecord(
        identity=KeptIdentity(key(number), recorded_at, push),
        origin="live",
        event_type="message.received",
        text=text,
    )


def add(store: SQLiteStore, *numbers: int, text: bytes = b"{}") -> None:
    store.apply([Add(number, row(number, text)) for number in numbers])


def keep(
    store: SQLiteStore,
    state: bytes | None = None,
    *,
    scope: str | None = None,
    also: str | None = None,
    forgotten_until: float = -math.inf,
) -> None:
    store.apply([Keep(state, scope, also, forgotten_until)])


def identities(store: SQLiteStore) -> list[KeptIdentity]:
    """All identities in the store."""
    return [known for batch in batches(store) for known in batch]


def batches(store: SQLiteStore) -> list[Sequence[KeptIdentity]]:
    async def read() -> list[Sequence[KeptIdentity]]:
        return [batch async for batch in store.kept(inline).identities]

    return trio.run(read)


def state_of(store: SQLiteStore) -> tuple[bytes, float]:
    kept = store.kept(inline)
    return kept.state, kept.forgotten_until


def pending(store: SQLiteStore) -> list[int]:
    return [row.id for row in store.pending()]
