"""Merges notices, so that they do not accumulate while the consumer is stalled."""

from collections import deque
from typing import Any

from .events import CaughtUp, Disconnected, Notice, Subscribed

__all__ = ["merge_notice"]


def merge_notice(waiting: deque[Any], notice: Notice) -> None:
    """Append a notice to the waiting events, and merge its gap with an earlier one that waits as well.

    A new `Disconnected` is dropped if only `Subscribed` and `CaughtUp` notices follow the last one that waits. These
    are dropped as well. The consumer needs to know that there was a gap and when it may have begun, and the earlier
    `Disconnected` says both.
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
