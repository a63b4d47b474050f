"""What a journal does with events, from when they are recorded until they are handled: the asynchronous half."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

import trio

from trio_agentmail._events.base import FromServer
from trio_agentmail._identity import identity
from trio_agentmail.errors import JournalError, JournalMismatchError
from trio_agentmail.events import CaughtUp, Disconnected, Event, RecoveryFailed

from .entry import Entry, PendingRow, new_row, restored
from .group_commit import GroupCommit
from .line import HELD_BYTES, Line
from .protocol import Notice, RunSync
from .sqlite_store import SQLiteStore

__all__ = ["JournalQueue", "open_store"]

T = TypeVar("T")

UNWRITTEN_EVENTS, UNWRITTEN_BYTES = 1000, 8 * 2**20
"""What may wait for the disk, before `record` waits as well."""

logger = logging.getLogger("trio_agentmail")

_Anything = FromServer | Disconnected | CaughtUp | RecoveryFailed
"""Whatever a stream yields; `Event` names each class, which takes longer to check."""


_open_queues: "WeakSet[JournalQueue]" = WeakSet()
"""Of this process: an event that was copied does not tell any more which journal gave it."""


def _of_another(journal: str, this: str) -> JournalMismatchError:
    return JournalMismatchError(f"this event came from the journal {journal}, and is handled there and not in {this}")


class JournalQueue:
    """The events of an open journal: in order, each on disk before anybody gets it, and few of them in memory."""

    def __init__(
        self,
        name: str,
        store: SQLiteStore,
        pending: list[PendingRow],
        run_sync: RunSync,
        now: Callable[[], float],
        *,
        max_attempts: int,
        retry_delay: float,
        max_pending: int,
    ) -> None:
        self._name = name
        self.store = store
        self._commits = GroupCommit(store, run_sync)
        self._now = now
        self.max_attempts = max_attempts
        self.retry_delay = retry_delay
        self._max_pending = max_pending
        self._last_id = store.last_id()
        self._entries: dict[bytes, Entry] = {}
        self._line = Line()
        # Suspects with few attempts come first: the innocent among them succeed.
        for row in sorted(pending, key=lambda row: row.attempts if row.under_way else 0):
            (self._line.add_suspect if row.under_way else self._line.add)(self._entry(row))
        self._unwritten = self._unwritten_bytes = 0
        self._room = trio.lowlevel.ParkingLot()  # where `record` waits
        self._ready = trio.lowlevel.ParkingLot()  # where `next` waits
        self._warned = False
        self._closed = False
        self._ended = trio.Event()
        _open_queues.add(self)

    def _entry(self, row: PendingRow) -> Entry:
        entry = Entry(row.id, row.key, row.event_type, row.origin, row.attempts, given=True)
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
        _open_queues.discard(self)
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

    async def record(self, event: Event) -> bool:
        """See `Journal`. Without a checkpoint where there is room, like reading the network, of which this is part."""
        self._check_open()
        row = new_row(event, self._now())
        while (
            (full := len(self._entries) >= self._max_pending)
            or self._unwritten >= UNWRITTEN_EVENTS
            or self._unwritten_bytes >= UNWRITTEN_BYTES
        ):
            if full and not self._warned:
                self._warned = True
                logger.warning(
                    "%d events in the journal have not been acknowledged (max_pending), and no more are read until "
                    "some are: %s; every event needs ack() or processing(), of whatever type",
                    len(self._entries),
                    self._most_common_types(),
                )
            await self._room.park()
            self._check_open()
        if row.key in self._entries:
            return False
        self._last_id += 1
        entry = Entry(
            self._last_id, row.key, row.event_type, row.origin, on_disk=False, content=event, size=len(row.text)
        )
        self._entries[row.key] = entry
        self._line.add(entry)
        self._unwritten += 1
        self._unwritten_bytes += entry.size
        self._commits.add(partial(self.store.add, entry.id, row), partial(self._recorded, entry))
        return True

    def _most_common_types(self) -> str:
        """Which types the events have that are not handled, for a log: the five that are most of them."""
        counted = Counter(entry.event_type for entry in self._entries.values())
        shown = [f"{count} {event_type}" for event_type, count in counted.most_common(5)]
        return ", ".join(shown if len(counted) <= 5 else [*shown, "…"])

    def _recorded(self, entry: Entry, added: bool) -> None:
        self._unwritten -= 1
        self._unwritten_bytes -= entry.size
        entry.on_disk = True
        event, entry.content = entry.content, None
        if not added:
            self._end(entry)
        elif event is not None and not entry.done:
            self._line.hold_if_there_is_room(entry, event)
        self._wake()

    def notice(self, notice: Notice) -> None:
        """See `Journal`."""
        self._line.add_notice(notice)
        self._ready.unpark_all()

    async def keep(self, state: bytes | None, scope: str | None, also: str | None, forgotten_until: float) -> None:
        """See `Journal`."""
        self._check_open()
        await self._commits.write(partial(self.store.keep, state, scope, also, forgotten_until))

    # Out

    @property
    def waiting(self) -> int:
        """See `Journal`."""
        return len(self._line)

    async def next(self) -> Event:
        """See `Journal`. Without a checkpoint where something waits: handing it to the consumer has its own."""
        while True:
            self._check_open()
            first = self._line.first()
            if first is None:
                with trio.move_on_at(self._line.look_again_at()):
                    await self._ready.park()
            elif isinstance(first, Entry) and first.content is None:
                await self._read(first)
            else:
                taken = self._line.take()
                return self._given(taken) if isinstance(taken, Entry) else taken

    async def _read(self, first: Entry) -> None:
        entries = self._line.to_read(first)
        texts = await self._commits.read(partial(self.store.texts, [entry.id for entry in entries], HELD_BYTES))
        for read in entries:
            text = texts.get(read.id)
            if text is not None and not read.done:
                read.size = len(text)
                self._line.hold(read, text)
        if first.content is None and not first.done:
            raise JournalError(f"the journal is damaged: the text of {first} is missing")

    def _given(self, entry: Entry) -> Event:
        """The event, as it is given now."""
        content = entry.content
        assert content is not None
        self._line.release(entry)
        if isinstance(content, bytes):
            origin = "redelivered" if entry.given else entry.origin
            event = restored(content, origin=origin, attempt=entry.attempts + 1)
        else:
            event = content  # as it came: what is given again is read again
        entry.given = True
        object.__setattr__(event, "_given_by", self._name)  # events are frozen
        key = identity(event)
        if key is not None and key != entry.key:
            # What another version of this package wrote down as unknown, this one may know, and identify otherwise.
            self._entries[key] = self._entries.pop(entry.key)
            entry.key = key
        return event

    # What becomes of it

    def find(self, event: Event) -> Entry | None:
        """The entry of an event that is not handled; None: it is handled or a dead letter, or a notice.

        Raises:
            trio.ClosedResourceError: the journal is closed.
            JournalMismatchError: another journal gave this event.
            TypeError: it is no event.
        """
        self._check_open()
        if not isinstance(event, _Anything):
            raise TypeError(
                f"a journal takes the events that came from its stream, and this is a {type(event).__name__}"
            )
        given_by = getattr(event, "_given_by", "")
        if given_by and given_by != self._name:
            raise _of_another(given_by, self._name)
        key = identity(event)
        if key is None:
            return None
        entry = self._entries.get(key)
        if entry is None and not given_by:  # a copy
            for other in _open_queues:
                if key in other._entries:
                    raise _of_another(other._name, self._name)
        return entry

    async def ack(self, entry: Entry) -> None:
        """The event is handled."""
        self._check_open()
        entry.done = True
        await self._commits.write(partial(self.store.ack, entry.id), lambda _: self._end(entry))

    async def begin_attempt(self, entry: Entry) -> None:
        """An attempt to handle the event begins."""
        self._check_open()
        if entry.attempting:
            raise RuntimeError(f"{entry} is being processed already")
        self._line.attempt_begins(entry)
        entry.attempts += 1
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
        if entry.attempts < self.max_attempts:
            await self._commits.write(partial(self.store.fail, entry.id, error))
            self._retry_later(entry)
            return True
        entry.done = True
        await self._commits.write(partial(self.store.bury, entry.id, error, self._now()), lambda _: self._end(entry))
        return False

    def _retry_later(self, entry: Entry) -> None:
        self._line.retry(entry, trio.current_time() + self.retry_delay)
        self._wake()

    def _end(self, entry: Entry) -> None:
        self._entries.pop(entry.key, None)
        self._line.end(entry)
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
            self._line.add(self._entry(row))
            self._ready.unpark_all()

    async def drop(self, id: int) -> None:
        """A dead letter counts as handled; nothing happens if there is none of this number."""
        self._check_open()
        await self._commits.write(partial(self.store.drop, id))


CRASHED = "the process ended during the attempt"


def open_store(path: Path, scope: str, now: float, max_attempts: int) -> tuple[SQLiteStore, list[PendingRow]]:
    """The store, and what is not handled. What took the process with it for the last time allowed is a dead letter."""
    store = SQLiteStore(path, scope)
    try:
        pending = store.pending()
        fatal = [row for row in pending if row.under_way and row.attempts >= max_attempts]
        store.apply([partial(store.bury, row.id, CRASHED, now) for row in fatal])
    except BaseException:
        store.close()
        raise
    for row in fatal:
        logger.error("%s (number %d in the journal) is a dead letter now: %s", row.event_type, row.id, CRASHED)
    return store, [row for row in pending if row not in fatal]
