"""The sending side of the channel: events in order, each once, with back-pressure; notices without waiting."""

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

    Events wait for room in the channel. The task that reads the network waits with them, and that is the
    back-pressure.

    Notices must not wait, because reconnecting does not wait for the consumer. And they must not pile up in front of a
    consumer that sleeps while the network comes and goes. So a notice that finds the channel full goes to a backlog,
    which a task of its own (`run`) empties. And a `Disconnected` is merged with an earlier one that has not been taken,
    if there is no event between them: the consumer has to know that there was a gap and when it may have begun, and
    the earlier notice says that.

    The earlier notice may be in the channel already, and Trio's channel returns nothing to its sender. Looking only in
    the backlog is not enough: notices would pile up until the channel is full, and a small buffer would be filled by
    them. Keeping a copy of what is in the channel does not help either, because a notice that was sent cannot be
    changed. But this object keeps the receiving side as well. So when a connection is lost, `_take_back` takes
    everything out of the channel and moves it to the front of the backlog, where notices can be merged, and `notify`
    puts back what has room. There is no checkpoint in between, so no other task can see it. This happens for each
    loss, and not for each event.

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
        """The number of events that wait for `_turn` or, after that, for room."""
        self._is_stopping = False
        self._is_complete = False
        self._handed_over = trio.Event()

    @property
    def waiting(self) -> int:
        """The number of events and notices that have not been taken, including those without room yet."""
        return self._waiting_in_channel() + len(self._backlog) + self._in_turn

    async def put(self, event: Event) -> bool:
        """Hand over an event, unless it has been handed over before. Wait until there is room for it.

        This is a checkpoint only if it waits. Reading the network has checkpoints of its own.

        Returns:
            Whether the event was new.

        Raises:
            Abandoned: Every receiver has been closed.
        """
        # An event is claimed before it waits for room. Two tasks put events, the one that reads the connection and the
        # one that recovers, and the other one may come with the same mail meanwhile.
        if not self._delivered.claim(event):
            self.duplicates += 1
            return False
        try:
            size = len(event._raw)  # type: ignore[union-attr]  # notices are not put; size_of() takes longer
            if self._size + size <= self._max_size and not self._in_turn and self._backlog_empty.is_set():
                try:
                    self._channel.send_nowait(event)
                except trio.WouldBlock:
                    await self._channel.send(event)
                # _note_sent(), without a call for each event.
                self._size += size
                self._sizes.append(size)
                if len(self._sizes) > self._max_sizes:
                    self._forget_taken()
            else:
                await self._send_in_turn(event, size)
        except BaseException as exc:
            if self._is_stopping and isinstance(exc, trio.Cancelled):
                self._fill_backlog(event)  # recovery was stopped, and this event is handed over all the same
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
                # The lock keeps small events from overtaking a large one for ever.
                await turn.enter_async_context(self._turn)
                while not self._backlog_empty.is_set():
                    await self._backlog_empty.wait()
                await self._wait_for_room(size)
            finally:
                self._in_turn -= 1
            await self._channel.send(event)
            self._note_sent(size)

    def notify(self, notice: Notice) -> None:
        """Hand over a notice behind the waiting events. This never waits.

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
                    if not self._has_room(size):
                        await self._wait_for_room(size)
                        if self.is_wanted():
                            continue  # another event may be the first now
                    # The event leaves the backlog first, since the channel holds it as soon as send() is called.
                    await self._channel.send(self._backlog.popleft())
                    self._note_sent(size)
                if self._is_complete:
                    break
                self._backlog_empty.set()
                self._backlog_filled = trio.Event()
                await self._backlog_filled.wait()
        self._backlog_empty.set()
        self._handed_over.set()

    def stop(self) -> None:
        """From now on, `run` hands over an event whose `put` is cancelled."""
        self._is_stopping = True

    async def finish(self) -> None:
        """After `stop` and the last `put`: wait until everything has been handed over, and end the channel."""
        self._is_complete = True
        self._backlog_filled.set()
        await self._handed_over.wait()
        self.close()

    def _fill_backlog(self, *events: Event) -> None:
        self._backlog.extend(events)
        if self._backlog_empty.is_set():  # otherwise, tasks may be waiting for it
            self._backlog_empty = trio.Event()
        self._backlog_filled.set()

    def _take_back(self) -> None:
        """Move what waits in the channel, and what waits to get into it, to the front of the backlog."""
        taken: list[Event] = []
        try:
            while True:
                taken.append(self.events.receive_nowait())
        except (trio.WouldBlock, trio.ClosedResourceError):
            # ClosedResourceError: the consumer works with clones and has closed the original, so nothing can be taken
            # back. Then notices pile up until the channel is full.
            self._backlog.extendleft(reversed(taken))
