"""The sending side of the channel, with back-pressure for events and merging of notices."""

from collections import deque
from contextlib import AsyncExitStack, suppress

import trio

from ._channel import Abandoned, Channel, size_of
from ._delivered import Delivered
from ._notices import merge_notice
from .events import Disconnected, Event, Notice

__all__ = ["Outbox"]


class Outbox(Channel):
    """The outbox of a stream without a journal.

    Events wait for room in the channel. The task that reads the network waits as well, which creates back-pressure.

    Notices must not wait, because reconnecting does not wait for the consumer. And they must not accumulate if the
    consumer is stalled while the connection is lost again and again. So a notice for which the channel has no room goes
    to a backlog, which a separate task (`run`) empties. And a `Disconnected` is merged with an earlier one that has not
    been received, if there is no event between them: the consumer needs to know that there was a gap and when it may
    have begun, and the earlier notice says that.

    The earlier notice may be in the channel already, and a sender cannot take items back from Trio's channel. Merging
    only within the backlog is not enough: notices would accumulate until the channel is full. Keeping a copy of the
    items in the channel does not help either, because a notice that was sent cannot be changed. But the outbox keeps
    the receiving side as well. So when a connection is lost, `_take_back` moves everything from the channel to the
    front of the backlog, where notices can be merged, and then `notify` sends again as much as there is room for. There
    is no checkpoint in between, so no other task can observe this. It happens once for each loss, not for each event.

    When the stream is stopped, an event that recovery is waiting to put goes to the backlog as well.
    """

    def __init__(self, max_events: int, max_size: int, delivered: Delivered) -> None:
        super().__init__(max_events, max_size, delivered)
        self._backlog: deque[Event] = deque()
        self._backlog_filled = trio.Event()
        self._backlog_empty = trio.Event()
        self._backlog_empty.set()
        self._turn = trio.Lock()
        self._in_turn = 0
        """The number of events that wait for `_turn`, or have it and wait for room."""
        self._is_stopping = False
        self._is_complete = False
        self._handed_over = trio.Event()

    @property
    def waiting(self) -> int:
        """The number of events and notices that the consumer has not received, including those that wait for room."""
        return self._waiting_in_channel() + len(self._backlog) + self._in_turn

    async def put(self, event: Event) -> bool:
        """Hand over an event, unless it is a duplicate. Wait until there is room for it.

        This is a checkpoint only if it waits. Reading the network has checkpoints of its own.

        Returns:
            Whether the event was new.

        Raises:
            Abandoned: Every receiver has been closed.
        """
        # An event is claimed before it waits for room. Two tasks put events, the one that reads the connection and
        # recovery, and the other task may put the same mail in the meantime.
        if not self._delivered.claim(event):
            self.duplicates += 1
            return False
        try:
            size = len(event._raw)  # type: ignore[union-attr]  # every event here has a text; size_of() is slower
            if self._size + size <= self._max_size and not self._in_turn and self._backlog_empty.is_set():
                try:
                    self._channel.send_nowait(event)
                except trio.WouldBlock:
                    await self._channel.send(event)
                # This is _note_sent(), inlined because it is done for each event.
                self._size += size
                self._sizes.append(size)
                if len(self._sizes) > self._max_sizes:
                    self._forget_taken()
            else:
                await self._send_in_turn(event, size)
        except BaseException as exc:
            if self._is_stopping and isinstance(exc, trio.Cancelled):
                self._fill_backlog(event)  # recovery was cancelled, but its event is still handed over
                self.delivered += 1
                raise
            self._delivered.give_back(event)
            if isinstance(exc, trio.BrokenResourceError):
                raise Abandoned from None
            raise
        self.delivered += 1
        return True

    async def _send_in_turn(self, event: Event, size: int) -> None:
        """Send an event when the backlog is empty and there is room for the text."""
        async with AsyncExitStack() as turn:
            self._in_turn += 1
            try:
                # The lock prevents small events from overtaking a large one again and again.
                await turn.enter_async_context(self._turn)
                while not self._backlog_empty.is_set():
                    await self._backlog_empty.wait()
                await self._wait_for_room(size)
            finally:
                self._in_turn -= 1
            await self._channel.send(event)
            self._note_sent(size)

    def notify(self, notice: Notice) -> None:
        """Hand over a notice after the waiting events. This never waits.

        Raises:
            Abandoned: Every receiver has been closed.
        """
        if isinstance(notice, Disconnected):
            self._take_back()
        merge_notice(self._backlog, notice)
        try:
            while self._backlog and self._has_room(size := size_of(self._backlog[0])):
                self._channel.send_nowait(self._backlog[0])
                self._backlog.popleft()
                self._note_sent(size)
        except trio.WouldBlock:
            pass
        except trio.BrokenResourceError:
            raise Abandoned from None
        if self._backlog:
            self._fill_backlog()

    async def run(self) -> None:
        """Empty the backlog as the consumer makes room."""
        with suppress(trio.BrokenResourceError):  # the next put() or notify() raises Abandoned
            while True:
                while self._backlog:
                    size = size_of(self._backlog[0])
                    if self._has_room(size) or not self.is_wanted():
                        # The backlog gives up the event first, because the channel counts it once send() is called.
                        await self._channel.send(self._backlog.popleft())
                        self._note_sent(size)
                    else:
                        await self._wait_for_room(size)  # the first event may be another one after that
                if self._is_complete:
                    break
                self._backlog_empty.set()
                self._backlog_filled = trio.Event()
                await self._backlog_filled.wait()
        self._backlog_empty.set()
        self._handed_over.set()

    def stop(self) -> None:
        """Hand over, from now on, also an event whose `put` is cancelled."""
        self._is_stopping = True

    async def finish(self) -> None:
        """Wait until everything has been handed over, and close the channel. Call it after `stop`."""
        self._is_complete = True
        self._backlog_filled.set()
        await self._handed_over.wait()
        self.close()

    def _fill_backlog(self, *events: Event) -> None:
        self._backlog.extend(events)
        if self._backlog_empty.is_set():  # otherwise, tasks may be waiting for this event
            self._backlog_empty = trio.Event()
        self._backlog_filled.set()

    def _take_back(self) -> None:
        """Move everything that waits in the channel, or waits to be sent to it, to the front of the backlog."""
        taken: list[Event] = []
        try:
            while True:
                taken.append(self.events.receive_nowait())
        except (trio.WouldBlock, trio.ClosedResourceError):
            # ClosedResourceError: the consumer uses clones and has closed the original, so nothing can be taken back.
            # In this case, notices accumulate until the channel is full.
            self._backlog.extendleft(reversed(taken))
