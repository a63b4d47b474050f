"""What goes to the consumer: in order, each event once, and reading waits for room."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from contextlib import suppress

import trio

from ._codec import identity
from ._notices import merge_notice
from .events import Disconnected, Event, Subscribed

__all__ = ["Abandoned", "Outbox"]

REMEMBERED = 2**15
"""How many identities are remembered, so that no event is delivered twice: at a hundred events a second those of
five minutes, which is longer than any two connections overlap. It costs 10 MiB at the most, where every event is a
mail (see docs/stream.md)."""


class Abandoned(Exception):
    """Every receiver has been closed: nobody wants the events any more."""


class Outbox:
    """The sending side of the channel that the consumer reads.

    Events wait for room in it: whoever reads the network waits as long, and that is the back-pressure. Notices
    (`Subscribed`, `Disconnected`) must not wait, since reconnecting does not wait for the consumer, and must not
    pile up in front of one who sleeps while the network comes and goes. So:

    A notice that finds the channel full goes to a backlog, which a task of its own (`run`) empties. And a
    `Disconnected` that finds an earlier one which nobody has taken, with no event between them, becomes one with it:
    what the consumer has to know, that there was a gap and when it may have begun, is in the earlier one. Notices
    that wait in the channel itself count as well, and Trio's channel gives nothing back to its sender. But taking
    everything out of it at the receiving end and putting it back has no checkpoint in it, so that no other task can
    tell. All of this happens when a connection is lost, and not for each event.
    """

    def __init__(self, buffer_size: int) -> None:
        self._channel, self.events = trio.open_memory_channel[Event](buffer_size)
        self._backlog: deque[Event] = deque()
        self._backlog_filled = trio.Event()
        self._backlog_empty = trio.Event()
        self._backlog_empty.set()
        self._delivered: OrderedDict[Hashable, None] = OrderedDict()
        self.delivered = 0
        self.duplicates = 0

    @property
    def abandoned(self) -> bool:
        """Whether every receiver has been closed."""
        return self._channel.statistics().open_receive_channels == 0

    @property
    def waiting(self) -> int:
        """Events and notices that nobody has taken, those that have no room yet included."""
        channel = self._channel.statistics()
        behind = len(self._backlog) + self._backlog_empty.statistics().tasks_waiting
        return channel.current_buffer_used + channel.tasks_waiting_send + behind

    async def put(self, event: Event) -> None:
        """Hand an event over, unless it has been handed over before; wait until there is room for it.

        Raises:
            Abandoned: every receiver has been closed.
        """
        key = identity(event)
        if key is not None and key in self._delivered:
            self.duplicates += 1
            return
        if not self._backlog_empty.is_set():
            await self._backlog_empty.wait()
        try:
            # Without a checkpoint where there is room: reading the network has its own, for all that one read brings.
            self._channel.send_nowait(event)
        except trio.WouldBlock:
            await self._send(event)
        except trio.BrokenResourceError:
            raise Abandoned from None
        self.delivered += 1
        if key is not None:
            self._delivered[key] = None
            if len(self._delivered) > REMEMBERED:
                self._delivered.popitem(last=False)

    async def _send(self, event: Event) -> None:
        try:
            await self._channel.send(event)
        except trio.BrokenResourceError:
            raise Abandoned from None

    def notify(self, notice: Subscribed | Disconnected) -> None:
        """Hand a notice over, behind what waits; never wait. Not while another task is in `put`.

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

    def close(self) -> None:
        """Nothing more comes: receivers get what waits in the channel, and then its end."""
        self._channel.close()

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
