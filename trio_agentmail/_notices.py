"""Notices in front of a consumer who takes nothing: they must not pile up."""

from collections import deque
from typing import Any

from ._journal.protocol import Notice
from .events import CaughtUp, Disconnected, Subscribed

__all__ = ["merge_notice"]


def merge_notice(waiting: deque[Any], notice: Notice) -> None:
    """Put a notice behind what waits; one gap that nobody has seen becomes one with another.

    A `Disconnected` that finds an earlier one, with nothing behind it but the news that it was over, is dropped
    together with that news: what the consumer has to know, that there was a gap and when it may have begun, is in
    the earlier one.
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
