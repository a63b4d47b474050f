"""The order in which events and notices are delivered."""

import math
from collections import deque
from itertools import islice
from typing import Any, TypeAlias

from trio_agentmail._notices import merge_notice
from trio_agentmail.events import Notice

from .entry import Entry

__all__ = ["DeliveryOrder"]

ALONE_FOR = 60.0
"""Seconds that a delivered suspect waits for its attempt to begin, before other events are delivered as well."""

_Queue: TypeAlias = deque[Any]


class DeliveryOrder:
    """Queues of events and notices: suspects are delivered first, then retries that are due, then all others in order.

    A suspect is an event whose attempt was under way when the process died. It may have caused the crash: a mail that
    crashes a parser does so at every attempt. Other events that were attempted at the same time are innocent, but the
    journal cannot tell which. Delivering all of them concurrently would crash again, and each crash would cost each of
    them an attempt, until the innocent ones are dead letters too.

    So each suspect is delivered alone. No other event is delivered until its attempt has ended, and a crash costs only
    that event an attempt. If the consumer does not begin an attempt within `ALONE_FOR` seconds, it is assumed to work
    without `processing`, and the other events are delivered.

    All times are passed in, in seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._suspects: deque[Entry] = deque()
        self._retries: deque[tuple[float, Entry]] = deque()  # the delay is constant, so they are in order
        self._others: deque[Entry | Notice] = deque()
        self._alone: Entry | None = None  # the suspect that was delivered last, until its attempt has ended
        self._alone_until = -math.inf

    def __len__(self) -> int:
        retries = sum(not entry.done for _, entry in self._retries)
        return retries + sum(not _is_done(item) for queue in (self._suspects, self._others) for item in queue)

    def add_suspect(self, entry: Entry) -> None:
        self._suspects.append(entry)

    def add(self, entry: Entry) -> None:
        self._others.append(entry)

    def add_notice(self, notice: Notice) -> None:
        merge_notice(self._others, notice)

    def add_retry(self, entry: Entry, at: float) -> None:
        """Schedule the redelivery of an event whose attempt has ended."""
        entry.retry_at = at
        self._retries.append((at, entry))
        self._attempt_ended(entry)

    def remove(self, entry: Entry) -> None:
        """Stop delivering this event."""
        entry.done = True
        # Duplicates are found only when they are stored. Many may pile up at the end of the queue while the consumer
        # takes nothing.
        while self._others and _is_done(self._others[-1]):
            self._others.pop()
        self._attempt_ended(entry)

    def attempt_begins(self, entry: Entry) -> None:
        """Note that an attempt has begun, and cancel the scheduled redelivery of its event.

        The event may be in another queue as well, if the consumer has it from an earlier delivery.
        """
        entry.attempting = True
        if entry.retry_at is not None:
            self._retries.remove((entry.retry_at, entry))
            entry.retry_at = None

    def _attempt_ended(self, entry: Entry) -> None:
        entry.attempting = False
        if entry is self._alone:
            self._alone = None

    def first(self, now: float) -> Entry | Notice | None:
        """Return the next event or notice without removing it, or None if nothing may be delivered now."""
        found = self._first(now)
        return None if found is None else found[1]

    def take(self, now: float) -> Entry | Notice:
        """Remove and return the next event or notice. `first` must not return None."""
        found = self._first(now)
        assert found is not None
        queue, first = found
        queue.popleft()
        if isinstance(first, Entry):
            if queue is self._retries:  # an entry may be in another queue too: see `attempt_begins`
                first.retry_at = None
            elif queue is self._suspects:
                self._alone, self._alone_until = first, now + ALONE_FOR
        return first

    def _first(self, now: float) -> tuple[_Queue, Entry | Notice] | None:
        if self._is_one_alone(now):
            return None
        while self._suspects and self._suspects[0].done:
            self._suspects.popleft()
        if self._suspects:
            return self._suspects, self._suspects[0]
        while self._retries and self._retries[0][1].done:
            self._retries.popleft()
        if self._retries and self._retries[0][0] <= now:
            return self._retries, self._retries[0][1]
        while self._others and _is_done(self._others[0]):
            self._others.popleft()
        if self._others:
            first = self._others[0]
            if not isinstance(first, Entry) or first.stored:
                return self._others, first
        return None

    def _is_one_alone(self, now: float) -> bool:
        """Return whether a suspect's attempt is under way, or may still begin in time."""
        return self._alone is not None and (self._alone.attempting or now < self._alone_until)

    def changes_at(self, now: float) -> float:
        """Return the time at which the result of `first` may change by itself; `math.inf` if it cannot."""
        if self._alone is not None and self._is_one_alone(now):
            return math.inf if self._alone.attempting else self._alone_until
        return self._retries[0][0] if self._retries else math.inf

    def without_content(self, first: Entry, limit: int) -> list[Entry]:
        """Return the entries whose content should be read now: `first`, and those that are delivered soon after it."""
        if not self._others or first is not self._others[0]:
            return [first]
        return [
            entry
            for entry in islice(self._others, limit)
            if isinstance(entry, Entry) and entry.stored and entry.content is None
        ]


def _is_done(item: Entry | Notice) -> bool:
    return isinstance(item, Entry) and item.done
