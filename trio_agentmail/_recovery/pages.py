"""The pages of one scan, from its position to the end of the listing."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import parse_time
from trio_agentmail.errors import ApiError, RequestFailedError

from .paging import pages_of
from .rest import Pace, Rest
from .source import Scan

__all__ = ["ScanPages"]

SAME_MOMENT = 0.001
"""Seconds before its position from which a scan resumes: some mail of that millisecond may not have been listed."""

LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class ScanPages:
    """Reads a listing in ascending order, for one scan.

    Problem: mail keeps arriving while a scan is under way. A rate-limited scan might never reach the end of a busy
    listing of messages.

    The scan need not list that mail: mail that AgentMail creates after the scan has begun is pushed, or is left to the
    next scan. So when the scan reaches the time at which it began, it skips mail that is dated between then and now,
    and ends with mail that is dated in the future. "Began" refers to this attempt of the scan. The first attempt may
    have been days ago, if one mail that cannot be fetched makes each attempt fail. Mail missed in those days must still
    be found.

    A listing of threads is read to its end. A thread has the date of its latest mail. So a thread that gets a mail
    during the scan moves to the end of the listing, together with its missed mail.

    Args:
        path: The listing.
        field: The field of a page that contains the items.
        filters: Further parameters of the listing.
        limit: The maximum number of pages.
        pace: Awaited before each page.

    Attributes:
        reached_the_end: Whether the listing has been read to its end.
    """

    def __init__(
        self,
        rest: Rest,
        clock: ServerClock,
        scan: Scan,
        path: str,
        field: str,
        filters: Mapping[str, str],
        limit: float,
        pace: Pace,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._scan = scan
        self._path = path
        self._field = field
        self._filters = filters
        self._limit = limit
        self._pace = pace
        self._began = clock.now()
        self._reached = scan.position
        self.reached_the_end = False

    async def walk(
        self, failures: list[Exception], *, passes_over_new: bool = False
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the items, one page at a time.

        Args:
            failures: A failure of the listing ends the walk and is appended here instead of being raised, so that mail
                found before can still be handed over.
            passes_over_new: Whether to skip items that are dated between the beginning of this walk and the time at
                which the walk reaches them.
        """
        after = self._scan.position
        if after > self._scan.after:
            after -= SAME_MOMENT
        try:
            while not self.reached_the_end:
                pages = pages_of(self._rest, self._path, self._field, self._parameters(after), pace=self._pace)
                async with aclosing(pages):
                    async for page in pages:
                        self._reached = max(self._reached, _latest(page.items))
                        yield page.items
                        self._limit -= 1
                        self.reached_the_end = not page.has_more
                        if page.has_more and self._limit <= 0:
                            return
                        if page.has_more and passes_over_new and self._reached > self._began:
                            passes_over_new = False
                            after = self._clock.now()
                            break
        except (ApiError, RequestFailedError) as exc:
            failures.append(exc)

    def advance(self, failures: Sequence[Exception]) -> Callable[[None], Awaitable[None]]:
        """Return a function that moves the scan's position past the present page if there have been no failures.

        Call it when the mail on that page has been handed over.
        """
        reached = self._reached

        async def move(_: None) -> None:
            if not failures:
                self._scan.position = max(self._scan.position, reached)

        return move

    def _parameters(self, after: float) -> dict[str, str]:
        since = datetime.fromtimestamp(min(max(after, 0.0), LATEST), UTC).isoformat(timespec="milliseconds")
        return {"after": since.replace("+00:00", "Z"), "ascending": "true", **self._filters}


def _latest(items: Sequence[dict[str, Any]]) -> float:
    """Return the time of the last item, in seconds since the epoch; 0.0 if it is unknown."""
    return (parse_time(items[-1].get("timestamp")) if items else None) or 0.0
