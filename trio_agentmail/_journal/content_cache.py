"""A cache of the content of pending events, so that it need not be read from the store and decoded again."""

from trio_agentmail.events import Event

from .entry import Entry

__all__ = ["CACHED_BYTES", "CACHED_EVENTS", "ContentCache"]

CACHED_EVENTS, CACHED_BYTES = 1000, 4 * 2**20
"""Limits of the cache for newly stored events, and of one read from the store.

Under load, one commit contains about this much. With lower limits, the rest would be read and decoded again, and that
read would wait for the next commit.
"""


class ContentCache:
    """Counts the cached content of entries that are stored and not delivered yet.

    Entries that are not stored yet always have their content, and are limited by `OpenJournal.record` instead.
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
