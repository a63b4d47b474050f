"""An open journal: stores the decisions of `lifecycle`, and lets tasks wait until they are durable."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from weakref import WeakSet

import trio

from trio_agentmail._events.base import FromServer
from trio_agentmail._identity import identity
from trio_agentmail.errors import JournalError, JournalMismatchError
from trio_agentmail.events import CaughtUp, Disconnected, Event, Notice, RecoveryFailed

from .content_cache import CACHED_BYTES
from .entry import Entry, new_record
from .group_commit import GroupCommit
from .lifecycle import Lifecycle
from .store import Bury, DeadRecord, Keep, Store

__all__ = ["OpenJournal"]

UNSTORED_EVENTS, UNSTORED_BYTES = 1000, 8 * 2**20
"""Number of recorded events that are not stored yet, and of the bytes of their texts, from which on `record` waits."""

logger = logging.getLogger("trio_agentmail")

_AnyEvent = FromServer | Disconnected | CaughtUp | RecoveryFailed
"""The base classes of everything that a stream yields. Checking `Event`, which lists each class, takes longer."""

_open_journals: "WeakSet[OpenJournal]" = WeakSet()
"""The open journals of this process; see `OpenJournal.find`."""


class OpenJournal:
    """Stores the decisions of a `Lifecycle` in a `Store`.

    `record` waits for room, `next` waits for something to deliver, and the other methods wait until their change is
    durable.
    """

    def __init__(self, name: str, lifecycle: Lifecycle, store: Store, now: Callable[[], float]) -> None:
        self._name = name
        self._lifecycle = lifecycle
        self._store = store
        self._commits = GroupCommit(store, self._wake)
        self._time_of_day = now
        self._room = trio.lowlevel.ParkingLot()  # where `record` waits
        self._ready = trio.lowlevel.ParkingLot()  # where `next` waits
        self._warned = False
        self._closed = False
        self._ended = trio.Event()
        _open_journals.add(self)

    async def run(self) -> None:
        """Write to the store, until `close`."""
        try:
            await self._commits.run()
        finally:
            self._ended.set()
            self._wake()

    async def close(self) -> None:
        """Write what has been recorded, and refuse all further calls. Shielded from cancellation.

        Attempts that are under way do not count, since their outcome can no longer be stored.
        """
        self._closed = True
        _open_journals.discard(self)
        self._wake()
        with suppress(JournalError):
            for change in self._lifecycle.interrupted():
                self._commits.add(change)
        self._commits.close()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def check(self) -> None:
        """Raise the error of the store if it has failed.

        Raises:
            JournalError: That error.
        """
        self._commits.check()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the journal is closed")
        self.check()

    def _wake(self) -> None:
        self._room.unpark_all()
        self._ready.unpark_all()

    # Recording

    async def record(self, event: Event) -> bool:
        """See `Journal`. This is a checkpoint only if it waits: the caller's read from the network is one anyway."""
        self._check_open()
        record = new_record(event, self._time_of_day())
        lifecycle = self._lifecycle
        while lifecycle.is_full or lifecycle.unstored >= UNSTORED_EVENTS or lifecycle.unstored_bytes >= UNSTORED_BYTES:
            if lifecycle.is_full and not self._warned:
                self._warned = True
                logger.warning(
                    "%d events in the journal are unacknowledged (max_pending), and no more are read until some are "
                    "acknowledged: %s; events of every type need ack() or processing()",
                    lifecycle.pending,
                    lifecycle.most_common_types(),
                )
            await self._room.park()
            self._check_open()
        decision = lifecycle.record(event, record)
        if decision is None:
            return False
        self._commits.add(*decision)
        return True

    def notice(self, notice: Notice) -> None:
        """See `Journal`."""
        self._lifecycle.add_notice(notice)
        self._ready.unpark_all()

    async def keep(self, state: bytes | None, scope: str | None, also: str | None, forgotten_until: float) -> None:
        """See `Journal`."""
        self._check_open()
        await self._commits.write(Keep(state, scope, also, forgotten_until))

    # Delivery

    @property
    def waiting(self) -> int:
        """See `Journal`."""
        return self._lifecycle.waiting

    async def next(self) -> Event:
        """See `Journal`. This may not be a checkpoint: handing the event to the consumer is one anyway."""
        while True:
            self._check_open()
            now = trio.current_time()
            first = self._lifecycle.first(now)
            if first is None:
                with trio.move_on_at(self._lifecycle.changes_at(now)):
                    await self._ready.park()
            elif isinstance(first, Entry) and first.content is None:
                await self._read(first)
            else:
                event = self._lifecycle.take(now)
                if isinstance(first, Entry):
                    object.__setattr__(event, "_given_by", self._name)  # events are frozen
                return event

    async def _read(self, first: Entry) -> None:
        entries = self._lifecycle.to_read(first)
        ids = [entry.id for entry in entries]
        texts = await self._commits.read(partial(self._store.texts, ids, CACHED_BYTES))
        for entry in entries:
            text = texts.get(entry.id)
            if text is not None:
                self._lifecycle.add_text(entry, text)
        if first.content is None and not first.done:
            raise JournalError(f"the journal is damaged: the text of {first} is missing")

    # Attempts and their outcomes

    def find(self, event: Event) -> Entry | None:
        """Return the entry of a pending event; None for a notice, and for an event that is handled or a dead letter.

        Problem: a program with two streams may pass an event of one journal to the other. If events were looked up only
        by their identity, that event would look handled. Its ack would do nothing, and it would be redelivered at every
        start.

        So `next` marks each event with the name of its journal, and an event with another name is refused. The mark is
        not part of the event's value, and a copy (`attrs.evolve`) does not have it. A copy is refused if it is pending
        in another open journal of this process and not in this one.

        Raises:
            trio.ClosedResourceError: The journal is closed.
            JournalMismatchError: Another journal delivered this event.
            TypeError: It is not an event.
        """
        self._check_open()
        if not isinstance(event, _AnyEvent):
            raise TypeError(f"a journal takes events from its stream, not {type(event).__name__}")
        delivered_by = getattr(event, "_given_by", "")
        if delivered_by and delivered_by != self._name:
            raise self._mismatch(delivered_by)
        key = identity(event)
        if key is None:
            return None
        entry = self._lifecycle.find(key)
        if entry is None and not delivered_by:
            for other in _open_journals:
                if other._lifecycle.find(key) is not None:
                    raise self._mismatch(other._name)
        return entry

    def _mismatch(self, other: str) -> JournalMismatchError:
        return JournalMismatchError(
            f"this event came from the journal {other}: acknowledge it there, not in {self._name}"
        )

    async def ack(self, entry: Entry) -> None:
        """Mark an event as handled."""
        self._check_open()
        await self._commits.write(*self._lifecycle.ack(entry))

    async def begin_attempt(self, entry: Entry) -> None:
        """Begin a delivery attempt."""
        self._check_open()
        decision = self._lifecycle.begin_attempt(entry)
        try:
            await self._commits.write(*decision)
        except BaseException:
            with suppress(JournalError):
                self._take_back_attempt(entry)
            raise
        self._check_open()

    async def take_back_attempt(self, entry: Entry) -> None:
        """Take back an interrupted attempt, which does not count."""
        self._check_open()
        await self._take_back_attempt(entry).wait()
        self.check()

    def _take_back_attempt(self, entry: Entry) -> trio.Event:
        self.check()
        decision = self._lifecycle.take_back_attempt(entry, trio.current_time())
        self._wake()
        return self._commits.add(*decision)

    async def fail(self, entry: Entry, error: str) -> bool:
        """End a failed attempt.

        Returns:
            True if the event is redelivered after `retry_delay`, False if it is a dead letter.
        """
        self._check_open()
        decision = self._lifecycle.fail(entry, error, self._time_of_day())
        await self._commits.write(*decision)
        return not isinstance(decision.change, Bury)

    # Dead letters

    async def dead_letters(self) -> Sequence[DeadRecord]:
        """Return the dead letters, by ascending id."""
        self._check_open()
        return await self._commits.read(self._store.dead_letters)

    async def requeue(self, id: int) -> None:
        """Make a dead letter pending. Do nothing if no dead letter has this id."""
        self._check_open()
        await self._commits.write(*self._lifecycle.requeue(id))

    async def drop(self, id: int) -> None:
        """Delete a dead letter. Do nothing if no dead letter has this id."""
        self._check_open()
        await self._commits.write(*self._lifecycle.drop(id))
