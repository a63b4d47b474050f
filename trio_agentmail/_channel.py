"""The memory channel that the consumer reads, bounded by the number of events and by the size of their text."""

from collections import deque

import trio

from ._delivered import Delivered
from .events import Event

__all__ = ["Abandoned", "Channel", "size_of"]


class Abandoned(Exception):
    """Every receiver of the channel has been closed, so the events are no longer wanted."""


class Channel:
    """The memory channel and its delivery counters.

    Trio's memory channels are bounded by the number of items. With that limit alone, gigabytes of large mail could
    pile up in front of a stalled consumer, so the total size of the waiting text is bounded as well.

    The obvious solution is a counter: add the size of each event that is sent, and subtract it when the event is taken.
    But the consumer takes events from a plain `trio.MemoryReceiveChannel`, which cannot be subclassed, and Trio wakes a
    sender after an item was taken only if the channel is full and the sender is waiting in `send`. Reading the number
    of waiting items before each event takes as long as sending a small event. And a sender that waits for room in a
    channel that has few but large items is never woken.

    Instead, the sizes of sent events are kept in the order of sending. Only if their sum exceeds the limit, or if there
    are many of them, the number of items in the channel is read; the events before these have been taken. A sender that
    waits for room installs an instrument, which Trio calls after each step of any task, and which checks whether an
    event was taken. That is expensive, but it happens only while large events wait.

    Args:
        max_events: Maximum number of waiting events.
        max_size: Maximum size of their text, in bytes of UTF-8. A larger event may wait only by itself.
        delivered: The identities of delivered events.

    Attributes:
        events: The receiving side.
        delivered: The number of events that were handed over.
        duplicates: The number of events that were dropped because they had been handed over before.
    """

    def __init__(self, max_events: int, max_size: int, delivered: Delivered) -> None:
        self._channel, self.events = trio.open_memory_channel[Event](max_events)
        self._max_size = max_size
        self._sizes: deque[int] = deque()
        """The sizes of the events in the channel, and of some that have been taken."""
        self._size = 0
        """The sum of `_sizes`."""
        self._max_sizes = 2 * max_events
        self._room = trio.lowlevel.ParkingLot()
        self._delivered = delivered
        self.delivered = 0
        self.duplicates = 0

    def is_wanted(self) -> bool:
        """Return whether any receiver is left."""
        return self._channel.statistics().open_receive_channels > 0

    @property
    def is_full(self) -> bool:
        """Whether the next event would have to wait for room."""
        channel = self._channel.statistics()
        return channel.current_buffer_used == channel.max_buffer_size or len(self._room) > 0

    def close(self) -> None:
        """Close the sending side. The consumer can still receive the events in the channel."""
        self._channel.close()

    def _waiting_in_channel(self) -> int:
        channel = self._channel.statistics()
        return channel.current_buffer_used + channel.tasks_waiting_send

    # Room

    def _note_sent(self, size: int) -> None:
        """Record the size of an event that was sent."""
        self._sizes.append(size)
        self._size += size
        if len(self._sizes) > self._max_sizes:
            self._forget_taken()

    def _forget_taken(self) -> None:
        """Forget the sizes of events that have been taken."""
        waiting = self._channel.statistics().current_buffer_used
        while len(self._sizes) > waiting:
            self._size -= self._sizes.popleft()

    def _has_room(self, size: int) -> bool:
        """Return whether there is room for an event of this size. An empty channel has room for any event."""
        if self._size + size <= self._max_size:
            return True
        self._forget_taken()
        return self._size + size <= self._max_size or not self._sizes

    async def _wait_for_room(self, size: int) -> None:
        """Wait until there is room for an event of this size, or until every receiver has been closed."""
        while not self._has_room(size) and self.is_wanted():
            watch = _Watch(self._channel, self._room)
            trio.lowlevel.add_instrument(watch)
            try:
                await self._room.park()
            finally:
                trio.lowlevel.remove_instrument(watch)


class _Watch(trio.abc.Instrument):
    """Wakes the senders that wait for room, once an event has been taken or every receiver has been closed."""

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
    """Return the size of an event's text, in bytes of UTF-8; 0 for an event that the client made."""
    return len(getattr(event, "_raw", ""))
