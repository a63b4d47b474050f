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
"""The number of waiting events and notices above which `put` blocks for an `ErrorEvent`."""


class JournaledOutbox(Channel):
    """An outbox with a journal in front of the channel.

    Reading the network waits for room in the journal, and only the journal waits for the consumer. Redeliveries from
    the journal bypass de-duplication.

    Args:
        max_events, max_size, delivered: See `Channel`.
        journal: The journal, which is open.
        unwritten: Receives the mail that waits for room in the journal.
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
        """The number of events and notices that have not been taken."""
        return self._waiting_in_channel() + len(self._room) + self._journal.waiting

    async def put(self, event: Event) -> bool:
        """Put an event into the journal, unless it has been put before; see `Outbox.put`.

        Raises:
            Abandoned: Every receiver has been closed.
            JournalError: The event cannot be written down.
        """
        if isinstance(event, Notice):
            # An ErrorEvent is neither merged nor written down. A server that sends them without end to a consumer that
            # sleeps must not fill the memory.
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
        """Hand over a notice behind the waiting events. This never waits.

        Raises:
            Abandoned: Every receiver has been closed.
        """
        self._check_wanted()
        self._journal.notice(notice)

    def _check_wanted(self) -> None:
        # If the stream is being stopped, the next run wants what has been read, whether or not a receiver is left.
        if not self.is_wanted() and not self._is_stopping:
            raise Abandoned

    @property
    def _is_stopping(self) -> bool:
        return self._forwarding.cancel_called

    async def run(self) -> None:
        """Move events from the journal to the channel, as the consumer makes room.

        Raises:
            JournalError: Something cannot be written down or read.
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
        """End the channel behind what is in it. The journal keeps the rest."""
        self._forwarding.cancel()
        self.close()
        self._taken.unpark_all()

    async def finish(self) -> None:
        """See `Outbox.finish`. There is nothing to wait for."""
        await trio.lowlevel.checkpoint()
