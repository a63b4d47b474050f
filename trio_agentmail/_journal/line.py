"""Whose turn it is: the events and notices of a journal that nobody has taken, without I/O."""

import math
from collections import deque
from itertools import islice
from typing import Any, TypeAlias

import trio

from trio_agentmail._notices import merge_notice
from trio_agentmail.events import Event

from .entry import Entry
from .protocol import Notice

__all__ = ["HELD_BYTES", "Line"]

HELD_EVENTS, HELD_BYTES = 1000, 4 * 2**20
"""What is kept in memory of the events that wait on disk, and what is read from there at once. Under load that is what
one commit brings, which would else be read and decoded a second time, and the reading would wait for the next one."""

ALONE_FOR = 60.0
"""Seconds in which an event that may have killed the process has to be taken up; see `Line`."""

_Queue: TypeAlias = deque[Any]


class Line:
    """First what may have killed the process, then what is due to be tried again, then the others as they came.

    An event that was being handled when the process died may be what killed it: a mail that drives a parser into a
    crash does so at every attempt. Those that were handled at the same time are innocent, and which is which cannot
    be known. So each of these suspects is given alone: nothing else is given until its attempt has ended, so that it
    can take nothing with it. Whoever does not begin an attempt in `ALONE_FOR` seconds makes none, and does not hold
    up the others.

    In memory is what came when there was room, and what is next: other entries have no content until it is read.
    """

    def __init__(self) -> None:
        self._suspects: deque[Entry] = deque()
        self._retries: deque[tuple[float, Entry]] = deque()  # the delay is always the same, so they are in order
        self._others: deque[Entry | Notice] = deque()
        self._alone: Entry | None = None  # the suspect that was given last, until its attempt has ended
        self._alone_until = -math.inf
        self._held = self._held_bytes = 0

    def __len__(self) -> int:
        retries = sum(not entry.done for _, entry in self._retries)
        return retries + sum(not _is_done(item) for queue in (self._suspects, self._others) for item in queue)

    def add_suspect(self, entry: Entry) -> None:
        self._suspects.append(entry)

    def add(self, entry: Entry) -> None:
        self._others.append(entry)

    def add_notice(self, notice: Notice) -> None:
        merge_notice(self._others, notice)

    def retry(self, entry: Entry, at: float) -> None:
        """It is given again then."""
        entry.retry_at = at
        self._retries.append((at, entry))
        self.attempt_ended(entry)

    def end(self, entry: Entry) -> None:
        """It is not given any more."""
        entry.done = True
        self.release(entry)
        # Of those that turn out not to be new there may be many while nobody takes anything.
        while self._others and _is_done(self._others[-1]):
            self._others.pop()
        self.attempt_ended(entry)

    def attempt_begins(self, entry: Entry) -> None:
        entry.attempting = True
        if entry.retry_at is not None:  # it has been taken up by hand
            self._retries.remove((entry.retry_at, entry))
            entry.retry_at = None

    def attempt_ended(self, entry: Entry) -> None:
        entry.attempting = False
        if entry is self._alone:
            self._alone = None

    def first(self) -> Entry | Notice | None:
        """Whose turn it is, if anybody's; it stays in line."""
        found = self._first()
        return None if found is None else found[1]

    def take(self) -> Entry | Notice:
        """The same, and it leaves the line; an entry with what it holds."""
        found = self._first()
        assert found is not None
        queue, first = found
        queue.popleft()
        if isinstance(first, Entry):
            first.retry_at = None
            if queue is self._suspects:
                self._alone, self._alone_until = first, trio.current_time() + ALONE_FOR
        return first

    def _first(self) -> tuple[_Queue, Entry | Notice] | None:
        now = trio.current_time()
        if self._is_alone(now):
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
            if not isinstance(first, Entry) or first.on_disk:
                return self._others, first
        return None

    def _is_alone(self, now: float) -> bool:
        """Whether a suspect is being tried, or there is still time for that to begin. It may also begin later."""
        return self._alone is not None and (self._alone.attempting or now < self._alone_until)

    def look_again_at(self) -> float:
        """When that changes without anybody's doing."""
        if self._alone is not None and self._is_alone(trio.current_time()):
            return math.inf if self._alone.attempting else self._alone_until
        return self._retries[0][0] if self._retries else math.inf

    def to_read(self, first: Entry) -> list[Entry]:
        """What to read when the turn of this one has come: it, and those that come soon after it."""
        if not self._others or first is not self._others[0]:
            return [first]
        return [
            entry
            for entry in islice(self._others, HELD_EVENTS)
            if isinstance(entry, Entry) and entry.on_disk and entry.content is None
        ]

    def hold_if_there_is_room(self, entry: Entry, content: Event | bytes) -> None:
        if self._held < HELD_EVENTS and self._held_bytes + entry.size <= HELD_BYTES:
            self.hold(entry, content)

    def hold(self, entry: Entry, content: Event | bytes) -> None:
        entry.content = content
        self._held += 1
        self._held_bytes += entry.size

    def release(self, entry: Entry) -> None:
        if entry.content is not None:
            entry.content = None
            self._held -= 1
            self._held_bytes -= entry.size


def _is_done(item: Entry | Notice) -> bool:
    return isinstance(item, Entry) and item.done
