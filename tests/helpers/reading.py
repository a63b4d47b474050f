"""Read a stream in short form: each event as a word."""

from datetime import UTC, datetime
from itertools import pairwise

import trio

from trio_agentmail import (
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    RecoveryFailed,
    Subscribe,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing import FakeAgentMail

A = Subscribe(inbox_ids=["a"])
B = Subscribe(inbox_ids=["b"])


def word(event: Event) -> str:
    """Return an event as a word: S(ubscribed, with its inboxes), D(isconnected), or the subject of a mail."""
    match event:
        case Subscribed(inbox_ids=inbox_ids):
            return "S" + "".join(inbox_ids or ())
        case Disconnected():
            return "D"
        case MessageReceivedEvent(message=message):
            return message.subject or ""
        case ErrorEvent(name=name):
            return f"error {name}"
        case UnknownEvent(event_type=event_type):
            return f"unknown {event_type}"
        case CaughtUp() | RecoveryFailed():  # pragma: no cover
            raise AssertionError(event)
    return event.event_type


async def take(events: trio.MemoryReceiveChannel[Event], number: int) -> str:
    """Return the next `number` events, as words."""
    return " ".join([word(await anext(events)) for _ in range(number)])


async def take_all(events: trio.MemoryReceiveChannel[Event]) -> str:
    """Return the events in the channel and those that arrive within a minute, as words."""
    words = []
    with trio.move_on_after(60):
        async for event in events:
            words.append(word(event))
    return " ".join(words)


async def mail(fake: FakeAgentMail, *subjects: str, inbox_id: str = "a") -> None:
    for subject in subjects:
        await fake.deliver(inbox_id=inbox_id, subject=subject)


def time_of_day(fake: FakeAgentMail) -> datetime:
    """Return the fake's time of day, which advances in exact steps, as the mock clock does."""
    return datetime.fromtimestamp(fake.now(), UTC)


def waits(fake: FakeAgentMail) -> list[float]:
    """Return the seconds from each handshake to the next."""
    return [round(later.at - earlier.at, 3) for earlier, later in pairwise(fake.record.handshakes)]
