"""What tests of the journal have in common."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_agentmail import DeadLetter, Event, JournalError, MessageReceivedEvent, SQLiteJournal, decode_event
from trio_agentmail._journal.protocol import Kept, KeptIdentity

SCOPE = "wss://ws.agentmail.to, everything"


async def inline(function: Callable[[], Any]) -> Any:
    """`run_sync` under a mock clock, as in FakeAgentMail."""
    await trio.lowlevel.checkpoint()
    return function()


async def in_a_thread(function: Callable[[], Any]) -> Any:
    """`run_sync` as in NetworkBackend."""
    return await trio.to_thread.run_sync(function)


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


@asynccontextmanager
async def opened(
    path: Path,
    scope: str = SCOPE,
    run_sync: Callable[..., Any] = inline,
    now: Callable[[], float] = time.time,
    **settings: Any,
) -> AsyncIterator[SQLiteJournal]:
    journal = SQLiteJournal(path, **settings)
    async with journal.opened(scope, run_sync, now):
        yield journal


async def take(journal: SQLiteJournal, count: int) -> list[Event]:
    """So many from the journal, which must have them."""
    with trio.fail_after(5):
        return [await journal.next() for _ in range(count)]


async def nothing_for(journal: SQLiteJournal, seconds: float) -> bool:
    """Whether the journal gives nothing for so long."""
    with trio.move_on_after(seconds):
        await journal.next()
        return False
    return True


def ids(events: list[Event] | tuple[DeadLetter, ...]) -> list[str | None]:
    """Their event_ids; of a notice the name of its class."""
    found = [item.event if isinstance(item, DeadLetter) else item for item in events]
    return [getattr(event, "event_id", type(event).__name__) for event in found]


@attrs.define
class Disk:
    """`run_sync` with a disk of its own kind: how long it takes for everything, and what becomes of transactions.

    Attributes:
        fails: They cannot be written.
        dead: Nor can anything else happen: the process is no more.
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
async def crashing(path: Path, **settings: Any) -> AsyncIterator[SQLiteJournal]:
    """A journal whose process dies at the end of the block: nothing more is written."""
    disk = Disk()
    async with opened(path, run_sync=disk, **settings) as journal:
        try:
            yield journal
        finally:
            disk.dead = True


async def begin(journal: SQLiteJournal, event: Event) -> None:
    """An attempt that does not end before the process does."""
    await journal.processing(event).__aenter__()


async def identities(kept: Kept) -> list[KeptIdentity]:
    """All that a journal knows."""
    return [known async for batch in kept.identities for known in batch]


async def handle_all(journal: SQLiteJournal, events: list[Event]) -> None:
    for event in events:
        await journal.ack(event)


async def take_within(journal: SQLiteJournal, seconds: float) -> list[Event]:
    with trio.fail_after(seconds):
        return [await journal.next()]
