"""The outage tracker: the last failure, and the time for which the subscription has not been stable."""

import logging
import math

import trio

from ._printable import printable
from ._why import describe

__all__ = ["OutageTracker"]

logger = logging.getLogger("trio_agentmail")

WARN_AFTER = 60.0
"""Seconds without a stable subscription, after which a warning is logged."""


class OutageTracker:
    """Keeps the last failure, and logs one warning for each outage that lasts `WARN_AFTER` seconds.

    An outage begins with a failure, and ends when a subscription has been in force for `stable_after` seconds.

    Attributes:
        last_error: The last failure, in words.
        last_error_at: When it occurred, on Trio's clock.
    """

    def __init__(self) -> None:
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self._began: float | None = None
        self._has_warned = False

    @property
    def warning_is_due_at(self) -> float:
        """When to call `warn_if_it_lasts`, on Trio's clock. `math.inf` without an outage, and after its warning."""
        return math.inf if self._began is None or self._has_warned else self._began + WARN_AFTER

    def note(self, failure: Exception) -> None:
        """Record a failure during which the subscription stays in force."""
        self.last_error = printable(f"{type(failure).__name__}: {describe(failure)}", 500)
        self.last_error_at = trio.current_time()

    def begin(self, failure: Exception) -> None:
        """Record a failure while no subscription is in force. It begins or prolongs an outage."""
        self.note(failure)
        if self._began is None:
            self._began = trio.current_time()
        self.warn_if_it_lasts()

    def end(self) -> None:
        """End the outage, because the subscription has been stable."""
        self._began = None
        self._has_warned = False

    def warn_if_it_lasts(self) -> None:
        if trio.current_time() >= self.warning_is_due_at:
            logger.warning("no stable subscription for %.0f s: %s", WARN_AFTER, self.last_error)
            self._has_warned = True
