"""What the events carry: mails, threads, bounces, domains, calendar events. Import them from `events`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

__all__ = [
    "AgentArmorManualOverride",
    "AgentArmorReleaseActor",
    "AgentArmorResult",
    "Attachment",
    "Attendee",
    "Bounce",
    "CalendarEvent",
    "CalendarEventPrevious",
    "Complaint",
    "Delivery",
    "Domain",
    "Message",
    "MessageSecurity",
    "MessageSecurityOverride",
    "Open",
    "Recipient",
    "Recurrence",
    "RecurrencePeriod",
    "Reject",
    "Send",
    "ThreadItem",
    "VerificationRecord",
]


def _upper(status: str | None) -> str | None:
    # Documented in upper case, seen in lower case too: one spelling, so that a handler can compare.
    return None if status is None else status.upper()


@attrs.frozen(kw_only=True)
class AgentArmorReleaseActor:
    """Who released a message that Agent Armor had held.

    Attributes:
        kind: `"api_key"` or `"console"`.
        api_key_id: Which key, for `"api_key"`.
    """

    kind: str | None = None
    api_key_id: str | None = None


@attrs.frozen(kw_only=True)
class AgentArmorManualOverride:
    """The record of the release of a message that Agent Armor had held.

    Attributes:
        override_id: The release, and the `event_id` of its `MessageSecurityOverrideEvent`.
        reason: Why, in the words of whoever released it.
        original_verdict: The verdict that held the message: `"review"`.
    """

    override_id: str | None = None
    actor: AgentArmorReleaseActor | None = None
    reason: str | None = None
    original_verdict: str | None = None
    released_at: datetime | None = None


@attrs.frozen(kw_only=True)
class AgentArmorResult:
    """What Agent Armor's scan says of a message: the official SDK's three results in one class.

    Attributes:
        status: `"pending"`, `"complete"` or `"unavailable"`. In a security event always `"complete"`.
        verdict: When complete: `"clear"` or `"review"`.
        reason: When complete: a short explanation of the verdict.
        model: When complete: the Agent Armor release that produced the verdict; opaque.
        completed_at: When complete: when the scan finished.
        manual_override: When complete, on a `"review"` in hold mode that someone released.
        started_at: When pending: when the message was received; the deadline counts from here.
        deadline_at: When pending: when the scan gives up, and the result becomes unavailable.
        unavailable_reason: When unavailable: `"unsupported_dsn"`, `"payload_too_large"`,
            `"no_scannable_content"`, `"enqueue_failed"`, `"scorer_failed"`, `"contract_error"` or
            `"deadline_exceeded"`.
    """

    status: str | None = None
    verdict: str | None = None
    reason: str | None = None
    model: str | None = None
    completed_at: datetime | None = None
    manual_override: AgentArmorManualOverride | None = None
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    unavailable_reason: str | None = None


@attrs.frozen(kw_only=True)
class Attachment:
    """An attachment's description. Its content is fetched through the REST API.

    Attributes:
        size: Bytes.
        content_disposition: `"inline"` or `"attachment"`.
        content_id: The Content-ID by which the HTML refers to it.
    """

    attachment_id: str | None = None
    filename: str | None = None
    size: int | None = None
    content_type: str | None = None
    content_disposition: str | None = None
    content_id: str | None = None


@attrs.frozen(kw_only=True)
class Message:
    """A received mail.

    Addresses are `user@example.com` or `Name <user@example.com>`, whatever shape the wire had.

    Attributes:
        labels: For example `("received", "unread")`.
        timestamp: The mail's own time: its sender chose it, so it may be back-dated or in the future.
        from_: The sender; `""` when the wire named none.
        subject: `None` when there is none.
        preview: The beginning of the text.
        text: The plain text. `None` for a mail that is HTML only, and for a body so large that AgentMail left
            it out: fetch the message then.
        html: The HTML, with the same exceptions.
        extracted_text: The new text, without what it quotes.
        extracted_html: The new HTML, without what it quotes.
        in_reply_to: The `message_id` that it answers.
        references: The `message_id`s of the thread so far.
        headers: The headers that AgentMail passes on. Those whose value is not a string are left out.
        agent_armor: Present on mail that came while Agent Armor was on.
        size: Bytes.
        updated_at: AgentMail's time of the last change.
        created_at: AgentMail's time of arrival.
    """

    inbox_id: str
    message_id: str
    thread_id: str | None = None
    labels: tuple[str, ...] = ()
    timestamp: datetime | None = None
    from_: str = ""
    reply_to: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    subject: str | None = None
    preview: str | None = None
    text: str | None = attrs.field(default=None, repr=False)
    html: str | None = attrs.field(default=None, repr=False)
    extracted_text: str | None = attrs.field(default=None, repr=False)
    extracted_html: str | None = attrs.field(default=None, repr=False)
    attachments: tuple[Attachment, ...] = ()
    in_reply_to: str | None = None
    calendar_event_id: str | None = None
    references: tuple[str, ...] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, hash=False)
    agent_armor: AgentArmorResult | None = None
    size: int | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class ThreadItem:
    """The conversation that a mail belongs to, after that mail.

    Attributes:
        timestamp: Of its last message.
        received_timestamp: Of its last received message.
        sent_timestamp: Of its last sent message.
        size: Bytes.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    labels: tuple[str, ...] = ()
    timestamp: datetime | None = None
    received_timestamp: datetime | None = None
    sent_timestamp: datetime | None = None
    senders: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    subject: str | None = None
    preview: str | None = None
    attachments: tuple[Attachment, ...] = ()
    last_message_id: str | None = None
    message_count: int | None = None
    size: int | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class MessageSecurity:
    """The message that an Agent Armor result is for. Fetch the message for its content."""

    organization_id: str | None = None
    inbox_id: str | None = None
    message_id: str | None = None
    agent_armor: AgentArmorResult | None = None


@attrs.frozen(kw_only=True)
class MessageSecurityOverride:
    """The message that someone released, and the record of it. Fetch the message for its content."""

    organization_id: str | None = None
    inbox_id: str | None = None
    message_id: str | None = None
    manual_override: AgentArmorManualOverride | None = None


@attrs.frozen(kw_only=True)
class Send:
    """A mail that left an inbox."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Delivery:
    """A sent mail that the recipients' servers accepted."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Recipient:
    """Somebody whom a bounced mail did not reach, and why."""

    address: str | None = None
    status: str | None = None


@attrs.frozen(kw_only=True)
class Bounce:
    """A sent mail that could not be delivered.

    Attributes:
        type: For example `"Permanent"`.
        sub_type: For example `"General"`.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    sub_type: str | None = None
    recipients: tuple[Recipient, ...] = ()


@attrs.frozen(kw_only=True)
class Complaint:
    """A sent mail that recipients marked as spam.

    Attributes:
        type: For example `"abuse"`.
        sub_type: The kind in more detail.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    sub_type: str | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Reject:
    """A mail that AgentMail refused to send, for example because it holds a virus."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Open:
    """A sent mail, with tracking on, that was opened for the first time."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None


@attrs.frozen(kw_only=True)
class VerificationRecord:
    """A DNS record that a domain needs.

    Attributes:
        type: `"TXT"`, `"CNAME"` or `"MX"`.
        status: `"MISSING"`, `"INVALID"` or `"VALID"`; put into upper case.
        priority: Of an MX record.
        reason: Why it is invalid, when known: `"duplicate_records"` or `"value_mismatch"`.
    """

    type: str | None = None
    name: str | None = None
    value: str | None = None
    status: str | None = attrs.field(default=None, converter=_upper)
    priority: int | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Domain:
    """A mail domain of yours.

    Attributes:
        domain: Its name.
        status: `"NOT_STARTED"`, `"PENDING"`, `"INVALID"`, `"FAILED"`, `"VERIFYING"` or `"VERIFIED"`; put into
            upper case, since the wire writes both.
        reason: Why it is not verified (yet), when known, for example `"dns_records_missing"`.
        inbound_enabled: Whether it receives mail. `None` on old domains, which do.
        client_id: Your own id, given when it was created.
    """

    pod_id: str | None = None
    domain_id: str | None = None
    domain: str | None = None
    status: str | None = attrs.field(default=None, converter=_upper)
    reason: str | None = None
    feedback_enabled: bool | None = None
    inbound_enabled: bool | None = None
    subdomains_enabled: bool | None = None
    tracking_enabled: bool | None = None
    records: tuple[VerificationRecord, ...] = ()
    client_id: str | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class RecurrencePeriod:
    """An extra date of a series, given as a period: with an `end` or a `duration`.

    Attributes:
        start: Wall-clock time.
        end: Wall-clock time.
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
        exdates: Wall-clock times that are left out.
        rdates: Extra dates: wall-clock times or periods.
        truncate_before: No date that starts at or after this wall-clock time occurs.
    """

    rule: str | None = None
    exdates: tuple[str, ...] = ()
    rdates: tuple[str | RecurrencePeriod, ...] = ()
    truncate_before: str | None = None


@attrs.frozen(kw_only=True)
class Attendee:
    """Somebody invited.

    Attributes:
        email: In lower case.
        status: `"needs_action"`, `"accepted"`, `"declined"` or `"tentative"`.
        role: `"required"` or `"optional"`.
        comment: What the attendee wrote with the response.
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

    `start`, `end` and `original_start` are wall-clock times in `timezone`, as AgentMail writes them (of an
    all-day event the first and the last day); `start_at`, `end_at` and `original_start_at` are the instants.

    Attributes:
        kind: `"single"`, `"series"` or `"instance"`.
        series_id: Of an instance: its series.
        original_start: Of an instance: where the series' rule had put it.
        is_exception: Of an instance: whether it was edited or moved.
        metadata: Your own JSON value, usually an object. Not in the repr.
        status: `"confirmed"`, `"tentative"` or `"cancelled"`.
        timezone: IANA name, for example `"Europe/Berlin"`.
        duration_mode: `"nominal"` or `"exact"`.
        duration_value: Milliseconds; of an all-day event days.
        attendees: May be left out of the wire where `attendee_count` is not 0.
        response_status: The inbox's own response, where it is invited.
        uid: The iCalendar UID, which invitations carry.
        sequence: The iCalendar SEQUENCE.
        source: `"api"` or `"email"`.
        origin_message_id: Of an email event: the message whose invitation last changed it.
        resource_revision: Left out of the starting and ending events.
        etag: For `If-Match`; usually left out of events.
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
    """What an update replaced. `None`: not changed, or there was nothing before.

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
