"""What goes to the consumer: in order, each event once, and reading waits for room."""

import math
from collections import deque
from contextlib import suppress

import trio

from ._delivered import Delivered
from ._journal.protocol import Journal, Notice
from ._notices import merge_notice
from .events import Disconnected, Event, MessageReceivedEvent

__all__ = ["Abandoned", "JournaledOutbox", "Outbox"]


MAX_WAITING = 10_000
"""Events and notices in front of which a server's complaint waits, where a journal is the buffer."""


class Abandoned(Exception):
    """Every receiver has been closed: nobody wants the events any more."""


class _Channel:
    """The channel that the consumer reads, and who has been given what."""

    def __init__(self, buffer_size: int, delivered: Delivered) -> None:
        self._channel, self.events = trio.open_memory_channel[Event](buffer_size)
        self._delivered = delivered
        self.delivered = 0
        self.duplicates = 0

    @property
    def abandoned(self) -> bool:
        """Whether every receiver has been closed."""
        return self._channel.statistics().open_receive_channels == 0

    @property
    def is_full(self) -> bool:
        """Whether the consumer has as many events waiting as it asked for."""
        channel = self._channel.statistics()
        return channel.current_buffer_used == channel.max_buffer_size

    @property
    def unwritten_since(self) -> float:
        """See `JournaledOutbox`; where nothing is written down, nothing waits for that."""
        return math.inf

    def close(self) -> None:
        """Nothing more comes: receivers get what waits in the channel, and then its end."""
        self._channel.close()

    def _waiting_in_channel(self) -> int:
        channel = self._channel.statistics()
        return channel.current_buffer_used + channel.tasks_waiting_send


class Outbox(_Channel):
    """The sending side of the channel that the consumer reads.

    Events wait for room in it: whoever reads the network waits as long, and that is the back-pressure. Notices
    (`Subscribed`, `Disconnected`, …) must not wait, since reconnecting does not wait for the consumer, and must not
    pile up in front of one who sleeps while the network comes and goes. So:

    A notice that finds the channel full goes to a backlog, which a task of its own (`run`) empties. And a
    `Disconnected` that finds an earlier one which nobody has taken, with no event between them, becomes one with it:
    what the consumer has to know, that there was a gap and when it may have begun, is in the earlier one. Notices
    that wait in the channel itself count as well, and Trio's channel gives nothing back to its sender. But taking
    everything out of it at the receiving end and putting it back has no checkpoint in it, so that no other task can
    tell. All of this happens when a connection is lost, and not for each event.
    """

    def __init__(self, buffer_size: int, delivered: Delivered) -> None:
        super().__init__(buffer_size, delivered)
        self._backlog: deque[Event] = deque()
        self._backlog_filled = trio.Event()
        self._backlog_empty = trio.Event()
        self._backlog_empty.set()

    @property
    def waiting(self) -> int:
        """Events and notices that nobody has taken, those that have no room yet included."""
        behind = len(self._backlog) + self._backlog_empty.statistics().tasks_waiting
        return self._waiting_in_channel() + behind

    async def put(self, event: Event) -> bool:
        """Hand an event over, unless it has been handed over before; wait until there is room for it.

        Returns:
            Whether it was new.

        Raises:
            Abandoned: every receiver has been closed.
        """
        # What waits for room is claimed already: the other of the two tasks that put events, the one that reads the
        # connection and the one that recovers, may come with the same mail.
        if not self._delivered.claim(event):
            self.duplicates += 1
            return False
        try:
            while not self._backlog_empty.is_set():
                await self._backlog_empty.wait()
            try:
                # Without a checkpoint where there is room: reading the network has its own, for all that one read
                # brings.
                self._channel.send_nowait(event)
            except trio.WouldBlock:
                await self._channel.send(event)
        except BaseException as exc:
            self._delivered.give_back(event)
            if isinstance(exc, trio.BrokenResourceError):
                raise Abandoned from None
            raise
        self.delivered += 1
        return True

    def notify(self, notice: Notice) -> None:
        """Hand a notice over, behind what waits; never wait.

        Raises:
            Abandoned: every receiver has been closed.
        """
        if isinstance(notice, Disconnected):
            self._take_back()
        merge_notice(self._backlog, notice)
        try:
            while self._backlog:
                self._channel.send_nowait(self._backlog[0])
                self._backlog.popleft()
        except trio.WouldBlock:
            if self._backlog_empty.is_set():  # else there are those who wait for it
                self._backlog_empty = trio.Event()
            self._backlog_filled.set()
        except trio.BrokenResourceError:
            raise Abandoned from None

    async def run(self) -> None:
        """Empty the backlog as the consumer makes room."""
        with suppress(trio.BrokenResourceError):  # whoever puts the next event or notice is told the same
            while True:
                while self._backlog:
                    # Out of the backlog first: once send() has been called, the channel holds it.
                    await self._channel.send(self._backlog.popleft())
                self._backlog_empty.set()
                self._backlog_filled = trio.Event()
                await self._backlog_filled.wait()
        self._backlog_empty.set()

    def _take_back(self) -> None:
        """Move what waits in the channel, and what waits to get into it, to the front of the backlog."""
        taken: list[Event] = []
        try:
            while True:
                taken.append(self.events.receive_nowait())
        except (trio.WouldBlock, trio.ClosedResourceError):
            # Closed: the consumer works with clones only, out of which nothing can be taken. Then notices
            # pile up as far as the channel is large.
            self._backlog.extendleft(reversed(taken))


class JournaledOutbox(_Channel):
    """An outbox with a journal in front of the channel: reading waits for the journal, and only that for the consumer.

    What may be delivered twice in one run, and is no duplicate, is what the journal gives again by itself.
    """

    def __init__(self, buffer_size: int, delivered: Delivered, journal: Journal) -> None:
        super().__init__(buffer_size, delivered)
        self._journal = journal
        self._taken = trio.lowlevel.ParkingLot()
        self._unwritten: list[MessageReceivedEvent] = []

    @property
    def unwritten_since(self) -> float:
        """When AgentMail created the oldest mail that waits for room in the journal, in seconds since the epoch.

        Nobody takes it for missed, since it will be delivered; but if the process dies before that, it is. `math.inf`:
        none waits.
        """
        arrivals = [mail.message.created_at or mail.message.timestamp for mail in self._unwritten]
        return min((0.0 if at is None else at.timestamp() for at in arrivals), default=math.inf)

    @property
    def waiting(self) -> int:
        """Events and notices that nobody has taken."""
        return self._waiting_in_channel() + self._journal.waiting

    async def put(self, event: Event) -> bool:
        """As `Outbox.put`, into the journal.

        Raises:
            Abandoned: every receiver has been closed.
            JournalError: it cannot be written down.
        """
        if isinstance(event, Notice):
            # A server that complains without end to a consumer who sleeps: this alone is neither merged nor on disk.
            while self._journal.waiting >= MAX_WAITING:
                await self._taken.park()
            self.notify(event)
            return True
        if self.abandoned:
            raise Abandoned
        if not self._delivered.claim(event):
            self.duplicates += 1
            return False
        if isinstance(event, MessageReceivedEvent):
            self._unwritten.append(event)
        try:
            is_new = await self._journal.record(event)
        except BaseException:
            self._delivered.give_back(event)
            raise
        finally:
            if isinstance(event, MessageReceivedEvent):
                self._unwritten.remove(event)
        self.duplicates += not is_new
        return is_new

    def notify(self, notice: Notice) -> None:
        """As `Outbox.notify`.

        Raises:
            Abandoned: every receiver has been closed.
        """
        if self.abandoned:
            raise Abandoned
        self._journal.notice(notice)

    async def run(self) -> None:
        """Hand over what the journal gives, as the consumer makes room.

        Raises:
            JournalError: something cannot be written down or read.
        """
        with suppress(trio.BrokenResourceError):  # whoever puts the next event or notice is told the same
            while True:
                event = await self._journal.next()
                await self._channel.send(event)
                self._taken.unpark_all()
                self.delivered += not isinstance(event, Notice)
