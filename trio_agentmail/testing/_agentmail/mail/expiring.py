"""A mapping whose objects expire, so that an emulator can run for weeks."""

from datetime import datetime, timedelta
from typing import Generic, TypeVar

__all__ = ["Expiring"]

T = TypeVar("T")


class Expiring(Generic[T]):
    """A mapping from keys to objects. Each object expires some time after `put`.

    The caller passes the present time. If the clock is set back, earlier objects expire later, and newer ones that have
    expired use memory until then.
    """

    def __init__(self, lifetime: timedelta) -> None:
        self._lifetime = lifetime
        self._objects: dict[str, tuple[datetime, T]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, key: str, value: T, now: datetime) -> datetime:
        """Store an object, and return the time when it expires. The key must not be in use."""
        self._forget(now)
        self._objects.pop(key, None)  # an expired object stays here until all older ones have expired
        end = now + self._lifetime
        self._objects[key] = end, value
        return end

    def get(self, key: str, now: datetime) -> T | None:
        """Return an object, or `None` if it is unknown or has expired."""
        self._forget(now)
        end, value = self._objects.get(key, (now, None))
        return value if now < end else None

    def _forget(self, now: datetime) -> None:
        while self._objects:
            oldest = next(iter(self._objects))
            if now < self._objects[oldest][0]:
                return
            del self._objects[oldest]
