"""What tests of the journal have in common."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from trio_agentmail import DeadLetter, Event, SQLiteJournal, decode_event

SCOPE = "wss://ws.agentmail.to, everything"


async def inline(function: Callable[[], Any]) -> Any:
    """`run_sync` under a mock clock, as in FakeAgentMail."""
    await trio.lowlevel.checkpoint()
    return function()


async def in_a_thread(function: Callable[[], Any]) -> Any:
    """`run_sync` as in NetworkBackend."""
    return await trio.to_thread.run_sync(function)


def mail(number: int, text: str = "Hello", created: str = "2026-01-01T00:00:00Z") -> Event:
    return decode_event(
        f'{{"type": "event", "event_type": "message.received", "event_id": "event {number}", "message": {{"inbox_id": '
        f'"agent@agentmail.to", "message_id": "<{number}@example.com>", "created_at": "{created}", "text": "{text}"}}}}'
    )


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
