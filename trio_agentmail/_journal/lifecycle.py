"""The state machine of a journal's events. It does no I/O and never waits."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import attrs

from trio_agentmail._identity import identity
from trio_agentmail.events import Event, Notice

from .content_cache import CACHED_EVENTS, ContentCache
from .delivery_order import DeliveryOrder
from .entry import Entry, restored
from .store import (
    Ack,
    Add,
    BeginAttempt,
    Bury,
    Change,
    Drop,
    Fail,
    Loaded,
    NewRecord,
    PendingRecord,
    Requeue,
    TakeBackAttempt,
)

__all__ = ["CRASHED", "Decision", "Lifecycle", "Rules"]

CRASHED = "the process ended during the attempt"
"""The error of a dead letter whose last attempt ended with a crash."""


def _whole_number(rules: "Rules", attribute: Any, value: Any) -> None:
    name = attribute.name
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")


def _seconds(rules: "Rules", attribute: Any, value: Any) -> None:
    name = attribute.name
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} takes a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, not {value!r}")


@attrs.frozen(kw_only=True)
class Rules:
    """The settings of a journal, as `SQLiteJournal` documents them.

    Raises:
        TypeError, ValueError: A setting is invalid.
    """

    max_attempts: int = attrs.field(validator=_whole_number)
    retry_delay: float = attrs.field(validator=_seconds)
    max_pending: int = attrs.field(validator=_whole_number)


class Decision(NamedTuple):
    """A change to be stored, and a callback for when it is durable.

    Attributes:
        change: See `Store.apply`.
        then: To be called when the change is durable, with its result and the time. It must not be called if the change
            could not be stored.
    """

    change: Change
    then: Callable[[Any, float], None] | None = None


class Lifecycle:
    """The pending events of a journal, from recording until they are handled or dead letters.

    Methods that change an event return a `Decision`. The caller stores its change, and calls its `then` when that is
    durable. Until then, a new event is not delivered, and an acknowledged one still counts as pending.

    `now` is in seconds of one monotonic clock, `time_of_day` in seconds since the epoch.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._order = DeliveryOrder()
        self._contents = ContentCache()
        self._pending: dict[bytes, Entry] = {}
        self._last_id = 0
        self.unstored = self.unstored_bytes = 0
        """The number of recorded events that are not stored yet, and the total size of their texts in bytes."""

    def start(self, loaded: Loaded, time_of_day: float) -> list[tuple[PendingRecord, Bury]]:
        """Load the pending events of an earlier run.

        Returns:
            The events whose last allowed attempt ended with a crash, each with the change that makes it a dead letter.
            The caller stores these changes before any other.
        """
        dead = []
        self._last_id = loaded.last_id
        # Suspects with few attempts come first: they are more likely to be innocent and succeed.
        for record in sorted(loaded.pending, key=lambda record: record.attempts if record.under_way else 0):
            if not record.under_way:
                self._order.add(self._entry(record))
            elif record.attempts < self._rules.max_attempts:
                self._order.add_suspect(self._entry(record))
            else:
                dead.append((record, Bury(record.id, CRASHED, time_of_day)))
        return dead

    def _entry(self, record: PendingRecord) -> Entry:
        entry = Entry(record.id, record.key, record.event_type, record.origin, record.attempts, delivered=True)
        self._pending[entry.key] = entry
        return entry

    # Recording

    @property
    def pending(self) -> int:
        """The number of pending events."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether `max_pending` is reached, so that no event may be recorded until some are acknowledged."""
        return len(self._pending) >= self._rules.max_pending

    def most_common_types(self) -> str:
        """Return the five most common types of the pending events with their counts, for the log."""
        counted = Counter(entry.event_type for entry in self._pending.values())
        shown = [f"{count} {event_type}" for event_type, count in counted.most_common(5)]
        return ", ".join(shown if len(counted) <= 5 else [*shown, "…"])

    def record(self, event: Event, record: NewRecord) -> Decision | None:
        """Add an event that has arrived.

        Returns:
            None if the event is pending already. Other events may still turn out to be duplicates when they are stored.
        """
        key = record.identity.key
        if key in self._pending:
            return None
        self._last_id += 1
        size = len(record.text)
        entry = Entry(self._last_id, key, record.event_type, record.origin, stored=False, content=event, size=size)
        self._pending[key] = entry
        self._order.add(entry)
        self.unstored += 1
        self.unstored_bytes += size
        return Decision(Add(entry.id, record), partial(self._recorded, entry))

    def _recorded(self, entry: Entry, is_new: bool, now: float) -> None:
        self.unstored -= 1
        self.unstored_bytes -= entry.size
        entry.stored = True
        event, entry.content = entry.content, None
        if not is_new:
            self._end(entry)
        elif event is not None and not entry.done:
            self._contents.add_if_room(entry, event)

    def add_notice(self, notice: Notice) -> None:
        """Add a notice, to be delivered after all earlier events and notices."""
        self._order.add_notice(notice)

    # Delivery

    @property
    def waiting(self) -> int:
        """The number of events and notices that wait for delivery, including retries that are not due."""
        return len(self._order)

    def first(self, now: float) -> Entry | Notice | None:
        """Return the next event or notice, or None if nothing may be delivered now. See `DeliveryOrder`.

        The text of an entry without content has to be read before `take`; see `to_read`.
        """
        return self._order.first(now)

    def changes_at(self, now: float) -> float:
        """Return the time at which the result of `first` may change by itself; `math.inf` if it cannot."""
        return self._order.changes_at(now)

    def to_read(self, first: Entry) -> list[Entry]:
        """Return the entries whose texts should be read now. `first` is delivered next and has no content."""
        return self._order.without_content(first, CACHED_EVENTS)

    def add_text(self, entry: Entry, text: bytes) -> None:
        """Add the text of an entry that was read from the store."""
        if not entry.done:
            entry.size = len(text)
            self._contents.add(entry, text)

    def take(self, now: float) -> Event:
        """Remove and return the next event or notice. An entry must have its content."""
        taken = self._order.take(now)
        if not isinstance(taken, Entry):
            return taken
        content = taken.content
        assert content is not None
        self._contents.remove(taken)
        if isinstance(content, bytes):
            origin = "redelivered" if taken.delivered else taken.origin
            event = restored(content, origin=origin, attempt=taken.attempts + 1)
        else:
            event = content  # the event as received; a redelivery is decoded from its text
        taken.delivered = True
        key = identity(event)
        if key is not None and key != taken.key:
            # An older version of this package may not have known the event's type, and computed another identity.
            self._pending[key] = self._pending.pop(taken.key)
            taken.key = key
        return event

    # Attempts and their outcomes

    def find(self, key: bytes) -> Entry | None:
        """Return the pending event with this identity, if any."""
        return self._pending.get(key)

    def ack(self, entry: Entry) -> Decision:
        """Mark an event as handled."""
        entry.done = True
        return Decision(Ack(entry.id), partial(self._ended, entry))

    def begin_attempt(self, entry: Entry) -> Decision:
        """Begin a delivery attempt.

        Raises:
            RuntimeError: An attempt at this event is under way.
        """
        if entry.attempting:
            raise RuntimeError(f"{entry} is being processed already")
        self._order.attempt_begins(entry)
        entry.attempts += 1
        return Decision(BeginAttempt(entry.id))

    def take_back_attempt(self, entry: Entry, now: float) -> Decision:
        """Take back an interrupted attempt, which does not count. Redeliver the event after `retry_delay`."""
        entry.attempts -= 1
        self._retry(entry, now)
        return Decision(TakeBackAttempt(entry.id))

    def fail(self, entry: Entry, error: str, time_of_day: float) -> Decision:
        """End a failed attempt: redeliver the event after `retry_delay` (`Fail`), or make it a dead letter (`Bury`)."""
        if entry.attempts < self._rules.max_attempts:
            return Decision(Fail(entry.id, error), partial(self._failed, entry))
        entry.done = True
        return Decision(Bury(entry.id, error, time_of_day), partial(self._ended, entry))

    def interrupted(self) -> list[TakeBackAttempt]:
        """Return the changes for closing the journal. They take back the attempts that are under way."""
        return [TakeBackAttempt(entry.id) for entry in self._pending.values() if entry.attempting]

    def _failed(self, entry: Entry, result: None, now: float) -> None:
        self._retry(entry, now)

    def _retry(self, entry: Entry, now: float) -> None:
        self._order.add_retry(entry, now + self._rules.retry_delay)

    def _ended(self, entry: Entry, result: None, now: float) -> None:
        self._end(entry)

    def _end(self, entry: Entry) -> None:
        self._pending.pop(entry.key, None)
        self._contents.remove(entry)
        self._order.remove(entry)

    # Dead letters

    def requeue(self, id: int) -> Decision:
        """Make a dead letter pending again, with no attempts, after all other events."""
        return Decision(Requeue(id), self._requeued)

    def _requeued(self, record: PendingRecord | None, now: float) -> None:
        if record is not None:
            self._order.add(self._entry(record))

    def drop(self, id: int) -> Decision:
        """Delete a dead letter."""
        return Decision(Drop(id))
