"""Events about the stream itself, and frames that belong to no event type."""

from datetime import datetime
from typing import Any, TypeAlias

import attrs

from .base import FromServer

__all__ = ["CaughtUp", "Disconnected", "ErrorEvent", "Notice", "RecoveryFailed", "Subscribed", "UnknownEvent"]


@attrs.frozen(kw_only=True)
class Subscribed(FromServer):
    """AgentMail confirmed the subscription. All events that it pushes from here on are in the stream.

    Attributes:
        inbox_ids: The inbox filter that AgentMail confirmed. `None` if the confirmation does not contain one.
        pod_ids: The pod filter, likewise.
        event_types: The event type filter, likewise.
    """

    inbox_ids: tuple[str, ...] | None = None
    pod_ids: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class ErrorEvent(FromServer):
    """AgentMail reported an error that does not answer the subscription. The official SDK calls it `Error`.

    An error that answers the subscription raises `SubscriptionRejectedError` instead.

    Attributes:
        name: The name of the error; `""` when not given.
        message: The description of the error; `""` when not given.
    """

    name: str = ""
    message: str = ""


@attrs.frozen(kw_only=True)
class UnknownEvent(FromServer):
    """A frame that fits no other class: its type is newer than this package, or it lacks what its type requires.

    Attributes:
        event_type: The type in the frame, if any.
        event_id: The frame's `event_id`, if any.
        payload: The whole frame, parsed. Integers beyond 64 bits are floats. `None` if the frame is not JSON; `NaN`
            is not JSON. Left out of the repr, since it may contain a mail.
        reason: Why no other class fits.
    """

    event_type: str | None = None
    event_id: str | None = None
    payload: Any = attrs.field(default=None, repr=False, hash=False)
    reason: str = ""


@attrs.frozen(kw_only=True)
class Disconnected:
    """The connection was lost at this point of the stream. A `Subscribed` follows when it has been restored.

    The client makes this event; AgentMail does not send it. AgentMail does not repeat the pushes that are missed before
    the next `Subscribed`, but recovery finds the missed mail.

    Attributes:
        reason: What happened, in words.
        code: The WebSocket close code. 1006 if the connection ended without a close frame (RFC 6455, 7.1.5).
        last_received: When the last byte was received. The gap may have begun then.
    """

    reason: str
    code: int = 1006
    last_received: datetime | None = None


@attrs.frozen(kw_only=True)
class CaughtUp:
    """The gap is closed: all missed mail that the REST API lists has been delivered before this event.

    The client makes this event; AgentMail does not send it.

    Attributes:
        since: When the gap may have begun, by AgentMail's clock. Mail was listed from well before that time.
        recovered: The number of missed mails that were delivered.
        known: The number of listed mails that had already been delivered.
        held: The number of mails that Agent Armor holds. They arrive when they are released.
        failed: The number of inboxes, pods or keys for which a `RecoveryFailed` was reported. The other counts do not
            include these.
        requests: The number of requests to the REST API.
    """

    since: datetime
    recovered: int = 0
    known: int = 0
    held: int = 0
    failed: int = 0
    requests: int = 0


@attrs.frozen(kw_only=True)
class RecoveryFailed:
    """Mail could not be listed or fetched, so mail that arrived after `since` may be missing from the stream.

    The client makes this event; AgentMail does not send it. It is reported once. Recovery retries at every sweep,
    and a `CaughtUp` follows when it succeeds.

    Attributes:
        inbox_id: The inbox; `None` if more than one inbox is affected.
        pod_id: The pod, or `None`. If both are `None`, everything that the API key may see is affected.
        since: The time from which mail may be missing.
        reason: What went wrong, in words.
    """

    inbox_id: str | None = None
    pod_id: str | None = None
    since: datetime
    reason: str


Notice: TypeAlias = Subscribed | Disconnected | CaughtUp | RecoveryFailed | ErrorEvent
"""An event about the stream itself, as opposed to something that happened at AgentMail. A journal does not store it."""

AnyStreamEvent: TypeAlias = Notice | UnknownEvent
