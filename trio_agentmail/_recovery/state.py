"""The state that gaps and sweeps share, and the notices about it to the consumer."""

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
from trio_agentmail._printable import printable
from trio_agentmail._settings import Recovery
from trio_agentmail._unwritten import Unwritten
from trio_agentmail.errors import AgentMailError, ApiError, RequestFailedError
from trio_agentmail.events import CaughtUp, Event, MessageReceivedEvent, RecoveryFailed

from .progress import Progress
from .rest import Rest
from .source import Counts, Source, Target

__all__ = ["RecoveryState"]

logger = logging.getLogger("trio_agentmail")

PUSHED_BY_THEN = 60.0
"""Seconds after its creation when a mail that has not been pushed is overdue."""


class RecoveryState:
    """Keeps the progress of each target, hands over missed mail, and sends notices to the consumer.

    Args:
        renew: A function that replaces the present connection by a new one.
        unread_for: A function that returns for how many seconds the oldest push may have been waiting to be read.
        unwritten: The mail that waits for room in the journal.

    Attributes:
        source: The source of missed mail. It is set after construction, since it hands over mail through `put`.
        progress: The subscribed targets, and how far each has been scanned.
        is_connected: Whether the subscription is in force.
        confirmed_at: Since when the subscription has been in force, in seconds since the epoch; `math.inf` if it is
            not.
        changed: Set, and replaced by a new event, when a gap opens or closes, when the subscription is in force again,
            and when the targets change.
        to_keep: Set when a journal has to store a change.
        counts: The counts of gap scans since the last `CaughtUp`.
        recovered: The number of recovered mails.
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
        delivered.has_run_out = self._report_lost_identities
        self._outbox = outbox
        self._unwritten = unwritten
        self._rest = rest
        self._renew = renew
        self._unread_for = unread_for
        self._closed_since = math.inf
        """The beginning of the earliest gap that is closed but not reported yet."""
        self._requests_reported = 0
        self._recovered_reported = 0
        self._was_behind = False
        self._has_lost_identities = False
        self._held_lock = trio.Lock()
        self._scans: dict[trio.CancelScope, Target] = {}
        """The scans under way, and their targets."""
        self.progress: dict[Target, Progress] = {}
        self.is_connected = False
        self.confirmed_at = math.inf
        self.changed = trio.Event()
        self.to_keep = trio.Event()
        self.counts = Counts()
        self.recovered = 0

    @property
    def missing_since(self) -> float:
        """The time since which mail may be missing, in seconds since the epoch; `math.inf` if no gap is open."""
        return min((its.open_since for its in self.progress.values()), default=math.inf)

    def notify_change(self) -> None:
        """Wake the tasks that wait for `changed` or `to_keep`."""
        self.changed.set()
        self.changed = trio.Event()
        self.to_keep.set()

    @property
    def is_behind(self) -> bool:
        """Whether the consumer's buffer is full."""
        return self._outbox.is_full

    # Scans under way

    @contextmanager
    def scanning(self, target: Target) -> Iterator[None]:
        """Return a context manager for a block that scans a target.

        The block is cancelled when the target is no longer subscribed to.
        """
        with trio.CancelScope() as scope:
            self._scans[scope] = target
            try:
                yield
            finally:
                del self._scans[scope]

    def cancel_unsubscribed(self) -> None:
        """Cancel scans of targets that are no longer subscribed to."""
        for scope, target in self._scans.items():
            if target not in self.progress:
                scope.cancel()

    def note_begun(self) -> None:
        """Note that a scan has begun, so that a journal stores its position."""
        self.to_keep.set()

    # Gaps

    def note_failure(self, target: Target, failure: ApiError | RequestFailedError) -> None:
        """Note that a scan has failed, so that its target has an open gap. The gap is reported once."""
        its = self.progress.get(target)
        if its is None:
            return  # no longer subscribed to
        if its.open_since == math.inf:
            self.count_from_here()
            its.gap = its.complete_until
            self.notify_change()
        # Without a connection, a gap is open in any case, so the failure is not reported.
        if self.is_connected and not its.has_failed:
            its.has_failed = True
            self._report_failure(target, its.open_since, str(failure))
            self.notify_change()

    def _report_failure(self, target: Target, since: float, why: str) -> None:
        reason = printable(why, 500)
        logger.warning("mail could not be recovered: %s", reason)
        self._notify(RecoveryFailed(inbox_id=target.inbox_id, pod_id=target.pod_id, since=_utc(since), reason=reason))

    def note_closed(self, since: float) -> None:
        """Note that the gap that began at `since` is closed."""
        self._closed_since = min(self._closed_since, since)
        self.forget()
        self.notify_change()

    async def report_when_caught_up(self) -> None:
        """Report `CaughtUp` whenever all gaps are closed. Runs until it is cancelled."""
        # The last open gap may be closed, or reported as failed, or its target may be removed from the subscription.
        while True:
            changed = self.changed
            if self._is_caught_up():
                await self._check_held(self.counts)
                if self._is_caught_up():
                    self._report_caught_up()
            await changed.wait()

    def _is_caught_up(self) -> bool:
        """Return whether gaps have been closed and only those that a `RecoveryFailed` has reported are open."""
        return self.is_connected and self._closed_since < math.inf and self._all_closed_or_reported()

    def _all_closed_or_reported(self) -> bool:
        return all(its.open_since == math.inf or its.has_failed for its in self.progress.values())

    def count_from_here(self) -> None:
        """Start the counts of `CaughtUp` over when the first gap opens, so that they leave out earlier sweeps."""
        if self._closed_since == math.inf and self._all_closed_or_reported():
            self._requests_reported = self._rest.requests
            self._recovered_reported = self.recovered

    def _report_caught_up(self) -> None:
        counts = self.counts
        self._notify(
            CaughtUp(
                since=_utc(self._closed_since),
                # This includes mail recovered by sweeps, which may have found it before the scan of the gap.
                recovered=self.recovered - self._recovered_reported,
                known=counts.known,
                held=counts.held,
                failed=sum(its.has_failed for its in self.progress.values()),
                requests=self._rest.requests - self._requests_reported,
            )
        )
        self._requests_reported = self._rest.requests
        self._recovered_reported = self.recovered
        self._closed_since = math.inf
        counts.known = counts.held = 0

    # Sweeps

    async def end_sweep(self, counts: Counts) -> None:
        """Finish a sweep or a scan of recent mail: check held mail, and replace the connection if it has failed.

        The connection has failed if mail was found that should have been pushed on it.
        """
        await self._check_held(counts)
        self.forget()
        self.to_keep.set()
        was_behind, self._was_behind = self._was_behind, self._outbox.is_full
        if counts.unpushed and not was_behind and self.is_connected:
            logger.warning("%d mails were not pushed on a connection that is alive: replacing it", counts.unpushed)
            try:
                # Without a timeout, an outage would delay the next sweeps until it ends.
                with trio.move_on_after(self._recovery.sweep_interval):
                    await self._renew()
            except (AgentMailError, OSError) as exc:
                logger.warning("the connection could not be replaced: %s", printable(str(exc), 500))
            except trio.ClosedResourceError:
                return  # the stream is closing, and this task is about to be cancelled

    async def _check_held(self, counts: Counts) -> None:
        wanted = {event_type: -math.inf for its in self.progress.values() for event_type in its.wanted}
        try:
            # Only one check at a time, since two would both find a mail that has just been released.
            async with self._held_lock, self._rest.connected():
                await self.source.check_held(wanted, counts)
        except (ApiError, RequestFailedError) as exc:
            # The mails are still remembered, and are checked again the next time.
            logger.warning("held mail could not be checked: %s", printable(str(exc), 500))

    # Identities

    def forget(self) -> None:
        """Forget the identities that no scan needs any more."""
        covered = self._covered_until()
        # A mail may be listed some time after it was created, so a sweep that began before that has not seen it. And
        # the next run has to find mail that the journal has no room for yet.
        until = min(covered - self._recovery.sweep_depth, self._unwritten.since)
        # If the consumer is slow, a push of a mail that has already been delivered may still wait to be read.
        self._delivered.forget(min(until, self._clock.now() - self._recovery.sweep_depth - self._unread_for()))
        if self._delivered.ran_out_until <= covered:
            self._has_lost_identities = False

    def _covered_until(self) -> float:
        return min((its.covered_until for its in self.progress.values()), default=self._clock.now())

    def _report_lost_identities(self) -> None:
        # Identities were forgotten because their maximum number was reached. Mail that was created between `covered`
        # and the new floor is no longer recovered, although no scan may have found it yet.
        covered = self._covered_until()
        if self._delivered.ran_out_until > covered and not self._has_lost_identities:
            self._has_lost_identities = True
            self._report_failure(Target(), covered, "more mail has come since then than identities can be remembered")

    # Handing over

    async def put(self, event: Event, counts: Counts, *, was_held: bool) -> None:
        """Hand over a missed mail; see `Put`."""
        self._was_behind |= self._outbox.is_full
        try:
            is_new = await self._outbox.put(event)
        except Abandoned:
            await trio.sleep_forever()  # the supervisor ends the stream for the same reason
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
