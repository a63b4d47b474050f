"""The identity of an event."""

import json
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from tests.helpers.decoding import NOON, decode, received
from trio_agentmail import events
from trio_agentmail._codec import decode_event
from trio_agentmail._identity import identity, is_mail, mail_key
from trio_agentmail.events import CaughtUp, Disconnected, MessageSentEvent, RecoveryFailed, Send, UnknownEvent


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
