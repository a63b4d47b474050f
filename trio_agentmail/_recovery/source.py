"""Targets, scans, and `Source`, the protocol of a source of missed events."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import attrs
import trio

from trio_agentmail._event_types import RECEIVED_TYPES
from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Event

from .rest import Pace

__all__ = ["KINDS", "Counts", "Scan", "Source", "Target", "recovered_types", "targets_of"]

KINDS = ("spam", "blocked", "unauthenticated")
"""The labels of mail that is pushed only on request, under an event_type of its own."""


@attrs.frozen
class Target:
    """The scope of one listing: an inbox, a pod or, if neither is given, everything that the key may see."""

    inbox_id: str | None = None
    pod_id: str | None = None


def targets_of(subscribe: Subscribe) -> tuple[Target, ...]:
    """Return the targets of a subscription.

    An event is pushed when it matches an inbox or a pod, so both are listed.
    """
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return (Target(),)
    inboxes = [Target(inbox_id=inbox_id) for inbox_id in subscribe.inbox_ids or ()]
    return (*inboxes, *[Target(pod_id=pod_id) for pod_id in subscribe.pod_ids or ()])


def recovered_types(subscribe: Subscribe) -> tuple[str, ...]:
    """Return the event_types of a subscription that recovery can find in a listing."""
    if subscribe.event_types is None:
        return ("message.received",)
    return tuple(event_type for event_type in RECEIVED_TYPES if event_type in subscribe.event_types)


@attrs.define(eq=False)
class Scan:
    """One pass over the listing of a target, and its position.

    A listing is in the order of the mails' own times, so a position is such a time. It advances only when all mail
    before it has been handed over. A scan resumes at its position after a failure, or if the process dies.

    All times are in seconds since the epoch.

    Attributes:
        wanted: The wanted event_types, each with the earliest `created_at` of a mail that is wanted.
        after: The scan covers mail that is dated at this time or later.
        began: When the scan began. It finds all mail that AgentMail created before that.
        since: The beginning of the gap that this scan closes; `math.inf` if it closes none.
        position: All mail that is dated before this time has been scanned.
        is_done: Whether the scan has reached its end.
    """

    target: Target
    wanted: Mapping[str, float]
    after: float
    began: float
    since: float = math.inf
    position: float = attrs.field(default=attrs.Factory(lambda self: self.after, takes_self=True))
    is_done: bool = False


@attrs.define
class Counts:
    """The numbers of mails that scans have found so far.

    Attributes:
        unpushed: Missed mails that are overdue: they should have been pushed on the present connection.
        known: Mails that had been delivered before.
        held: Mails that are still held.
    """

    unpushed: int = 0
    known: int = 0
    held: int = 0


class Source(Protocol):
    """A source of missed events. `MailListing` is one. A source with a cursor could be another."""

    def note(self, event: Event) -> None:
        """Note that an event was pushed."""

    async def scan(
        self, scan: Scan, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        """Hand over missed events, starting at the scan's position.

        A failure to fetch an event does not stop the scan. Failures are raised when all events that could be fetched
        have been handed over.

        Args:
            pages: Maximum number of pages.
            pace: Awaited before each request for a page, but not before missed mail is fetched.

        Returns:
            Whether the scan has reached the end of the listing.

        Raises:
            ApiError, RequestFailedError: Something could not be listed or fetched. The scan's position is before it.
        """

    async def check_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        """Hand over mail that was held and has been released.

        Raises:
            ApiError, RequestFailedError: Some mail could not be checked.
        """

    def keep_only(self, targets: Collection[Target]) -> None:
        """Forget the state of all targets except these, which are subscribed to."""

    def state(self) -> Any:
        """Return the state that the next run needs, as a JSON value."""

    def restore(self, state: Any) -> None:
        """Restore the state that `state` returned in an earlier run.

        Raises:
            JournalError: `state` did not return it.
        """
