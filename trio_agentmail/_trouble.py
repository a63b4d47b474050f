"""What went wrong last, and for how long things have been going wrong."""

import logging
import math

import trio

from ._why import words_of
from .errors import printable

__all__ = ["Trouble"]

logger = logging.getLogger("trio_agentmail")

WARN_AFTER = 60.0
"""Seconds without a stable subscription after which it is worth a warning."""


class Trouble:
    """Begins with a failure, and ends when a subscription has been stable; a warning says once that it lasts."""

    def __init__(self) -> None:
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        """On Trio's clock."""
        self._began: float | None = None
        self._has_warned = False

    @property
    def warning_is_due_at(self) -> float:
        """When, on Trio's clock, it has lasted for so long; infinity when there is none, or that has been said."""
        return math.inf if self._began is None or self._has_warned else self._began + WARN_AFTER

    def mention(self, failure: Exception) -> None:
        """Something failed, and the subscription is in force."""
        self.last_error = printable(f"{type(failure).__name__}: {words_of(failure)}", 500)
        self.last_error_at = trio.current_time()

    def note(self, failure: Exception) -> None:
        """Something failed, and the subscription is not in force."""
        self.mention(failure)
        if self._began is None:
            self._began = trio.current_time()
        self.warn_if_it_lasts()

    def is_over(self) -> None:
        self._began = None
        self._has_warned = False

    def warn_if_it_lasts(self) -> None:
        if trio.current_time() >= self.warning_is_due_at:
            logger.warning("not subscribed, or not for long, for %.0f s: %s", WARN_AFTER, self.last_error)
            self._has_warned = True
