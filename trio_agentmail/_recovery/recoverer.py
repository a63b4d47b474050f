"""`Recoverer`: the supervisor's interface to recovery.

AgentMail pushes each event once. Mail that it would have pushed during an outage can only be found in a listing. A
listing is in the order of the mails' own times, which their senders chose, and a mail may be listed some time after it
was created. So a single scan is not enough. Two kinds of scans run concurrently:

- When the subscription is in force again after an outage, `Gaps` scans mail that is dated from shortly before the gap.
  That finds nearly all missed mail immediately. During the outage, `Gaps` already polls recent mail.
- Half a minute after a gap, and then every `Recovery.sweep_interval`, `Sweeps` scans `Recovery.sweep_depth` back.

Mail that is found is delivered, unless it was delivered before (`_delivered`) or created before the stream began.
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
from .source import Source, Target
from .state import RecoveryState
from .sweeps import Rate, Sweeps

__all__ = ["Recoverer"]

logger = logging.getLogger("trio_agentmail")

KEEP_AFTER, KEEP_EVERY = 1.0, 5.0
"""Minimum number of seconds between writes to a journal, and seconds to wait for a change while a scan is under way."""

ASK_AGAIN_AFTER = 2.0
"""Seconds until AgentMail's time is requested again after a failure."""


class Recoverer:
    """Finds missed mail and hands it over. `run` is its task. The supervisor calls the other methods.

    Args:
        renew: A function that replaces the present connection by a new one.
        kept: The state that the journal has kept from an earlier run, or `b""`.
        unread_for: A function that returns for how many seconds the oldest push may have been waiting to be read.
        unwritten: The mail that waits for room in the journal.

    Raises:
        JournalError: `kept` cannot be read.

    Attributes:
        note: To be called with each pushed event.
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
        self._state = RecoveryState(recovery, clock, delivered, outbox, self._rest, renew, unread_for, unwritten)
        self._source: Source = MailListing(self._rest, clock, delivered, self._state.put)
        if self._kept is not None:
            self._source.restore(self._kept[2])
        self._state.source = self._source
        self.note = self._source.note
        rate = Rate(recovery.sweep_rate)
        self._gaps = Gaps(self._state, recovery, self._source, self._rest, clock, rate.wait, backend.now)
        self._sweeps = Sweeps(self._state, recovery, self._source, self._rest, clock, rate)
        self._fetching_body = trio.CancelScope()
        self._is_first_start = self._kept is None
        self._has_begun = False
        """Whether AgentMail's time is known and the progress of an earlier run has been restored."""

    @property
    def requests(self) -> int:
        """The number of requests made."""
        return self._rest.requests

    @property
    def recovered(self) -> int:
        """The number of recovered mails."""
        return self._state.recovered

    @property
    def missing_since(self) -> float:
        """The time since which mail may be missing, in seconds since the epoch; `math.inf` if no gap is open."""
        return self._state.missing_since

    @property
    def progress(self) -> dict[Target, Progress]:
        """The subscribed targets, and how far each has been scanned."""
        return self._state.progress

    # Called by the supervisor

    async def begin(self, subscribe: Subscribe) -> None:
        """Store in the journal when the stream begins, before the first connection.

        If the process crashes soon, the next run knows where its gap begins.
        """
        if self._journal is None or self._kept is not None:
            return
        since = self._recovery.since
        begin = min(self._clock.now(), math.inf if since is None else since.timestamp())
        await self._journal.keep(self._encode(follow({}, subscribe, begin)))

    async def extended(self, subscribe: Subscribe, asked_at: Moment) -> bytes:
        """Return the state that a journal has to keep before a new subscription is in force.

        If this machine's clock has been set, AgentMail's time is requested first.

        Args:
            asked_at: When the subscription was requested.
        """
        if self._has_begun and not self._clock.is_certain:
            with trio.move_on_after(ASK_AGAIN_AFTER):
                await self._learn_the_time()
        # Until the progress of the earlier run has been restored, that progress is the one to keep.
        before = self.progress if self._has_begun or self._kept is None else self._kept[0]
        return self._encode(follow(before, subscribe, self._at(asked_at)))

    def subscribed_to(self, subscribe: Subscribe, asked_at: Moment) -> None:
        """Follow a subscription that is now in force. New targets and event_types in it begin when it was requested.

        AgentMail put it in force at some moment between the request and the confirmation. If the connection breaks,
        mail that was pushed since that moment may be unread.

        Args:
            asked_at: When the subscription was requested.
        """
        begin = self._at(asked_at)
        if self._is_first_start:
            # Mail from before the stream is not new. Mail created at the same time as the stream may be from before.
            begin = math.nextafter(begin, math.inf)
            if self._recovery.since is not None:
                begin = min(begin, self._recovery.since.timestamp())
        self._is_first_start = False
        before, following = self.progress, follow(self.progress, subscribe, begin)
        self._state.progress = {target: before.get(target, its) for target, its in following.items()}
        is_new = self.progress.keys() != before.keys()
        for target, its in self.progress.items():
            is_new = is_new or its.wanted != following[target].wanted
            its.wanted = following[target].wanted
        self._source.keep_only(self.progress)
        self._state.cancel_unsubscribed()
        if is_new:
            self._sweeps.hurry()
        self._state.notify_change()

    def resume(self, confirmed_at: Moment) -> None:
        """Note that the subscription is in force on a new connection."""
        self._state.confirmed_at = self._at(confirmed_at)
        self._state.is_connected = True
        self._gaps.retry_soon()
        if self.missing_since < math.inf:
            self._sweeps.gap_has_ended(self.missing_since)
        self._state.notify_change()

    def pause(self, last_received: Moment) -> None:
        """Note that the connection was lost. A gap begins at the time of the last received data."""
        self._state.count_from_here()
        self._state.is_connected = False
        self._state.confirmed_at = math.inf
        self._gaps.open(self._at(last_received))
        self._state.notify_change()

    @property
    def fetches_bodies(self) -> bool:
        """Whether to fetch the body of pushed mail that came without one."""
        return self._recovery.fetch_bodies

    async def with_body(self, event: MessageReceivedEvent) -> MessageReceivedEvent:
        """Fetch the body of a mail that came without one; see `bodies.with_body`."""
        with trio.CancelScope() as self._fetching_body:
            return await with_body(self._rest, event)
        return event

    def stop_fetching_bodies(self) -> None:
        """Stop fetching the body of a mail. The mail is then delivered without it."""
        self._fetching_body.cancel()

    def _at(self, moment: Moment) -> float:
        # Until AgentMail's time is known, all times are by this machine's clock. `_take_over` converts them.
        return self._clock.at(moment) if self._has_begun else moment.wall

    # The task

    async def run(self) -> None:
        """Run gaps and sweeps, until this is cancelled."""
        while not self._state.is_connected or not self.progress:
            await self._state.changed.wait()
        await self._wait_for_the_clock()
        self._take_over()
        async with background_nursery() as nursery:
            nursery.start_soon(self._gaps.run)
            nursery.start_soon(self._sweeps.run)
            nursery.start_soon(self._state.report_when_caught_up)
            if self._journal is None:
                await trio.sleep_forever()
            else:
                await self._keep_what_changes(self._journal)

    async def _wait_for_the_clock(self) -> None:
        while not self._clock.is_known:
            if (failure := await self._learn_the_time()) is not None:
                for target in self.progress:
                    self._state.note_failure(target, failure)
                await trio.sleep(ASK_AGAIN_AFTER)

    async def _learn_the_time(self) -> RequestFailedError | None:
        try:
            async with self._rest.connected():
                await self._rest.learn_the_time()
        except RequestFailedError as exc:
            return exc
        return None

    def _take_over(self) -> None:
        """Restore the progress of an earlier run, and convert all times so far to AgentMail's clock."""
        since = None if self._recovery.since is None else self._recovery.since.timestamp()
        self._state.confirmed_at += self._clock.ahead
        for its in self.progress.values():
            its.shift(self._clock.ahead, since)
        if self._kept is not None:
            earlier, clock_was_known, _ = self._kept
            for target, its in earlier.items():
                if target in self.progress:
                    if not clock_was_known:
                        its.shift(self._clock.ahead, since)
                    its.clamp(self._clock.now())
                    its.wanted = self.progress[target].wanted | its.wanted
                    for scan in (its.gap_scan, its.sweep):
                        if scan is not None:
                            scan.wanted = its.wanted
                    # A connection that was lost since the start of this run has left a gap as well.
                    its.gap = min(its.gap, self.progress[target].gap)
                    its.has_failed = self.progress[target].has_failed
                    self.progress[target] = its
        else:
            for its in self.progress.values():
                if since is not None and since in its.wanted.values():  # the stream begins at Recovery.since
                    its.gap = min(its.gap, since)
        self._delivered.floor = min(self._delivered.floor, self._clock.now())
        self._has_begun = True
        if self.missing_since < math.inf:
            self._sweeps.gap_has_ended(self.missing_since)
        self._state.notify_change()

    # For the next run

    async def _keep_what_changes(self, journal: Journal) -> None:
        while True:
            self._state.to_keep = trio.Event()
            await journal.keep(self._encode(self.progress), forgotten_until=self._delivered.floor)
            await trio.sleep(KEEP_AFTER)
            is_scanning = any(its.gap_scan is not None or its.sweep is not None for its in self.progress.values())
            with trio.move_on_after(KEEP_EVERY if is_scanning else math.inf):
                await self._state.to_keep.wait()

    def _encode(self, progress: dict[Target, Progress]) -> bytes:
        # Mail that the journal has no room for is known to this run only. The next run has to find it.
        return encode_progress(
            progress,
            unwritten_since=self._unwritten.since,
            clock_is_known=self._has_begun or (self._kept is not None and self._kept[1]),
            source=self._source.state(),
        )
