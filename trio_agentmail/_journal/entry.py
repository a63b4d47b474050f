"""An event in a journal: what is kept of it, and how the event is made of that again."""

import attrs

from trio_agentmail._codec import as_unknown, decode_event
from trio_agentmail._events.base import ServerEvent
from trio_agentmail._identity import PLAUSIBLE, identity, push_record
from trio_agentmail.errors import printable
from trio_agentmail.events import Event, MessageReceivedEvent, Subscribed, UnknownEvent

__all__ = ["DeadRow", "Entry", "NewRow", "PendingRow", "new_row", "restored"]


@attrs.frozen
class NewRow:
    """An event to be written down: its identity as `KeptIdentity` has it, and what is kept until it is handled."""

    key: bytes
    push: int
    recorded_at: float
    origin: str
    event_type: str
    text: bytes


@attrs.frozen
class PendingRow:
    """An event that is not handled; `under_way`: an attempt had begun, and the process ended before it did."""

    id: int
    key: bytes
    attempts: int
    under_way: bool
    origin: str
    event_type: str


@attrs.frozen
class DeadRow:
    """An event that is not tried again."""

    id: int
    attempts: int
    error: str
    ended_at: float
    origin: str
    text: bytes


@attrs.define(eq=False)
class Entry:
    """An event that is not handled. It is on disk, or on its way there; in memory it is when its turn is near."""

    id: int
    key: bytes  # what `identity` says of the event
    event_type: str
    origin: str
    attempts: int = 0
    given: bool = False  # in this run, or maybe in an earlier one
    on_disk: bool = True
    attempting: bool = False
    retry_at: float | None = None
    done: bool = False  # handled, a dead letter, or not new
    content: Event | bytes | None = None
    size: int = 0

    def __str__(self) -> str:
        return f"{self.event_type} (number {self.id} in the journal)"


def new_row(event: Event, now: float) -> NewRow:
    """What is written down of an event.

    Raises:
        TypeError: it cannot be kept.
    """
    if not isinstance(event, ServerEvent | UnknownEvent):
        raise TypeError(f"a journal keeps events, and {type(event).__name__} is a notice")
    raw = event._raw
    if raw == "":  # what was received is bytes, even if it is empty
        raise TypeError(
            f"a journal keeps the text of an event as it was received, and this {type(event).__name__} was made by "
            "hand and has none: decode_event makes one that has"
        )
    key = identity(event)
    assert key is not None  # what has a text has one
    push = 0
    if isinstance(event, MessageReceivedEvent):
        push = push_record(event)
        created_at = event.message.created_at
        if created_at is None or created_at.timestamp() > now + PLAUSIBLE:
            push = ~push
        else:
            # AgentMail's clock may be a little ahead, and who forgets goes by its time.
            now = max(now, created_at.timestamp())
    return NewRow(
        key=key,
        push=push,
        recorded_at=now,
        origin=event.origin,
        event_type=printable(event.event_type or "an unknown event", 100),
        text=raw if isinstance(raw, bytes) else raw.encode(errors="backslashreplace"),
    )


def restored(text: bytes, *, origin: str, attempt: int) -> Event:
    """The event that was written down."""
    event = decode_event(text)
    if isinstance(event, Subscribed):
        # Of confirmations only those that confirm nothing are written down.
        event = as_unknown(event, "a confirmation that nobody waited for")
    assert isinstance(event, ServerEvent | UnknownEvent)
    return attrs.evolve(event, origin=origin, attempt=attempt)
