"""Where missed events come from: what is looked through, a look and its place, and what makes a source."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import attrs
import trio

from trio_agentmail._event_types import RECEIVED_TYPES
from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Event

from .rest import Pace

__all__ = ["KINDS", "Counts", "Look", "Source", "Target", "recovered_types", "targets_of"]

KINDS = ("spam", "blocked", "unauthenticated")
"""The labels of mail that comes only to those who ask for it, under an event_type of its own."""


@attrs.frozen
class Target:
    """What is listed in one go: an inbox, a pod, or, if it is neither, all that the key may see."""

    inbox_id: str | None = None
    pod_id: str | None = None


def targets_of(subscribe: Subscribe) -> tuple[Target, ...]:
    """What to list. An event that matches an inbox or a pod is wanted, so both are listed."""
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return (Target(),)
    inboxes = [Target(inbox_id=inbox_id) for inbox_id in subscribe.inbox_ids or ()]
    return (*inboxes, *[Target(pod_id=pod_id) for pod_id in subscribe.pod_ids or ()])


def recovered_types(subscribe: Subscribe) -> tuple[str, ...]:
    """The event_types that can be listed, of those that are pushed."""
    if subscribe.event_types is None:
        return ("message.received",)
    return tuple(event_type for event_type in RECEIVED_TYPES if event_type in subscribe.event_types)


@attrs.define(eq=False)
class Look:
    """One look through what a target has, and its place there.

    A listing is in the order of the mails' own times, so a place is such a time. It is only moved on when all before
    it has been handed over. A look that fails, or whose process dies, goes on from its place.

    All times are in seconds since the epoch.

    Attributes:
        wanted: The event_types that are wanted, and since when AgentMail must have created a mail of each.
        after: Mail dated from then on is looked at.
        began: When the look began. All mail that AgentMail created before is found by it.
        since: When the gap began that this look closes; `math.inf`: it closes none.
        place: All that is dated before has been looked at.
        is_done: Whether it has come to its end.
    """

    target: Target
    wanted: Mapping[str, float]
    after: float
    began: float
    since: float = math.inf
    place: float = attrs.field(default=attrs.Factory(lambda self: self.after, takes_self=True))
    is_done: bool = False


@attrs.define
class Counts:
    """What looks have found so far.

    Attributes:
        unpushed: Mails that were missed, and should have been pushed long ago on the present connection.
        known: Mails that had been delivered before.
        held: Mails that are still held.
    """

    unpushed: int = 0
    known: int = 0
    held: int = 0


class Source(Protocol):
    """Where missed events come from: a listing. A source with a cursor can be another."""

    def note(self, event: Event) -> None:
        """Take notice of an event that was pushed."""

    async def look(
        self, look: Look, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        """Hand over what was missed, from the place of the look on. What can be handed over is, before this raises.

        Args:
            pages: Pages after which to stop.
            pace: Waited for before each request that a look needs even if nothing was missed.

        Returns:
            Whether the end was reached.

        Raises:
            ApiError, RequestFailedError: Something could not be listed or fetched. The place is before that.
        """

    async def look_at_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        """Hand over what was held and has been released; as `look`."""

    def keep_only(self, targets: Collection[Target]) -> None:
        """Forget what is known of all but these, which are subscribed to."""

    def state(self) -> Any:
        """What has to be remembered from one run to the next, as JSON has it."""

    def restore(self, state: Any) -> None:
        """Remember what `state` gave in an earlier run."""
