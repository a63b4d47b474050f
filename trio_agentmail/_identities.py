"""A compact memory of identities that forgets by time: about 97 bytes each, for as many as a busy day brings."""

from collections import deque
from collections.abc import Hashable
from typing import TypeAlias

import attrs

__all__ = ["Identities", "Record"]

Record: TypeAlias = int | tuple[int, ...]
"""What is known of an identity: nearly always one integer below 2**60."""

GENERATION = 43_690
"""Identities in one generation. It is two thirds of 2**16, where CPython's dict is as full as it gets."""

MAX_GENERATIONS = 34
"""Generations that are kept: 1.5 million identities, about 145 MB, where each is full."""

MASK = 2**60 - 1


@attrs.define
class _Generation:
    first: float
    newest: float
    records: dict[int, Record] = attrs.field(factory=dict)


class Identities:
    """Remembers identities, and forgets the oldest of them together.

    One dict for all of them would stop the event loop for as long as it takes to grow, and each entry would need a
    time of its own. So identities are kept in generations: a new identity is added to the youngest generation, and the
    oldest ones are forgotten as a whole. A lookup asks each generation, which takes up to 0.3 microseconds. So there
    may not be too many of them: where little comes and nothing is forgotten for long, neighbours that fit into one
    become one.

    A key is 60 bits of Python's own keyed hash of an identity. CPython keeps an integer of that size in 32 bytes, and
    the identity itself would take twice as many. Since the hash is keyed, nobody can choose identities that collide;
    among a million of them, two collide by chance once in two million runs.

    Args:
        span: Seconds that one generation spans at most, so that it can be forgotten in time.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._generations: deque[_Generation] = deque()

    def __len__(self) -> int:
        return sum(len(generation.records) for generation in self._generations)

    def get(self, identity: Hashable) -> Record | None:
        """What is known of an identity."""
        key = hash(identity) & MASK
        for generation in self._generations:
            if (record := generation.records.get(key)) is not None:
                return record
        return None

    def add(self, identity: Hashable, record: Record, time: float) -> float | None:
        """Remember a new identity.

        Args:
            time: When it came into being, in seconds since the epoch.

        Returns:
            `None`, unless there was no room: then the oldest generation was forgotten, and this is the time of the
            newest identity in it.
        """
        youngest = self._generations[0] if self._generations else None
        if youngest is None or len(youngest.records) >= GENERATION or time - youngest.first > self._span:
            youngest = _Generation(first=time, newest=time)
            self._generations.appendleft(youngest)
        youngest.records[hash(identity) & MASK] = record
        if time > youngest.newest:
            youngest.newest = time
        if len(self._generations) <= MAX_GENERATIONS or self._merge():
            return None
        return self._generations.pop().newest

    def renew(self, identity: Hashable, record: Record, time: float) -> float | None:
        """Replace what is known of an identity, and remember it as long as one that came into being then; as `add`.

        It is not forgotten sooner than before either.
        """
        key = hash(identity) & MASK
        for generation in self._generations:
            if generation.records.pop(key, None) is not None:
                time = max(time, generation.newest)
                break
        return self.add(identity, record, time)

    def _merge(self) -> bool:
        """Make the two smallest neighbours one; False: they would be too large. The youngest is left alone."""
        sizes = [len(generation.records) for generation in self._generations]
        from_the_oldest = range(len(sizes) - 2, 0, -1)
        at = min(from_the_oldest, key=lambda index: sizes[index] + sizes[index + 1], default=None)
        if at is None or sizes[at] + sizes[at + 1] > GENERATION:
            return False
        neighbours = self._generations[at], self._generations[at + 1]
        small, large = sorted(neighbours, key=lambda generation: len(generation.records))
        large.records.update(small.records)
        large.newest = max(large.newest, small.newest)
        self._generations[at] = large
        del self._generations[at + 1]
        return True

    def replace(self, identity: Hashable, record: Record | None) -> None:
        """Replace what is known of an identity, or forget this one. Nothing happens if it is not known."""
        key = hash(identity) & MASK
        for generation in self._generations:
            if key in generation.records:
                if record is None:
                    del generation.records[key]
                else:
                    generation.records[key] = record
                return

    def forget(self, before: float) -> None:
        """Forget the oldest generations, as far as all that they hold is older than a time."""
        while self._generations and self._generations[-1].newest < before:
            self._generations.pop()
