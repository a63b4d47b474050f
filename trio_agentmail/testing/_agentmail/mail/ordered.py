"""Objects sorted by time, so that a page of a listing is found by a binary search."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Key", "Ordered", "sort_key"]

T = TypeVar("T")

Key: TypeAlias = tuple[int, int]
"""Microseconds since the epoch, and a number that orders objects with the same time."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def sort_key(time: datetime, number: int = -1) -> Key:
    """Return the key for a time. Without a number, it sorts before all objects with this time."""
    return (time - EPOCH) // timedelta(microseconds=1), number


class Ordered(Generic[T]):
    """Objects sorted by their keys, which are unique."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._objects: dict[Key, T] = {}

    def add(self, key: Key, item: T) -> None:
        insort(self._keys, key)
        self._objects[key] = item

    def remove(self, key: Key) -> None:
        del self._keys[bisect_left(self._keys, key)]
        del self._objects[key]

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[T]:
        return map(self._objects.__getitem__, self._keys)

    def walk(
        self,
        *,
        start: Key | None = None,
        end: Key | None = None,
        beyond: Key | None = None,
        ascending: bool = False,
    ) -> Iterator[tuple[Key, T]]:
        """Yield keys and objects, in descending order by default.

        Args:
            start: The lowest key, inclusive; `None` for no limit.
            end: The highest key, exclusive; `None` for no limit.
            beyond: Begin after this key in the direction of the walk; `None` to begin with the first object.
        """
        first = 0 if start is None else bisect_left(self._keys, start)
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        if beyond is not None and ascending:
            first = max(first, bisect_right(self._keys, beyond))
        elif beyond is not None:
            last = min(last, bisect_left(self._keys, beyond))
        for index in range(first, last) if ascending else range(last - 1, first - 1, -1):
            yield self._keys[index], self._objects[self._keys[index]]
