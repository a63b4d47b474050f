"""Journals for tests: over SQLite and over memory, with disks that are slow, fail, or stop at a crash."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio

from tests.helpers.memory_store import Memory, MemoryJournal
from trio_agentmail import DeadLetter, Event, JournalError, MessageReceivedEvent, SQLiteJournal, decode_event
from trio_agentmail._journal.sqlite_store import read_journal
from trio_agentmail._journal.store import Ack, DeadRecord
from trio_agentmail._journal.stored_journal import StoredJournal
from trio_agentmail.journal import Kept, KeptIdentity

SCOPE = "wss://ws.agentmail.to, everything"


# Events


def mail(number: int, text: str = "Hello", created: str = "2026-01-01T00:00:00Z") -> MessageReceivedEvent:
    event = decode_event(
        f'{{"type": "event", "event_type": "message.received", "event_id": "event {number}", "message": {{"inbox_id": '
        f'"agent@agentmail.to", "message_id": "<{number}@example.com>", "created_at": "{created}", "text": "{text}"}}}}'
    )
    assert isinstance(event, MessageReceivedEvent)
    return event


def delivered(number: int) -> Event:
    return decode_event(
        f'{{"type": "event", "event_type": "message.delivered", "event_id": "delivery {number}", "delivery": {{}}}}'
    )


def ids(events: Sequence[Event | DeadLetter]) -> list[str | None]:
    """The event_ids of events; for a notice the name of its class."""
    found = [item.event if isinstance(item, DeadLetter) else item for item in events]
    return [getattr(event, "event_id", type(event).__name__) for event in found]


# Engines


@attrs.frozen
class SQLiteEngine:
    """A journal in an SQLite file."""

    path: Path

    def journal(self, **settings: Any) -> StoredJournal:
        return SQLiteJournal(self.path, **settings)

    def read(self) -> tuple[int, list[DeadRecord]]:
        """The number of pending events, and the dead letters, as they are stored."""
        return read_journal(self.path)


@attrs.frozen
class MemoryEngine:
    """A journal in memory."""

    memory: Memory = attrs.field(factory=Memory)

    def journal(self, **settings: Any) -> StoredJournal:
        return MemoryJournal(self.memory, **settings)

    def read(self) -> tuple[int, list[DeadRecord]]:
        """The number of pending events, and the dead letters, as they are stored."""
        return len(self.memory.pending()), self.memory.dead_letters()


Engine: TypeAlias = SQLiteEngine | MemoryEngine


def new_engine(name: str, directory: Path) -> Engine:
    return SQLiteEngine(directory / "agent.db") if name == "sqlite" else MemoryEngine()


# Opening a journal


async def inline(function: Callable[[], Any]) -> Any:
    """`run_sync` under a mock clock, as in FakeAgentMail."""
    await trio.lowlevel.checkpoint()
    return function()


async def in_a_thread(function: Callable[[], Any]) -> Any:
    """`run_sync` as in NetworkBackend."""
    return await trio.to_thread.run_sync(function)


@asynccontextmanager
async def opened(
    where: Path | Engine,
    scope: str = SCOPE,
    run_sync: Callable[..., Any] = inline,
    now: Callable[[], float] = time.time,
    **settings: Any,
) -> AsyncIterator[StoredJournal]:
    engine = SQLiteEngine(where) if isinstance(where, Path) else where
    journal = engine.journal(**settings)
    async with journal.opened(scope, run_sync, now):
        yield journal


@attrs.define
class Disk:
    """A `run_sync` with a disk of a special kind.

    Attributes:
        seconds: How long each call takes.
        fails: Whether transactions raise.
        dead: Whether transactions are ignored: the process no longer exists.
        transactions: Their number.
    """

    seconds: float = 0.0
    fails: bool = False
    dead: bool = False
    transactions: int = 0

    async def __call__(self, function: Callable[[], Any]) -> Any:
        await trio.sleep(self.seconds)
        if isinstance(function, partial) and function.func.__name__ == "apply":
            self.transactions += 1
            if self.fails:
                raise JournalError("the disk is full")
            if self.dead:
                return [None] * len(function.args[0])
        return function()


@asynccontextmanager
async def crashing(where: Path | Engine, **settings: Any) -> AsyncIterator[StoredJournal]:
    """A journal whose process dies at the end of the block: nothing more is stored."""
    disk = Disk()
    async with opened(where, run_sync=disk, **settings) as journal:
        try:
            yield journal
        finally:
            disk.dead = True


# Using a journal


async def take(journal: StoredJournal, count: int, seconds: float = 5.0) -> list[Event]:
    """Take this many events and notices, which must come within `seconds`."""
    with trio.fail_after(seconds):
        return [await journal.next() for _ in range(count)]


async def take_within(journal: StoredJournal, seconds: float) -> list[Event]:
    """Take one event or notice, which must come within `seconds`."""
    return await take(journal, 1, seconds)


async def nothing_for(journal: StoredJournal, seconds: float) -> bool:
    """Whether nothing comes for `seconds`."""
    with trio.move_on_after(seconds):
        await journal.next()
        return False
    return True


async def begin(journal: StoredJournal, event: Event) -> None:
    """Begin an attempt that does not end before the process does."""
    await journal.processing(event).__aenter__()


async def handle_all(journal: StoredJournal, events: list[Event]) -> None:
    for event in events:
        await journal.ack(event)


async def identities(kept: Kept) -> list[KeptIdentity]:
    """All identities that a journal knows."""
    return [known async for batch in kept.identities for known in batch]


# Changes


class Call(Ack):
    """A change that calls a function when its turn in a transaction comes."""

    def __init__(self, function: Callable[[], object]) -> None:
        object.__setattr__(self, "_function", function)

    @property
    def id(self) -> int:
        self._function()  # type: ignore[attr-defined]
        return 0


def fail() -> None:
    raise ZeroDivisionError
