"""Gaps: mail that was pushed while nobody was connected, found as soon as it can be."""

import math
import random
from collections.abc import Callable

import trio

from trio_agentmail._clock import ServerClock
from trio_agentmail._nursery import background_nursery
from trio_agentmail._reconnect import Verdict, retry_after, verdict
from trio_agentmail._settings import Recovery
from trio_agentmail.errors import ApiError, RequestFailedError

from .progress import Progress
from .rest import Pace, Rest
from .situation import Situation
from .source import Look, Source, Target

__all__ = ["TARGETS_AT_ONCE", "Gaps"]

TARGETS_AT_ONCE = 4
"""How many inboxes or pods are looked at at the same time."""

OVERLAP_PAGES = 10
"""Pages of mail dated before the gap that are listed at once. Where there is more, the second look lists it."""

CLOSE = 5.0
"""Seconds before a gap. Mail that was created in a gap is nearly always dated from then on."""

FIRST_RETRY, LAST_RETRY = 2.0, 30.0
"""Seconds until a look that has failed is tried again: at first, and at the most for what is transient."""

FIRST_POLL, POLL_INTERVAL = 2.0, 5.0
"""Seconds without a connection until mail is asked for, and from then on between two times."""


class Gaps:
    """Looks for mail of gaps.

    A gap is closed by a look that begins when the subscription is in force again, since from then on mail is pushed.
    It begins `Recovery.overlap` before the gap: mail may be dated earlier than it was created. In a busy inbox that is
    much mail, nearly all of it delivered; so after a few pages the look goes on right before the gap. What it skips is
    listed half a minute later.

    The look goes on when the connection is lost again, and keeps its place when it fails or is interrupted. What falls
    into the next gap is for the next look. While there is no connection, recent mail is asked for at a slow pace.
    """

    def __init__(
        self,
        situation: Situation,
        recovery: Recovery,
        source: Source,
        rest: Rest,
        clock: ServerClock,
        pace: Pace,
        now: Callable[[], float],
    ) -> None:
        self._situation = situation
        self._recovery = recovery
        self._source = source
        self._rest = rest
        self._clock = clock
        self._counts = situation.counts
        self._pace = pace
        self._now = now
        self._busy: set[Target] = set()
        self._polled_until: dict[Target, float] = {}
        """In this outage: what AgentMail created before has been asked for."""

    async def run(self) -> None:
        """Close gaps as they open."""
        async with background_nursery() as nursery:
            for _ in range(TARGETS_AT_ONCE):
                nursery.start_soon(self._close_one_after_the_other)
            await self._poll_during_outages()

    def open(self, since: float) -> None:
        """The connection was lost."""
        for its in self._situation.progress.values():
            its.gap = min(its.gap, since)
        self._polled_until.clear()

    def retry_soon(self) -> None:
        """The subscription is in force again: what made looks fail may be over as well."""
        for its in self._situation.progress.values():
            its.not_before = min(its.not_before, trio.current_time() + FIRST_RETRY)

    # With a connection

    async def _close_one_after_the_other(self) -> None:
        while True:
            target = self._due()
            if target is None:
                changed = self._situation.changed
                with trio.move_on_at(self._next_due()):
                    await changed.wait()
                continue
            self._busy.add(target)
            try:
                with self._situation.looking_at(target):
                    await self._close(target, self._situation.progress[target])
            finally:
                self._busy.discard(target)

    def _can_be_looked_at(self, its: Progress) -> bool:
        # A look that has begun goes on whatever the connection does.
        return its.look is not None or (its.gap < math.inf and self._situation.is_connected)

    def _due(self) -> Target | None:
        now = trio.current_time()
        for target, its in self._situation.progress.items():
            if target not in self._busy and its.not_before <= now and self._can_be_looked_at(its):
                return target
        return None

    def _next_due(self) -> float:
        waiting = [
            its.not_before
            for target, its in self._situation.progress.items()
            if target not in self._busy and self._can_be_looked_at(its)
        ]
        return min(waiting, default=math.inf)

    async def _close(self, target: Target, its: Progress) -> None:
        if its.look is None:
            began = self._clock.now()
            its.look = Look(target, its.wanted, its.gap - self._recovery.overlap, began, since=its.gap)
            its.gap = math.inf
        look = its.look
        right_before = max(look.since, self._polled_until.get(target, -math.inf)) - CLOSE
        try:
            async with self._rest.connected():
                if not await self._source.look(look, self._counts, pages=OVERLAP_PAGES):
                    if look.place < right_before:
                        its.skipped_from = min(its.skipped_from, look.place)
                        look.place = right_before
                    await self._source.look(look, self._counts)
        except (ApiError, RequestFailedError) as exc:
            if self._situation.progress.get(target) is not its:
                return  # it is not subscribed to any more
            its.failures += 1
            its.not_before = trio.current_time() + self._delay(its.failures, exc)
            self._situation.note_failure(target, exc)
            return
        if self._situation.progress.get(target) is not its:
            return
        its.look, its.failures, its.has_failed = None, 0, False
        its.complete_until = max(its.complete_until, look.began)
        self._situation.note_closed(look.since)

    def _delay(self, failures: int, failure: Exception) -> float:
        longest = (
            LAST_RETRY if verdict(failure) is Verdict.TRANSIENT else max(self._recovery.sweep_interval, LAST_RETRY)
        )
        ceiling = min(FIRST_RETRY * 2.0 ** min(failures - 1, 20), longest)
        return max(random.uniform(ceiling / 2, ceiling), retry_after(failure, self._now))

    # Without a connection

    async def _poll_during_outages(self) -> None:
        while True:
            while self._situation.is_connected or not self._situation.progress:
                await self._situation.changed.wait()
            with trio.CancelScope() as scope:
                async with background_nursery() as nursery:
                    nursery.start_soon(self._cancel_when_connected, scope)
                    await trio.sleep(FIRST_POLL)
                    while True:
                        await self._poll()
                        await trio.sleep(POLL_INTERVAL)

    async def _cancel_when_connected(self, scope: trio.CancelScope) -> None:
        while not self._situation.is_connected:
            await self._situation.changed.wait()
        scope.cancel()

    async def _poll(self) -> None:
        """Ask for what came since the last time. It closes no gap: what is dated further back is not seen."""
        async with self._rest.connected():
            for target, its in list(self._situation.progress.items()):
                began = self._clock.now()
                after = max(its.open_since, self._polled_until.get(target, -math.inf)) - CLOSE
                try:
                    await self._source.look(Look(target, its.wanted, after, began), self._counts, pace=self._pace)
                except (ApiError, RequestFailedError):
                    continue  # the look that closes the gap tells of it
                self._polled_until[target] = began
