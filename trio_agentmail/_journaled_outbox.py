"""The outbox of a stream with a journal: events go to the journal, and from there to the channel."""

from contextlib import suppress

import trio

from ._channel import Abandoned, Channel, size_of
from ._delivered import Delivered
from ._journal.protocol import Journal
from ._unwritten import Unwritten
from .events import Event, Notice

__all__ = ["JournaledOutbox"]

MAX_WAITING = 10_000
"""Above this number of waiting events and notices, `put` blocks for an `ErrorEvent`."""


class JournaledOutbox(Channel):
    """An outbox with a journal in front of the channel.

    The task that reads the network waits only for room in the journal, and not for the consumer. Redeliveries from the
    journal bypass de-duplication.

    Args:
        max_events, max_size, delivered: See `Channel`.
        journal: The journal, which is open.
        unwritten: Keeps the mail that is waiting for room in the journal.
    """

    def __init__(
        self, max_events: int, max_size: int, delivered: Delivered, journal: Journal, unwritten: Unwritten
    ) -> None:
        super().__init__(max_events, max_size, delivered)
        self._journal = journal
        self._unwritten = unwritten
        self._taken = trio.lowlevel.ParkingLot()
        self._forwarding = trio.CancelScope()

    @property
    def waiting(self) -> int:
        """The number of events and notices that the consumer has not received yet."""
        return self._waiting_in_channel() + len(self._room) + self._journal.waiting

    async def put(self, event: Event) -> bool:
        """Record an event in the journal, unless it is a duplicate; see `Outbox.put`.

        Raises:
            Abandoned: Every receiver has been closed.
            JournalError: The event cannot be written to the journal.
        """
        if isinstance(event, Notice):
            # An ErrorEvent is neither merged with others nor written to the journal. If a server keeps sending them and
            # the consumer is stalled, they must not fill the memory.
            while self._journal.waiting >= MAX_WAITING and not self._is_stopping:
                await self._taken.park()
            self.notify(event)
            return True
        self._check_wanted()
        if not self._delivered.claim(event):
            self.duplicates += 1
            return False
        self._unwritten.add(event)
        try:
            is_new = await self._journal.record(event)
        except BaseException:
            self._delivered.give_back(event)
            raise
        finally:
            self._unwritten.remove(event)
        self.duplicates += not is_new
        return is_new

    def notify(self, notice: Notice) -> None:
        """Hand over a notice after the waiting events. This never waits.

        Raises:
            Abandoned: Every receiver has been closed.
        """
        self._check_wanted()
        self._journal.notice(notice)

    def _check_wanted(self) -> None:
        # If the stream is being stopped, events are recorded for the next run even if every receiver has been closed.
        if not self.is_wanted() and not self._is_stopping:
            raise Abandoned

    @property
    def _is_stopping(self) -> bool:
        return self._forwarding.cancel_called

    async def run(self) -> None:
        """Move events from the journal to the channel, as the consumer makes room.

        Raises:
            JournalError: The journal cannot be written or read.
        """
        with self._forwarding, suppress(trio.BrokenResourceError):  # the next put() or notify() raises Abandoned
            while True:
                event = await self._journal.next()
                size = size_of(event)
                if not self._has_room(size):
                    await self._wait_for_room(size)
                await self._channel.send(event)
                self._note_sent(size)
                self._taken.unpark_all()
                self.delivered += not isinstance(event, Notice)

    def stop(self) -> None:
        """Close the channel after the events that are in it. The journal keeps the other events."""
        self._forwarding.cancel()
        self.close()
        self._taken.unpark_all()

    async def finish(self) -> None:
        """See `Outbox.finish`. Here, `stop` has done everything already."""
        await trio.lowlevel.checkpoint()
