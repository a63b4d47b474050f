"""A pending event in memory, and its conversion to and from a stored record."""

import attrs

from trio_agentmail._codec import as_unknown, decode_event
from trio_agentmail._events.base import ServerEvent
from trio_agentmail._printable import printable
from trio_agentmail.events import Event, Subscribed, UnknownEvent

from .protocol import KeptIdentity
from .store import NewRecord

__all__ = ["Entry", "new_record", "restored"]


@attrs.define(eq=False)
class Entry:
    """A pending event, stored or about to be stored. Its content is in memory only when it is to be delivered soon.

    Attributes:
        id: Its number in the journal.
        key: See `KeptIdentity`.
        attempts: The number of attempts that have begun, including the one under way.
        delivered: Whether it has been delivered to the consumer, or may have been in an earlier run.
        stored: Whether it is in the store.
        attempting: Whether an attempt is under way.
        retry_at: The time of its redelivery, in seconds on Trio's clock; None if no retry is scheduled.
        done: Whether it is no longer to be delivered: it is handled, a dead letter, or a duplicate of a stored event.
        content: The event as received, or its text as read from the store; None while it is only in the store.
        size: The size of its text in bytes; 0 until the size is known.
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
    """Return the record of an event for the store.

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
    """Decode the stored text of an event."""
    event = decode_event(text)
    if isinstance(event, Subscribed):
        # Only unexpected confirmations are stored. They were delivered as unknown events.
        event = as_unknown(event, "an unexpected confirmation")
    assert isinstance(event, ServerEvent | UnknownEvent)
    return attrs.evolve(event, origin=origin, attempt=attempt)
