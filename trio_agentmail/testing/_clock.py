"""The clock of the fake."""

import time
from datetime import UTC, datetime

import trio
from trio.testing import MockClock

from ._agentmail.mail.events import to_milliseconds

__all__ = ["FakeClock", "is_on_mock_clock"]


def is_on_mock_clock() -> bool:
    return trio.lowlevel.in_trio_run() and isinstance(trio.lowlevel.current_clock(), MockClock)


class FakeClock:
    """The time of day. On Trio's mock clock, it starts at the real time and then advances with the mock clock.

    Attributes:
        created: The time at which this object was made: aware, in whole seconds.
    """

    def __init__(self) -> None:
        self._epoch = int(time.time())
        self.created = datetime.fromtimestamp(self._epoch, UTC)

    def time(self) -> float:
        """Return the seconds since the Unix epoch."""
        return self._epoch + trio.current_time() if is_on_mock_clock() else time.time()

    def now(self) -> datetime:
        """Return the time with the precision of AgentMail: aware, in whole milliseconds."""
        return to_milliseconds(datetime.fromtimestamp(self.time(), UTC))
