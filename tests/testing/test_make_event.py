"""Any event that AgentMail documents is made with one call, and comes as it was made."""

from datetime import UTC, datetime
from typing import Any

import pytest
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import (
    CalendarEventStartingEvent,
    CaughtUp,
    Disconnected,
    ErrorEvent,
    MessageBouncedEvent,
    MessageReceivedEvent,
    MessageSecurityCompletedEvent,
    MessageSecurityReviewEvent,
    RecoveryFailed,
    Subscribe,
    Subscribed,
    UnknownEvent,
    decode_event,
)
from trio_agentmail.events import Bounce
from trio_agentmail.testing import FakeAgentMail, encode_event, make_event
from trio_agentmail.testing._make_event import EVENT_TYPES

INBOX = "agent@agentmail.to"


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_type_can_be_made_and_decoded(event_type: str) -> None:
    event = make_event(event_type)
    assert decode_event(encode_event(event)) == event
    assert not isinstance(event, UnknownEvent)
    assert make_event(event_type) != event  # the ids are new ones


def test_there_are_all_that_are_documented() -> None:
    assert len(EVENT_TYPES) == 20


async def test_every_event_of_an_inbox_comes_to_those_who_listen_to_that(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    subscribe = Subscribe(inbox_ids=["a", INBOX], event_types=list(EVENT_TYPES))
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        await events.receive()
        for event_type in EVENT_TYPES:
            if event_type != "domain.verified":
                event = make_event(event_type, inbox_id="a")
                await fake.emit(event)
                assert await events.receive() == event


def test_what_is_given_is_in_the_event_or_in_its_payload() -> None:
    bounced = make_event(MessageBouncedEvent, inbox_id=INBOX, event_id="1", type="Transient")
    assert (bounced.event_id, bounced.bounce.inbox_id, bounced.bounce.type) == ("1", INBOX, "Transient")
    assert bounced.bounce.sub_type == "General"
    whole = make_event(MessageBouncedEvent, bounce=Bounce(message_id="<1>"))
    assert whole.bounce == Bounce(message_id="<1>")
    time = datetime(2026, 2, 3, tzinfo=UTC)
    starting = make_event(CalendarEventStartingEvent, inbox_id=INBOX, scheduled_at=time, title="Lunch")
    assert (starting.inbox_id, starting.scheduled_at, starting.calendar_event.title) == (INBOX, time, "Lunch")
    spam = make_event(MessageReceivedEvent, event_type="message.received.spam", subject="Win!")
    assert (spam.message.labels, spam.message.subject) == (("received", "spam"), "Win!")


def test_agent_armor_has_the_verdict_of_its_event() -> None:
    clear, review = make_event(MessageSecurityCompletedEvent), make_event(MessageSecurityReviewEvent)
    assert clear.message.agent_armor is not None
    assert review.message.agent_armor is not None
    assert (clear.message.agent_armor.verdict, review.message.agent_armor.verdict) == ("clear", "review")


def test_frames_that_tell_of_no_event_can_be_made_too() -> None:
    assert make_event(ErrorEvent, name="rate_limit").name == "rate_limit"
    assert make_event(ErrorEvent).message
    assert make_event(Subscribed, inbox_ids=("a",)).inbox_ids == ("a",)
    assert make_event(UnknownEvent, payload={"type": "new"}).payload == {"type": "new"}


def test_a_slip_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no event type 'message\.recieved'; choose one of message\.received, "):
        make_event("message.recieved")
    with pytest.raises(TypeError, match="neither MessageBouncedEvent nor Bounce has a field reason"):
        make_event(MessageBouncedEvent, reason="?")
    with pytest.raises(TypeError):
        make_event(MessageBouncedEvent, bounce=Bounce(), type="?")
    with pytest.raises(TypeError):
        make_event(ErrorEvent, reason="?")
    with pytest.raises(ValueError, match="the event_type of a received mail is one of"):
        make_event(MessageReceivedEvent, event_type="message.bounced")
    wrong: Any
    for wrong in (int, 5, FakeAgentMail, None):
        with pytest.raises(TypeError, match=r"takes a class of trio_agentmail\.events or an event type, not"):
            make_event(wrong)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (Disconnected, {}),
        (Disconnected, {"reason": "cut"}),
        (CaughtUp, {"since": datetime.now(UTC)}),
        (RecoveryFailed, {"since": datetime.now(UTC), "reason": "gone"}),
        (UnknownEvent, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_agentmail_does_not_send_is_refused(cls: type[Disconnected], fields: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="no wire form"):
        make_event(cls, **fields)  # type: ignore[call-overload]
