"""What all sides of the fake share: who may do what, the mail, and the time."""

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import TypeVar

import trio
from trio.testing import MockClock

from ._fake_events import to_milliseconds
from ._mail_store import MailStore

__all__ = ["FakeBase"]

T = TypeVar("T")


class FakeBase:
    """The common ground of the classes that `FakeAgentMail` is made of, which documents the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.api_keys: Collection[str] | None = None
        self.permissions: Collection[str] | None = None
        self._store = MailStore()
        self._epoch = int(time.time())

    def now(self) -> float:
        """The time of day here, in seconds since the epoch: on a mock clock it passes as that does."""
        on_mock_clock = trio.lowlevel.in_trio_run() and isinstance(trio.lowlevel.current_clock(), MockClock)
        return self._epoch + trio.current_time() if on_mock_clock else time.time()

    def _now(self) -> datetime:
        return to_milliseconds(datetime.fromtimestamp(self.now(), UTC))

    def _tell(self, what: str, details: str = "") -> None:
        """Something happened that somebody at a terminal wants to see: the emulator prints it.

        Args:
            what: A word or two for it.
            details: What others chose is in here, and may be anything.
        """

    async def run_sync(self, function: Callable[[], T]) -> T:
        """What makes this a `Backend`: on a mock clock no thread is used, since that would not wait for one."""
        if isinstance(trio.lowlevel.current_clock(), MockClock):
            await trio.lowlevel.checkpoint()
            return function()
        return await trio.to_thread.run_sync(function)
