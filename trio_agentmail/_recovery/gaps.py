"""Gaps: finds the mail that was missed while there was no connection, as soon as possible."""

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
from .source import Scan, Source, Target
from .state import RecoveryState

__all__ = ["TARGETS_AT_ONCE", "Gaps"]

TARGETS_AT_ONCE = 4
"""Maximum number of targets that are scanned at the same time."""

OVERLAP_PAGES = 10
"""Maximum number of pages that are listed before the scan jumps to the gap. The second scan lists the others."""

SHORT_OVERLAP = 5.0
"""Seconds before the gap to which the scan jumps. Nearly all mail created in the gap has a later date than that."""

FIRST_RETRY, LAST_RETRY = 2.0, 30.0
"""Minimum and maximum number of seconds, before jitter, until a scan is retried after a transient failure."""

FIRST_POLL, POLL_INTERVAL = 2.0, 5.0
"""Seconds from the loss of a connection to the first poll, and between polls."""


class Gaps:
    """Closes gaps: scans each target for mail from the time without a connection.

    The scan begins when the subscription is in force again, since mail is pushed from then on. It starts
    `Recovery.overlap` before the gap, because mail may be dated earlier than it was created. In a busy inbox that part
    contains much mail, most of it already delivered. So after `OVERLAP_PAGES` pages the scan jumps to `SHORT_OVERLAP`
    before the gap, and `Sweeps` lists the skipped part half a minute later.

    If the connection is lost again, the scan continues, and the next scan closes the new gap. A scan that fails or is
    interrupted keeps its position. While there is no connection, recent mail is polled at the rate of sweeps.

    Args:
        pace: Waits until the rate of sweeps permits another request. Only polls use it.
    """

    def __init__(
        self,
        state: RecoveryState,
        recovery: Recovery,
        source: Source,
        rest: Rest,
        clock: ServerClock,
        pace: Pace,
        now: Callable[[], float],
    ) -> None:
        self._state = state
        self._recovery = recovery
        self._source = source
        self._rest = rest
        self._clock = clock
        self._counts = state.counts
        self._pace = pace
        self._now = now
        self._busy: set[Target] = set()
        self._polled_until: dict[Target, float] = {}
        """For each target, the time until which mail has been polled in this outage."""

    async def run(self) -> None:
        """Close gaps, and poll during outages. Runs until it is cancelled."""
        async with background_nursery() as nursery:
            for _ in range(TARGETS_AT_ONCE):
                nursery.start_soon(self._close_gaps)
            await self._poll_during_outages()

    def open(self, since: float) -> None:
        """Open a gap for each target, because the connection was lost."""
        for its in self._state.progress.values():
            its.gap = min(its.gap, since)
        self._polled_until.clear()

    def retry_soon(self) -> None:
        """Retry failed scans soon: the subscription is in force again, so the cause of their failure may be gone."""
        for its in self._state.progress.values():
            its.not_before = min(its.not_before, trio.current_time() + FIRST_RETRY)

    # With a connection

    async def _close_gaps(self) -> None:
        while True:
            target = self._due()
            if target is None:
                changed = self._state.changed
                with trio.move_on_at(self._next_due()):
                    await changed.wait()
                continue
            self._busy.add(target)
            try:
                with self._state.scanning(target):
                    await self._close(target, self._state.progress[target])
            finally:
                self._busy.discard(target)

    def _can_be_scanned(self, its: Progress) -> bool:
        # A scan needs a connection to begin, but not to continue.
        return its.gap_scan is not None or (its.gap < math.inf and self._state.is_connected)

    def _due(self) -> Target | None:
        now = trio.current_time()
        for target, its in self._state.progress.items():
            if target not in self._busy and its.not_before <= now and self._can_be_scanned(its):
                return target
        return None

    def _next_due(self) -> float:
        waiting = [
            its.not_before
            for target, its in self._state.progress.items()
            if target not in self._busy and self._can_be_scanned(its)
        ]
        return min(waiting, default=math.inf)

    async def _close(self, target: Target, its: Progress) -> None:
        if its.gap_scan is None:
            began = self._clock.now()
            its.gap_scan = Scan(target, its.wanted, its.gap - self._recovery.overlap, began, since=its.gap)
            its.gap = math.inf
        scan = its.gap_scan
        right_before = max(scan.since, self._polled_until.get(target, -math.inf)) - SHORT_OVERLAP
        try:
            async with self._rest.connected():
                if not await self._source.scan(scan, self._counts, pages=OVERLAP_PAGES):
                    if scan.position < right_before:
                        its.skipped_from = min(its.skipped_from, scan.position)
                        scan.position = right_before
                    await self._source.scan(scan, self._counts)
        except (ApiError, RequestFailedError) as exc:
            if self._state.progress.get(target) is not its:
                return  # the target is no longer subscribed to
            its.failures += 1
            its.not_before = trio.current_time() + self._delay(its.failures, exc)
            self._state.note_failure(target, exc)
            return
        if self._state.progress.get(target) is not its:
            return
        its.gap_scan, its.failures, its.has_failed = None, 0, False
        its.complete_until = max(its.complete_until, scan.began)
        self._state.note_closed(scan.since)

    def _delay(self, failures: int, failure: Exception) -> float:
        longest = (
            LAST_RETRY if verdict(failure) is Verdict.TRANSIENT else max(self._recovery.sweep_interval, LAST_RETRY)
        )
        ceiling = min(FIRST_RETRY * 2.0 ** min(failures - 1, 20), longest)
        return max(random.uniform(ceiling / 2, ceiling), retry_after(failure, self._now))

    # Without a connection

    async def _poll_during_outages(self) -> None:
        while True:
            while self._state.is_connected or not self._state.progress:
                await self._state.changed.wait()
            with trio.CancelScope() as scope:
                async with background_nursery() as nursery:
                    nursery.start_soon(self._cancel_when_connected, scope)
                    await trio.sleep(FIRST_POLL)
                    while True:
                        await self._poll()
                        await trio.sleep(POLL_INTERVAL)

    async def _cancel_when_connected(self, scope: trio.CancelScope) -> None:
        while not self._state.is_connected:
            await self._state.changed.wait()
        scope.cancel()

    async def _poll(self) -> None:
        """Find mail that came since the last poll. The gap stays open, since a poll does not find back-dated mail."""
        async with self._rest.connected():
            for target, its in list(self._state.progress.items()):
                began = self._clock.now()
                after = max(its.open_since, self._polled_until.get(target, -math.inf)) - SHORT_OVERLAP
                try:
                    await self._source.scan(Scan(target, its.wanted, after, began), self._counts, pace=self._pace)
                except (ApiError, RequestFailedError):
                    continue  # the scan that closes the gap reports failures
                self._polled_until[target] = began
