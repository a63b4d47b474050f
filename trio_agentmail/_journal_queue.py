"""What a journal does with events, from when they are recorded until they are handled: the asynchronous half."""

import logging
import math
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import trio

from ._codec import identity
from ._group_commit import GroupCommit
from ._journal import Notice, RunSync
from ._journal_entry import Entry, PendingRow, new_row, restored
from ._notices import merge_notice
from ._sqlite_store import SQLiteStore
from .errors import JournalError
from .events import Event

__all__ = ["JournalQueue", "open_store"]

T = TypeVar("T")

UNWRITTEN_EVENTS, UNWRITTEN_BYTES = 1000, 8 * 2**20
"""What may wait for the disk, before `record` waits as well."""

HELD_EVENTS, HELD_BYTES = 64, 4 * 2**20
"""What is kept in memory of the events that wait on disk, and what is read from there at once."""

ALONE_FOR = 60.0
"""Seconds in which an event that may have killed the process has to be taken up; see `JournalQueue`."""

logger = logging.getLogger("trio_agentmail")

_Waiting: TypeAlias = deque[Entry | Notice]


class JournalQueue:
    """The events of a journal that is open: in order, each on disk before anybody gets it, and few of them in memory.

    An event that was being handled when the process died may be what killed it: a mail that drives a parser into a
    crash does so at every attempt. Those that were handled at the same time are innocent, and which is which cannot
    be known. So at the next start each of these suspects is given alone: nothing else is given until its attempt has
    ended, so that it can take nothing with it. Those with the fewest attempts come first, since innocents succeed.
    """

    def __init__(
        self,
        store: SQLiteStore,
        pending: list[PendingRow],
        run_sync: RunSync,
        now: Callable[[], float],
        *,
        max_attempts: int,
        retry_delay: float,
        max_pending: int,
    ) -> None:
        self.store = store
        self._commits = GroupCommit(store, run_sync)
        self._now = now
        self._max_attempts = max_attempts
        self._retry_delay = retry_delay
        self._max_pending = max_pending
        self._last_id = store.last_id()
        self._entries: dict[Hashable, Entry] = {}
        # Whence `next` takes: from the first of these that has something to give.
        self._suspects: deque[Entry] = deque()
        self._retries: deque[tuple[float, Entry]] = deque()
        self._waiting: _Waiting = deque()
        for row in sorted(pending, key=lambda row: row.attempts if row.under_way else 0):
            (self._suspects if row.under_way else self._waiting).append(self._entry(row))
        self._alone: Entry | None = None  # the suspect that was given last, until its attempt has ended
        self._alone_until = -math.inf
        self._unwritten = self._unwritten_bytes = 0
        self._held = self._held_bytes = 0
        self._room = trio.lowlevel.ParkingLot()  # where `record` waits
        self._ready = trio.lowlevel.ParkingLot()  # where `next` waits
        self._warned = False
        self._closed = False
        self._ended = trio.Event()
        self.duplicates = 0

    def _entry(self, row: PendingRow) -> Entry:
        entry = Entry(row.id, (row.kind, row.key), row.event_type, row.origin, row.attempts, given=True)
        self._entries[entry.key] = entry
        return entry

    async def run(self) -> None:
        """What happens in the background, until `close`."""
        try:
            await self._commits.run()
        finally:
            self._ended.set()
            self._wake()

    async def close(self) -> None:
        """Write what has been recorded; nothing can be done with this any more. Never cancelled.

        An attempt that is under way is none: whoever makes it cannot tell us any more how it ended.
        """
        self._closed = True
        self._wake()
        with suppress(JournalError):
            for entry in self._entries.values():
                if entry.attempting:
                    self._commits.add(partial(self.store.take_attempt_back, entry.id))
        self._commits.close()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def check(self) -> None:
        """Raise what went wrong with the disk.

        Raises:
            JournalError: that.
        """
        self._commits.check()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the journal is closed")
        self.check()

    def _wake(self) -> None:
        self._room.unpark_all()
        self._ready.unpark_all()

    # In

    async def record(self, event: Event) -> None:
        """See `Journal`. Without a checkpoint where there is room, like reading the network, of which this is part."""
        self._check_open()
        row = new_row(event, self._now())
        key = (row.kind, row.key)
        while (
            (full := len(self._entries) >= self._max_pending)
            or self._unwritten >= UNWRITTEN_EVENTS
            or self._unwritten_bytes >= UNWRITTEN_BYTES
        ):
            if full and not self._warned:
                self._warned = True
                logger.warning("%d events in the journal are not handled: no more are read", len(self._entries))
            await self._room.park()
            self._check_open()
        if key in self._entries:
            self.duplicates += 1
            return
        self._last_id += 1
        entry = Entry(self._last_id, key, row.event_type, row.origin, on_disk=False, content=event, size=len(row.text))
        self._entries[key] = entry
        self._waiting.append(entry)
        self._unwritten += 1
        self._unwritten_bytes += entry.size
        self._commits.add(partial(self.store.add, entry.id, row), partial(self._recorded, entry))

    def _recorded(self, entry: Entry, added: bool) -> None:
        self._unwritten -= 1
        self._unwritten_bytes -= entry.size
        entry.on_disk = True
        event, entry.content = entry.content, None
        if not added:
            self.duplicates += 1
            self._end(entry)
        elif event is not None and self._held < HELD_EVENTS and self._held_bytes + entry.size <= HELD_BYTES:
            self._hold(entry, event, entry.size)
        self._wake()

    def notice(self, notice: Notice) -> None:
        """See `Journal`."""
        self._check_open()
        merge_notice(self._waiting, notice)
        self._ready.unpark_all()

    async def keep(self, state: bytes, scope: str | None) -> None:
        """See `Journal`."""
        self._check_open()
        await self._commits.write(partial(self.store.keep, state, scope))

    # Out

    @property
    def waiting(self) -> int:
        """See `Journal`."""
        retries = sum(self._is_due_sometime(at, entry) for at, entry in self._retries)
        others = sum(not (isinstance(item, Entry) and item.done) for queue in self._queues() for item in queue)
        return retries + others

    def _queues(self) -> tuple[deque[Entry], _Waiting]:
        return self._suspects, self._waiting

    async def next(self) -> Event:
        """See `Journal`. Without a checkpoint where something waits: handing it to the consumer has its own."""
        while True:
            self._check_open()
            found = self._first()
            if found is None:
                with trio.move_on_at(self._look_again_at()):
                    await self._ready.park()
                continue
            queue, first = found
            if isinstance(first, Entry) and first.content is None:
                await self._read_ahead(first)
            else:
                queue.popleft()
                if not isinstance(first, Entry):
                    return first
                if queue is self._suspects:
                    self._alone, self._alone_until = first, trio.current_time() + ALONE_FOR
                return self._given(first)

    def _first(self) -> tuple[deque[Any], Entry | Notice] | None:
        """Where the next one waits, and which it is; it stays there."""
        now = trio.current_time()
        if self._alone is not None:
            if self._alone.attempting or now < self._alone_until:
                return None
            self._alone = None
        while self._suspects:
            if not self._suspects[0].done:
                return self._suspects, self._suspects[0]
            self._suspects.popleft()
        while self._retries:
            at, entry = self._retries[0]
            if self._is_due_sometime(at, entry):
                if at <= now:
                    return self._retries, entry
                break
            self._retries.popleft()
        while self._waiting:
            first = self._waiting[0]
            if not isinstance(first, Entry):
                return self._waiting, first
            if not first.done:
                return (self._waiting, first) if first.on_disk else None
            self._waiting.popleft()
        return None

    @staticmethod
    def _is_due_sometime(at: float, entry: Entry) -> bool:
        return entry.retry_at == at and not entry.done

    def _look_again_at(self) -> float:
        if self._alone is not None:
            return math.inf if self._alone.attempting else self._alone_until
        return self._retries[0][0] if self._retries else math.inf

    async def _read_ahead(self, entry: Entry) -> None:
        """Read the text of this, and if it waits in line those of the next ones."""
        entries = [entry]
        if self._waiting and entry is self._waiting[0]:
            entries = [
                waiting
                for waiting in islice(self._waiting, HELD_EVENTS)
                if isinstance(waiting, Entry) and waiting.on_disk and waiting.content is None
            ]
        texts = await self._commits.read(partial(self.store.texts, [entry.id for entry in entries], HELD_BYTES))
        for read in entries:
            text = texts.get(read.id)
            if text is not None and not read.done:
                self._hold(read, text, len(text))
        if entry.content is None and not entry.done:
            raise JournalError(f"the journal is damaged: the text of {entry} is missing")

    def _given(self, entry: Entry) -> Event:
        """The event, as it is given now."""
        content = entry.content
        assert content is not None
        self._release(entry)
        if isinstance(content, bytes):
            origin = "redelivered" if entry.given else entry.origin
            event = restored(content, origin=origin, attempt=entry.attempts + 1)
        else:
            event = content  # as it came: what is given again is read again
        entry.given = True
        entry.retry_at = None
        key = identity(event)
        if key != entry.key:
            # What another version of this package wrote down as unknown, this one may know, and identify otherwise.
            self._entries[key] = self._entries.pop(entry.key)
            entry.key = key
        return event

    def _hold(self, entry: Entry, content: Event | bytes, size: int) -> None:
        entry.content, entry.size = content, size
        self._held += 1
        self._held_bytes += size

    def _release(self, entry: Entry) -> None:
        if entry.content is not None:
            entry.content = None
            self._held -= 1
            self._held_bytes -= entry.size

    # What becomes of it

    def find(self, event: Event) -> Entry | None:
        """The entry of an event that is not handled; None: it is handled or a dead letter, or a notice.

        Raises:
            trio.ClosedResourceError: the journal is closed.
        """
        self._check_open()
        return self._entries.get(identity(event))

    async def ack(self, entry: Entry) -> None:
        """The event is handled."""
        self._check_open()
        entry.done = True
        await self._commits.write(partial(self.store.ack, entry.id, self._now()), lambda _: self._end(entry))

    async def begin_attempt(self, entry: Entry) -> None:
        """An attempt to handle the event begins."""
        self._check_open()
        if entry.attempting:
            raise RuntimeError(f"{entry} is being processed already")
        entry.attempting = True
        entry.attempts += 1
        entry.retry_at = None
        try:
            await self._commits.write(partial(self.store.begin_attempt, entry.id))
        except BaseException:
            with suppress(JournalError):
                self._undo_attempt(entry)
            raise
        self._check_open()

    async def take_attempt_back(self, entry: Entry) -> None:
        """The attempt was none: whoever made it was stopped. The event is given again after `retry_delay`."""
        self._check_open()
        await self._undo_attempt(entry).wait()
        self.check()

    def _undo_attempt(self, entry: Entry) -> trio.Event:
        undone = self._commits.add(partial(self.store.take_attempt_back, entry.id))
        entry.attempts -= 1
        self._retry_later(entry)
        return undone

    async def fail(self, entry: Entry, error: str) -> bool:
        """The attempt failed.

        Returns:
            Whether the event is given again after `retry_delay`; if not, it is a dead letter.
        """
        self._check_open()
        if entry.attempts < self._max_attempts:
            await self._commits.write(partial(self.store.fail, entry.id, error))
            self._retry_later(entry)
            return True
        entry.done = True
        await self._commits.write(partial(self.store.bury, entry.id, error, self._now()), lambda _: self._end(entry))
        return False

    def _retry_later(self, entry: Entry) -> None:
        entry.retry_at = trio.current_time() + self._retry_delay
        self._retries.append((entry.retry_at, entry))
        self._attempt_ended(entry)

    def _end(self, entry: Entry) -> None:
        entry.done = True
        self._release(entry)
        self._entries.pop(entry.key, None)
        self._attempt_ended(entry)

    def _attempt_ended(self, entry: Entry) -> None:
        entry.attempting = False
        if entry is self._alone:
            self._alone = None
        self._wake()

    # Dead letters

    async def read(self, function: Callable[[], T]) -> T:
        """Call a method of the store that reads."""
        self._check_open()
        return await self._commits.read(function)

    async def requeue(self, id: int) -> None:
        """A dead letter is pending again, behind what waits; nothing happens if there is none of this number."""
        self._check_open()
        await self._commits.write(partial(self.store.requeue, id), self._requeued)

    def _requeued(self, row: PendingRow | None) -> None:
        if row is not None:
            self._waiting.append(self._entry(row))
            self._ready.unpark_all()

    async def drop(self, id: int) -> None:
        """A dead letter counts as handled; nothing happens if there is none of this number."""
        self._check_open()
        await self._commits.write(partial(self.store.drop, id, self._now()))


CRASHED = "the process ended during the attempt"


def open_store(path: Path, scope: str, now: float, max_attempts: int) -> tuple[SQLiteStore, list[PendingRow]]:
    """The store, and what is not handled. What took the process with it for the last time allowed is a dead letter."""
    store = SQLiteStore(path, scope, now)
    try:
        pending = store.pending()
        fatal = [row for row in pending if row.under_way and row.attempts >= max_attempts]
        store.apply([partial(store.bury, row.id, CRASHED, now) for row in fatal])
    except BaseException:
        store.close()
        raise
    for row in fatal:
        logger.error("number %d in the journal (%s) is a dead letter: %s", row.id, row.event_type, CRASHED)
    return store, [row for row in pending if row not in fatal]
