"""When to look for mail that was missed: after every gap, a little later again, and in sweeps.

AgentMail pushes once, and what it pushes while nobody is connected can only be found in a listing. The listing is by
the mail's own time, which its sender chose. So a gap is closed in three steps:

1. The subscription is in force again before anything is listed: what comes from then on is pushed.
2. Listed is at once what is dated since shortly before the gap (`Recovery.overlap`). That is nearly all, and quick.
3. Half a minute later, at the latest, comes a sweep, which reaches `Recovery.sweep_depth` back from the last one: for
   mail that is back-dated, or was only just being indexed. And then one every `Recovery.sweep_interval`, gap or no
   gap: a connection may be alive and deliver nothing.

What was found is delivered unless it has been (`_delivered`), or was created before the stream began.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import attrs
import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._backend import Backend
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._outbox import Abandoned, JournaledOutbox, Outbox
from trio_agentmail._settings import Recovery, Settings, Subscribe
from trio_agentmail.errors import AgentMailError, ApiError, RequestFailedError, printable
from trio_agentmail.events import CaughtUp, Event, MessageReceivedEvent, RecoveryFailed

from .bodies import with_body
from .listing import MailListing
from .progress import Progress, decode_progress, encode_progress, follow
from .rest import Rest
from .source import Counts, Source, Target

__all__ = ["Recoverer"]

logger = logging.getLogger("trio_agentmail")

SECOND_LOOK_AFTER = 30.0
"""Seconds after a gap was closed at which a sweep looks whether all of it was."""

TARGETS_AT_ONCE = 4
"""How many inboxes or pods are listed at the same time."""

PUSHED_BY_THEN = 60.0
"""Seconds after which a mail that was not pushed will not be."""


@attrs.define
class _Found(Counts):
    """What has been found since the last news of it."""

    recovered: int = 0
    requests_before: int = 0
    closed: float = math.inf
    """Where the earliest gap began, of those that were closed."""


class Recoverer:
    """Finds mail that was missed and hands it over. `run` is its task; a supervisor tells how the connection fares.

    Times are in seconds since the epoch, by AgentMail's clock as far as it is known.

    Args:
        renew: Makes a connection that takes the place of the present one.
        kept: What was remembered in an earlier run; `b""`: nothing.
    """

    def __init__(
        self,
        recovery: Recovery,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        delivered: Delivered,
        outbox: Outbox | JournaledOutbox,
        renew: Callable[[], Awaitable[None]],
        journal: Journal | None,
        kept: bytes,
    ) -> None:
        self._recovery = recovery
        self._delivered = delivered
        self._outbox = outbox
        self._renew = renew
        self._journal = journal
        self._kept = kept
        self._rest = Rest(backend, settings, api_key)
        self._source: Source = MailListing(self._rest, delivered, self._put)
        self.note = self._source.note
        """Told of each event that was pushed."""
        self._ahead = 0.0
        """Seconds by which AgentMail's clock is ahead of ours."""
        self._resumed = trio.Event()
        self._looking = trio.CancelScope()
        self._confirmed_at = math.inf
        self._progress: dict[Target, Progress] = {}
        """What is looked at."""
        self._next_sweep = -math.inf
        """On Trio's clock."""
        self._found = _Found()
        self._unpushed = 0
        """Mails that a sweep has found and that should have been pushed long ago."""
        self._was_behind = False
        """Whether the consumer was behind during a sweep: then what was pushed may wait to be read."""
        self.recovered = 0
        """How many mails were recovered."""

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self._rest.requests

    # What the supervisor says

    async def begin(self, subscribe: Subscribe) -> None:
        """The first connection is about to be made: from now on, a crash at any moment leaves a gap that is known.

        What a journal keeps is otherwise written when a look begins, and a process that died between its first
        subscription and that would not know, when it starts again, that there had been one. The clock is ours here,
        since AgentMail's is not known yet.
        """
        if self._journal is None or self._kept:
            return
        since = self._recovery.since
        begin = self._rest.now if since is None else since.timestamp()
        await self._write(self._journal, follow({}, subscribe, begin))

    def resume(self, subscribe: Subscribe, asked_at: float, confirmed_at: float) -> None:
        """A subscription is in force: when it was asked for, and when we knew, by our clock.

        What is new in it begins when it was asked for: it is in force somewhere between the two, and the connection
        may break with what was pushed then unread.
        """
        is_first = self._confirmed_at == math.inf
        self._confirmed_at = confirmed_at + self._ahead
        # Just behind it: what had come by then is not new.
        begin = math.nextafter(asked_at + self._ahead, math.inf)
        if is_first and self._recovery.since is not None:
            begin = min(begin, self._recovery.since.timestamp())
        before = self._progress
        self._progress = follow(before, subscribe, begin)
        for target in before.keys() - self._progress.keys():
            self._source.forget(target)
        if begin < asked_at + self._ahead:
            for progress in self._progress.values():
                progress.gap = begin
        if _floors(before) != _floors(self._progress):
            self._next_sweep = -math.inf
            self._looking.cancel()
        self._resumed.set()

    def pause(self, last_received: float) -> None:
        """The connection was lost; the last sign of life came then, by our clock."""
        for progress in self._progress.values():
            progress.gap = min(progress.gap, last_received + self._ahead)
        self._resumed = trio.Event()
        self._looking.cancel()

    @property
    def fetches_bodies(self) -> bool:
        return self._recovery.fetch_bodies

    async def with_body(self, event: MessageReceivedEvent) -> MessageReceivedEvent:
        """The mail with its body, if it was left out and can be fetched."""
        return await with_body(self._rest, event)

    # The task

    async def run(self) -> None:
        """Look whenever it is time, as long as the subscription is in force."""
        await self._resumed.wait()
        if self._progress:
            async with self._rest.connected():
                await self._rest.learn_the_time()
        self._set_clock(self._rest.ahead)
        self._restore()
        while True:
            await self._resumed.wait()
            with trio.CancelScope() as self._looking:
                if self._resumed.is_set():  # it may be another one, since there was another loss
                    await self._look_while_subscribed()

    def _set_clock(self, ahead: float) -> None:
        """Now AgentMail's clock is known: the times so far were by ours, but for the one that was given."""
        since = self._recovery.since
        self._ahead = ahead
        self._confirmed_at += ahead
        for progress in self._progress.values():
            progress.set_clock(ahead, given=None if since is None else since.timestamp())

    async def _look_while_subscribed(self) -> None:
        await self._keep()
        gaps = {target: its.gap for target, its in self._progress.items() if its.has_gap}
        if gaps:
            await self._look_at({target: gap - self._recovery.overlap for target, gap in gaps.items()})
            self._next_sweep = trio.current_time() + min(SECOND_LOOK_AFTER, self._recovery.sweep_interval)
        while self._progress:
            await trio.sleep_until(self._next_sweep)
            await self._sweep()
        await trio.sleep_forever()

    async def _sweep(self) -> None:
        # While the consumer is behind, what was pushed may wait to be read, and need not be fetched.
        for _ in range(int(self._recovery.sweep_interval / SECOND_LOOK_AFTER)):
            if not self._outbox.is_full:
                break
            await trio.sleep(SECOND_LOOK_AFTER)
        began = self._rest.now
        since = {target: min(its.swept_until, its.gap) for target, its in self._progress.items()}
        self._unpushed = 0
        self._was_behind = self._outbox.is_full
        await self._look_at({target: at - self._recovery.sweep_depth for target, at in since.items()})
        for target, its in self._progress.items():
            if target in since and not its.has_gap:
                its.swept_until = began
        self._next_sweep = trio.current_time() + self._recovery.sweep_interval
        if self._unpushed and not self._was_behind:
            await self._replace_the_connection()

    async def _look_at(self, afters: dict[Target, float]) -> None:
        began = self._rest.now
        self._found.known = self._found.held = 0
        waiting = iter(afters.items())

        async def work() -> None:
            # What the supervisor says meanwhile holds: a new gap, or a target that is none any more.
            await trio.lowlevel.checkpoint_if_cancelled()
            for target, after in waiting:
                failure = None
                try:
                    await self._source.look(target, after, self._floors_of(target), self._found)
                except (ApiError, RequestFailedError) as exc:
                    failure = exc
                await trio.lowlevel.checkpoint_if_cancelled()
                if failure is not None:
                    self._note_failure(target, failure)
                else:
                    its = self._progress[target]
                    self._found.closed = min(self._found.closed, its.gap)
                    its.gap, its.is_told, its.complete_until = math.inf, False, began

        async with self._rest.connected():
            async with trio.open_nursery() as nursery:
                for _ in range(TARGETS_AT_ONCE):
                    nursery.start_soon(work)
            await self._look_at_held()
        self._ahead = self._rest.ahead  # our clock may have been set right
        await trio.lowlevel.checkpoint_if_cancelled()  # the news is for the place where the stream goes on
        self._tell()
        await self._keep()

    async def _look_at_held(self) -> None:
        floors = {event_type: -math.inf for its in self._progress.values() for event_type in its.floors}
        try:
            await self._source.look_at_held(floors, self._found)
        except (ApiError, RequestFailedError) as exc:
            # They stay remembered, and the next look has another try.
            logger.warning("held mail could not be looked at: %s", printable(str(exc), 500))

    def _floors_of(self, target: Target) -> dict[str, float]:
        # What arrived at that very moment is among what was forgotten.
        forgotten = math.nextafter(self._delivered.forgotten_until, math.inf)
        return {event_type: max(floor, forgotten) for event_type, floor in self._progress[target].floors.items()}

    def _note_failure(self, target: Target, failure: ApiError | RequestFailedError) -> None:
        its = self._progress[target]
        its.gap = its.missing_since
        if not its.is_told:
            its.is_told = True
            reason = printable(str(failure), 500)
            logger.warning("mail could not be recovered: %s", reason)
            self._notify(
                RecoveryFailed(
                    inbox_id=target.inbox_id,
                    pod_id=target.pod_id,
                    since=datetime.fromtimestamp(its.gap, UTC),
                    reason=reason,
                )
            )

    def _tell(self) -> None:
        """Of gaps that were closed, if any were."""
        found = self._found
        if found.closed < math.inf:
            self._notify(
                CaughtUp(
                    since=datetime.fromtimestamp(found.closed, UTC),
                    recovered=found.recovered,
                    known=found.known,
                    held=found.held,
                    failed=sum(its.has_gap for its in self._progress.values()),
                    requests=self.requests - found.requests_before,
                )
            )
        self._found = _Found(requests_before=self.requests)

    async def _replace_the_connection(self) -> None:
        logger.warning("the connection is alive, and %d mails were not pushed: another one is made", self._unpushed)
        try:
            await self._renew()
        except (AgentMailError, OSError) as exc:
            logger.warning("the connection could not be replaced: %s", printable(str(exc), 500))

    # What is handed over

    async def _put(self, event: Event, was_held: bool) -> None:
        self._was_behind |= self._outbox.is_full
        try:
            is_new = await self._outbox.put(event)
        except Abandoned:
            await trio.sleep_forever()  # the supervisor ends the stream, when it is told the same
        assert isinstance(event, MessageReceivedEvent)
        created = event.message.created_at
        if is_new:
            self.recovered += 1
            self._found.recovered += 1
            if not was_held and created is not None:
                overdue = self._rest.now - PUSHED_BY_THEN
                self._unpushed += self._confirmed_at < created.timestamp() < overdue

    def _notify(self, notice: CaughtUp | RecoveryFailed) -> None:
        try:
            self._outbox.notify(notice)
        except Abandoned:
            return

    # From one run to the next

    async def _keep(self) -> None:
        if self._journal is None:
            return
        await self._write(self._journal, self._progress)

    async def _write(self, journal: Journal, progress: dict[Target, Progress]) -> None:
        # What the journal has no room for is known here, and would not be to the next run.
        await journal.keep(encode_progress(progress, self._outbox.unwritten_since, self._source.state()))

    def _restore(self) -> None:
        if (kept := decode_progress(self._kept)) is None:
            return
        earlier, source = kept
        for target, progress in earlier.items():
            if target in self._progress:  # with its gap, and not that of `Recovery.since`, which was a first start's
                floors = self._progress[target].floors | progress.floors
                self._progress[target] = attrs.evolve(progress, floors=floors)
        self._source.restore(source)


def _floors(progress: dict[Target, Progress]) -> dict[Target, dict[str, float]]:
    return {target: its.floors for target, its in progress.items()}
