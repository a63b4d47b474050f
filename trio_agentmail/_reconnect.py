"""Reconnecting: the delays between attempts, and which failures are transient."""

import enum
import random
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime

import trio

from ._settings import ReconnectPolicy
from .errors import ApiError, ConnectionLostError, RequestFailedError, SubscriptionRejectedError

__all__ = ["Attempts", "Verdict", "ceilings", "full_jitter", "http_date", "retry_after", "verdict"]

MAX_RETRY_AFTER = 3600.0
"""Maximum delay from `Retry-After`, in seconds. A wrong value must not stop a stream for longer."""


def ceilings(policy: ReconnectPolicy) -> Iterator[float]:
    """Yield the upper bound of the delay before each attempt, in seconds. The generator does not end."""
    ceiling = policy.initial_delay
    while True:
        yield ceiling
        ceiling = min(ceiling * policy.multiplier, policy.max_delay)


def full_jitter(ceiling: float) -> float:
    """Return a random delay up to the ceiling, in seconds, so that clients do not reconnect all at once."""
    return random.uniform(0, ceiling)


class Verdict(enum.Enum):
    """What a failure means for the next attempt."""

    TRANSIENT = enum.auto()
    FATAL = enum.auto()
    FATAL_IF_IT_PERSISTS = enum.auto()
    """A refusal by the server at AgentMail's address. Fatal until a subscription has been confirmed. After that, the
    cause may be a temporary problem of a proxy or a load balancer, so it is fatal after `refusal_grace` seconds."""
    FATAL_THE_THIRD_TIME = enum.auto()
    """A refusal whose meaning is unclear. Fatal the third time in succession."""


MIN_REFUSALS = 3
"""Minimum number of refusals that end a stream that was subscribed before, in addition to `refusal_grace`."""

TRANSIENT_STATUSES = frozenset({408, 425, 429})
TRANSIENT_ERROR = re.compile(
    r"rate.?limit|too.?many.?requests|throttl|internal|unavailable|time.?out|timed.?out|overload|server.?error",
    re.IGNORECASE,
)
FATAL_ERROR = re.compile(
    r"permission|forbidden|denied|auth|api.?key|valid|not.?found|bad.?request|malformed", re.IGNORECASE
)


def verdict(failure: Exception) -> Verdict:
    """Classify a failure as transient or fatal, according to the table in `docs/reconnecting.md`."""
    match failure:
        case ApiError(status_code=status):
            transient = status >= 500 or status in TRANSIENT_STATUSES
            return Verdict.TRANSIENT if transient else Verdict.FATAL_IF_IT_PERSISTS
        case SubscriptionRejectedError(name=name, message=message):
            # The name is more reliable than the message, which is prose, so it is searched first.
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
            return Verdict.FATAL_IF_IT_PERSISTS
        case OSError() | trio.BrokenResourceError() | RequestFailedError():
            return Verdict.TRANSIENT
        case _:
            return Verdict.FATAL  # not caused by the network: an invalid argument or a bug


class Attempts:
    """The back-off: how long to wait before the next attempt to subscribe, and when to give up.

    Args:
        policy: The delays and limits.
        now: Returns the time of day, in seconds since the epoch.
        subscribed: Whether a subscription has been confirmed before.
    """

    def __init__(self, policy: ReconnectPolicy, now: Callable[[], float], *, subscribed: bool = False) -> None:
        self._policy = policy
        self._now = now
        self._has_been_subscribed = subscribed
        self._refusals = 0
        """The number of refusals since a handshake was last accepted; `_refused_since` is the time of the first."""
        self._refused_since = 0.0
        self._unclear_in_succession = 0
        """The number of unclear refusals in succession."""
        self.start_over()

    def start_over(self) -> None:
        """Restart the back-off at `initial_delay`."""
        self._ceilings = ceilings(self._policy)

    def handshake_was_accepted(self) -> None:
        self._refusals = 0

    def was_subscribed(self) -> None:
        self._has_been_subscribed = True
        self._unclear_in_succession = 0

    def delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        return full_jitter(next(self._ceilings))

    def delay_after(self, failure: Exception) -> float:
        """Return the seconds to wait before the next attempt, after a failed one.

        Raises:
            Exception: The failure, if it is fatal.
        """
        judged = verdict(failure)
        if judged is Verdict.FATAL:
            raise failure
        if judged is Verdict.FATAL_IF_IT_PERSISTS:
            if not self._has_been_subscribed:
                raise failure
            self._raise_if_it_persists(failure)
        self._unclear_in_succession = self._unclear_in_succession + 1 if judged is Verdict.FATAL_THE_THIRD_TIME else 0
        if self._unclear_in_succession >= 3:
            if isinstance(failure, ConnectionLostError):
                raise SubscriptionRejectedError(f"close {failure.code}", failure.reason) from failure
            raise failure
        return max(self.delay(), retry_after(failure, self._now))

    def _raise_if_it_persists(self, failure: Exception) -> None:
        now = trio.current_time()
        if not self._refusals:
            self._refused_since = now
        self._refusals += 1
        seconds = now - self._refused_since
        if self._refusals >= MIN_REFUSALS and seconds >= self._policy.refusal_grace:
            failure.add_note(
                f"The server has refused {self._refusals} attempts within {seconds:.0f} s, and accepted none "
                f"(refusal_grace is {self._policy.refusal_grace:g} s)."
            )
            raise failure


def retry_after(failure: Exception, now: Callable[[], float]) -> float:
    """Return the delay that `Retry-After` requests, in seconds: at most `MAX_RETRY_AFTER`, and 0.0 without the header.

    A date in `Retry-After` is by the server's clock, so it is compared with the `Date` of the same response. Without a
    `Date`, it is compared with the time of day.

    Args:
        failure: The failed attempt.
        now: Returns the time of day, in seconds since the epoch.
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
    """Return a date of an HTTP header, in seconds since the epoch, or None if it is not valid."""
    try:
        when = parsedate_to_datetime(text)
        # A date without an offset is GMT (RFC 9110, section 5.6.7).
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
