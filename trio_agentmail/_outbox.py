"""What goes to the consumer: in order, each event once, and reading waits for room."""

import math
from collections import deque
from contextlib import AsyncExitStack, suppress

import trio

from ._channel import Abandoned, Channel, size_of
from ._delivered import Delivered
from ._journal.protocol import Journal, Notice
from ._notices import merge_notice
from .events import Disconnected, Event, MessageReceivedEvent

__all__ = ["Abandoned", "JournaledOutbox", "Outbox"]


MAX_WAITING = 10_000
"""Events and notices in front of which a server's complaint waits, where a journal is the buffer."""


class Outbox(Channel):
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

    When the stream is being stopped, what recovery waits with goes to the backlog as well.
    """

    def __init__(self, max_events: int, max_size: int, delivered: Delivered) -> None:
        super().__init__(max_events, max_size, delivered)
        self._backlog: deque[Event] = deque()
        self._backlog_filled = trio.Event()
        self._backlog_empty = trio.Event()
        self._backlog_empty.set()
        self._turn = trio.Lock()
        self._in_turn = 0
        """Events that wait for their turn, or for room when it has come."""
        self._is_stopping = False
        self._is_complete = False
        self._handed_over = trio.Event()

    @property
    def waiting(self) -> int:
        """Events and notices that nobody has taken, those that have no room yet included."""
        return self._waiting_in_channel() + len(self._backlog) + self._in_turn

    @property
    def unwritten_since(self) -> float:
        """See `JournaledOutbox`; where nothing is written down, nothing waits for that."""
        return math.inf

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
            size = len(event._raw)  # type: ignore[union-attr]  # notices are not put; size_of() takes longer
            if self._size + size <= self._max_size and not self._in_turn and self._backlog_empty.is_set():
                # Without a checkpoint where there is room: reading the network has its own, for all that one read
                # brings.
                try:
                    self._channel.send_nowait(event)
                except trio.WouldBlock:
                    await self._channel.send(event)
                self._size += size
                self._sizes.append(size)
                if len(self._sizes) > self._max_sizes:
                    self._settle()
            else:
                await self._send_in_turn(event, size)
        except BaseException as exc:
            if self._is_stopping and isinstance(exc, trio.Cancelled):
                self._fill_backlog(event)  # recovery was stopped, and this is handed over all the same
                self.delivered += 1
                raise
            self._delivered.give_back(event)
            if isinstance(exc, trio.BrokenResourceError):
                raise Abandoned from None
            raise
        self.delivered += 1
        return True

    async def _send_in_turn(self, event: Event, size: int) -> None:
        """Send behind the backlog, and when there is room for the text."""
        async with AsyncExitStack() as turn:
            self._in_turn += 1
            try:
                await turn.enter_async_context(self._turn)  # a large event must not be passed by small ones for ever
                while not self._backlog_empty.is_set():
                    await self._backlog_empty.wait()
                await self._wait_for_room(size)
            finally:
                self._in_turn -= 1
            await self._channel.send(event)
            self._sent(size)

    def notify(self, notice: Notice) -> None:
        """Hand a notice over, behind what waits; never wait.

        Raises:
            Abandoned: every receiver has been closed.
        """
        if isinstance(notice, Disconnected):
            self._take_back()
        merge_notice(self._backlog, notice)
        try:
            while self._backlog and self._has_room(size := size_of(self._backlog[0])):
                self._channel.send_nowait(self._backlog[0])
                self._backlog.popleft()
                self._sent(size)
        except trio.WouldBlock:
            pass
        except trio.BrokenResourceError:
            raise Abandoned from None
        if self._backlog:
            self._fill_backlog()

    async def run(self) -> None:
        """Empty the backlog as the consumer makes room."""
        with suppress(trio.BrokenResourceError):  # whoever puts the next event or notice is told the same
            while True:
                while self._backlog:
                    size = size_of(self._backlog[0])
                    if not self._has_room(size):
                        await self._wait_for_room(size)
                        if not self.abandoned:
                            continue  # another event may be the first now
                    # Out of the backlog first: once send() has been called, the channel holds it.
                    await self._channel.send(self._backlog.popleft())
                    self._sent(size)
                if self._is_complete:
                    break
                self._backlog_empty.set()
                self._backlog_filled = trio.Event()
                await self._backlog_filled.wait()
        self._backlog_empty.set()
        self._handed_over.set()

    def stop(self) -> None:
        """The stream is being stopped: an event whose `put` is cancelled is handed over by `run`."""
        self._is_stopping = True

    async def finish(self) -> None:
        """After `stop`, when nothing more will be put: wait until all has been handed over, and end the channel."""
        self._is_complete = True
        self._backlog_filled.set()
        await self._handed_over.wait()
        self.close()

    def _fill_backlog(self, *events: Event) -> None:
        self._backlog.extend(events)
        if self._backlog_empty.is_set():  # else there are those who wait for it
            self._backlog_empty = trio.Event()
        self._backlog_filled.set()

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


class JournaledOutbox(Channel):
    """An outbox with a journal in front of the channel: reading waits for the journal, and only that for the consumer.

    What may be delivered twice in one run, and is no duplicate, is what the journal gives again by itself.
    """

    def __init__(self, max_events: int, max_size: int, delivered: Delivered, journal: Journal) -> None:
        super().__init__(max_events, max_size, delivered)
        self._journal = journal
        self._taken = trio.lowlevel.ParkingLot()
        self._unwritten: list[MessageReceivedEvent] = []
        self._giving = trio.CancelScope()

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
        return self._waiting_in_channel() + len(self._room) + self._journal.waiting

    async def put(self, event: Event) -> bool:
        """As `Outbox.put`, into the journal.

        Raises:
            Abandoned: every receiver has been closed.
            JournalError: it cannot be written down.
        """
        if isinstance(event, Notice):
            # A server that complains without end to a consumer who sleeps: this alone is neither merged nor on disk.
            while self._journal.waiting >= MAX_WAITING and not self._is_stopping:
                await self._taken.park()
            self.notify(event)
            return True
        self._check_wanted()
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
        self._check_wanted()
        self._journal.notice(notice)

    def _check_wanted(self) -> None:
        # Of a stream that is being stopped, the next run wants what has been read, whoever listens now.
        if self.abandoned and not self._is_stopping:
            raise Abandoned

    @property
    def _is_stopping(self) -> bool:
        return self._giving.cancel_called

    async def run(self) -> None:
        """Hand over what the journal gives, as the consumer makes room.

        Raises:
            JournalError: something cannot be written down or read.
        """
        with self._giving, suppress(trio.BrokenResourceError):  # whoever puts the next event or notice is told the same
            while True:
                event = await self._journal.next()
                size = size_of(event)
                if not self._has_room(size):
                    await self._wait_for_room(size)
                await self._channel.send(event)
                self._sent(size)
                self._taken.unpark_all()
                self.delivered += not isinstance(event, Notice)

    def stop(self) -> None:
        """Nothing more goes to the channel, which ends behind what is in it: the journal keeps the rest."""
        self._giving.cancel()
        self.close()
        self._taken.unpark_all()

    async def finish(self) -> None:
        """See `Outbox.finish`."""
        await trio.lowlevel.checkpoint()
