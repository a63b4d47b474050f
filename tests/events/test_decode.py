"""Frames are decoded to events, and events are encoded to frames."""

import gc
import json
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import attrs
import pytest

from trio_agentmail import events
from trio_agentmail._codec import (
    as_unknown,
    decode_event,
    decoded_classes,
    encode_subscribe,
    parse_object,
    recovered_event,
    with_message,
)
from trio_agentmail._identity import identity, is_mail, mail_key
from trio_agentmail._settings import Subscribe
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
    CaughtUp,
    Disconnected,
    DomainVerifiedEvent,
    ErrorEvent,
    Message,
    MessageBouncedEvent,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Recipient,
    RecoveryFailed,
    Recurrence,
    RecurrencePeriod,
    Send,
    Subscribed,
    ThreadItem,
    UnknownEvent,
    VerificationRecord,
)
from trio_agentmail.testing._encode import encode_event

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

IDS: dict[str, Any] = {"inbox_id": "agent@agentmail.to", "message_id": "<1@example.com>"}

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


def decode(frame: Any) -> Any:
    return decode_event(json.dumps(frame))


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


# The cost of many values, in function calls: a call takes longer than reading the value


def calls(field: str, value: str) -> int:
    """Count the calls, in Python and C, to decode a mail that has this JSON in a field."""
    frame = (
        f'{{"event_type": "message.received", "message": {{"inbox_id": "a", "message_id": "b", "{field}": {value}}}}}'
    )
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    decode_event(frame)  # the first one writes functions
    gc.disable()  # it may have callbacks
    sys.setprofile(count)
    try:
        event = decode_event(frame)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert isinstance(event, MessageReceivedEvent)
    return counted


@pytest.mark.parametrize(
    ("field", "item", "at_most"),
    [
        ("attachments", "{}", 3),
        ("attachments", '{"a": 1}', 3),
        ("attachments", "1", 2),
        ("to", "1", 1),
        ("to", '"a"', 1),
        ("to", '{"name": "a,", "email": "b"}', 9),
        ("from", '{"email": "a"}', 0),
    ],
)
def test_many_small_values_take_few_calls_each(field: str, item: str, at_most: int) -> None:
    few, many = (calls(field, f"[{', '.join([item] * n)}]") for n in (100, 1_100))
    assert (many - few) / 1_000 <= at_most


@pytest.mark.parametrize("text", [r"\ud800", r"\n\ud800", r"\\\udc00", r"\ud83d\ude00\ud83d"])
def test_many_escapes_take_no_call_each(text: str) -> None:
    assert calls("text", f'"{text * 10}"') == calls("text", f'"{text * 1_000}"')


@pytest.mark.parametrize("character", [r"\"", r"\\"])
def test_many_escapes_in_a_name_take_no_call_each(character: str) -> None:
    few, many = (calls("to", f'[{{"name": "{character * n}", "email": "a"}}]') for n in (10, 1_000))
    assert few == many


def test_objects_without_a_known_field_share_one_instance() -> None:
    event = decode({"event_type": "message.received", "message": IDS | {"attachments": [{}, {"a": 1}, {"size": 1}]}})
    first, second, third = event.message.attachments
    assert first == second == Attachment()
    assert first is second
    assert third == Attachment(size=1)


# Unknown events


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON: "),
        ("hello", "not JSON: "),
        ('{"type": "event"', "not JSON: "),
        ("{'type': 'event'}", "not JSON: "),
        ('{"size": NaN}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "not JSON: "),
        ("1" * 100_000, "not JSON: "),
        ("\ufeff{}", "not JSON: "),
    ],
)
def test_a_text_that_is_not_json_is_unknown_with_the_reason(text: str, reason: str) -> None:
    event = decode_event(text)
    assert isinstance(event, UnknownEvent)
    assert event.raw == text
    assert event.payload is None
    assert event.reason.startswith(reason)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "event", ["event"], []])
def test_json_that_is_not_an_object_is_unknown(value: Any) -> None:
    event = decode(value)
    assert event == UnknownEvent(payload=value, reason="JSON, but not an object")
    assert event.raw == json.dumps(value)


@pytest.mark.parametrize(
    ("frame", "event_type", "reason"),
    [
        ({}, None, "it names no type"),
        ({"type": "event"}, None, "it names no type"),
        ({"type": 7}, None, "it names no type"),
        ({"type": [], "event_type": {}}, None, "it names no type"),
        ({"type": "event", "event_type": "message.new"}, "message.new", "its type is not known: message.new"),
        ({"type": "pong"}, "pong", "its type is not known: pong"),
        ({"type": "x\x1b[2J\n"}, "x\x1b[2J\n", "its type is not known: x [2J"),
        ({"type": "disconnected", "reason": "x"}, "disconnected", "its type is not known: disconnected"),
        ({"event_type": "Disconnected"}, "Disconnected", "its type is not known: Disconnected"),
        ({"event_type": "subscribed"}, "subscribed", "its type is not known: subscribed"),
        ({"event_type": "message.sent"}, "message.sent", "message.sent without its object send"),
        ({"event_type": "message.sent", "send": []}, "message.sent", "message.sent without its object send"),
        ({"type": "domain_verified"}, "domain.verified", "domain.verified without its object domain"),
        (
            {"event_type": "message.received", "message": {"message_id": "<1@x>"}},
            "message.received",
            "message.received without message.inbox_id",
        ),
        (
            {"event_type": "message.received.spam", "message": {"inbox_id": "a@b.c", "message_id": 7}},
            "message.received.spam",
            "message.received.spam without message.message_id",
        ),
        (
            {"event_type": "message.received", "message": {"inbox_id": "a@b.c", "message_id": ""}},
            "message.received",
            "message.received without message.message_id",
        ),
    ],
)
def test_an_object_that_is_not_a_known_event_is_unknown_with_the_reason(
    frame: dict[str, Any], event_type: str | None, reason: str
) -> None:
    event = decode(frame | {"event_id": "evt_1"})
    assert event == UnknownEvent(
        event_type=event_type, event_id="evt_1", payload=frame | {"event_id": "evt_1"}, reason=reason
    )
    assert json.loads(event.raw) == event.payload


@pytest.mark.parametrize("data", [None, 7, ["x"], bytearray(b"{}")])
def test_a_value_that_is_not_text_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match=r"str or bytes, not (NoneType|int|list|bytearray)"):
        decode_event(data)


# Lone surrogates and invalid UTF-8


@pytest.mark.parametrize(
    ("escaped", "expected"),
    [
        (r"half an emoji \ud83d", "half an emoji \ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\uD83D\uDE00 \uDBFF", "😀 \ufffd"),
        (r"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (r"\"\ud83d\"\u0000", '"\ufffd"\0'),
    ],
)
def test_a_mail_with_a_lone_surrogate_is_decoded(escaped: str, expected: str) -> None:
    start = '{"event_type":"message.received","message":{"inbox_id":"a","message_id":"b","text":"'
    text = start + escaped + '"}}'
    event = decode_event(text)
    assert isinstance(event, MessageReceivedEvent)
    assert event.message.text == expected
    assert event.raw == text


@pytest.mark.parametrize(
    ("escaped", "expected"),
    [
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\ude00\ude00", "\U0001f600\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\uD83D\uDE00\uDbFf", "\U0001f600\ufffd"),
        (r"\\ud83d\ude00", "\\ud83d\ufffd"),
        (r"\ud83d\\ude00", "\ufffd\\ude00"),
        (r"\\\ud83d\\\\ud83d", "\\\ufffd\\\\ud83d"),
        (r"\ud83d\"\ude00\n", '\ufffd"\ufffd\n'),
        (r"\ud7ff\ud800\ue000", "\ud7ff\ufffd\ue000"),
    ],
)
def test_each_lone_surrogate_is_replaced_and_nothing_else(escaped: str, expected: str) -> None:
    event = decode_event(f'{{"type": "error", "name": "{escaped}"}}')
    assert event == ErrorEvent(name=expected)


def test_bytes_that_are_not_utf8_are_not_repaired() -> None:
    event = decode_event(b'{"type": "error", "name": "\xff\\ud83d"}')
    assert isinstance(event, UnknownEvent)
    assert event.reason.startswith("not JSON: ")


def test_a_string_with_lone_surrogates_is_read_as_if_they_were_escapes() -> None:
    text = '{"event_type":"message.opened","open":{"thread_id":"é\ud83d","inbox_id":"\ud83d\ude00"}}'
    event = decode_event(text)
    assert isinstance(event, events.MessageOpenedEvent)
    assert (event.open.thread_id, event.open.inbox_id) == ("é\ufffd", "😀")
    assert event.raw.encode().decode() == text.replace("\ud83d", r"\ud83d").replace("\ude00", r"\ude00")


def test_an_event_keeps_its_bytes_and_its_strings_keep_no_second_copy() -> None:
    def size_when_new(text: str) -> int:
        return sys.getsizeof(text[:1] + text[1:])

    text = json.dumps({"event_type": "message.received", "message": IDS | {"text": "é👋" * 1000}}, ensure_ascii=False)
    data = text.encode()
    for event in (decode_event(data), decode_event(text)):
        assert isinstance(event, MessageReceivedEvent)
        assert event.message.text is not None
        assert sys.getsizeof(event.message.text) == size_when_new(event.message.text)
        assert sys.getsizeof(event.raw) == size_when_new(text)
    assert sys.getsizeof(text) == size_when_new(text)
    assert attrs.asdict(decode_event(data))["_raw"] is data


def test_bytes_that_are_not_utf8_are_unknown_and_kept_readable() -> None:
    event = decode_event(b'{"type":"event\xff\xc3\xa9"}')
    assert isinstance(event, UnknownEvent)
    assert event.raw == '{"type":"event\\xffé"}'
    assert event.reason.startswith("not JSON: ")


def test_a_confirmation_that_does_not_match_is_unknown_with_its_frame_and_text() -> None:
    event = decode_event(b'{"type":"subscribed","new":1}')
    assert isinstance(event, Subscribed)
    unknown = as_unknown(event, "another one")
    assert unknown == UnknownEvent(
        event_type="subscribed", payload={"type": "subscribed", "new": 1}, reason="another one"
    )
    assert unknown.raw == event.raw


def test_the_last_of_repeated_keys_counts() -> None:
    assert decode_event('{"type":"error","type":"subscribed"}') == Subscribed()


# Identity


def received(event_type: str = "message.received", **changes: Any) -> MessageReceivedEvent:
    return MessageReceivedEvent(event_type=event_type, message=Message(**(IDS | changes)))


def test_a_mail_is_identified_by_inbox_and_message_id_and_not_by_event_id() -> None:
    first = received()
    known = identity(first)
    assert known is not None
    assert is_mail(known)
    assert known.startswith(mail_key("agent@agentmail.to", "<1@example.com>"))
    assert identity(attrs.evolve(first, event_id="evt_2", raw="x", origin="recovered", attempt=2)) == identity(first)
    others = [
        received("message.received.spam"),
        received(inbox_id="b@agentmail.to"),
        received(message_id="<2@x>"),
        received("message.received.new"),
        received("message.received.newer"),
    ]
    assert len({identity(event) for event in [first, *others]}) == 6


def test_mails_with_one_message_id_differ_by_the_second_of_their_time() -> None:
    times = [
        NOON,
        NOON + timedelta(microseconds=999_999),
        NOON + timedelta(seconds=1),
        datetime.min.replace(tzinfo=UTC),
    ]
    known = [identity(received(timestamp=time)) for time in [*times, datetime.max.replace(tzinfo=UTC), None]]
    assert known[0] == known[1]
    assert len(set(known)) == 5
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
    assert identity(received(timestamp=elsewhere)) == known[0]
    assert identity(received(timestamp=NOON, created_at=NOON)) == known[0]


def test_other_events_are_identified_by_their_event_id() -> None:
    sent = MessageSentEvent(event_id="evt_1", send=Send(), raw="x")
    new = decode({"type": "event", "event_type": "message.new", "event_id": "evt_1"})
    assert identity(sent) == identity(new)
    assert identity(attrs.evolve(sent, event_id="evt_2")) != identity(sent)
    known = identity(sent)
    assert known is not None
    assert not is_mail(known)


def test_without_an_event_id_the_text_identifies_at_a_fixed_cost() -> None:
    frame = {"event_type": "message.sent", "send": {"message_id": "x" * 100_000}}
    first = identity(decode(frame))
    assert first is not None
    assert len(first) == 16
    assert identity(decode(frame)) == first
    assert identity(decode(frame | {"event_id": ""})) not in (first, None)
    assert identity(decode_event("no JSON")) == identity(decode_event(b"no JSON"))
    assert identity(decode_event("né JSON")) == identity(decode_event("né JSON".encode()))
    assert identity(UnknownEvent(raw="\ud83d")) != identity(UnknownEvent(raw="\ud83e"))


def test_a_long_message_id_or_event_id_identifies_at_a_fixed_cost() -> None:
    long = [f"{'x' * 100_000}{end}" for end in ("1", "2", "\ud83d")]
    mails = [identity(received(message_id=text)) for text in long]
    others = [identity(MessageSentEvent(event_id=text, send=Send())) for text in long]
    known = {known for known in [*mails, *others] if known is not None}
    assert len(known) == 6
    assert [is_mail(key) for key in [*mails, *others] if key is not None] == [True] * 3 + [False] * 3
    assert {len(key) for key in known} == {16, 17}
    assert identity(received(message_id=long[0], text="other")) == mails[0]


def test_events_that_say_something_new_every_time_have_no_identity() -> None:
    for event in (
        decode({"type": "subscribed"}),
        decode({"type": "error", "name": "rate_limit"}),
        Disconnected(reason="x"),
        CaughtUp(since=NOON),
        RecoveryFailed(since=NOON, reason="x"),
        MessageSentEvent(send=Send()),
    ):
        assert identity(event) is None


# Encoding


def test_a_subscription_without_filters_is_sent_without_filters() -> None:
    assert encode_subscribe(Subscribe()) == '{"type":"subscribe"}'


def test_a_subscription_is_sent_with_its_filters() -> None:
    subscribe = Subscribe(inbox_ids=["é@agentmail.to"], event_types=["message.received", "message.sent"])
    assert json.loads(encode_subscribe(subscribe)) == {
        "type": "subscribe",
        "inbox_ids": ["é@agentmail.to"],
        "event_types": ["message.received", "message.sent"],
    }
    assert json.loads(encode_subscribe(Subscribe(pod_ids=["pod_1"]))) == {
        "type": "subscribe",
        "pod_ids": ["pod_1"],
    }


def test_an_event_is_encoded_as_agentmail_sends_it() -> None:
    event = MessageReceivedEvent(
        event_id="evt_1",
        message=Message(
            **IDS,
            from_="Jane <jane@example.com>",
            to=("a@x.com",),
            timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        ),
        raw="stale",
        origin="recovered",
    )
    frame = json.loads(encode_event(event))
    assert {name: value for name, value in frame.items() if name != "message"} == {
        "type": "event",
        "event_type": "message.received",
        "event_id": "evt_1",
    }
    assert frame["message"]["from"] == "Jane <jane@example.com>"
    assert "from_" not in frame["message"]
    assert "subject" not in frame["message"]
    assert frame["message"]["to"] == ["a@x.com"]
    assert frame["message"]["timestamp"] == "2026-01-02T00:00:00Z"


def test_control_frames_are_encoded_with_their_own_type() -> None:
    assert json.loads(encode_event(Subscribed(pod_ids=("pod_1",)))) == {
        "type": "subscribed",
        "pod_ids": ["pod_1"],
    }
    error = {"type": "error", "name": "forbidden", "message": "no"}
    assert json.loads(encode_event(ErrorEvent(name="forbidden", message="no"))) == error


def test_an_encoded_event_can_be_sent_as_utf8_whatever_its_strings() -> None:
    event = MessageReceivedEvent(message=Message(**IDS, text="é \ud83d"))
    written = encode_event(event)
    assert "é" in written
    written.encode()
    assert decode_event(written) == MessageReceivedEvent(message=Message(**IDS, text="é \ufffd"))


def test_an_unknown_event_is_encoded_as_its_payload() -> None:
    event = decode({"type": "event", "event_type": "message.new", "new": {"text": None}})
    assert json.loads(encode_event(event)) == event.payload
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Disconnected(reason="x"), "Disconnected has no wire form: .* cut the connection instead"),
        (CaughtUp(since=NOON), "CaughtUp has no wire form: the client makes it"),
        (RecoveryFailed(since=NOON, reason="x"), "RecoveryFailed has no wire form: the client makes it"),
        (UnknownEvent(raw="{", reason="not JSON"), "without a payload has no wire form"),
        (UnknownEvent(payload={"a": float("nan")}), "no wire form: "),
        (UnknownEvent(payload={"a": object()}), "not JSON serializable"),
        (received(timestamp=datetime(2026, 1, 2)), "the time timestamp has no offset"),
        (UnknownEvent(payload=datetime(2026, 1, 2)), "not JSON serializable"),
        ({"type": "subscribed"}, "encode_event takes an event, not dict"),
        (MessageReceivedEvent, "encode_event takes an event, not type"),
        (Message(**IDS), "encode_event takes an event, not Message"),
    ],
)
def test_an_event_without_a_wire_form_is_a_type_error_with_the_reason(event: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encode_event(event)


def test_encoding_keeps_the_offset_of_a_time() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert '"2026-01-02T03:04:05.000006+05:30"' in encode_event(received(timestamp=time))


@pytest.mark.parametrize("field", ["inbox_id", "message_id"])
def test_a_very_long_id_takes_no_more_memory_than_a_short_one(field: str) -> None:
    def received(value: str) -> events.Event:
        ids = {"inbox_id": "agent@agentmail.to", "message_id": "<a@b>", field: value}
        return decode_event(json.dumps({"type": "event", "event_type": "message.received", "message": ids}))

    assert identity(received("x" * 300)) == identity(received("x" * 300))
    assert identity(received("x" * 300)) != identity(received("x" * 301))
    assert len(identity(received("x" * 300)) or b"") == len(identity(received("x")) or b"") == 17


def test_a_very_long_event_id_is_remembered_by_its_hash() -> None:
    def bounced(event_id: str) -> events.Event:
        frame = {"type": "event", "event_type": "message.bounced", "event_id": event_id, "bounce": {}}
        return decode_event(json.dumps(frame))

    assert identity(bounced("x" * 300)) == identity(bounced("x" * 300))
    assert identity(bounced("x" * 300)) != identity(bounced("x" * 301))
    assert len(identity(bounced("x" * 300)) or b"") == len(identity(bounced("x")) or b"") == 16


# Answers of the REST API as the raw text of an event


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


WRITTEN: list[str] = [
    f'{{"a":{nested(300)},"b":[],"c":{{}},"d":[{{"e":[1,2.5,null,true,"ü\\n"]}},[]],"":{{"\\"":0}}}}',
    '{"a":' * 300 + "{}" + "}" * 300,
    "[[" + nested(300) + ",[],1]," + nested(300) + "]",
]


@pytest.mark.parametrize("value", WRITTEN, ids=["mixed", "objects", "lists"])
def test_json_deeper_than_orjson_writes_is_encoded_unchanged(value: str) -> None:
    item = parse_object(f'{{"inbox_id":"a","message_id":"m","new_field":{value}}}'.encode())
    assert item is not None
    event = recovered_event(item, "message.received", "recovered")
    assert event is not None
    assert event.raw == (
        '{"type":"event","event_type":"message.received",'
        f'"message":{{"inbox_id":"a","message_id":"m","new_field":{value}}}}}'
    )
    assert decode_event(event.raw) == event


@pytest.mark.parametrize("levels", range(1_015, 1_030))
def test_json_of_any_depth_is_either_a_mail_or_refused(levels: int) -> None:
    item = parse_object(f'{{"inbox_id":"a","message_id":"m","new_field":{nested(levels)}}}'.encode())
    if item is None:
        assert levels > 1_020  # deeper than orjson reads
        return
    event = recovered_event(item, "message.received", "recovered")
    assert event is None or decode_event(event.raw) == event


@pytest.mark.parametrize("levels", [1, 253, 254, 255, 300, 1_000, 1_021, 1_022, 1_023, 1_024, 1_025])
def test_the_fetched_body_is_put_into_a_pushed_mail_with_any_other_fields(levels: int) -> None:
    pushed = decode_event(
        '{"type":"event","event_type":"message.received","event_id":"e","new_field":'
        f'{nested(min(levels, 1_000))},"message":{{"inbox_id":"a","message_id":"m"}}}}'
    )
    assert isinstance(pushed, MessageReceivedEvent)
    message = parse_object(f'{{"message_id":"m","text":"Hello","new_field":{nested(levels)}}}'.encode())
    if message is None:
        return
    whole = with_message(pushed, message)
    if levels <= 1_000:
        assert whole is not None
    if whole is not None:
        assert whole.message.text == "Hello"
        assert decode_event(whole.raw) == whole
