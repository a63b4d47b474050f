"""Where missed events come from: what is to be looked at, and what a look is asked for."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import attrs

from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Event

__all__ = ["KINDS", "Counts", "Floors", "Source", "Target", "recovered_types", "targets_of"]

KINDS = ("spam", "blocked", "unauthenticated")
"""The labels of mail that comes only to those who ask for it, under an event_type of its own."""


@attrs.frozen
class Target:
    """What is listed in one go: an inbox, a pod, or, if it is neither, all that the key may see."""

    inbox_id: str | None = None
    pod_id: str | None = None


Floors: TypeAlias = Mapping[str, float]
"""Which event_types of received mail are wanted; and since when AgentMail must have created such mail, in seconds since
the epoch: what is older came before the stream began, or may have been delivered and forgotten."""


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
    listed = ("message.received", *(f"message.received.{kind}" for kind in KINDS))
    return tuple(event_type for event_type in listed if event_type in subscribe.event_types)


@attrs.define
class Counts:
    """What a look has found, so far."""

    known: int = 0
    held: int = 0


class Source(Protocol):
    """Where missed events come from. A listing today; a source with a cursor may come later."""

    def note(self, event: Event) -> None:
        """An event has come by itself."""

    async def look(self, target: Target, after: float, floors: Floors, counts: Counts) -> None:
        """Hand over what was missed, once the whole target has been gone through raise the first failure.

        Args:
            after: Since when, by the mail's own time, in seconds since the epoch.

        Raises:
            ApiError, RequestFailedError: something could not be listed or fetched.
        """

    async def look_at_held(self, floors: Floors, counts: Counts) -> None:
        """Hand over what was held and has been released; as `look`."""

    def forget(self, target: Target) -> None:
        """It is not in the subscription any more."""

    def state(self) -> Any:
        """What it has to remember from one run to the next, as JSON has it."""

    def restore(self, state: Any) -> None:
        """Remember what `state` gave in an earlier run."""
