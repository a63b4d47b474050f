"""The memory channel that the consumer reads, and how much may wait in it: events, and bytes of their text."""

from collections import deque

import trio

from ._delivered import Delivered
from .events import Event

__all__ = ["Abandoned", "Channel", "size_of"]


class Abandoned(Exception):
    """Every receiver has been closed: nobody wants the events any more."""


class Channel:
    """The channel, and the sizes of the events in it.

    A memory channel is bounded by a number of items. That alone would let a consumer that stalls hold gigabytes of
    large mail, so the text that waits is bounded as well. Trio does not tell a sender when an item is taken, unless
    the channel is full and the sender waits. Two things follow:

    - The sizes of what was sent are kept in the order of sending. How many of them are still in the channel is asked
      only when they may be too much together, since it costs as much as sending a small event.
    - A sender that waits for room in a channel that is not full by number looks at it after each step of any task, as
      one of Trio's instruments. That happens only while large events wait.

    Args:
        max_events: How many events may wait.
        max_size: How much text may wait, in bytes of UTF-8. A single event that is larger may wait alone.
    """

    def __init__(self, max_events: int, max_size: int, delivered: Delivered) -> None:
        self._channel, self.events = trio.open_memory_channel[Event](max_events)
        self._max_size = max_size
        self._sizes: deque[int] = deque()
        self._size = 0
        self._max_sizes = 2 * max_events
        self._room = trio.lowlevel.ParkingLot()
        self._delivered = delivered
        self.delivered = 0
        self.duplicates = 0

    @property
    def abandoned(self) -> bool:
        """Whether every receiver has been closed."""
        return self._channel.statistics().open_receive_channels == 0

    @property
    def is_full(self) -> bool:
        """Whether as much waits for the consumer as may."""
        channel = self._channel.statistics()
        return channel.current_buffer_used == channel.max_buffer_size or len(self._room) > 0

    def close(self) -> None:
        """Nothing more comes: receivers get what waits in the channel, and then its end."""
        self._channel.close()

    def _waiting_in_channel(self) -> int:
        channel = self._channel.statistics()
        return channel.current_buffer_used + channel.tasks_waiting_send

    # Room

    def _sent(self, size: int) -> None:
        """An event of this size has been sent."""
        self._sizes.append(size)
        self._size += size
        if len(self._sizes) > self._max_sizes:
            self._settle()

    def _settle(self) -> None:
        """Forget the sizes of what has been taken."""
        waiting = self._channel.statistics().current_buffer_used
        while len(self._sizes) > waiting:
            self._size -= self._sizes.popleft()

    def _has_room(self, size: int) -> bool:
        """Whether the text of one more event has room: whatever its size, if nothing else waits."""
        if self._size + size <= self._max_size:
            return True
        self._settle()
        return self._size + size <= self._max_size or not self._sizes

    async def _wait_for_room(self, size: int) -> None:
        """Wait until `_has_room`, or until every receiver has been closed."""
        while not self._has_room(size) and not self.abandoned:
            watch = _Watch(self._channel, self._room)
            trio.lowlevel.add_instrument(watch)
            try:
                await self._room.park()
            finally:
                trio.lowlevel.remove_instrument(watch)


class _Watch(trio.abc.Instrument):
    """Wakes whoever waits for room, when the consumer has taken something or every receiver has been closed."""

    def __init__(self, channel: trio.MemorySendChannel[Event], room: trio.lowlevel.ParkingLot) -> None:
        self._channel = channel
        self._room = room
        self._waiting = channel.statistics().current_buffer_used

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        now = self._channel.statistics()
        if now.current_buffer_used < self._waiting or not now.open_receive_channels:
            self._room.unpark_all()
        self._waiting = now.current_buffer_used


def size_of(event: Event) -> int:
    """How much text an event holds."""
    return len(getattr(event, "_raw", ""))
