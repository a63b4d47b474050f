"""The event classes have the fields of AgentMail's API, and are values that a handler can compare and match."""

import copy
import pickle
from datetime import UTC, datetime
from typing import Any, get_args

import attrs
import pytest

from trio_agentmail import events
from trio_agentmail.events import (
    CalendarEvent,
    CaughtUp,
    Disconnected,
    Domain,
    ErrorEvent,
    Event,
    Message,
    MessageReceivedEvent,
    RecoveryFailed,
    Subscribed,
    UnknownEvent,
    VerificationRecord,
)

# What AgentMail's OpenAPI lists for each frame and part, besides a frame's `type`; `from` is `from_` here.
# The three Agent Armor results, and the two actors, are one class each.
WIRE_FIELDS: dict[type, str] = {
    events.Subscribed: """
        event_types inbox_ids pod_ids
    """,
    events.MessageReceivedEvent: """
        event_type event_id message thread
    """,
    events.Message: """
        inbox_id thread_id message_id labels timestamp from_ reply_to to cc bcc subject preview
        text html extracted_text extracted_html attachments in_reply_to calendar_event_id
        references headers agent_armor size updated_at created_at
    """,
    events.Attachment: """
        attachment_id filename size content_type content_disposition content_id
    """,
    events.AgentArmorResult: """
        status started_at deadline_at verdict reason model completed_at manual_override
        unavailable_reason
    """,
    events.AgentArmorManualOverride: """
        override_id actor reason original_verdict released_at
    """,
    events.AgentArmorReleaseActor: """
        kind api_key_id
    """,
    events.ThreadItem: """
        inbox_id thread_id labels timestamp received_timestamp sent_timestamp senders recipients
        subject preview attachments last_message_id message_count size updated_at created_at
    """,
    events.MessageSecurityCompletedEvent: """
        event_type event_id message
    """,
    events.MessageSecurity: """
        organization_id inbox_id message_id agent_armor
    """,
    events.MessageSecurityReviewEvent: """
        event_type event_id message
    """,
    events.MessageSecurityOverrideEvent: """
        event_type event_id message
    """,
    events.MessageSecurityOverride: """
        organization_id inbox_id message_id manual_override
    """,
    events.MessageSentEvent: """
        event_type event_id send
    """,
    events.Send: """
        inbox_id thread_id message_id timestamp recipients
    """,
    events.MessageDeliveredEvent: """
        event_type event_id delivery
    """,
    events.Delivery: """
        inbox_id thread_id message_id timestamp recipients
    """,
    events.MessageBouncedEvent: """
        event_type event_id bounce
    """,
    events.Bounce: """
        inbox_id thread_id message_id timestamp type sub_type recipients
    """,
    events.Recipient: """
        address status
    """,
    events.MessageComplainedEvent: """
        event_type event_id complaint
    """,
    events.Complaint: """
        inbox_id thread_id message_id timestamp type sub_type recipients
    """,
    events.MessageRejectedEvent: """
        event_type event_id reject
    """,
    events.Reject: """
        inbox_id thread_id message_id timestamp reason
    """,
    events.MessageOpenedEvent: """
        event_type event_id open
    """,
    events.Open: """
        inbox_id thread_id message_id timestamp
    """,
    events.DomainVerifiedEvent: """
        event_type event_id domain
    """,
    events.Domain: """
        pod_id domain_id domain status reason feedback_enabled inbound_enabled
        subdomains_enabled tracking_enabled records client_id updated_at created_at
    """,
    events.VerificationRecord: """
        type name value status priority reason
    """,
    events.CalendarEventCreatedEvent: """
        event_type event_id inbox_id calendar_event
    """,
    events.CalendarEvent: """
        event_id kind series_id original_start original_start_at is_exception title description
        location metadata status all_day start end timezone duration_mode duration_value
        start_at end_at recurrence attendees attendee_count response_status uid sequence source
        organizer_email origin_message_id resource_revision created_at updated_at etag
    """,
    events.Recurrence: """
        rule exdates rdates truncate_before
    """,
    events.RecurrencePeriod: """
        start end duration
    """,
    events.Attendee: """
        email name status role comment responded_at
    """,
    events.CalendarEventUpdatedEvent: """
        event_type event_id inbox_id calendar_event previous
    """,
    events.CalendarEventPrevious: """
        title description location metadata status all_day start end timezone duration_mode
        recurrence attendees
    """,
    events.CalendarEventDeletedEvent: """
        event_type event_id inbox_id calendar_event
    """,
    events.CalendarEventRespondedEvent: """
        event_type event_id inbox_id calendar_event
    """,
    events.CalendarEventStartingEvent: """
        event_type event_id inbox_id calendar_event scheduled_at
    """,
    events.CalendarEventEndingEvent: """
        event_type event_id inbox_id calendar_event scheduled_at
    """,
    events.ErrorEvent: """
        name message
    """,
}

# The value of a frame's `event_type`, and the class that it belongs to.
EVENT_TYPES = {
    "message.received": events.MessageReceivedEvent,
    "message.sent": events.MessageSentEvent,
    "message.delivered": events.MessageDeliveredEvent,
    "message.bounced": events.MessageBouncedEvent,
    "message.complained": events.MessageComplainedEvent,
    "message.rejected": events.MessageRejectedEvent,
    "message.opened": events.MessageOpenedEvent,
    "message.security.completed": events.MessageSecurityCompletedEvent,
    "message.security.review": events.MessageSecurityReviewEvent,
    "message.security.override": events.MessageSecurityOverrideEvent,
    "domain.verified": events.DomainVerifiedEvent,
    "calendar.event.created": events.CalendarEventCreatedEvent,
    "calendar.event.updated": events.CalendarEventUpdatedEvent,
    "calendar.event.deleted": events.CalendarEventDeletedEvent,
    "calendar.event.responded": events.CalendarEventRespondedEvent,
    "calendar.event.starting": events.CalendarEventStartingEvent,
    "calendar.event.ending": events.CalendarEventEndingEvent,
}

CLASSES = [value for name in events.__all__ if isinstance(value := getattr(events, name), type)]

MADE_HERE = {Disconnected, CaughtUp, RecoveryFailed}

FROM_SERVER = [cls for cls in get_args(Event) if cls not in MADE_HERE]

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def field_names(cls: type) -> set[str]:
    return {field.name for field in attrs.fields(cls)}


@pytest.mark.parametrize("cls", WIRE_FIELDS, ids=lambda cls: cls.__name__)
def test_a_class_has_the_fields_of_the_wire(cls: type) -> None:
    made_here = {"_raw", "origin", "attempt"} if cls in get_args(Event) else set()
    assert field_names(cls) == set(WIRE_FIELDS[cls].split()) | made_here


def test_every_class_is_on_the_wire_or_made_by_the_client() -> None:
    assert set(CLASSES) == set(WIRE_FIELDS) | {UnknownEvent} | MADE_HERE


def test_event_is_the_union_of_all_that_a_stream_yields() -> None:
    assert set(get_args(Event)) == {*EVENT_TYPES.values(), Subscribed, ErrorEvent, UnknownEvent, *MADE_HERE}


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_the_event_type_is_the_default_of_its_class(event_type: str) -> None:
    assert attrs.fields_dict(EVENT_TYPES[event_type])["event_type"].default == event_type


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_classes_are_frozen_slotted_keyword_only_and_documented(cls: type) -> None:
    assert cls.__doc__
    assert all(field.kw_only for field in attrs.fields(cls))
    instance = cls(**{f.name: "x" for f in attrs.fields(cls) if f.default is attrs.NOTHING})
    assert not hasattr(instance, "__dict__")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(instance, attrs.fields(cls)[0].name, "y")


@pytest.mark.parametrize("cls", FROM_SERVER, ids=lambda cls: cls.__name__)
def test_raw_is_neither_compared_nor_in_the_repr(cls: type) -> None:
    needed: dict[str, Any] = {f.name: "x" for f in attrs.fields(cls) if f.default is attrs.NOTHING}
    plain = cls(**needed)
    received = cls(**needed, raw='{"secret": 1}', origin="recovered")
    assert plain.raw == ""
    assert plain.origin == "live"
    assert received == plain
    assert hash(received) == hash(plain)
    assert "secret" not in repr(received)
    assert "origin='recovered'" in repr(received)


@pytest.mark.parametrize("cls", FROM_SERVER, ids=lambda cls: cls.__name__)
def test_attempt_is_neither_compared_nor_in_the_repr(cls: type) -> None:
    needed: dict[str, Any] = {f.name: "x" for f in attrs.fields(cls) if f.default is attrs.NOTHING}
    first: Any = cls(**needed)
    third: Any = cls(**needed, attempt=3)
    assert (first.attempt, third.attempt) == (1, 3)
    assert third == first
    assert hash(third) == hash(first)
    assert repr(third) == repr(first)


@pytest.mark.parametrize("cls", FROM_SERVER, ids=lambda cls: cls.__name__)
def test_raw_can_be_given_as_bytes_and_can_be_replaced(cls: type) -> None:
    needed: dict[str, Any] = {f.name: "x" for f in attrs.fields(cls) if f.default is attrs.NOTHING}
    received: Any = cls(**needed, raw='{"é": "👋"}'.encode())
    assert received.raw == '{"é": "👋"}'
    assert attrs.evolve(received, origin="recovered").raw == '{"é": "👋"}'
    assert attrs.evolve(received, raw="new").raw == "new"
    assert attrs.evolve(received, raw=b"not UTF-8: \xff").raw == r"not UTF-8: \xff"
    for same in (copy.copy(received), copy.deepcopy(received), pickle.loads(pickle.dumps(received))):
        assert same == received
        assert same.raw == received.raw


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (Disconnected(reason="going away", code=1001, last_received=NOON), "reason code last_received"),
        (
            CaughtUp(since=NOON, recovered=1, known=2, held=3, failed=4, requests=5),
            "since recovered known held failed requests",
        ),
        (RecoveryFailed(inbox_id="a", pod_id="p", since=NOON, reason="status 500"), "inbox_id pod_id since reason"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_events_made_by_the_client_have_no_raw(event: Event, fields: str) -> None:
    assert field_names(type(event)) == set(fields.split())
    assert event == attrs.evolve(event)


def test_events_made_by_the_client_have_defaults() -> None:
    assert attrs.astuple(Disconnected(reason="cut")) == ("cut", 1006, None)
    assert attrs.astuple(CaughtUp(since=NOON)) == (NOON, 0, 0, 0, 0, 0)
    assert attrs.astuple(RecoveryFailed(since=NOON, reason="status 500")) == (None, None, NOON, "status 500")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_class_has_a_validator_since_decoding_skips_init(cls: type) -> None:
    assert all(field.validator is None for field in attrs.fields(cls))
    assert not hasattr(cls, "__attrs_pre_init__")
    assert not hasattr(cls, "__attrs_post_init__")


def mail(**fields: Any) -> Message:
    return Message(inbox_id="agent@agentmail.to", message_id="<1@example.com>", **fields)


def test_a_repr_leaves_out_text_html_and_headers() -> None:
    private = dict.fromkeys(("text", "html", "extracted_text", "extracted_html"), "private")
    event = MessageReceivedEvent(message=mail(subject="Hello", headers={"X-Token": "private"}, **private))
    assert "private" not in repr(event)
    assert "subject='Hello'" in repr(event)
    assert event != MessageReceivedEvent(message=mail(subject="Hello"))


def test_a_repr_leaves_out_payload_and_metadata() -> None:
    unknown = UnknownEvent(event_type="message.new", payload={"text": "private"}, reason="not known")
    assert "private" not in repr(unknown)
    assert "message.new" in repr(unknown)
    assert "private" not in repr(CalendarEvent(metadata={"a": "private"}))
    assert "private" not in repr(events.CalendarEventPrevious(metadata={"a": "private"}))


def test_events_are_hashable_even_with_mappings_in_them() -> None:
    first = MessageReceivedEvent(message=mail(headers={"a": "b"}))
    second = UnknownEvent(payload={"a": [1]})
    third = events.CalendarEventDeletedEvent(calendar_event=CalendarEvent(metadata={"a": [1]}))
    assert len({first, attrs.evolve(first), second, attrs.evolve(second), third, attrs.evolve(third)}) == 3


@pytest.mark.parametrize("cls", [Domain, VerificationRecord])
def test_a_status_with_two_spellings_on_the_wire_has_one(
    cls: type[Domain] | type[VerificationRecord],
) -> None:
    assert cls(status="verified").status == "VERIFIED"
    assert cls(status="VERIFIED") == cls(status="Verified")
    assert cls().status is None


def test_a_handler_can_match_on_the_class_and_its_fields() -> None:
    event: Event = MessageReceivedEvent(message=mail(from_="Jane <jane@example.com>"))
    match event:
        case MessageReceivedEvent(event_type="message.received", message=Message(from_=sender)):
            assert sender == "Jane <jane@example.com>"
        case _:
            pytest.fail("not matched")
