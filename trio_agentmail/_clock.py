"""AgentMail's clock, derived from the `Date` header of its responses."""

from collections.abc import Callable
from typing import NamedTuple

import trio

__all__ = ["Moment", "ServerClock"]

TOLERANCE = 1.5
"""Seconds. Clocks that differ by less are taken to agree, because an HTTP `Date` has whole seconds."""

MAX_DIFFERENCE = 366 * 86_400.0
"""Seconds. A `Date` that differs more from the time of day is ignored: TLS would fail with a clock that wrong."""


class Moment(NamedTuple):
    """A moment on both clocks of this machine, in seconds: the time of day and Trio's clock."""

    wall: float
    monotonic: float


class ServerClock:
    """Tells the time by AgentMail's clock, in seconds since the epoch.

    AgentMail's timestamps decide whether a mail is older than the stream or than a gap, so they must be compared with
    AgentMail's clock. This machine's time of day may be wrong, and it may be stepped. Trio's clock is never stepped,
    but it may stand still while the machine sleeps. So both clocks measure the time since AgentMail's last response. If
    the results differ, the earlier time is used: a gap that begins too early costs a request, while one that begins too
    late loses mail. The next response corrects the time.

    Args:
        wall: Returns the time of day, in seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._anchor: tuple[float, Moment] | None = None
        self.ahead = 0.0
        """Seconds by which AgentMail's clock was ahead of the time of day at the last response."""

    @property
    def is_known(self) -> bool:
        """Whether a response has been received. Until then, the time of day is used."""
        return self._anchor is not None

    @property
    def is_certain(self) -> bool:
        """Whether a response has been received and the time of day has not been stepped since."""
        if self._anchor is None:
            return False
        here, (_, there) = self.moment(), self._anchor
        return abs((here.wall - there.wall) - (here.monotonic - there.monotonic)) < TOLERANCE

    def moment(self) -> Moment:
        """Return the present moment."""
        return Moment(self._wall(), trio.current_time())

    def now(self) -> float:
        """Return the time by AgentMail's clock."""
        if self._anchor is None:
            return self._wall()
        return self.at(self.moment())

    def at(self, moment: Moment) -> float:
        """Return the time by AgentMail's clock at a moment."""
        if self._anchor is None:
            return moment.wall
        time, there = self._anchor
        return time + min(moment.wall - there.wall, moment.monotonic - there.monotonic)

    def answered(self, date: float | None) -> None:
        """Set the clock by a response.

        Args:
            date: The `Date` of the response, in seconds since the epoch, or `None` if it has no valid `Date`.
        """
        here = self.moment()
        if date is None or abs(date - here.wall) >= MAX_DIFFERENCE:
            time = self.at(here)
        elif abs(date - here.wall) < TOLERANCE:
            time = here.wall
        else:
            # A Date has whole seconds. The time counted from the last response is more precise, as long as they agree.
            counted = self.at(here)
            time = counted if abs(date - counted) < TOLERANCE else date
        self._anchor = time, here
        self.ahead = time - here.wall
