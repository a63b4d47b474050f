"""Notices that nobody has taken must not pile up in front of a consumer who sleeps while the network comes and goes."""

from collections import deque
from typing import Any

from .events import CaughtUp, Disconnected, Subscribed

__all__ = ["merge_notice"]


def merge_notice(waiting: deque[Any], notice: Any) -> None:
    """Put a notice behind what waits; but a `Disconnected` that finds an earlier one there becomes one with it.

    What the consumer has to know, that there was a gap and when it may have begun, is in the earlier one, and the
    `Subscribed` and `CaughtUp` after it, which are dropped, have been overtaken. Whatever else is between the two
    keeps them apart: an event, since the gap is in the place where the stream broke, and a `RecoveryFailed`, which
    comes once.
    """
    if isinstance(notice, Disconnected):
        for index, earlier in enumerate(reversed(waiting)):
            if isinstance(earlier, Disconnected):
                for _ in range(index):
                    waiting.pop()
                return
            if not isinstance(earlier, Subscribed | CaughtUp):
                break
    waiting.append(notice)
