"""What has been delivered is not delivered again; and what was forgotten is so old that no listing gives it again."""

import math
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_agentmail import Disconnected, ErrorEvent, Event, Message, MessageReceivedEvent, Subscribed, UnknownEvent
from trio_agentmail import _delivered as delivered_module
from trio_agentmail._codec import mail_key
from trio_agentmail._delivered import RECOVERED, Delivered
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail.events import MessageSentEvent, Send

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=300)

START = datetime(2025, 1, 1, tzinfo=UTC)


def live(
    message_id: str = "m", kind: str = "", created: float | None = 0.0, event_id: str | None = None
) -> MessageReceivedEvent:
    created_at = None if created is None else START + timedelta(seconds=created)
    return MessageReceivedEvent(
        event_type="message.received" + kind,
        event_id=event_id,
        message=Message(inbox_id="a@b", message_id=message_id, created_at=created_at),
    )


def recovered(message_id: str = "m", kind: str = "", created: float | None = 0.0) -> MessageReceivedEvent:
    created_at = None if created is None else START + timedelta(seconds=created)
    return MessageReceivedEvent(
        event_type="message.received" + kind,
        message=Message(inbox_id="a@b", message_id=message_id, created_at=created_at),
        origin=RECOVERED,
    )


def other(event_id: str | None, raw: str = "") -> UnknownEvent:
    return UnknownEvent(event_type="new", event_id=event_id, reason="", raw=raw)


@pytest.mark.parametrize(
    ("first", "second", "is_new"),
    [
        (live(), live(), False),
        (live(event_id="1"), live(event_id="2"), False),
        (live("m"), live("n"), True),
        # Pushed as spam and, released, as mail: two events, which say different things.
        (live(), live(kind=".spam"), True),
        (live(kind=".spam"), live(), True),
        # A listing knows a mail and no event: it is one with all of them, whichever comes first.
        (live(), recovered(), False),
        (live(kind=".spam"), recovered(), False),
        (live(), recovered(kind=".spam"), False),
        (recovered(), live(), False),
        (recovered(), live(kind=".spam"), False),
        (recovered(kind=".spam"), live(), False),
        (recovered(), recovered(), False),
        (recovered(), recovered(kind=".spam"), False),
        (recovered("m"), recovered("n"), True),
        (other("1"), other("1"), False),
        (other("1"), other("2"), True),
        (other("1"), MessageSentEvent(event_id="1", send=Send()), False),
        (other(None, "text"), other(None, "text"), False),
        (other(None, "text"), other(None, "another"), True),
        (other(None), other(None), True),
        (live(event_id="1"), other("1"), True),
        (Subscribed(), Subscribed(), True),
        (ErrorEvent(), ErrorEvent(), True),
    ],
)
def test_what_is_the_same_is_delivered_once(first: Event, second: Event, is_new: bool) -> None:
    delivered = Delivered()
    assert delivered.claim(first)
    assert delivered.claim(second) is is_new


def test_a_third_kind_of_event_of_one_mail_is_told_from_both_others() -> None:
    delivered = Delivered()
    assert delivered.claim(live())
    assert delivered.claim(live(kind=".spam"))
    assert not delivered.claim(live())
    assert not delivered.claim(live(kind=".spam"))
    assert delivered.claim(live(kind=".blocked"))


def test_what_is_given_back_may_come_again() -> None:
    events: list[Event] = [live(), recovered(), other("1")]
    for event in events:
        delivered = Delivered()
        assert delivered.claim(event)
        delivered.give_back(event)
        assert delivered.claim(event)
        assert not delivered.claim(event)


def test_giving_back_one_event_of_a_mail_leaves_the_other_delivered() -> None:
    delivered = Delivered()
    delivered.claim(live())
    delivered.claim(live(kind=".spam"))
    delivered.give_back(live())
    assert not delivered.claim(recovered())
    assert not delivered.claim(live(kind=".spam"))
    assert delivered.claim(live())


def test_giving_back_what_was_never_claimed_or_has_no_identity_is_nothing() -> None:
    delivered = Delivered()
    delivered.give_back(live())
    delivered.give_back(other("1"))
    delivered.give_back(Disconnected(reason="", code=1006, last_received=START))
    delivered.claim(live())
    delivered.give_back(recovered())
    delivered.give_back(live(kind=".spam"))
    assert not delivered.claim(live())


def test_it_is_known_whether_a_mail_was_delivered_as_whatever_event() -> None:
    delivered = Delivered()
    assert not delivered.has_mail("a@b", "m")
    delivered.claim(live(kind=".spam"))
    assert delivered.has_mail("a@b", "m")
    assert not delivered.has_mail("a@b", "n")
    assert not delivered.has_mail("c@d", "m")
    delivered.give_back(live(kind=".spam"))
    assert not delivered.has_mail("a@b", "m")
    delivered.claim(recovered())
    assert delivered.has_mail("a@b", "m")


# What a journal knows


def test_what_a_journal_knows_is_not_new() -> None:
    delivered = Delivered()
    kept = [
        KeptIdentity(kind="message.received", key=mail_key("a@b", "m"), created=START.timestamp()),
        KeptIdentity(kind="message.received.spam", key=mail_key("a@b", "m"), created=None),
        KeptIdentity(kind="message.received.spam", key=mail_key("a@b", "n"), created=None),
        KeptIdentity(kind="", key="1", created=None),
    ]
    delivered.load(kept, START.timestamp() - 1)
    assert delivered.forgotten_until == START.timestamp() - 1
    # The journal does not say how a mail came, pushed or found: nobody wants it again, as whatever event.
    known = [live(), live(kind=".spam"), live(kind=".blocked"), recovered(), live("n"), recovered("n")]
    events: list[Event] = [*known, other("1")]
    for event in events:
        assert not delivered.claim(event)
    assert delivered.claim(live("o"))
    assert delivered.claim(other("2"))


def test_a_journal_that_knows_nothing_changes_nothing() -> None:
    delivered = Delivered()
    delivered.load((), -math.inf)
    assert delivered.forgotten_until == -math.inf
    assert delivered.claim(live())


# Forgetting


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered_module, "REMEMBERED", 3)


def test_memory_is_bounded_and_the_oldest_is_forgotten(small_memory: None) -> None:
    delivered = Delivered()
    for number in range(4):
        assert delivered.claim(live(str(number), created=number))
        assert delivered.claim(other(str(number)))
    assert delivered.claim(other("0"))
    assert not delivered.claim(other("2"))
    assert not delivered.has_mail("a@b", "0")
    assert delivered.has_mail("a@b", "1")


def test_it_says_until_when_mail_may_have_been_forgotten(small_memory: None) -> None:
    delivered = Delivered()
    for number in range(3):
        delivered.claim(live(str(number), created=number))
    assert delivered.forgotten_until == -math.inf
    delivered.claim(live("3", created=3))
    assert delivered.forgotten_until == START.timestamp()


def test_what_came_late_and_is_forgotten_late_opens_nothing_again(small_memory: None) -> None:
    delivered = Delivered()
    for number in [9, 1, 2, 3, 4]:
        delivered.claim(live(str(number), created=number))
    assert delivered.forgotten_until == START.timestamp() + 9


def test_a_mail_that_does_not_say_when_it_was_created_is_forgotten_and_says_nothing(small_memory: None) -> None:
    delivered = Delivered()
    for number in range(4):
        delivered.claim(live(str(number), created=None))
    assert not delivered.has_mail("a@b", "0")
    assert delivered.forgotten_until == -math.inf


def test_a_time_that_is_known_stays_known_when_the_mail_comes_again_without(small_memory: None) -> None:
    delivered = Delivered()
    delivered.claim(live("0", created=5))
    delivered.claim(live("0", ".spam", created=None))
    for number in range(1, 4):
        delivered.claim(live(str(number), created=None))
    assert delivered.forgotten_until == START.timestamp() + 5


def test_a_journal_that_knows_too_much_is_remembered_as_far_as_there_is_room(small_memory: None) -> None:
    delivered = Delivered()
    mails = [KeptIdentity(kind="message.received", key=str(n), created=START.timestamp() + n) for n in range(5)]
    others = [KeptIdentity(kind="", key=str(n), created=None) for n in range(5)]
    delivered.load([*mails, *others], START.timestamp() - 9)
    assert delivered.forgotten_until == START.timestamp() + 1
    assert delivered.claim(other("0"))
    assert not delivered.claim(other("4"))


# A model: the list of what was delivered, in full

Step: TypeAlias = tuple[str, int, str, bool]

steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "claim", "give back"]),
        st.integers(0, 5),
        st.sampled_from(["", ".spam"]),
        st.booleans(),
    ),
    max_size=40,
)


def event_of(step: Step) -> MessageReceivedEvent:
    _, number, kind, is_recovered = step
    return (recovered if is_recovered else live)(str(number), kind, created=number)


@repeatable
@given(steps)
def test_it_decides_as_one_would_who_looks_through_all_that_was_delivered(steps: list[Step]) -> None:
    log: list[MessageReceivedEvent] = []
    delivered = Delivered()
    for step in steps:
        event = event_of(step)
        same_mail = [e for e in log if e.message == event.message]
        twins = [e for e in same_mail if e.origin == event.origin and (e.origin == RECOVERED or e == event)]
        if step[0] == "claim":
            # An event equals another in its type and its mail; where it comes from is not compared.
            known = any(RECOVERED in (e.origin, event.origin) or e == event for e in same_mail)
            assert delivered.claim(event) is not known
            if not known:
                log.append(event)
        elif twins:
            delivered.give_back(event)
            log.remove(twins[0])
        for number in range(6):
            assert delivered.has_mail("a@b", str(number)) is any(e.message.message_id == str(number) for e in log)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
def test_no_mail_comes_twice_from_listings_however_small_the_memory(mails: list[tuple[int, bool]]) -> None:
    # Whoever lists leaves alone what was created up to `forgotten_until`.
    delivered = Delivered()
    handed_over: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivered_module, "REMEMBERED", 4)
        for number, is_recovered in mails:
            event = (recovered if is_recovered else live)(str(number), created=number)
            created = event.message.created_at
            assert created is not None
            if is_recovered and created.timestamp() <= delivered.forgotten_until:
                continue
            if not is_recovered and number in handed_over:
                continue  # AgentMail pushes once
            if delivered.claim(event):
                handed_over.append(number)
    assert len(handed_over) == len(set(handed_over))
