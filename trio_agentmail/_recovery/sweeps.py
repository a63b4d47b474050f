"""Sweeps: mail that was missed though there was a connection, or that a gap's look could not see."""

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
from .situation import Situation
from .source import Counts, Look, Source, Target

__all__ = ["Rate", "Sweeps"]

SECOND_LOOK_AFTER = 30.0
"""Seconds after a gap was closed at which a sweep looks for what was not listed yet then."""


PAUSE = 0.02
"""Seconds before each page of what a gap's look skipped. There may be a thousand of them: live events come between."""


class Rate:
    """Limits requests to so many a minute; a quarter of them may come at once.

    This is a token bucket: it fills at a constant rate, each request takes one token, and waits until there is one.
    """

    def __init__(self, a_minute: float) -> None:
        self._seconds_each = 60.0 / a_minute
        self._room = max(1.0, a_minute / 4)
        self._full_at = -math.inf
        """When the bucket is full again, on Trio's clock."""

    async def wait(self) -> None:
        """Wait until another request may be made."""
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self._full_at = max(self._full_at, now) + self._seconds_each
        await trio.sleep_until(self._full_at - self._room * self._seconds_each)


class Sweeps:
    """Sweeps every so often, gap or no gap: a connection may be alive and deliver nothing.

    A sweep reaches `Recovery.sweep_depth` back from the last one, since mail may be back-dated. In a busy inbox that
    is more than can be listed in one `sweep_interval`. So a sweep goes on at its rate for as long as it takes, and each
    time that the next one would be due, recent mail is looked at instead. What was missed lately is found soon,
    however much there is. Each target has sweeps of its own, so that a busy one does not hold up the others.
    """

    def __init__(
        self, situation: Situation, recovery: Recovery, source: Source, rest: Rest, clock: ServerClock, rate: Rate
    ) -> None:
        self._situation = situation
        self._recovery = recovery
        self._source = source
        self._rest = rest
        self._clock = clock
        self._rate = rate
        self._second_look_after = min(SECOND_LOOK_AFTER, recovery.sweep_interval)
        self._due_at = -math.inf
        """When sweeps are due next, on Trio's clock."""
        self._under_way: dict[Target, Look] = {}
        """The sweeps that have begun, and those that wait for others to end."""
        self._put_off: set[Target] = set()
        """Where a sweep was due when the one before was under way, and recent mail was not looked at instead."""
        self._is_looking_at_recent_mail = False
        self._has_not_run = True
        self._recent_from: dict[Target, float] = {}
        """Where recent mail begins: what is dated from then on has to be looked at."""
        self._unsettled: deque[tuple[float, float]] = deque()
        """When a gap ended, on Trio's clock, and when it had begun: it needs a second look."""

    def gap_has_ended(self, since: float) -> None:
        """The subscription is in force again."""
        is_first = self._has_not_run and not self._unsettled
        self._unsettled.append((trio.current_time(), since))
        second_look_at = trio.current_time() + self._second_look_after
        # After a start that follows a gap, the look that closes the gap comes first.
        self._due_at = second_look_at if is_first else min(self._due_at, second_look_at)

    def hurry(self) -> None:
        """Something new has been subscribed to."""
        self._due_at = -math.inf

    async def run(self) -> None:
        """Sweep whenever it is time."""
        async with background_nursery() as nursery:
            nursery.start_soon(self._look_again_after_gaps)
            while True:
                await self._until_due()
                self._has_not_run = False
                await self._wait_for_consumer()
                self._due_at = trio.current_time() + self._recovery.sweep_interval
                self._settle()
                busy = [target for target in self._situation.progress if target in self._under_way]
                if idle := [target for target in self._situation.progress if target not in self._under_way]:
                    nursery.start_soon(self._sweep, list(map(self._next_sweep, idle)))
                slow = [] if self._is_looking_at_recent_mail else list(filter(self._takes_long, busy))
                if slow:
                    self._is_looking_at_recent_mail = True
                    nursery.start_soon(self._look_at_recent_mail, list(map(self._recent, slow)))
                self._put_off = set(busy).difference(slow)
                if self._unsettled:
                    self._due_at = min(self._due_at, self._unsettled[0][0] + self._second_look_after)

    async def _until_due(self) -> None:
        while not self._situation.progress or trio.current_time() < self._due_at:
            changed = self._situation.changed
            with trio.move_on_at(self._due_at if self._situation.progress else math.inf):
                await changed.wait()

    async def _wait_for_consumer(self) -> None:
        # While the consumer is behind, what was pushed may wait to be read, and need not be fetched.
        for _ in range(int(self._recovery.sweep_interval / SECOND_LOOK_AFTER)):
            if not self._situation.is_behind:
                return
            await trio.sleep(SECOND_LOOK_AFTER)

    def _settle(self) -> None:
        """Mail of the gaps that have ended is recent again."""
        since = min((since for _, since in self._unsettled), default=math.inf)
        self._recent_from = {
            target: min(since, self._recent_from.get(target, math.inf)) for target in self._situation.progress
        }
        # The same sum as where it became due: rounded otherwise, it might be due again at once, and for ever.
        while self._unsettled and self._unsettled[0][0] + self._second_look_after <= trio.current_time():
            self._unsettled.popleft()

    def _next_sweep(self, target: Target) -> Look:
        its = self._situation.progress[target]
        if its.sweep is None:
            after = min(its.swept_until, its.open_since, self._recent_from[target]) - self._recovery.sweep_depth
            its.sweep = Look(target, its.wanted, after, self._clock.now())
        self._under_way[target] = its.sweep
        self._recent_from[target] = self._clock.now()
        return its.sweep

    async def _sweep(self, looks: Sequence[Look]) -> None:
        while looks:
            self._situation.note_begun()
            await self._look_at(looks)
            due = [look.target for look in looks if look.target in self._put_off and self._is_idle(look.target)]
            self._put_off.difference_update(due)
            looks = list(map(self._next_sweep, due))

    def _is_idle(self, target: Target) -> bool:
        return target in self._situation.progress and target not in self._under_way

    def _takes_long(self, target: Target) -> bool:
        # Where it is about to come to recent mail, that need not be listed twice: the next sweep comes soon.
        return self._under_way[target].place < self._recent_from[target] - 2 * self._recovery.overlap

    def _recent(self, target: Target) -> Look:
        after, began = self._recent_from[target] - self._recovery.overlap, self._clock.now()
        self._recent_from[target] = began
        return Look(target, self._situation.progress[target].wanted, after, began)

    async def _look_at_recent_mail(self, looks: Sequence[Look]) -> None:
        await self._look_at(looks)
        self._is_looking_at_recent_mail = False

    async def _look_again_after_gaps(self) -> None:
        # This is for mail of a gap, so the rate of the sweeps does not put it off.
        while True:
            while all(its.skipped_from == math.inf for its in self._situation.progress.values()):
                await self._situation.changed.wait()
            await trio.sleep(self._second_look_after)
            await self._look_at_what_was_skipped()

    async def _look_at_what_was_skipped(self) -> None:
        """Look at the mail before a gap that was too much to be looked at at once."""
        began = self._clock.now()
        progress = self._situation.progress
        skipped = {
            target: Look(target, its.wanted, self._where_to_begin(its), began)
            for target, its in progress.items()
            if its.skipped_from < math.inf
        }
        for target in skipped:
            progress[target].skipped_from = math.inf
        try:
            await self._look_at(skipped.values(), pace=partial(trio.sleep, PAUSE))
        finally:
            for target, look in skipped.items():
                its_now = self._situation.progress.get(target)
                if its_now is not None and not look.is_done:
                    its_now.skipped_from = min(its_now.skipped_from, look.place)

    def _where_to_begin(self, its: Progress) -> float:
        # Where it is little more to reach as far back as a sweep does, this look is one, and more can be forgotten.
        sweep_from = its.swept_until - self._recovery.sweep_depth
        is_little_more = its.skipped_from - sweep_from <= self._recovery.sweep_interval
        return min(its.skipped_from, sweep_from) if is_little_more else its.skipped_from

    async def _look_at(self, looks: Iterable[Look], pace: Pace | None = None) -> None:
        counts = Counts()
        waiting = iter(looks)

        async def work() -> None:
            for look in waiting:
                if look.target in self._situation.progress:  # else it is not subscribed to any more
                    with self._situation.looking_at(look.target):
                        try:
                            look.is_done = await self._source.look(look, counts, pace=pace or self._rate.wait)
                        except (ApiError, RequestFailedError) as exc:
                            self._situation.note_failure(look.target, exc)
                        else:
                            self._note_completed(look)
                if self._under_way.get(look.target) is look:
                    del self._under_way[look.target]

        async with self._rest.connected(), trio.open_nursery() as nursery:
            for _ in range(TARGETS_AT_ONCE):
                nursery.start_soon(work)
        await self._situation.note_swept(counts)

    def _note_completed(self, look: Look) -> None:
        its = self._situation.progress.get(look.target)
        if its is None:
            return  # it is not subscribed to any more
        its.complete_until = max(its.complete_until, look.began)
        if its.sweep is look or look.after <= its.swept_until - self._recovery.sweep_depth:
            its.swept_until = max(its.swept_until, look.began)
        if its.sweep is look:
            its.sweep = None
