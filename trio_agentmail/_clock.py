"""AgentMail's clock, as its answers tell it."""

from collections.abc import Callable
from typing import NamedTuple

import trio

__all__ = ["Moment", "ServerClock"]

AGREE = 1.5
"""Seconds by which two clocks may differ unnoticed: an HTTP `Date` has whole seconds."""

MOST_AHEAD = 366 * 86_400.0
"""Seconds. A `Date` further away than this is nonsense: TLS would not work with a clock that is so wrong."""


class Moment(NamedTuple):
    """A moment by both of this machine's clocks, in seconds: the time of day, and Trio's clock."""

    wall: float
    monotonic: float


class ServerClock:
    """Tells the time by AgentMail's clock, in seconds since the epoch.

    Whether a mail is older than the stream, or than a gap, is decided by times that AgentMail gave it. This machine's
    time of day may be wrong and may be stepped; Trio's clock never is, but may stand still while the machine sleeps.
    So the last answer is an anchor, and from there the time is carried on by both. Where they differ, the earlier time
    is taken: a gap that begins too early costs a request, and one that begins too late costs mail. The next answer
    decides.

    Args:
        wall: The time of day, in seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._anchor: tuple[float, Moment] | None = None
        self.ahead = 0.0
        """Seconds by which AgentMail's clock was ahead of the time of day at the last answer."""

    @property
    def is_known(self) -> bool:
        """Whether there has been an answer. Until then, the time of day is taken for AgentMail's."""
        return self._anchor is not None

    @property
    def is_certain(self) -> bool:
        """Whether there has been an answer, and the time of day has not been stepped since."""
        if self._anchor is None:
            return False
        here, (_, there) = self.moment(), self._anchor
        return abs((here.wall - there.wall) - (here.monotonic - there.monotonic)) < AGREE

    def moment(self) -> Moment:
        """This moment."""
        return Moment(self._wall(), trio.current_time())

    def now(self) -> float:
        """The time by AgentMail's clock."""
        if self._anchor is None:
            return self._wall()
        return self.at(self.moment())

    def at(self, moment: Moment) -> float:
        """What AgentMail's clock showed at a moment."""
        if self._anchor is None:
            return moment.wall
        time, there = self._anchor
        return time + min(moment.wall - there.wall, moment.monotonic - there.monotonic)

    def answered(self, date: float | None) -> None:
        """Take notice of an answer.

        Args:
            date: Its `Date`, in seconds since the epoch; `None`: it has none that makes sense.
        """
        here = self.moment()
        if date is None or abs(date - here.wall) >= MOST_AHEAD:
            time = self.at(here)
        elif abs(date - here.wall) < AGREE:
            time = here.wall
        else:
            # A Date has whole seconds. What was carried on from the last answer is more precise, as long as it agrees.
            carried_on = self.at(here)
            time = carried_on if abs(date - carried_on) < AGREE else date
        self._anchor = time, here
        self.ahead = time - here.wall
