"""What a stream yields. `Event` is the union of it all: a type checker sees what a `match` leaves out.

The fields have the names of AgentMail's official SDK (2.0.18) and the meaning that its OpenAPI and the SDK's
documentation give them. All times are aware. Strings of which AgentMail documents the possible values stay
plain strings, since new values appear. What the wire leaves out is `None` or empty.

Everything that came from the server also has

- `raw`: its text as received, unknown fields and all. Neither compared nor in the repr, and stale after
  `attrs.evolve`. A lone surrogate or an undecodable byte stands in it as a backslash escape. The event keeps the
  bytes, as its attrs field `_raw`, and decodes them whenever `raw` is asked for;
- `origin`: how it came: `"live"` for what was pushed, `"recovered"` for a mail that was found through the REST API,
  `"redelivered"` for what a journal had kept. Not compared.
- `attempt`: the how manieth attempt to handle it this is: 1, unless a journal knows of earlier ones. Not compared.

And whatever tells of something that happened has its `event_type`, and its `event_id`, which is stable: the
same event may come again, under the same id. It has been missing on the wire; then it is `None`.
"""

from datetime import datetime
from typing import Any, Literal, TypeAlias

import attrs

from ._parts import (
    AgentArmorManualOverride,
    AgentArmorReleaseActor,
    AgentArmorResult,
    Attachment,
    Attendee,
    Bounce,
    CalendarEvent,
    CalendarEventPrevious,
    Complaint,
    Delivery,
    Domain,
    Message,
    MessageSecurity,
    MessageSecurityOverride,
    Open,
    Recipient,
    Recurrence,
    RecurrencePeriod,
    Reject,
    Send,
    ThreadItem,
    VerificationRecord,
)

__all__ = [
    "AgentArmorManualOverride",
    "AgentArmorReleaseActor",
    "AgentArmorResult",
    "Attachment",
    "Attendee",
    "Bounce",
    "CalendarEvent",
    "CalendarEventCreatedEvent",
    "CalendarEventDeletedEvent",
    "CalendarEventEndingEvent",
    "CalendarEventPrevious",
    "CalendarEventRespondedEvent",
    "CalendarEventStartingEvent",
    "CalendarEventUpdatedEvent",
    "CaughtUp",
    "Complaint",
    "Delivery",
    "Disconnected",
    "Domain",
    "DomainVerifiedEvent",
    "ErrorEvent",
    "Event",
    "EventType",
    "Message",
    "MessageBouncedEvent",
    "MessageComplainedEvent",
    "MessageDeliveredEvent",
    "MessageOpenedEvent",
    "MessageReceivedEvent",
    "MessageRejectedEvent",
    "MessageSecurity",
    "MessageSecurityCompletedEvent",
    "MessageSecurityOverride",
    "MessageSecurityOverrideEvent",
    "MessageSecurityReviewEvent",
    "MessageSentEvent",
    "Notice",
    "Open",
    "Recipient",
    "RecoveryFailed",
    "Recurrence",
    "RecurrencePeriod",
    "Reject",
    "Send",
    "Subscribed",
    "ThreadItem",
    "UnknownEvent",
    "VerificationRecord",
]


class _Given:
    """Where a journal notes that it gave an event. A slot and no field, since it is no part of the event's value."""

    __slots__ = ("_given_by",)


@attrs.frozen(kw_only=True)
class _FromServer(_Given):
    # Of a decoded event the bytes that were parsed: a str that is not ASCII would keep a copy of itself, in UTF-8.
    _raw: str | bytes = attrs.field(default="", eq=False, repr=False)
    origin: str = attrs.field(default="live", eq=False)
    attempt: int = attrs.field(default=1, eq=False, repr=False)

    @property
    def raw(self) -> str:
        """Its text as received."""
        raw = self._raw
        return raw if isinstance(raw, str) else raw.decode(errors="backslashreplace")


@attrs.frozen(kw_only=True)
class _ServerEvent(_FromServer):
    event_id: str | None = None


@attrs.frozen(kw_only=True)
class Subscribed(_FromServer):
    """The subscription is in force: what happens from here on is in the stream.

    Attributes:
        inbox_ids: The filter as AgentMail confirmed it; `None`: not filtered, or not mentioned.
        pod_ids: The same for pods.
        event_types: The same for types.
    """

    inbox_ids: tuple[str, ...] | None = None
    pod_ids: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class ErrorEvent(_FromServer):
    """AgentMail complains, and not in answer to the subscription (that raises). The official SDK's `Error`.

    Attributes:
        name: Which error; `""` when not given.
        message: What it says; `""` when not given.
    """

    name: str = ""
    message: str = ""


@attrs.frozen(kw_only=True)
class MessageReceivedEvent(_ServerEvent):
    """A mail came.

    Attributes:
        event_type: `"message.received"`; and, for those who ask for them, `"message.received.spam"`,
            `"message.received.blocked"` and `"message.received.unauthenticated"`.
    """

    event_type: str = "message.received"
    message: Message
    thread: ThreadItem | None = None


@attrs.frozen(kw_only=True)
class MessageSentEvent(_ServerEvent):
    """A mail of ours was sent."""

    event_type: str = "message.sent"
    send: Send


@attrs.frozen(kw_only=True)
class MessageDeliveredEvent(_ServerEvent):
    """A mail of ours was accepted by its recipients' servers."""

    event_type: str = "message.delivered"
    delivery: Delivery


@attrs.frozen(kw_only=True)
class MessageBouncedEvent(_ServerEvent):
    """A mail of ours could not be delivered."""

    event_type: str = "message.bounced"
    bounce: Bounce


@attrs.frozen(kw_only=True)
class MessageComplainedEvent(_ServerEvent):
    """A mail of ours was marked as spam by a recipient."""

    event_type: str = "message.complained"
    complaint: Complaint


@attrs.frozen(kw_only=True)
class MessageRejectedEvent(_ServerEvent):
    """A mail of ours was refused before it was sent."""

    event_type: str = "message.rejected"
    reject: Reject


@attrs.frozen(kw_only=True)
class MessageOpenedEvent(_ServerEvent):
    """A mail of ours, with tracking on, was opened for the first time. Comes once for a mail."""

    event_type: str = "message.opened"
    open: Open


@attrs.frozen(kw_only=True)
class MessageSecurityCompletedEvent(_ServerEvent):
    """Agent Armor, in monitor mode, reached a verdict on a received mail. Comes once for a mail and inbox."""

    event_type: str = "message.security.completed"
    message: MessageSecurity


@attrs.frozen(kw_only=True)
class MessageSecurityReviewEvent(_ServerEvent):
    """Agent Armor, in hold mode, holds a received mail: it comes as received when someone has released it."""

    event_type: str = "message.security.review"
    message: MessageSecurity


@attrs.frozen(kw_only=True)
class MessageSecurityOverrideEvent(_ServerEvent):
    """Someone released a held mail. Its `MessageReceivedEvent` comes as well, before or after this."""

    event_type: str = "message.security.override"
    message: MessageSecurityOverride


@attrs.frozen(kw_only=True)
class DomainVerifiedEvent(_ServerEvent):
    """A domain of ours is verified."""

    event_type: str = "domain.verified"
    domain: Domain


@attrs.frozen(kw_only=True)
class CalendarEventCreatedEvent(_ServerEvent):
    """A calendar event was created, or one date of a series edited for the first time."""

    event_type: str = "calendar.event.created"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventUpdatedEvent(_ServerEvent):
    """A calendar event changed, or dates of a series were cancelled.

    Attributes:
        calendar_event: As it is now.
        previous: What the change replaced; for one-off events and series.
    """

    event_type: str = "calendar.event.updated"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    previous: CalendarEventPrevious | None = None


@attrs.frozen(kw_only=True)
class CalendarEventDeletedEvent(_ServerEvent):
    """A one-off event or a series was deleted; `calendar_event` is as it was."""

    event_type: str = "calendar.event.deleted"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventRespondedEvent(_ServerEvent):
    """An attendee responded; the new statuses are in `calendar_event.attendees`."""

    event_type: str = "calendar.event.responded"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventStartingEvent(_ServerEvent):
    """A calendar event, or one date of a series, has started; usually sent within a minute.

    Attributes:
        scheduled_at: The start that this is about.
    """

    event_type: str = "calendar.event.starting"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    scheduled_at: datetime | None = None


@attrs.frozen(kw_only=True)
class CalendarEventEndingEvent(_ServerEvent):
    """A calendar event, or one date of a series, has ended; usually sent within a minute.

    Attributes:
        scheduled_at: The end that this is about.
    """

    event_type: str = "calendar.event.ending"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    scheduled_at: datetime | None = None


@attrs.frozen(kw_only=True)
class UnknownEvent(_FromServer):
    """A frame that is none of the others: a type newer than this package, or not what its type promises.

    Attributes:
        event_type: What it calls itself, if it does.
        event_id: Its id, if it has one.
        payload: The whole frame, parsed (integers beyond 64 bits as floats); `None` if it is not JSON, which
            `NaN` is not. Not in the repr: it may hold a mail.
        reason: Why it is not one of the other classes.
    """

    event_type: str | None = None
    event_id: str | None = None
    payload: Any = attrs.field(default=None, repr=False, hash=False)
    reason: str = ""


@attrs.frozen(kw_only=True)
class Disconnected:
    """The subscription was lost, here in the stream. A `Subscribed` follows when it is in force again.

    Made by the client, never by AgentMail: what AgentMail pushes between the two does not come.

    Attributes:
        reason: What happened, in words.
        code: The WebSocket close code; 1006 where the connection ended without a close frame (RFC 6455, 7.1.5).
        last_received: When the last sign of life came, so where the gap may begin.
    """

    reason: str
    code: int = 1006
    last_received: datetime | None = None


@attrs.frozen(kw_only=True)
class CaughtUp:
    """The gap is closed: what mail could be found of it through the REST API is in the stream, before this.

    Made by the client, never by AgentMail.

    Attributes:
        since: When the gap may have begun, by AgentMail's clock; from a generous while before it on mail was listed.
        recovered: Mails that had been missed, and were delivered.
        known: Mails that were listed and had been delivered before.
        held: Mails that Agent Armor holds; they come when they are released.
        failed: Inboxes, pods or keys of which a `RecoveryFailed` tells, and which are not in the other counts.
        requests: What it cost: requests to the REST API.
    """

    since: datetime
    recovered: int = 0
    known: int = 0
    held: int = 0
    failed: int = 0
    requests: int = 0


@attrs.frozen(kw_only=True)
class RecoveryFailed:
    """Mail could not be listed or fetched: what came there since then may be missing from the stream.

    Made by the client, never by AgentMail. It comes once; recovery tries again at every sweep, and a `CaughtUp`
    follows when that succeeds.

    Attributes:
        inbox_id: The inbox; `None`: it was not one inbox alone.
        pod_id: The pod, or `None`. Neither of the two: it was all that the key may see.
        since: Since when mail may be missing.
        reason: Why, in words.
    """

    inbox_id: str | None = None
    pod_id: str | None = None
    since: datetime
    reason: str


Event: TypeAlias = (
    Subscribed
    | Disconnected
    | CaughtUp
    | RecoveryFailed
    | ErrorEvent
    | UnknownEvent
    | MessageReceivedEvent
    | MessageSentEvent
    | MessageDeliveredEvent
    | MessageBouncedEvent
    | MessageComplainedEvent
    | MessageRejectedEvent
    | MessageOpenedEvent
    | MessageSecurityCompletedEvent
    | MessageSecurityReviewEvent
    | MessageSecurityOverrideEvent
    | DomainVerifiedEvent
    | CalendarEventCreatedEvent
    | CalendarEventUpdatedEvent
    | CalendarEventDeletedEvent
    | CalendarEventRespondedEvent
    | CalendarEventStartingEvent
    | CalendarEventEndingEvent
)

Notice: TypeAlias = Subscribed | Disconnected | CaughtUp | RecoveryFailed | ErrorEvent
"""A notice tells of the stream, and not of something that happened at AgentMail. A journal does not write it down."""

EventType: TypeAlias = Literal[
    "message.received",
    "message.received.spam",
    "message.received.blocked",
    "message.received.unauthenticated",
    "message.sent",
    "message.delivered",
    "message.bounced",
    "message.complained",
    "message.rejected",
    "message.opened",
    "message.security.completed",
    "message.security.review",
    "message.security.override",
    "domain.verified",
    "calendar.event.created",
    "calendar.event.updated",
    "calendar.event.deleted",
    "calendar.event.responded",
    "calendar.event.starting",
    "calendar.event.ending",
]
"""The event types that have a class here: what `Subscribe(event_types=…)` can ask for. New ones appear at AgentMail; so
the field `event_type` of an event is a plain string, and `Subscribe` takes others as well, with a warning."""
