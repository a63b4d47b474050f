"""Frames are decoded to events, in every form that a value may have."""

import json
from datetime import UTC, datetime
from typing import Any, get_args

import attrs
import pytest

from tests.helpers.decoding import IDS, decode
from trio_agentmail import events
from trio_agentmail._codec import decode_event, decoded_classes
from trio_agentmail._structuring import hook_of
from trio_agentmail.events import (
    AgentArmorManualOverride,
    AgentArmorReleaseActor,
    AgentArmorResult,
    Attachment,
    Attendee,
    CalendarEvent,
    CalendarEventPrevious,
    CalendarEventUpdatedEvent,
    DomainVerifiedEvent,
    ErrorEvent,
    Message,
    MessageBouncedEvent,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Recipient,
    Recurrence,
    RecurrencePeriod,
    Send,
    Subscribed,
    ThreadItem,
    UnknownEvent,
    VerificationRecord,
)

PAYLOADS = {
    "message.received": "message",
    "message.received.spam": "message",
    "message.received.blocked": "message",
    "message.received.unauthenticated": "message",
    "message.sent": "send",
    "message.delivered": "delivery",
    "message.bounced": "bounce",
    "message.complained": "complaint",
    "message.rejected": "reject",
    "message.opened": "open",
    "message.security.completed": "message",
    "message.security.review": "message",
    "message.security.override": "message",
    "domain.verified": "domain",
    "calendar.event.created": "calendar_event",
    "calendar.event.updated": "calendar_event",
    "calendar.event.deleted": "calendar_event",
    "calendar.event.responded": "calendar_event",
    "calendar.event.starting": "calendar_event",
    "calendar.event.ending": "calendar_event",
}


def decode_mail(**fields: Any) -> Message:
    event = decode({"type": "event", "event_type": "message.received", "message": IDS | fields})
    assert isinstance(event, MessageReceivedEvent)
    return event.message


# Complete frames


def test_a_mail_has_everything_that_was_sent() -> None:
    text = json.dumps(
        {
            "type": "event",
            "event_type": "message.received",
            "event_id": "evt_1",
            "message": IDS
            | {
                "thread_id": "thd_1",
                "labels": ["received", "unread"],
                "timestamp": "2026-01-02T03:04:05.678Z",
                "from": "Jane <jane@example.com>",
                "reply_to": ["jane@example.com"],
                "to": ["agent@agentmail.to"],
                "cc": ["Bob <bob@example.com>"],
                "bcc": [],
                "subject": "Héllo 👋",
                "preview": "Hi",
                "text": "Hi there",
                "html": "<p>Hi there</p>",
                "extracted_text": "Hi",
                "extracted_html": "<p>Hi</p>",
                "attachments": [{"attachment_id": "att_1", "filename": "a.pdf", "size": 12}],
                "in_reply_to": "<0@example.com>",
                "calendar_event_id": "cal_1",
                "references": ["<0@example.com>"],
                "headers": {"X-Spam": "no"},
                "agent_armor": {"status": "complete", "verdict": "clear"},
                "size": 1234,
                "updated_at": "2026-01-02T03:04:06Z",
                "created_at": "2026-01-02T03:04:06Z",
            },
            "thread": {"thread_id": "thd_1", "senders": ["jane@example.com"], "message_count": 2},
        },
        ensure_ascii=False,
    )
    seconds = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    event = decode_event(text)
    assert event == MessageReceivedEvent(
        event_id="evt_1",
        message=Message(
            inbox_id="agent@agentmail.to",
            message_id="<1@example.com>",
            thread_id="thd_1",
            labels=("received", "unread"),
            timestamp=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
            from_="Jane <jane@example.com>",
            reply_to=("jane@example.com",),
            to=("agent@agentmail.to",),
            cc=("Bob <bob@example.com>",),
            subject="Héllo 👋",
            preview="Hi",
            text="Hi there",
            html="<p>Hi there</p>",
            extracted_text="Hi",
            extracted_html="<p>Hi</p>",
            attachments=(Attachment(attachment_id="att_1", filename="a.pdf", size=12),),
            in_reply_to="<0@example.com>",
            calendar_event_id="cal_1",
            references=("<0@example.com>",),
            headers={"X-Spam": "no"},
            agent_armor=AgentArmorResult(status="complete", verdict="clear"),
            size=1234,
            updated_at=seconds,
            created_at=seconds,
        ),
        thread=ThreadItem(thread_id="thd_1", senders=("jane@example.com",), message_count=2),
    )
    assert isinstance(event, MessageReceivedEvent)
    assert event.raw == text
    assert event.origin == "live"


@pytest.mark.parametrize("event_type", PAYLOADS)
def test_a_frame_of_a_known_type_may_have_an_empty_payload(event_type: str) -> None:
    payload = IDS if event_type.startswith("message.received") else {}
    event = decode({"type": "event", "event_type": event_type, PAYLOADS[event_type]: payload})
    assert not isinstance(event, UnknownEvent)
    assert event.event_type == event_type
    assert event.event_id is None
    assert attrs.has(type(getattr(event, PAYLOADS[event_type])))


@pytest.mark.parametrize("event_type", PAYLOADS)
def test_the_older_spellings_of_a_frame_become_the_same_event(event_type: str) -> None:
    body = {PAYLOADS[event_type]: IDS, "event_id": "evt_1"}
    today = decode({"type": "event", "event_type": event_type, **body})
    outer_underscores = decode({"type": event_type.replace(".", "_"), **body})
    outer_dots = decode({"type": event_type, **body})
    no_outer = decode({"event_type": event_type, **body})
    assert today == outer_underscores == outer_dots == no_outer
    assert not isinstance(today, UnknownEvent)


def test_a_confirmation_has_the_filters_that_are_in_force() -> None:
    assert decode({"type": "subscribed"}) == Subscribed()
    event = decode({"type": "subscribed", "inbox_ids": ["a@b.c"], "pod_ids": [], "event_types": 7})
    assert event == Subscribed(inbox_ids=("a@b.c",), pod_ids=(), event_types=None)
    assert json.loads(event.raw)["type"] == "subscribed"


def test_an_error_frame_is_an_error_event_whatever_else_it_contains() -> None:
    event = decode({"type": "error", "name": "forbidden", "message": "x is forbidden", "event_type": "message.sent"})
    assert event == ErrorEvent(name="forbidden", message="x is forbidden")
    assert event.raw
    assert decode({"type": "error", "name": ["x"]}) == ErrorEvent(name="", message="")


def test_bytes_mean_what_the_text_means() -> None:
    text = '{"type":"event","event_type":"message.opened","open":{"thread_id":"é👋"}}'
    event = decode_event(text.encode())
    assert event == decode_event(text)
    assert isinstance(event, events.MessageOpenedEvent)
    assert event.raw == text


def test_a_frame_can_set_neither_its_origin_nor_its_raw_text() -> None:
    event = decode({"type": "event", "event_type": "message.sent", "send": {}, "origin": "x", "raw": "y"})
    assert event == MessageSentEvent(send=Send())
    assert event.origin == "live"
    assert json.loads(event.raw)["raw"] == "y"


# Several forms of the same value


@pytest.mark.parametrize(
    "fields",
    [
        {"from": "Jane <jane@example.com>"},
        {"from_": "Jane <jane@example.com>"},
        {"from": ["Jane <jane@example.com>"]},
        {"from_": ["Jane <jane@example.com>"]},
        {"from": [{"name": "Jane", "email": "jane@example.com"}]},
        {"from": {"name": "Jane", "email": "jane@example.com"}},
        {"from": None, "from_": {"name": "Jane", "email": "jane@example.com"}},
        {"from": [7, {"name": "Jane", "email": "jane@example.com"}, "bob@example.com"]},
    ],
)
def test_the_sender_is_one_string_in_every_form_of_the_wire(fields: dict[str, Any]) -> None:
    assert decode_mail(**fields).from_ == "Jane <jane@example.com>"


@pytest.mark.parametrize("sender", [None, [], {}, 7, [[]], {"name": "Jane"}, {"email": 7}, [None]])
def test_a_sender_that_cannot_be_read_is_empty(sender: Any) -> None:
    assert decode_mail(**{"from": sender}).from_ == ""
    assert decode_mail().from_ == ""


@pytest.mark.parametrize(
    ("recipients", "expected"),
    [
        (["a@x.com", "Bob <b@x.com>"], ("a@x.com", "Bob <b@x.com>")),
        ([{"email": "a@x.com"}, {"name": "Bob", "email": "b@x.com"}], ("a@x.com", "Bob <b@x.com>")),
        ([{"name": None, "email": "a@x.com"}, {"name": "", "email": "b@x.com"}], ("a@x.com", "b@x.com")),
        ("a@x.com", ("a@x.com",)),
        ({"name": "Bob", "email": "b@x.com"}, ("Bob <b@x.com>",)),
        (["a@x.com", 7, None, [], {"name": "Bob"}], ("a@x.com",)),
        ("", ()),
        (None, ()),
        (7, ()),
        ([], ()),
    ],
)
def test_recipients_are_strings_in_every_form_of_the_wire(recipients: Any, expected: tuple[str, ...]) -> None:
    message = decode_mail(to=recipients, cc=recipients, bcc=recipients, reply_to=recipients)
    assert message.to == message.cc == message.bcc == message.reply_to == expected
    sent = decode({"event_type": "message.sent", "send": {"recipients": recipients}})
    assert sent.send.recipients == expected


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Jane Q. Doe", "Jane Q. Doe"),
        ("Doe, Jane", '"Doe, Jane"'),
        ("Boss <boss@corp.example>", '"Boss <boss@corp.example>"'),
        ('the "real" \\ Jane', '"the \\"real\\" \\\\ Jane"'),
    ],
)
def test_a_name_cannot_pass_for_an_address(name: str, shown: str) -> None:
    assert decode_mail(**{"from": {"name": name, "email": "j@x.com"}}).from_ == f"{shown} <j@x.com>"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.6Z", datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05.5", datetime(2026, 1, 2, 3, 4, 5, 500000, tzinfo=UTC)),
        ("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-01T22:34:05.000-04:30", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_times_are_aware_in_every_form_of_the_wire(written: str, expected: datetime) -> None:
    message = decode_mail(timestamp=written)
    assert message.timestamp == expected
    assert message.timestamp is not None
    assert message.timestamp.tzinfo is not None


@pytest.mark.parametrize("written", ["", "soon", "2026-13-01T00:00:00Z", "0000-01-01T00:00:00Z", 1767323045, None, {}])
def test_an_invalid_time_is_none(written: Any) -> None:
    assert decode_mail(timestamp=written).timestamp is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (12, 12),
        (12.0, 12),
        (-1, -1),
        (2**63, 2**63),
        (12.5, None),
        (True, None),
        ("12", None),
        (None, None),
        ([], None),
    ],
)
def test_a_number_is_an_int_or_none(written: Any, expected: int | None) -> None:
    size = decode_mail(size=written).size
    assert size == expected
    assert type(size) is type(expected)


@pytest.mark.parametrize(("written", "expected"), [(True, True), (False, False), (1, None), ("true", None)])
def test_a_bool_is_a_bool_or_none(written: Any, expected: bool | None) -> None:
    event = decode({"event_type": "domain.verified", "domain": {"inbound_enabled": written}})
    assert event.domain.inbound_enabled is expected


@pytest.mark.parametrize("status", ["verified", "VERIFIED", "Verified"])
def test_a_domain_is_verified_in_any_case(status: str) -> None:
    event = decode(
        {
            "event_type": "domain.verified",
            "domain": {"status": status, "records": [{"type": "MX", "status": "valid", "priority": 10}, 7]},
        }
    )
    assert isinstance(event, DomainVerifiedEvent)
    assert event.domain.status == "VERIFIED"
    assert event.domain.records == (VerificationRecord(type="MX", status="VALID", priority=10),)


def test_headers_that_are_not_strings_are_left_out() -> None:
    assert decode_mail(headers={"A": "1", "B": ["2"], "C": None}).headers == {"A": "1"}
    assert decode_mail(headers=["A"]).headers == {}
    assert decode_mail(headers=None).headers == {}


def test_metadata_may_be_any_json() -> None:
    for metadata in ({"a": [1, {"b": None}]}, [1], "x", 7):
        event = decode({"event_type": "calendar.event.created", "calendar_event": {"metadata": metadata}})
        assert event.calendar_event == CalendarEvent(metadata=metadata)


def test_bounced_recipients_are_objects() -> None:
    bounce = {"type": "Permanent", "recipients": [{"address": "a@x.com", "status": "5.1.1"}, "b@x.com"]}
    event = decode({"event_type": "message.bounced", "bounce": bounce})
    assert isinstance(event, MessageBouncedEvent)
    assert event.bounce.recipients == (Recipient(address="a@x.com", status="5.1.1"),)


def test_a_held_mail_has_its_verdict_and_its_release() -> None:
    override = {
        "override_id": "ovr_1",
        "actor": {"kind": "api_key", "api_key_id": "key_1"},
        "released_at": "2026-01-02T03:04:05Z",
    }
    armor = {"status": "complete", "verdict": "review", "manual_override": override}
    event = decode({"event_type": "message.security.review", "message": IDS | {"agent_armor": armor}})
    assert isinstance(event, MessageSecurityReviewEvent)
    assert event.message.agent_armor == AgentArmorResult(
        status="complete",
        verdict="review",
        manual_override=AgentArmorManualOverride(
            override_id="ovr_1",
            actor=AgentArmorReleaseActor(kind="api_key", api_key_id="key_1"),
            released_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        ),
    )


def test_a_changed_calendar_event_has_the_previous_values() -> None:
    recurrence = {
        "rule": "FREQ=DAILY",
        "rdates": ["2026-01-02T03:00:00", {"start": "2026-01-03T03:00:00", "duration": "PT1H"}, 7],
    }
    event = decode(
        {
            "event_type": "calendar.event.updated",
            "inbox_id": "agent@agentmail.to",
            "calendar_event": {"event_id": "cal_1", "recurrence": recurrence, "duration_value": 3600000},
            "previous": {"title": "Old", "attendees": [{"email": "a@x.com"}]},
        }
    )
    assert event == CalendarEventUpdatedEvent(
        inbox_id="agent@agentmail.to",
        calendar_event=CalendarEvent(
            event_id="cal_1",
            duration_value=3600000,
            recurrence=Recurrence(
                rule="FREQ=DAILY",
                rdates=(
                    "2026-01-02T03:00:00",
                    RecurrencePeriod(start="2026-01-03T03:00:00", duration="PT1H"),
                ),
            ),
        ),
        previous=CalendarEventPrevious(title="Old", attendees=(Attendee(email="a@x.com"),)),
    )


def test_nobody_invited_before_differs_from_not_changed() -> None:
    def previous_attendees(previous: Any) -> Any:
        frame = {"event_type": "calendar.event.updated", "calendar_event": {}, "previous": previous}
        return decode(frame).previous.attendees

    assert previous_attendees({"attendees": []}) == ()
    assert previous_attendees({}) is None
    assert previous_attendees({"attendees": 7}) is None


def test_parts_of_the_wrong_type_are_left_out_alone() -> None:
    event = decode(
        {
            "event_type": "message.received",
            "event_id": 7,
            "message": IDS | {"attachments": {"a": 1}, "agent_armor": "on", "labels": {}, "text": 7, "subject": "Hi"},
            "thread": [],
        }
    )
    assert event == MessageReceivedEvent(message=Message(**IDS, subject="Hi"))


PARTS = [cls for cls in decoded_classes() if cls not in get_args(events.Event)]


@pytest.mark.parametrize("cls", PARTS, ids=lambda cls: cls.__name__)
def test_a_field_that_is_missing_or_null_has_its_default(cls: Any) -> None:
    needed = {field.name: "x" for field in attrs.fields(cls) if field.default is attrs.NOTHING}
    nulls = dict.fromkeys(attrs.fields_dict(cls)) | needed
    assert hook_of(cls)(needed) == hook_of(cls)(nulls) == cls(**needed)


@pytest.mark.parametrize(
    ("type_", "value"),
    [(str, "x"), (str | None, "x"), (int | None, 7), (bool | None, True), (bool | None, False)],
    ids=str,
)
def test_a_value_of_the_fields_own_type_stays_as_it_is(type_: Any, value: Any) -> None:
    # The generated function bypasses the hook for such a value, so the hook must agree.
    assert hook_of(type_)(value) is value
