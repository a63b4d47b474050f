"""Calendar events, and the events about them."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

import attrs

from .base import ServerEvent

__all__ = [
    "Attendee",
    "CalendarEvent",
    "CalendarEventCreatedEvent",
    "CalendarEventDeletedEvent",
    "CalendarEventEndingEvent",
    "CalendarEventPrevious",
    "CalendarEventRespondedEvent",
    "CalendarEventStartingEvent",
    "CalendarEventUpdatedEvent",
    "Recurrence",
    "RecurrencePeriod",
]


@attrs.frozen(kw_only=True)
class RecurrencePeriod:
    """An extra date of a series, given as a period with an `end` or a `duration`.

    Attributes:
        start: A wall-clock time.
        end: A wall-clock time.
        duration: ISO 8601, for example `"PT30M"`.
    """

    start: str | None = None
    end: str | None = None
    duration: str | None = None


@attrs.frozen(kw_only=True)
class Recurrence:
    """The dates of a series.

    Attributes:
        rule: The RRULE, without its `RRULE:` prefix.
        exdates: The dates that are left out, as wall-clock times.
        rdates: Extra dates, as wall-clock times or periods.
        truncate_before: A wall-clock time. Dates that start at or after it are left out.
    """

    rule: str | None = None
    exdates: tuple[str, ...] = ()
    rdates: tuple[str | RecurrencePeriod, ...] = ()
    truncate_before: str | None = None


@attrs.frozen(kw_only=True)
class Attendee:
    """A person invited to a calendar event.

    Attributes:
        email: The address, in lower case.
        status: `"needs_action"`, `"accepted"`, `"declined"` or `"tentative"`.
        role: `"required"` or `"optional"`.
        comment: The attendee's comment on the response.
    """

    email: str | None = None
    name: str | None = None
    status: str | None = None
    role: str | None = None
    comment: str | None = None
    responded_at: datetime | None = None


@attrs.frozen(kw_only=True)
class CalendarEvent:
    """A one-off event, a recurring series, or one date of a series.

    `start`, `end` and `original_start` are wall-clock times in `timezone`, as AgentMail writes them. For an all-day
    event they are its first and last day. `start_at`, `end_at` and `original_start_at` are the same times as instants.

    Attributes:
        kind: `"single"`, `"series"` or `"instance"`.
        series_id: For an instance: the series that it belongs to.
        original_start: For an instance: its start according to the rule of the series.
        is_exception: For an instance: whether it was edited or moved.
        metadata: Your own JSON value, usually an object. Left out of the repr.
        status: `"confirmed"`, `"tentative"` or `"cancelled"`.
        timezone: An IANA name, for example `"Europe/Berlin"`.
        duration_mode: `"nominal"` or `"exact"`.
        duration_value: The duration in milliseconds; for an all-day event, in days.
        attendees: The people who are invited. May be left out even if `attendee_count` is not 0.
        response_status: The inbox's own response, if it is invited.
        uid: The iCalendar UID, which invitations carry.
        sequence: The iCalendar SEQUENCE.
        source: `"api"` or `"email"`.
        origin_message_id: For an email event: the message whose invitation last changed it.
        resource_revision: Not present in starting and ending events.
        etag: The value for an `If-Match` header. Usually not present in events.
    """

    event_id: str | None = None
    kind: str | None = None
    series_id: str | None = None
    original_start: str | None = None
    original_start_at: datetime | None = None
    is_exception: bool | None = None
    title: str | None = None
    description: str | None = None
    location: str | None = None
    metadata: Any = attrs.field(default=None, repr=False, hash=False)
    status: str | None = None
    all_day: bool | None = None
    start: str | None = None
    end: str | None = None
    timezone: str | None = None
    duration_mode: str | None = None
    duration_value: int | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None
    recurrence: Recurrence | None = None
    attendees: tuple[Attendee, ...] = ()
    attendee_count: int | None = None
    response_status: str | None = None
    uid: str | None = None
    sequence: int | None = None
    source: str | None = None
    organizer_email: str | None = None
    origin_message_id: str | None = None
    resource_revision: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    etag: str | None = None


@attrs.frozen(kw_only=True)
class CalendarEventPrevious:
    """The values that an update replaced. `None` means that a value did not change, or that there was none before.

    The fields are those of `CalendarEvent`.
    """

    title: str | None = None
    description: str | None = None
    location: str | None = None
    metadata: Any = attrs.field(default=None, repr=False, hash=False)
    status: str | None = None
    all_day: bool | None = None
    start: str | None = None
    end: str | None = None
    timezone: str | None = None
    duration_mode: str | None = None
    recurrence: Recurrence | None = None
    attendees: tuple[Attendee, ...] | None = None


@attrs.frozen(kw_only=True)
class CalendarEventCreatedEvent(ServerEvent):
    """A calendar event was created, or one date of a series was edited for the first time."""

    event_type: str = "calendar.event.created"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventUpdatedEvent(ServerEvent):
    """A calendar event changed, or dates of a series were cancelled.

    Attributes:
        calendar_event: The calendar event as it is now.
        previous: The values that the change replaced. Present for one-off events and series.
    """

    event_type: str = "calendar.event.updated"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    previous: CalendarEventPrevious | None = None


@attrs.frozen(kw_only=True)
class CalendarEventDeletedEvent(ServerEvent):
    """A one-off event or a series was deleted. `calendar_event` is as it was."""

    event_type: str = "calendar.event.deleted"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventRespondedEvent(ServerEvent):
    """An attendee responded. The new statuses are in `calendar_event.attendees`."""

    event_type: str = "calendar.event.responded"
    inbox_id: str | None = None
    calendar_event: CalendarEvent


@attrs.frozen(kw_only=True)
class CalendarEventStartingEvent(ServerEvent):
    """A calendar event, or one date of a series, has started. Usually sent within a minute of the start.

    Attributes:
        scheduled_at: The start that this event is about.
    """

    event_type: str = "calendar.event.starting"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    scheduled_at: datetime | None = None


@attrs.frozen(kw_only=True)
class CalendarEventEndingEvent(ServerEvent):
    """A calendar event, or one date of a series, has ended. Usually sent within a minute of the end.

    Attributes:
        scheduled_at: The end that this event is about.
    """

    event_type: str = "calendar.event.ending"
    inbox_id: str | None = None
    calendar_event: CalendarEvent
    scheduled_at: datetime | None = None


AnyCalendarEvent: TypeAlias = (
    CalendarEventCreatedEvent
    | CalendarEventUpdatedEvent
    | CalendarEventDeletedEvent
    | CalendarEventRespondedEvent
    | CalendarEventStartingEvent
    | CalendarEventEndingEvent
)

CalendarEventType: TypeAlias = Literal[
    "calendar.event.created",
    "calendar.event.updated",
    "calendar.event.deleted",
    "calendar.event.responded",
    "calendar.event.starting",
    "calendar.event.ending",
]
