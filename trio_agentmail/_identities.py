"""A compact memory of up to 1.5 million identities, at about 97 bytes each, that forgets the oldest ones."""

from collections import deque
from collections.abc import Hashable
from typing import TypeAlias

import attrs

__all__ = ["Identities", "Record"]

Record: TypeAlias = int | tuple[int, ...]
"""What is remembered about an identity: nearly always one integer below 2**60."""

GENERATION = 43_690
"""Maximum number of identities in a generation: two thirds of 2**16, the capacity of a CPython dict of that size."""

MAX_GENERATIONS = 34
"""Maximum number of generations. Together they hold up to 1.5 million identities, in about 145 MB."""

MASK = 2**60 - 1


@attrs.define
class _Generation:
    first: float
    newest: float
    records: dict[int, Record] = attrs.field(factory=dict)


class Identities:
    """Remembers identities and forgets the oldest ones.

    The naive structure is one dict from identities to times. Resizing it would block the event loop, and every entry
    would need a time. Instead, identities are kept in generations. A new identity goes into the youngest generation,
    and the oldest generations are forgotten as a whole. A lookup searches each generation, which takes up to 0.3
    microseconds in total, so their number is limited. If few identities are added and none are forgotten for a long
    time, neighbouring generations that fit into one are merged.

    A key is 60 bits of Python's own hash of the identity. CPython needs 32 bytes for an integer of that size, half as
    many as for the identity itself. The hash is keyed, so a sender cannot choose identities that collide. The
    probability that any two of a million identities collide by chance is one in two million.

    Args:
        span: Maximum time that one generation spans, in seconds. It limits how long a generation outlives its oldest
            identity.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._generations: deque[_Generation] = deque()

    def __len__(self) -> int:
        return sum(len(generation.records) for generation in self._generations)

    def get(self, identity: Hashable) -> Record | None:
        """Return the record of an identity, or `None` if it is not known."""
        key = hash(identity) & MASK
        for generation in self._generations:
            if (record := generation.records.get(key)) is not None:
                return record
        return None

    def add(self, identity: Hashable, record: Record, time: float) -> float | None:
        """Remember a new identity.

        Args:
            time: The time of the identity, in seconds since the epoch.

        Returns:
            `None` if there was room. Otherwise the oldest generation was forgotten, and this is the time of the newest
            identity in it.
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
        """Replace the record of an identity, and remember the identity as long as a new one of that time.

        This never shortens the time for which it is remembered. The arguments and the result are those of `add`.
        """
        key = hash(identity) & MASK
        for generation in self._generations:
            if generation.records.pop(key, None) is not None:
                time = max(time, generation.newest)
                break
        return self.add(identity, record, time)

    def _merge(self) -> bool:
        """Merge the two smallest neighbours, except the youngest generation. Returns whether two fit into one."""
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
        """Replace the record of a known identity. If the record is `None`, forget the identity."""
        key = hash(identity) & MASK
        for generation in self._generations:
            if key in generation.records:
                if record is None:
                    del generation.records[key]
                else:
                    generation.records[key] = record
                return

    def forget(self, before: float) -> None:
        """Forget the oldest generations whose identities are all older than a time, in seconds since the epoch."""
        while self._generations and self._generations[-1].newest < before:
            self._generations.pop()
