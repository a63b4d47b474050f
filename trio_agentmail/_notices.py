"""Merges notices, so that they do not pile up in front of a consumer that takes nothing."""

from collections import deque
from typing import Any

from .events import CaughtUp, Disconnected, Notice, Subscribed

__all__ = ["merge_notice"]


def merge_notice(waiting: deque[Any], notice: Notice) -> None:
    """Append a notice to what waits, and merge a gap with an earlier one that has not been seen.

    A `Disconnected` is dropped if an earlier one waits and only a `Subscribed` or a `CaughtUp` follows it. Those are
    dropped as well. The consumer has to know that there was a gap and when it may have begun, and the earlier notice
    says both.
    """
    if isinstance(notice, Disconnected):
        for index, item in enumerate(reversed(waiting)):
            if isinstance(item, Disconnected):
                for _ in range(index):
                    waiting.pop()
                return
            if not isinstance(item, (Subscribed, CaughtUp)):
                break
    waiting.append(notice)
