"""What the parts of recovery share: how far it has come, and what is told of that."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import trio

from trio_agentmail._channel import Abandoned
from trio_agentmail._clock import ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journaled_outbox import JournaledOutbox
from trio_agentmail._outbox import Outbox
from trio_agentmail._settings import Recovery
from trio_agentmail._unwritten import Unwritten
from trio_agentmail.errors import AgentMailError, ApiError, RequestFailedError, printable
from trio_agentmail.events import CaughtUp, Event, MessageReceivedEvent, RecoveryFailed

from .progress import Progress
from .rest import Rest
from .source import Counts, Source, Target

__all__ = ["Situation"]

logger = logging.getLogger("trio_agentmail")

PUSHED_BY_THEN = 60.0
"""Seconds after which a mail that was not pushed will not be."""


class Situation:
    """How far recovery has come with each target, and what the consumer is told of it.

    Args:
        renew: Makes a connection that takes the place of the present one.
        unread_for: For how many seconds the oldest push that may have come has not been read.
        unwritten: The mail that waits for room in the journal.

    Attributes:
        progress: What is looked at, and how far that has come.
        is_connected: Whether the subscription is in force.
        confirmed_at: Since when it is, in seconds since the epoch; `math.inf`: it is not.
        changed: Set, and replaced, when a gap opens or closes, the subscription is in force again, or targets change.
        to_keep: Set when a journal has to keep something new.
        counts: What looks at gaps have found since the last `CaughtUp`.
        recovered: How many mails were recovered.
    """

    source: Source

    def __init__(
        self,
        recovery: Recovery,
        clock: ServerClock,
        delivered: Delivered,
        outbox: Outbox | JournaledOutbox,
        rest: Rest,
        renew: Callable[[], Awaitable[None]],
        unread_for: Callable[[], float],
        unwritten: Unwritten,
    ) -> None:
        self._recovery = recovery
        self._clock = clock
        self._delivered = delivered
        delivered.has_run_out = self._tell_if_memory_has_run_out
        self._outbox = outbox
        self._unwritten = unwritten
        self._rest = rest
        self._renew = renew
        self._unread_for = unread_for
        self._closed_since = math.inf
        """When the earliest of the gaps began that are closed, and were not told of yet."""
        self._requests_told = 0
        self._recovered_told = 0
        self._was_behind = False
        self._has_run_out = False
        self._held_lock = trio.Lock()
        self._under_way: dict[trio.CancelScope, Target] = {}
        """Looks, and what they look at."""
        self.progress: dict[Target, Progress] = {}
        self.is_connected = False
        self.confirmed_at = math.inf
        self.changed = trio.Event()
        self.to_keep = trio.Event()
        self.counts = Counts()
        self.recovered = 0

    @property
    def missing_since(self) -> float:
        """Since when mail may be missing, in seconds since the epoch; `math.inf`: none is known to be."""
        return min((its.open_since for its in self.progress.values()), default=math.inf)

    def tell_of_change(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = trio.Event()
        self.to_keep.set()

    @property
    def is_behind(self) -> bool:
        """Whether the consumer has as much waiting as it asked for."""
        return self._outbox.is_full

    @contextmanager
    def looking_at(self, target: Target) -> Iterator[None]:
        """A block that looks at a target; it is cancelled when the target is not subscribed to any more."""
        with trio.CancelScope() as scope:
            self._under_way[scope] = target
            try:
                yield
            finally:
                del self._under_way[scope]

    def cancel_what_nobody_wants(self) -> None:
        """Cancel looks at targets that are not subscribed to any more."""
        for scope, target in self._under_way.items():
            if target not in self.progress:
                scope.cancel()

    def note_begun(self) -> None:
        """A look has begun, whose place a journal keeps."""
        self.to_keep.set()

    def note_failure(self, target: Target, failure: ApiError | RequestFailedError) -> None:
        """Something could not be looked at."""
        its = self.progress.get(target)
        if its is None:
            return  # it is not subscribed to any more
        if its.open_since == math.inf:
            self.count_from_here()
            its.gap = its.complete_until
            self.tell_of_change()
        # While there is no connection, a gap is open anyway.
        if self.is_connected and not its.has_failed:
            its.has_failed = True
            self._tell_of_failure(target, its.open_since, str(failure))
            self.tell_of_change()

    def _tell_of_failure(self, target: Target, since: float, why: str) -> None:
        reason = printable(why, 500)
        logger.warning("mail could not be recovered: %s", reason)
        self._notify(RecoveryFailed(inbox_id=target.inbox_id, pod_id=target.pod_id, since=_utc(since), reason=reason))

    def note_closed(self, since: float) -> None:
        """A gap is closed that began then."""
        self._closed_since = min(self._closed_since, since)
        self.forget()
        self.tell_of_change()

    async def tell_when_caught_up(self) -> None:
        """Tell when all gaps are closed; this is a task."""
        # The last gap may be closed, or told by a RecoveryFailed, or its inbox may not be subscribed to any more.
        while True:
            changed = self.changed
            if self._is_caught_up():
                await self._look_at_held(self.counts)
                if self._is_caught_up():
                    self._tell_of_gaps()
            await changed.wait()

    def _is_caught_up(self) -> bool:
        """Whether all gaps are closed, but for those of which a `RecoveryFailed` has told."""
        return self.is_connected and self._closed_since < math.inf and self._all_is_closed_or_told()

    def _all_is_closed_or_told(self) -> bool:
        return all(its.open_since == math.inf or its.has_failed for its in self.progress.values())

    def count_from_here(self) -> None:
        """A gap opens: if it is the only one, what is told of it is what it costs, and not what sweeps cost before."""
        if self._closed_since == math.inf and self._all_is_closed_or_told():
            self._requests_told = self._rest.requests
            self._recovered_told = self.recovered

    def _tell_of_gaps(self) -> None:
        counts = self.counts
        self._notify(
            CaughtUp(
                since=_utc(self._closed_since),
                # A sweep may have found what is missing before the look that closes the gap.
                recovered=self.recovered - self._recovered_told,
                known=counts.known,
                held=counts.held,
                failed=sum(its.has_failed for its in self.progress.values()),
                requests=self._rest.requests - self._requests_told,
            )
        )
        self._requests_told = self._rest.requests
        self._recovered_told = self.recovered
        self._closed_since = math.inf
        counts.known = counts.held = 0

    async def note_swept(self, counts: Counts) -> None:
        """A sweep, or a look at recent mail, has come to its end."""
        await self._look_at_held(counts)
        self.forget()
        self.to_keep.set()
        was_behind, self._was_behind = self._was_behind, self._outbox.is_full
        if counts.unpushed and not was_behind and self.is_connected:
            logger.warning("the connection is alive, and %d mails were not pushed: it is replaced", counts.unpushed)
            try:
                # In an outage this would wait for its end, and sweeps with it.
                with trio.move_on_after(self._recovery.sweep_interval):
                    await self._renew()
            except (AgentMailError, OSError) as exc:
                logger.warning("the connection could not be replaced: %s", printable(str(exc), 500))
            except trio.ClosedResourceError:
                return  # the stream is left in this moment, and this task is about to be cancelled

    async def _look_at_held(self, counts: Counts) -> None:
        wanted = {event_type: -math.inf for its in self.progress.values() for event_type in its.wanted}
        try:
            # One at a time: two would both find a mail that has just been released.
            async with self._held_lock, self._rest.connected():
                await self.source.look_at_held(wanted, counts)
        except (ApiError, RequestFailedError) as exc:
            # They stay remembered, and the next look has another try.
            logger.warning("held mail could not be looked at: %s", printable(str(exc), 500))

    def forget(self) -> None:
        """Forget the identities that no look needs."""
        covered = self._covered_until()
        # A mail may be listed some time after it was created, and a sweep that began before that has not seen it. And
        # what the journal has no room for yet is missing to the next run, which has to find it.
        until = min(covered - self._recovery.sweep_depth, self._unwritten.since)
        # And what waits to be read, since the consumer is slow, may be a mail that was delivered before.
        self._delivered.forget(min(until, self._clock.now() - self._recovery.sweep_depth - self._unread_for()))
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

    async def put(self, event: Event, counts: Counts, *, was_held: bool) -> None:
        """Hand over a mail that was missed; see `Put`."""
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
            counts.unpushed += self.confirmed_at < created.timestamp() < overdue

    def _notify(self, notice: CaughtUp | RecoveryFailed) -> None:
        try:
            self._outbox.notify(notice)
        except Abandoned:
            return


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(seconds, 0.0), UTC)
