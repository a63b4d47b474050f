"""One pending event in memory, what is stored of it, and how the event is restored from that."""

import attrs

from trio_agentmail._codec import as_unknown, decode_event
from trio_agentmail._events.base import ServerEvent
from trio_agentmail.errors import printable
from trio_agentmail.events import Event, Subscribed, UnknownEvent

from .protocol import KeptIdentity
from .store import NewRecord

__all__ = ["Entry", "new_record", "restored"]


@attrs.define(eq=False)
class Entry:
    """A pending event, stored or about to be stored. Its content is in memory only while its delivery is near.

    Attributes:
        id: Its number in the journal.
        key: See `KeptIdentity`.
        attempts: How many attempts have begun, including one that is under way.
        delivered: Whether the consumer has had it, or may have had it in an earlier run.
        stored: Whether it is in the store.
        attempting: Whether an attempt is under way.
        retry_at: When it is redelivered, by Trio's clock, in seconds; None if no retry is scheduled.
        done: Whether it is no longer delivered: it is handled, a dead letter, or was stored by an earlier run.
        content: The event as it came, or its text as it was read; None while it is only in the store.
        size: Bytes of its text; 0 until it is known.
    """

    id: int
    key: bytes
    event_type: str
    origin: str
    attempts: int = 0
    delivered: bool = False
    stored: bool = True
    attempting: bool = False
    retry_at: float | None = None
    done: bool = False
    content: Event | bytes | None = None
    size: int = 0

    def __str__(self) -> str:
        return f"{self.event_type} (number {self.id} in the journal)"


def new_record(event: Event, now: float) -> NewRecord:
    """Return what is stored of an event.

    Args:
        now: Seconds since the epoch.

    Raises:
        TypeError: The event is a notice, or was made by hand and has no text.
    """
    known = KeptIdentity.of(event, now)
    assert isinstance(event, ServerEvent | UnknownEvent)
    raw = event._raw
    return NewRecord(
        identity=known,
        origin=event.origin,
        event_type=printable(event.event_type or "an unknown event", 100),
        text=raw if isinstance(raw, bytes) else raw.encode(errors="backslashreplace"),
    )


def restored(text: bytes, *, origin: str, attempt: int) -> Event:
    """Return the event that was stored as this text."""
    event = decode_event(text)
    if isinstance(event, Subscribed):
        # Only confirmations that confirmed nothing are stored; they were delivered as unknown events.
        event = as_unknown(event, "an unexpected confirmation")
    assert isinstance(event, ServerEvent | UnknownEvent)
    return attrs.evolve(event, origin=origin, attempt=attempt)
