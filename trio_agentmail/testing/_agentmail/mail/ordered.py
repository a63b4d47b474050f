"""Things in the order of their times: a listing is a search in a sorted list, and a walk from there."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Key", "Ordered", "sort_key"]

T = TypeVar("T")

Key: TypeAlias = tuple[int, int]
"""Microseconds since the epoch; among equals, which was there first."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def sort_key(time: datetime, number: int = -1) -> Key:
    """Without a number: before all that has this time."""
    return (time - EPOCH) // timedelta(microseconds=1), number


class Ordered(Generic[T]):
    """Things in the order of their keys."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._things: dict[Key, T] = {}

    def add(self, key: Key, thing: T) -> None:
        insort(self._keys, key)
        self._things[key] = thing

    def remove(self, key: Key) -> None:
        del self._keys[bisect_left(self._keys, key)]
        del self._things[key]

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[T]:
        return map(self._things.__getitem__, self._keys)

    def walk(
        self,
        *,
        start: Key | None = None,
        end: Key | None = None,
        beyond: Key | None = None,
        ascending: bool = False,
    ) -> Iterator[tuple[Key, T]]:
        """Those from `start` on and before `end`; of these, those that come after `beyond` in the walk's direction."""
        first = 0 if start is None else bisect_left(self._keys, start)
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        if beyond is not None and ascending:
            first = max(first, bisect_right(self._keys, beyond))
        elif beyond is not None:
            last = min(last, bisect_left(self._keys, beyond))
        for index in range(first, last) if ascending else range(last - 1, first - 1, -1):
            yield self._keys[index], self._things[self._keys[index]]
