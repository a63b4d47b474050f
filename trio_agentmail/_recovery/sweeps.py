"""Sweeps: mail that was missed though there was a connection, or that a gap's look could not see."""

import math
from collections import deque
from collections.abc import Iterable

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
    however much there is.
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
        """When the next one is due, on Trio's clock."""
        self._is_sweeping = False
        self._is_looking_at_recent_mail = False
        self._is_put_off = False
        """Whether a sweep was due when the one before was still under way, and nothing was looked at instead."""
        self._has_not_run = True
        self._recent_from = math.inf
        """What AgentMail created before has been looked at."""
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
                now = trio.current_time()
                self._due_at = now + self._recovery.sweep_interval
                if not self._is_sweeping:
                    self._is_sweeping = True
                    nursery.start_soon(self._sweep, self._settle())
                elif not self._is_looking_at_recent_mail and (targets := self._where_a_sweep_takes_long()):
                    self._is_looking_at_recent_mail = True
                    nursery.start_soon(self._look_at_recent_mail, targets, self._settle())
                else:
                    self._is_put_off = True
                if self._unsettled:
                    second_look_at = self._unsettled[0][0] + self._second_look_after
                    if second_look_at <= now:  # nothing could be begun for it now
                        second_look_at = now + self._second_look_after
                    self._due_at = min(self._due_at, second_look_at)

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

    def _settle(self) -> float:
        """Where recent mail begins now: what is dated from then on has to be looked at."""
        since = min(self._recent_from, *(since for _, since in self._unsettled), math.inf)
        # The same sum as where it became due: rounded otherwise, it might be due again at once, and for ever.
        while self._unsettled and self._unsettled[0][0] + self._second_look_after <= trio.current_time():
            self._unsettled.popleft()
        self._recent_from = self._clock.now()
        return since

    async def _sweep(self, recent_from: float) -> None:
        looks = []
        for target, its in self._situation.progress.items():
            if its.sweep is None:
                after = min(its.swept_until, its.open_since, recent_from) - self._recovery.sweep_depth
                its.sweep = Look(target, its.wanted, after, self._clock.now())
            looks.append(its.sweep)
        self._situation.note_begun()
        try:
            await self._look_at(looks)
        finally:
            self._is_sweeping = False
        if self._is_put_off:
            self._is_put_off = False
            self.hurry()
            self._situation.tell_of_change()

    def _where_a_sweep_takes_long(self) -> list[Target]:
        # Where it is about to come to recent mail, that need not be listed twice: the next sweep comes soon.
        recent = self._recent_from - 2 * self._recovery.overlap
        progress = self._situation.progress
        return [target for target, its in progress.items() if its.sweep is not None and its.sweep.place < recent]

    async def _look_at_recent_mail(self, targets: Iterable[Target], recent_from: float) -> None:
        after, began = recent_from - self._recovery.overlap, self._clock.now()
        progress = self._situation.progress
        try:
            await self._look_at(
                [Look(target, progress[target].wanted, after, began) for target in targets if target in progress]
            )
        finally:
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
            await self._look_at(skipped.values(), pace=trio.lowlevel.checkpoint)
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
                if look.target not in self._situation.progress:
                    continue  # it is not subscribed to any more
                with self._situation.looking_at(look.target):
                    try:
                        look.is_done = await self._source.look(look, counts, pace=pace or self._rate.wait)
                    except (ApiError, RequestFailedError) as exc:
                        self._situation.note_failure(look.target, exc)
                    else:
                        self._note_completed(look)

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
