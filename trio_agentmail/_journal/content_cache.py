"""A bounded amount of the content of pending events, kept in memory so that it need not be read and decoded again."""

from trio_agentmail.events import Event

from .entry import Entry

__all__ = ["CACHED_BYTES", "CACHED_EVENTS", "ContentCache"]

CACHED_EVENTS, CACHED_BYTES = 1000, 4 * 2**20
"""The most that is cached, and the most that one read asks for. Under load this is what one commit brings. With less,
that would be read and decoded a second time, and the read would wait for the next commit."""


class ContentCache:
    """Counts the content of the entries that are stored and are still to be delivered.

    An entry that is not stored yet always has its content; the journal bounds these by other limits.
    """

    def __init__(self) -> None:
        self._events = self._bytes = 0

    def add_if_room(self, entry: Entry, content: Event | bytes) -> None:
        if self._events < CACHED_EVENTS and self._bytes + entry.size <= CACHED_BYTES:
            self.add(entry, content)

    def add(self, entry: Entry, content: Event | bytes) -> None:
        entry.content = content
        self._events += 1
        self._bytes += entry.size

    def remove(self, entry: Entry) -> None:
        """Drop the content of an entry, if it has any."""
        if entry.content is not None:
            entry.content = None
            self._events -= 1
            self._bytes -= entry.size
