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
from collections.abc import Awaitable, Callable

import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._journaled_outbox import JournaledOutbox
from trio_agentmail._nursery import background_nursery
from trio_agentmail._outbox import Outbox
from trio_agentmail._settings import Recovery, Settings, Subscribe
from trio_agentmail._unwritten import Unwritten
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.events import MessageReceivedEvent

from .bodies import with_body
from .gaps import Gaps
from .listing import MailListing
from .progress import Progress, decode_progress, encode_progress, follow
from .rest import Rest
from .situation import Situation
from .source import Source, Target
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
        unread_for: For how many seconds the oldest push that may have come has not been read.
        unwritten: The mail that waits for room in the journal.

    Attributes:
        note: Called with each event that was pushed.
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
        unread_for: Callable[[], float],
        unwritten: Unwritten,
    ) -> None:
        self._recovery = recovery
        self._clock = clock
        self._delivered = delivered
        self._unwritten = unwritten
        self._journal = journal
        self._kept = decode_progress(kept)
        self._rest = Rest(backend, settings, api_key, clock)
        self._situation = Situation(recovery, clock, delivered, outbox, self._rest, renew, unread_for, unwritten)
        self._source: Source = MailListing(self._rest, clock, delivered, self._situation.put)
        self._situation.source = self._source
        self.note = self._source.note
        rate = Rate(recovery.sweep_rate)
        self._gaps = Gaps(self._situation, recovery, self._source, self._rest, clock, rate.wait, backend.now)
        self._sweeps = Sweeps(self._situation, recovery, self._source, self._rest, clock, rate)
        self._fetching_body = trio.CancelScope()
        self._is_first_start = self._kept is None
        self._has_begun = False
        """Whether the clock is known, and what an earlier run remembered has been taken over."""

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self._rest.requests

    @property
    def recovered(self) -> int:
        """How many mails were recovered."""
        return self._situation.recovered

    @property
    def missing_since(self) -> float:
        """Since when mail may be missing, in seconds since the epoch; `math.inf`: none is known to be."""
        return self._situation.missing_since

    @property
    def progress(self) -> dict[Target, Progress]:
        """What is looked at, and how far that has come."""
        return self._situation.progress

    # What the supervisor says

    async def begin(self, subscribe: Subscribe) -> None:
        """The first connection is about to be made. From now on, a crash at any moment leaves a gap that is known."""
        if self._journal is None or self._kept is not None:
            return
        since = self._recovery.since
        begin = min(self._clock.now(), math.inf if since is None else since.timestamp())
        await self._journal.keep(self._encode(follow({}, subscribe, begin)))

    async def extended(self, subscribe: Subscribe, asked_at: Moment) -> bytes:
        """What a journal has to keep before a subscription that was asked for then is in force.

        When our clock has been set, AgentMail's is asked first.
        """
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
        self._situation.progress = {target: before.get(target, its) for target, its in following.items()}
        is_new = self.progress.keys() != before.keys()
        for target, its in self.progress.items():
            is_new = is_new or its.wanted != following[target].wanted
            its.wanted = following[target].wanted
        self._source.keep_only(self.progress)
        self._situation.cancel_what_nobody_wants()
        if is_new:
            self._sweeps.hurry()
        self._situation.tell_of_change()

    def resume(self, confirmed_at: Moment) -> None:
        """A subscription is in force on a new connection."""
        self._situation.confirmed_at = self._at(confirmed_at)
        self._situation.is_connected = True
        self._gaps.retry_soon()
        if self.missing_since < math.inf:
            self._sweeps.gap_has_ended(self.missing_since)
        self._situation.tell_of_change()

    def pause(self, last_received: Moment) -> None:
        """The connection was lost; the last sign of life came then."""
        self._situation.count_from_here()
        self._situation.is_connected = False
        self._situation.confirmed_at = math.inf
        self._gaps.open(self._at(last_received))
        self._situation.tell_of_change()

    @property
    def fetches_bodies(self) -> bool:
        return self._recovery.fetch_bodies

    async def with_body(self, event: MessageReceivedEvent) -> MessageReceivedEvent:
        """The mail with its body, if it was left out and can be fetched."""
        with trio.CancelScope() as self._fetching_body:
            return await with_body(self._rest, event)
        return event

    def stop_fetching_bodies(self) -> None:
        """The mail whose body is being fetched comes without it."""
        self._fetching_body.cancel()

    def _at(self, moment: Moment) -> float:
        # What there is before the clock is known is by ours, and all of it is shifted together.
        return self._clock.at(moment) if self._has_begun else moment.wall

    # The task

    async def run(self) -> None:
        """Look whenever it is time."""
        while not self._situation.is_connected or not self.progress:
            await self._situation.changed.wait()
        await self._wait_for_the_clock()
        self._take_over()
        async with background_nursery() as nursery:
            nursery.start_soon(self._gaps.run)
            nursery.start_soon(self._sweeps.run)
            nursery.start_soon(self._situation.tell_when_caught_up)
            if self._journal is None:
                await trio.sleep_forever()
            else:
                await self._keep_what_changes(self._journal)

    async def _wait_for_the_clock(self) -> None:
        while not self._clock.is_known:
            if (failure := await self._learn_the_time()) is not None:
                for target in self.progress:
                    self._situation.note_failure(target, failure)
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
        self._situation.confirmed_at += self._clock.ahead
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
        self._situation.tell_of_change()

    # From one run to the next

    async def _keep_what_changes(self, journal: Journal) -> None:
        while True:
            self._situation.to_keep = trio.Event()
            await journal.keep(self._encode(self.progress), forgotten_until=self._delivered.floor)
            await trio.sleep(KEEP_AFTER)
            is_looking = any(its.look is not None or its.sweep is not None for its in self.progress.values())
            with trio.move_on_after(KEEP_EVERY if is_looking else math.inf):
                await self._situation.to_keep.wait()

    def _encode(self, progress: dict[Target, Progress]) -> bytes:
        # What the journal has no room for is known here, and would not be to the next run.
        return encode_progress(
            progress,
            unwritten_since=self._unwritten.since,
            clock_is_known=self._has_begun or (self._kept is not None and self._kept[1]),
            source=self._source.state(),
        )
