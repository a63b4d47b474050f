"""Sweeps: periodic scans for mail that was missed despite a connection, or that the scan of a gap could not find."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from trio_agentmail._clock import ServerClock
from trio_agentmail._nursery import background_nursery
from trio_agentmail._settings import Recovery
from trio_agentmail.errors import ApiError, RequestFailedError

from .gaps import TARGETS_AT_ONCE
from .progress import Progress
from .rest import Pace, Rest
from .source import Counts, Scan, Source, Target
from .state import RecoveryState

__all__ = ["Rate", "Sweeps"]

SECOND_SCAN_AFTER = 30.0
"""Seconds from the end of a gap to the sweep that finds mail which was not listed yet when the gap was closed."""


PAUSE = 0.02
"""Seconds before each page of the part that the scan of a gap skipped.

This may be up to a thousand pages. The pauses leave time for live events.
"""


class Rate:
    """Limits requests to a number per minute, a quarter of which may be made at once.

    This is a token bucket. It fills at a constant rate. Each request waits for a token and takes it.
    """

    def __init__(self, per_minute: float) -> None:
        self._seconds_each = 60.0 / per_minute
        self._capacity = max(1.0, per_minute / 4)
        self._full_at = -math.inf
        """When the bucket is full again, on Trio's clock."""

    async def wait(self) -> None:
        """Wait until another request may be made."""
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self._full_at = max(self._full_at, now) + self._seconds_each
        await trio.sleep_until(self._full_at - self._capacity * self._seconds_each)


class Sweeps:
    """Sweeps each target periodically, even without a gap, since a connection may be alive but deliver nothing.

    A sweep starts `Recovery.sweep_depth` before the beginning of the previous one, since mail may be back-dated.

    Problem: a busy inbox may have more mail in that time than can be listed in one `sweep_interval` at the permitted
    rate. Waiting for the end of such a sweep would delay the discovery of recent mail by hours. If each sweep started
    over, it would never reach the end.

    So a sweep takes as long as it needs. Whenever the next one would be due meanwhile, only recent mail is scanned:
    mail dated since the previous scan began. So recently missed mail is found soon. Each target has its own sweeps, so
    that a busy target does not delay the others.
    """

    def __init__(
        self, state: RecoveryState, recovery: Recovery, source: Source, rest: Rest, clock: ServerClock, rate: Rate
    ) -> None:
        self._state = state
        self._recovery = recovery
        self._source = source
        self._rest = rest
        self._clock = clock
        self._rate = rate
        self._second_scan_after = min(SECOND_SCAN_AFTER, recovery.sweep_interval)
        self._due_at = -math.inf
        """When sweeps are due next, on Trio's clock."""
        self._under_way: dict[Target, Scan] = {}
        """The sweeps that are under way, or wait for others to end."""
        self._postponed: set[Target] = set()
        """Targets whose sweep was due while the previous one was under way, without a scan of recent mail instead."""
        self._is_scanning_recent_mail = False
        self._has_not_run = True
        self._recent_from: dict[Target, float] = {}
        """The time from which mail counts as recent. Mail dated from then on has not been scanned yet."""
        self._unsettled: deque[tuple[float, float]] = deque()
        """The end (on Trio's clock) and the beginning (by AgentMail's) of each gap that needs a second scan."""

    def gap_has_ended(self, since: float) -> None:
        """Schedule the second scan of a gap. Called when the subscription is in force again."""
        is_first = self._has_not_run and not self._unsettled
        self._unsettled.append((trio.current_time(), since))
        second_scan_at = trio.current_time() + self._second_scan_after
        # If the stream starts with a gap, the scan that closes the gap goes first.
        self._due_at = second_scan_at if is_first else min(self._due_at, second_scan_at)

    def hurry(self) -> None:
        """Sweep at once, since the subscription has new targets or event_types."""
        self._due_at = -math.inf

    async def run(self) -> None:
        """Sweep whenever sweeps are due. Runs until it is cancelled."""
        async with background_nursery() as nursery:
            nursery.start_soon(self._scan_skipped_after_gaps)
            while True:
                await self._until_due()
                self._has_not_run = False
                await self._wait_for_consumer()
                self._due_at = trio.current_time() + self._recovery.sweep_interval
                self._settle()
                busy = [target for target in self._state.progress if target in self._under_way]
                if idle := [target for target in self._state.progress if target not in self._under_way]:
                    nursery.start_soon(self._sweep, list(map(self._next_sweep, idle)))
                slow = [] if self._is_scanning_recent_mail else list(filter(self._takes_long, busy))
                if slow:
                    self._is_scanning_recent_mail = True
                    nursery.start_soon(self._scan_recent_mail, list(map(self._recent, slow)))
                self._postponed = set(busy).difference(slow)
                if self._unsettled:
                    self._due_at = min(self._due_at, self._unsettled[0][0] + self._second_scan_after)

    async def _until_due(self) -> None:
        while not self._state.progress or trio.current_time() < self._due_at:
            changed = self._state.changed
            with trio.move_on_at(self._due_at if self._state.progress else math.inf):
                await changed.wait()

    async def _wait_for_consumer(self) -> None:
        # While the consumer is behind, mail that was pushed may still wait to be read, and need not be fetched.
        for _ in range(int(self._recovery.sweep_interval / SECOND_SCAN_AFTER)):
            if not self._state.is_behind:
                return
            await trio.sleep(SECOND_SCAN_AFTER)

    def _settle(self) -> None:
        """Make the mail of gaps that have ended count as recent again."""
        since = min((since for _, since in self._unsettled), default=math.inf)
        self._recent_from = {
            target: min(since, self._recent_from.get(target, math.inf)) for target in self._state.progress
        }
        # Compute the same sum as in `run`. A different formula might be rounded differently, and the sweep would be due
        # again at once, forever.
        while self._unsettled and self._unsettled[0][0] + self._second_scan_after <= trio.current_time():
            self._unsettled.popleft()

    def _next_sweep(self, target: Target) -> Scan:
        its = self._state.progress[target]
        if its.sweep is None:
            after = min(its.swept_until, its.open_since, self._recent_from[target]) - self._recovery.sweep_depth
            its.sweep = Scan(target, its.wanted, after, self._clock.now())
        self._under_way[target] = its.sweep
        self._recent_from[target] = self._clock.now()
        return its.sweep

    async def _sweep(self, scans: Sequence[Scan]) -> None:
        while scans:
            self._state.note_begun()
            await self._run_scans(scans)
            due = [scan.target for scan in scans if scan.target in self._postponed and self._is_idle(scan.target)]
            self._postponed.difference_update(due)
            scans = list(map(self._next_sweep, due))

    def _is_idle(self, target: Target) -> bool:
        return target in self._state.progress and target not in self._under_way

    def _takes_long(self, target: Target) -> bool:
        # A sweep that is about to reach recent mail will list it anyway.
        return self._under_way[target].position < self._recent_from[target] - 2 * self._recovery.overlap

    def _recent(self, target: Target) -> Scan:
        after, began = self._recent_from[target] - self._recovery.overlap, self._clock.now()
        self._recent_from[target] = began
        return Scan(target, self._state.progress[target].wanted, after, began)

    async def _scan_recent_mail(self, scans: Sequence[Scan]) -> None:
        await self._run_scans(scans)
        self._is_scanning_recent_mail = False

    async def _scan_skipped_after_gaps(self) -> None:
        # The rate of sweeps does not apply, since these scans complete the scan of a gap.
        while True:
            while all(its.skipped_from == math.inf for its in self._state.progress.values()):
                await self._state.changed.wait()
            await trio.sleep(self._second_scan_after)
            await self._scan_skipped()

    async def _scan_skipped(self) -> None:
        """Scan the parts before gaps that the scans of the gaps have skipped."""
        began = self._clock.now()
        progress = self._state.progress
        skipped = {
            target: Scan(target, its.wanted, self._where_to_begin(its), began)
            for target, its in progress.items()
            if its.skipped_from < math.inf
        }
        for target in skipped:
            progress[target].skipped_from = math.inf
        try:
            await self._run_scans(skipped.values(), pace=partial(trio.sleep, PAUSE))
        finally:
            for target, scan in skipped.items():
                its_now = self._state.progress.get(target)
                if its_now is not None and not scan.is_done:
                    its_now.skipped_from = min(its_now.skipped_from, scan.position)

    def _where_to_begin(self, its: Progress) -> float:
        # If a sweep would reach back only a little further, scan that far. Then this scan counts as a sweep, and more
        # identities can be forgotten.
        sweep_from = its.swept_until - self._recovery.sweep_depth
        is_little_more = its.skipped_from - sweep_from <= self._recovery.sweep_interval
        return min(its.skipped_from, sweep_from) if is_little_more else its.skipped_from

    async def _run_scans(self, scans: Iterable[Scan], pace: Pace | None = None) -> None:
        counts = Counts()
        waiting = iter(scans)

        async def work() -> None:
            for scan in waiting:
                if scan.target in self._state.progress:  # else it is no longer subscribed to
                    with self._state.scanning(scan.target):
                        try:
                            scan.is_done = await self._source.scan(scan, counts, pace=pace or self._rate.wait)
                        except (ApiError, RequestFailedError) as exc:
                            self._state.note_failure(scan.target, exc)
                        else:
                            self._note_completed(scan)
                if self._under_way.get(scan.target) is scan:
                    del self._under_way[scan.target]

        async with self._rest.connected(), trio.open_nursery() as nursery:
            for _ in range(TARGETS_AT_ONCE):
                nursery.start_soon(work)
        await self._state.end_sweep(counts)

    def _note_completed(self, scan: Scan) -> None:
        its = self._state.progress.get(scan.target)
        if its is None:
            return  # no longer subscribed to
        its.complete_until = max(its.complete_until, scan.began)
        if its.sweep is scan or scan.after <= its.swept_until - self._recovery.sweep_depth:
            its.swept_until = max(its.swept_until, scan.began)
        if its.sweep is scan:
            its.sweep = None
