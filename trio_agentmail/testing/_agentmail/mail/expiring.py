"""What is kept for a while, and then forgotten: an emulator may run for weeks."""

from datetime import datetime, timedelta
from typing import Generic, TypeVar

__all__ = ["Expiring"]

T = TypeVar("T")


class Expiring(Generic[T]):
    """Things by their keys, each for so long after it was put here.

    Whoever asks says what time it is. Should it go back, as a clock that is set does, then what was put here earlier
    stays for longer, and what has ended by then takes memory for as long.
    """

    def __init__(self, lifetime: timedelta) -> None:
        self._lifetime = lifetime
        self._things: dict[str, tuple[datetime, T]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._things)

    def put(self, key: str, thing: T, now: datetime) -> datetime:
        """Keep a thing, of whose key nothing is kept, until the time that is returned."""
        self._forget(now)
        self._things.pop(key, None)  # it may have ended behind one that has not
        end = now + self._lifetime
        self._things[key] = end, thing
        return end

    def get(self, key: str, now: datetime) -> T | None:
        self._forget(now)
        end, thing = self._things.get(key, (now, None))
        return thing if now < end else None

    def _forget(self, now: datetime) -> None:
        while self._things:
            oldest = next(iter(self._things))
            if now < self._things[oldest][0]:
                return
            del self._things[oldest]
