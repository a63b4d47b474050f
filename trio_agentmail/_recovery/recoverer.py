"""Recovery: finds mail that was missed and hands it over.

AgentMail pushes once, and what it pushes while nobody is connected can only be found in a listing. The listing is by
the mail's own time, which its sender chose, and a mail may be listed some time after it was created. So one look is not
enough. There are two kinds, which go on beside each other:

- When the subscription is in force again after a loss, `Gaps` looks at what is dated since shortly before the gap.
  That is nearly all, and it comes at once.
- Half a minute after a gap, and then every `Recovery.sweep_interval`, `Sweeps` looks `Recovery.sweep_depth` back.

What was found is delivered unless it was delivered before (`_delivered`), or was created before the stream began.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._nursery import background_nursery
from trio_agentmail._outbox import Abandoned, JournaledOutbox, Outbox
from trio_agentmail._settings import Recovery, Settings, Subscribe
from trio_agentmail.errors import AgentMailError, ApiError, RequestFailedError, printable
from trio_agentmail.events import CaughtUp, Event, MessageReceivedEvent, RecoveryFailed

from .bodies import with_body
from .gaps import Gaps
from .listing import MailListing
from .progress import Progress, decode_progress, encode_progress, follow
from .rest import Rest
from .source import Counts, Source, Target
from .sweeps import Rate, Sweeps

__all__ = ["Recoverer"]

logger = logging.getLogger("trio_agentmail")

PUSHED_BY_THEN = 60.0
"""Seconds after which a mail that was not pushed will not be."""

KEEP_AFTER, KEEP_EVERY = 1.0, 5.0
"""Seconds after a change until a journal keeps it, and between two times while a look is under way."""

ASK_AGAIN_AFTER = 2.0
"""Seconds after which the time is asked for again, when nobody has answered."""


class Recoverer:
    """Finds mail that was missed and hands it over. `run` is its task; the supervisor tells how the connection fares.

    Args:
        renew: Makes a connection that takes the place of the present one.
        kept: What was remembered in an earlier run; `b""`: nothing.

    Attributes:
        note: Called with each event that was pushed.
        recovered: How many mails were recovered.
    """

    def __init__(
        self,
        recovery: Recovery,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        clock: ServerClock,
        delivered: Delivered,
        outbox: Outbox | JournaledOutbox,
        renew: Callable[[], Awaitable[None]],
        journal: Journal | None,
        kept: bytes,
    ) -> None:
        self._recovery = recovery
        self._clock = clock
        self._delivered = delivered
        delivered.has_run_out = self._tell_if_memory_has_run_out
        self._outbox = outbox
        self._renew = renew
        self._journal = journal
        self._kept = decode_progress(kept)
        self._rest = Rest(backend, settings, api_key, clock)
        self._source: Source = MailListing(self._rest, clock, delivered, self._put)
        self.note = self._source.note
        self._counts = Counts()
        rate = Rate(recovery.sweep_rate)
        self._gaps = Gaps(self, recovery, self._source, self._rest, clock, self._counts, rate.wait, backend.now)
        self._sweeps = Sweeps(self, recovery, self._source, self._rest, clock, rate)
        self._is_first_start = self._kept is None
        self._has_begun = False
        """Whether the clock is known, and what an earlier run remembered has been taken over."""
        self._confirmed_at = math.inf
        self._closed_since = math.inf
        """When the earliest of the gaps began that are closed, and were not told of yet."""
        self._requests_told = 0
        self._recovered_told = 0
        self._was_behind = False
        self._has_run_out = False
        self._to_keep = trio.Event()
        self._held_lock = trio.Lock()
        self._under_way: dict[trio.CancelScope, Target] = {}
        """Looks, and what they look at."""
        self.recovered = 0
        # What `Situation` describes.
        self.progress: dict[Target, Progress] = {}
        self.is_connected = False
        self.changed = trio.Event()

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self._rest.requests

    @property
    def missing_since(self) -> float:
        """Since when mail may be missing, in seconds since the epoch; `math.inf`: none is known to be."""
        return min((its.open_since for its in self.progress.values()), default=math.inf)

    # What the supervisor says

    async def begin(self, subscribe: Subscribe) -> None:
        """The first connection is about to be made. From now on, a crash at any moment leaves a gap that is known."""
        if self._journal is None or self._kept is not None:
            return
        since = self._recovery.since
        begin = min(self._clock.now(), math.inf if since is None else since.timestamp())
        await self._journal.keep(self._encode(follow({}, subscribe, begin)))

    async def extended(self, subscribe: Subscribe, asked_at: Moment) -> bytes:
        """What a journal has to keep before a subscription that was asked for then is in force."""
        if self._has_begun and not self._clock.is_certain:
            with trio.move_on_after(ASK_AGAIN_AFTER):
                await self._learn_the_time()
        # Until the earlier progress is taken over, it is the one to be kept.
        before = self.progress if self._has_begun or self._kept is None else self._kept[0]
        return self._encode(follow(before, subscribe, self._at(asked_at)))

    def subscribed_to(self, subscribe: Subscribe, asked_at: Moment) -> None:
        """A subscription is in force from now on; what is new in it begins when it was asked for.

        It was in force somewhere between then and its confirmation, and the connection may break with what was pushed
        then unread.
        """
        begin = self._at(asked_at)
        if self._is_first_start:
            # What had come before the stream began is not new, and what comes in the same moment may have come before.
            begin = math.nextafter(begin, math.inf)
            if self._recovery.since is not None:
                begin = min(begin, self._recovery.since.timestamp())
        self._is_first_start = False
        before, following = self.progress, follow(self.progress, subscribe, begin)
        self.progress = {target: before.get(target, its) for target, its in following.items()}
        is_new = self.progress.keys() != before.keys()
        for target, its in self.progress.items():
            is_new = is_new or its.wanted != following[target].wanted
            its.wanted = following[target].wanted
        for target in before.keys() - self.progress.keys():
            self._source.forget(target)
        for scope, target in self._under_way.items():
            if target not in self.progress:
                scope.cancel()
        if is_new:
            self._sweeps.hurry()
        self._tell_of_change()

    def resume(self, confirmed_at: Moment) -> None:
        """A subscription is in force on a new connection."""
        self._confirmed_at = self._at(confirmed_at)
        self.is_connected = True
        self._gaps.retry_soon()
        if self.missing_since < math.inf:
            self._sweeps.gap_has_ended(self.missing_since)
        self._tell_of_change()

    def pause(self, last_received: Moment) -> None:
        """The connection was lost; the last sign of life came then."""
        self._count_from_here()
        self.is_connected = False
        self._confirmed_at = math.inf
        self._gaps.open(self._at(last_received))
        self._tell_of_change()

    @property
    def fetches_bodies(self) -> bool:
        return self._recovery.fetch_bodies

    async def with_body(self, event: MessageReceivedEvent) -> MessageReceivedEvent:
        """The mail with its body, if it was left out and can be fetched."""
        return await with_body(self._rest, event)

    def _at(self, moment: Moment) -> float:
        # What there is before the clock is known is by ours, and all of it is shifted together.
        return self._clock.at(moment) if self._has_begun else moment.wall

    def _tell_of_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        self._to_keep.set()

    # The task

    async def run(self) -> None:
        """Look whenever it is time."""
        while not self.is_connected or not self.progress:
            await self.changed.wait()
        await self._wait_for_the_clock()
        self._take_over()
        async with background_nursery() as nursery:
            nursery.start_soon(self._gaps.run)
            nursery.start_soon(self._sweeps.run)
            nursery.start_soon(self._tell_when_caught_up)
            if self._journal is None:
                await trio.sleep_forever()
            else:
                await self._keep_what_changes(self._journal)

    async def _wait_for_the_clock(self) -> None:
        while not self._clock.is_known:
            if (failure := await self._learn_the_time()) is not None:
                for target in self.progress:
                    self.note_failure(target, failure)
                await trio.sleep(ASK_AGAIN_AFTER)

    async def _learn_the_time(self) -> RequestFailedError | None:
        try:
            async with self._rest.connected():
                await self._rest.learn_the_time()
        except RequestFailedError as exc:
            return exc
        return None

    def _take_over(self) -> None:
        """Now AgentMail's clock is known. The times so far were by ours, but for the one that was given."""
        since = None if self._recovery.since is None else self._recovery.since.timestamp()
        self._confirmed_at += self._clock.ahead
        for its in self.progress.values():
            its.shift(self._clock.ahead, since)
        if self._kept is not None:
            earlier, clock_was_known, source = self._kept
            for target, its in earlier.items():
                if target in self.progress:
                    if not clock_was_known:
                        its.shift(self._clock.ahead, since)
                    its.clamp(self._clock.now())
                    its.wanted = self.progress[target].wanted | its.wanted
                    for look in (its.look, its.sweep):
                        if look is not None:
                            look.wanted = its.wanted
                    # What was lost since this run began is a gap as well.
                    its.gap = min(its.gap, self.progress[target].gap)
                    its.has_failed = self.progress[target].has_failed
                    self.progress[target] = its
            self._source.restore(source)
        else:
            for its in self.progress.values():
                if since is not None and since in its.wanted.values():  # before the first subscription
                    its.gap = min(its.gap, since)
        self._delivered.floor = min(self._delivered.floor, self._clock.now())
        self._has_begun = True
        if self.missing_since < math.inf:
            self._sweeps.gap_has_ended(self.missing_since)
        self._tell_of_change()

    # What `Situation` describes

    @property
    def is_behind(self) -> bool:
        """Whether the consumer has as much waiting as it asked for."""
        return self._outbox.is_full

    @contextmanager
    def looking_at(self, target: Target) -> Iterator[None]:
        """See `Situation`."""
        with trio.CancelScope() as scope:
            self._under_way[scope] = target
            try:
                yield
            finally:
                del self._under_way[scope]

    def note_begun(self) -> None:
        """See `Situation`."""
        self._to_keep.set()

    def note_failure(self, target: Target, failure: ApiError | RequestFailedError) -> None:
        """See `Situation`."""
        its = self.progress.get(target)
        if its is None:
            return  # it is not subscribed to any more
        if its.open_since == math.inf:
            self._count_from_here()
            its.gap = its.complete_until
            self._tell_of_change()
        # While there is no connection, a gap is open anyway.
        if self.is_connected and not its.has_failed:
            its.has_failed = True
            self._tell_of_failure(target, its.open_since, str(failure))
            self._tell_of_change()

    def _tell_of_failure(self, target: Target, since: float, why: str) -> None:
        reason = printable(why, 500)
        logger.warning("mail could not be recovered: %s", reason)
        self._notify(RecoveryFailed(inbox_id=target.inbox_id, pod_id=target.pod_id, since=_utc(since), reason=reason))

    def note_closed(self, since: float) -> None:
        """See `Situation`."""
        self._closed_since = min(self._closed_since, since)
        self._forget()
        self._tell_of_change()

    async def _tell_when_caught_up(self) -> None:
        # The last gap may be closed, or told by a RecoveryFailed, or its inbox may not be subscribed to any more.
        while True:
            changed = self.changed
            if self._is_caught_up():
                await self._look_at_held(self._counts)
                if self._is_caught_up():
                    self._tell_of_gaps()
            await changed.wait()

    def _is_caught_up(self) -> bool:
        """Whether all gaps are closed, but for those of which a `RecoveryFailed` has told."""
        return self.is_connected and self._closed_since < math.inf and self._all_is_closed_or_told()

    def _all_is_closed_or_told(self) -> bool:
        return all(its.open_since == math.inf or its.has_failed for its in self.progress.values())

    def _count_from_here(self) -> None:
        """A gap opens: if it is the only one, what is told of it is what it costs, and not what sweeps cost before."""
        if self._closed_since == math.inf and self._all_is_closed_or_told():
            self._requests_told = self.requests
            self._recovered_told = self.recovered

    def _tell_of_gaps(self) -> None:
        counts = self._counts
        self._notify(
            CaughtUp(
                since=_utc(self._closed_since),
                # A sweep may have found what is missing before the look that closes the gap.
                recovered=self.recovered - self._recovered_told,
                known=counts.known,
                held=counts.held,
                failed=sum(its.has_failed for its in self.progress.values()),
                requests=self.requests - self._requests_told,
            )
        )
        self._requests_told = self.requests
        self._recovered_told = self.recovered
        self._closed_since = math.inf
        counts.known = counts.held = 0

    async def note_swept(self, counts: Counts) -> None:
        """See `Situation`."""
        await self._look_at_held(counts)
        self._forget()
        self._to_keep.set()
        was_behind, self._was_behind = self._was_behind, self._outbox.is_full
        if counts.unpushed and not was_behind and self.is_connected:
            logger.warning("the connection is alive, and %d mails were not pushed: it is replaced", counts.unpushed)
            try:
                await self._renew()
            except (AgentMailError, OSError) as exc:
                logger.warning("the connection could not be replaced: %s", printable(str(exc), 500))

    async def _look_at_held(self, counts: Counts) -> None:
        wanted = {event_type: -math.inf for its in self.progress.values() for event_type in its.wanted}
        try:
            # One at a time: two would both find a mail that has just been released.
            async with self._held_lock, self._rest.connected():
                await self._source.look_at_held(wanted, counts)
        except (ApiError, RequestFailedError) as exc:
            # They stay remembered, and the next look has another try.
            logger.warning("held mail could not be looked at: %s", printable(str(exc), 500))

    def _forget(self) -> None:
        """Forget the identities that no look needs."""
        covered = self._covered_until()
        # A mail may be listed some time after it was created, and a sweep that began before that has not seen it. And
        # what the journal has no room for yet is missing to the next run, which has to find it.
        self._delivered.forget(min(covered - self._recovery.sweep_depth, self._outbox.unwritten_since))
        if self._delivered.ran_out_until <= covered:
            self._has_run_out = False

    def _covered_until(self) -> float:
        return min((its.covered_until for its in self.progress.values()), default=self._clock.now())

    def _tell_if_memory_has_run_out(self) -> None:
        # What is above that, and below the floor now, is not recovered, though no look may have found it yet.
        covered = self._covered_until()
        if self._delivered.ran_out_until > covered and not self._has_run_out:
            self._has_run_out = True
            self._tell_of_failure(Target(), covered, "more mail has come since than identities can be remembered")

    # What is handed over

    async def _put(self, event: Event, counts: Counts, *, was_held: bool) -> None:
        self._was_behind |= self._outbox.is_full
        try:
            is_new = await self._outbox.put(event)
        except Abandoned:
            await trio.sleep_forever()  # the supervisor ends the stream, when it is told the same
        assert isinstance(event, MessageReceivedEvent)
        if not is_new:
            return
        self.recovered += 1
        created = event.message.created_at
        if not was_held and created is not None:
            overdue = self._clock.now() - PUSHED_BY_THEN
            counts.unpushed += self._confirmed_at < created.timestamp() < overdue

    def _notify(self, notice: CaughtUp | RecoveryFailed) -> None:
        try:
            self._outbox.notify(notice)
        except Abandoned:
            return

    # From one run to the next

    async def _keep_what_changes(self, journal: Journal) -> None:
        while True:
            self._to_keep = trio.Event()
            await journal.keep(self._encode(self.progress), forgotten_until=self._delivered.floor)
            await trio.sleep(KEEP_AFTER)
            is_looking = any(its.look is not None or its.sweep is not None for its in self.progress.values())
            with trio.move_on_after(KEEP_EVERY if is_looking else math.inf):
                await self._to_keep.wait()

    def _encode(self, progress: dict[Target, Progress]) -> bytes:
        # What the journal has no room for is known here, and would not be to the next run.
        return encode_progress(
            progress,
            unwritten_since=self._outbox.unwritten_since,
            clock_is_known=self._has_begun or (self._kept is not None and self._kept[1]),
            source=self._source.state(),
        )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(seconds, 0.0), UTC)
