"""The pages of one look: from its place on, to where the listing ends."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from trio_agentmail._clock import ServerClock
from trio_agentmail._codec import parse_time
from trio_agentmail.errors import ApiError, RequestFailedError

from .rest import Pace, Rest
from .source import Look

__all__ = ["LookPages"]

SAME_MOMENT = 0.001
"""Seconds before its place at which a look goes on: what is dated in the same millisecond may not have been listed."""

LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class LookPages:
    """Goes through a listing in ascending order, for one look.

    Mail goes on coming while a look is under way. A look that keeps to a rate might never reach the end of a busy
    listing of messages. It need not: what AgentMail creates after a look has begun is pushed, or is for the next look.
    So when it comes to where it began, a look passes over what is dated from then until now, and ends with what is
    dated in the future. Where it began is where this try did: one mail that cannot be had may make a look fail for
    days, and what is missed on these days must be found all the same.

    A listing of threads is gone through to its end. A thread is dated like its latest mail, so one that gets a mail
    while the look is under way moves to the end, and takes along the mail that the look is for.

    Args:
        path: The listing.
        field: Which field of a page holds the items.
        filters: Further parameters of the listing.
        limit: Pages after which to stop.
        pace: Waited for before each page.

    Attributes:
        reached_the_end: Whether it has gone through the listing to its end.
    """

    def __init__(
        self,
        rest: Rest,
        clock: ServerClock,
        look: Look,
        path: str,
        field: str,
        filters: Mapping[str, str],
        limit: float,
        pace: Pace,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._look = look
        self._path = path
        self._field = field
        self._filters = filters
        self._limit = limit
        self._pace = pace
        self._began = clock.now()
        self._reached = look.place
        self.reached_the_end = False

    async def walk(
        self, failures: list[Exception], *, passes_over_new: bool = False
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The items, a page at a time.

        Args:
            failures: A failure of the listing ends it and is added here, so that what was found before can still be
                handed over.
            passes_over_new: Whether to pass over what is dated from when this walk began until when it gets there.
        """
        after = self._look.place
        if after > self._look.after:
            after -= SAME_MOMENT
        try:
            while not self.reached_the_end:
                pages = self._rest.pages(self._path, self._field, self._asked(after), pace=self._pace)
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

    def mark(self, failures: Sequence[Exception]) -> Callable[[None], Awaitable[None]]:
        """What moves the place of the look behind the page that was given last, to be called when it is handled."""
        reached = self._reached

        async def move(_: None) -> None:
            if not failures:
                self._look.place = max(self._look.place, reached)

        return move

    def _asked(self, after: float) -> dict[str, str]:
        since = datetime.fromtimestamp(min(max(after, 0.0), LATEST), UTC).isoformat(timespec="milliseconds")
        return {"after": since.replace("+00:00", "Z"), "ascending": "true", **self._filters}


def _latest(items: Sequence[dict[str, Any]]) -> float:
    """When the last item is dated, in seconds since the epoch; 0.0 if that is not known."""
    return (parse_time(items[-1].get("timestamp")) if items else None) or 0.0
