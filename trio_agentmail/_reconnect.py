"""When to try again: the delays, and the one place that says transient or fatal."""

import enum
import random
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime

import trio

from ._settings import ReconnectPolicy
from .errors import (
    ApiError,
    AuthenticationError,
    ConnectionLostError,
    PermissionDeniedError,
    RequestFailedError,
    SubscriptionRejectedError,
)

__all__ = ["Attempts", "Verdict", "ceilings", "full_jitter", "http_date", "retry_after", "verdict"]

MAX_RETRY_AFTER = 3600.0
"""Seconds: what a server asks for beyond this is cut, since a typing error there must not end a stream."""


def ceilings(policy: ReconnectPolicy) -> Iterator[float]:
    """The highest delay before each attempt, in seconds, for ever."""
    ceiling = policy.initial_delay
    while True:
        yield ceiling
        ceiling = min(ceiling * policy.multiplier, policy.max_delay)


def full_jitter(ceiling: float) -> float:
    """A delay of any length up to the ceiling, in seconds: many clients that lost one server come back spread out."""
    return random.uniform(0, ceiling)


class Verdict(enum.Enum):
    """What a failure means for the next attempt."""

    TRANSIENT = enum.auto()
    FATAL = enum.auto()
    FATAL_IF_IT_PERSISTS = enum.auto()
    """The key was refused: fatal, unless the key has been accepted before and `refusal_grace` is not over."""
    FATAL_THE_THIRD_TIME = enum.auto()
    """Refused in a way that may mean anything: fatal the third time running."""


TRANSIENT_STATUSES = frozenset({408, 425, 429})
TRANSIENT_ERROR = re.compile(
    r"rate.?limit|too.?many.?requests|throttl|internal|unavailable|time.?out|timed.?out|overload|server.?error",
    re.IGNORECASE,
)
FATAL_ERROR = re.compile(
    r"permission|forbidden|denied|auth|api.?key|valid|not.?found|bad.?request|malformed", re.IGNORECASE
)


def verdict(failure: Exception) -> Verdict:
    """Transient or fatal: the table in `docs/reconnecting.md`, in one function."""
    match failure:
        case AuthenticationError() | PermissionDeniedError():
            return Verdict.FATAL_IF_IT_PERSISTS
        case ApiError(status_code=status):
            transient = status >= 500 or status in TRANSIENT_STATUSES
            return Verdict.TRANSIENT if transient else Verdict.FATAL
        case SubscriptionRejectedError(name=name, message=message):
            # The name is AgentMail's own term, the message is prose: it decides only where the name says nothing.
            for text in (name, message):
                if TRANSIENT_ERROR.search(text):
                    return Verdict.TRANSIENT
                if FATAL_ERROR.search(text):
                    return Verdict.FATAL
            return Verdict.FATAL_THE_THIRD_TIME
        case ConnectionLostError(code=code):
            refused = code == 1008 or 4000 <= code <= 4999
            return Verdict.FATAL_THE_THIRD_TIME if refused else Verdict.TRANSIENT
        case ssl.SSLCertVerificationError():
            return Verdict.FATAL
        case OSError() | trio.BrokenResourceError() | RequestFailedError():
            return Verdict.TRANSIENT
        case _:
            return Verdict.FATAL  # nothing that a network does: a bad argument, or a bug


class Attempts:
    """The attempts to be subscribed: how long to wait before the next one, or whether to stop.

    Args:
        policy: The delays and limits.
        now: The time of day, in seconds since the epoch.
        key_accepted: Whether AgentMail has accepted the key before.
    """

    def __init__(self, policy: ReconnectPolicy, now: Callable[[], float], *, key_accepted: bool = False) -> None:
        self._policy = policy
        self._now = now
        self._key_accepted = key_accepted
        self._key_refused_since: float | None = None
        self._refusals_running = 0
        self.start_over()

    def start_over(self) -> None:
        """The ceiling of the delays is the first one again."""
        self._ceilings = ceilings(self._policy)

    def key_was_accepted(self) -> None:
        self._key_accepted = True
        self._key_refused_since = None

    def was_subscribed(self) -> None:
        self._refusals_running = 0

    def delay(self) -> float:
        """Seconds to wait before the next attempt."""
        return full_jitter(next(self._ceilings))

    def delay_after(self, failure: Exception) -> float:
        """Seconds to wait before the next attempt, after one that failed.

        Raises:
            Exception: the failure, if it is fatal.
        """
        judged = verdict(failure)
        if judged is Verdict.FATAL:
            raise failure
        if judged is Verdict.FATAL_IF_IT_PERSISTS:
            now = trio.current_time()
            if self._key_refused_since is None:
                self._key_refused_since = now
            if not self._key_accepted or now - self._key_refused_since >= self._policy.refusal_grace:
                raise failure
        self._refusals_running = self._refusals_running + 1 if judged is Verdict.FATAL_THE_THIRD_TIME else 0
        if self._refusals_running >= 3:
            if isinstance(failure, ConnectionLostError):
                raise SubscriptionRejectedError(f"close {failure.code}", failure.reason) from failure
            raise failure
        return max(self.delay(), retry_after(failure, self._now))


def retry_after(failure: Exception, now: Callable[[], float]) -> float:
    """What the server's `Retry-After` asks for, in seconds from now: 0.0 without one, an hour at most.

    A date in it is by the server's clock. So it is compared with the `Date` of the same answer, and only where that is
    missing with the time of day.

    Args:
        now: The time of day, in seconds since the epoch.
    """
    if not isinstance(failure, ApiError):
        return 0.0
    value = failure.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    when = http_date(value)
    if when is None:
        return 0.0
    answered_at = http_date(failure.headers.get("date", ""))
    return min(max(when - (now() if answered_at is None else answered_at), 0.0), MAX_RETRY_AFTER)


def http_date(text: str) -> float | None:
    """A date of an HTTP header, in seconds since the epoch; `None`: it is none."""
    try:
        when = parsedate_to_datetime(text)
        # A date without an offset is GMT (RFC 9110, section 5.6.7).
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
