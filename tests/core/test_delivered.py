"""No event is delivered twice: an identity is forgotten only when no listing can bring its mail back."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_agentmail import Disconnected, ErrorEvent, Event, Message, MessageReceivedEvent, Subscribed, UnknownEvent
from trio_agentmail import _delivered as delivered_module
from trio_agentmail import _identities as identities_module
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import LISTED, PLAUSIBLE, RECOVERED, identity, is_same_push, push_record
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail.events import MessageSentEvent, Send

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=300)

START = datetime(2025, 1, 1, tzinfo=UTC)
NOW = START.timestamp()
KEEP = 800.0
"""A generation spans a hundred seconds."""


def nothing_delivered(now: Callable[[], float] = lambda: NOW) -> Delivered:
    return Delivered(now, KEEP)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def live(
    message_id: str = "m",
    kind: str = "",
    created: float | None = 0.0,
    event_id: str | None = None,
    timestamp: float | None = None,
) -> MessageReceivedEvent:
    message = Message(inbox_id="a@b", message_id=message_id, created_at=at(created), timestamp=at(timestamp))
    return MessageReceivedEvent(event_type="message.received" + kind, event_id=event_id, message=message)


def recovered(
    message_id: str = "m", kind: str = "", created: float | None = 0.0, timestamp: float | None = None
) -> MessageReceivedEvent:
    return attrs.evolve(live(message_id, kind, created, timestamp=timestamp), origin=RECOVERED)


def kept(*events: Event, now: float = NOW) -> list[KeptIdentity]:
    """Return what a journal keeps of events until its next start."""
    return [KeptIdentity.of(attrs.evolve(event, raw="{}"), now) for event in events]  # type: ignore[arg-type]


def other(event_id: str | None, raw: str = "") -> UnknownEvent:
    return UnknownEvent(event_type="new", event_id=event_id, reason="", raw=raw)


@pytest.mark.parametrize(
    ("first", "second", "is_new"),
    [
        (live(), live(), False),
        (live(event_id="1"), live(event_id="2"), False),
        (live(event_id="1", timestamp=0), live(event_id="1", timestamp=0), False),
        (live("m"), live("n"), True),
        # Pushed as spam, and pushed as mail after its release: two events.
        (live(), live(kind=".spam"), True),
        (live(kind=".spam"), live(), True),
        # A listing has mails and not events: a listed mail equals every push of it, whichever comes first.
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
def test_the_same_event_is_delivered_once(first: Event, second: Event, is_new: bool) -> None:
    delivered = nothing_delivered()
    assert delivered.claim(first)
    assert delivered.claim(second) is is_new


def test_a_third_type_of_event_for_one_mail_differs_from_both_others() -> None:
    delivered = nothing_delivered()
    assert delivered.claim(live())
    assert delivered.claim(live(kind=".spam"))
    assert not delivered.claim(live())
    assert not delivered.claim(live(kind=".spam"))
    assert delivered.claim(live(kind=".blocked"))


def test_an_event_that_was_given_back_can_be_claimed_again() -> None:
    events: list[Event] = [live(), recovered(), other("1")]
    for event in events:
        delivered = nothing_delivered()
        assert delivered.claim(event)
        delivered.give_back(event)
        assert delivered.claim(event)
        assert not delivered.claim(event)


def test_giving_back_one_event_of_a_mail_leaves_the_other_delivered() -> None:
    delivered = nothing_delivered()
    delivered.claim(live())
    delivered.claim(live(kind=".spam"))
    delivered.give_back(live())
    assert not delivered.claim(recovered())
    assert not delivered.claim(live(kind=".spam"))
    assert delivered.claim(live())


def test_giving_back_an_event_that_was_not_claimed_or_has_no_identity_does_nothing() -> None:
    delivered = nothing_delivered()
    delivered.give_back(live())
    delivered.give_back(other("1"))
    delivered.give_back(Disconnected(reason="", code=1006, last_received=START))
    delivered.claim(live())
    delivered.give_back(recovered())
    delivered.give_back(live(kind=".spam"))
    assert not delivered.claim(live())


def test_has_mail_finds_a_mail_delivered_as_any_event() -> None:
    delivered = nothing_delivered()
    assert not delivered.has_mail("a@b", "m")
    delivered.claim(live(kind=".spam"))
    assert delivered.has_mail("a@b", "m")
    assert not delivered.has_mail("a@b", "n")
    assert not delivered.has_mail("c@d", "m")
    delivered.give_back(live(kind=".spam"))
    assert not delivered.has_mail("a@b", "m")
    delivered.claim(recovered())
    assert delivered.has_mail("a@b", "m")


# Mails that share a Message-ID


@pytest.mark.parametrize(
    ("first", "second", "is_new"),
    [
        (live(event_id="1", timestamp=0), live(event_id="2", timestamp=1), True),
        (live(event_id="1", timestamp=0), live(event_id="2", timestamp=-1), True),
        (live(event_id="1", timestamp=0), live(event_id="2", timestamp=-86_400 * 20), True),
        # Less than a second apart: the same mail, pushed twice. Its time may vary by that much.
        (live(event_id="1", timestamp=0), live(event_id="2", timestamp=0), False),
        (live(event_id="1", timestamp=0), live(event_id="2", timestamp=0.999), False),
        (live(event_id="1", timestamp=0.5), live(event_id="2", timestamp=-0.499), False),
        # The same event_id: the same event, at any time.
        (live(event_id="1", timestamp=0), live(event_id="1", timestamp=100), False),
        # Without an event_id or a timestamp, the two cannot be distinguished.
        (live(timestamp=0), live(event_id="2", timestamp=100), False),
        (live(event_id="1", timestamp=0), live(timestamp=100), False),
        (live(event_id="", timestamp=0), live(event_id="2", timestamp=100), False),
        (live(event_id="1"), live(event_id="2", timestamp=100), False),
        (live(event_id="1", timestamp=0), live(event_id="2"), False),
        # A listed mail never is a second mail.
        (live(event_id="1", timestamp=0), recovered(timestamp=100), False),
        (recovered(timestamp=0), live(event_id="2", timestamp=100), False),
        (recovered(timestamp=0), recovered(timestamp=100), False),
        # Another event_type is another event at any time. All unknown event_types count as one.
        (live(event_id="1", timestamp=0), live(kind=".spam", event_id="2", timestamp=0), True),
        (live(kind=".new", event_id="1", timestamp=0), live(kind=".newer", event_id="2", timestamp=0), False),
        (live(kind=".new", event_id="1", timestamp=0), live(event_id="1", timestamp=0), True),
    ],
)
def test_two_pushes_of_one_message_id_are_two_mails_if_a_second_is_between_them(
    first: MessageReceivedEvent, second: MessageReceivedEvent, is_new: bool
) -> None:
    delivered = nothing_delivered()
    assert delivered.claim(first)
    assert delivered.claim(second) is is_new
    assert is_same_push(push_record(first), push_record(second)) is not is_new
    delivered = nothing_delivered()
    delivered.load(kept(first))
    assert delivered.claim(second) is is_new


def test_each_of_many_mails_with_one_message_id_is_delivered_once() -> None:
    delivered = nothing_delivered()
    mails = [live(event_id=str(number), timestamp=number) for number in range(10)]
    assert all(delivered.claim(mail) for mail in mails)
    assert not any(delivered.claim(mail) for mail in mails)
    assert len(delivered) == 1
    delivered.give_back(mails[4])
    assert [delivered.claim(mail) for mail in mails] == [number == 4 for number in range(10)]
    for mail in mails:
        delivered.give_back(mail)
    assert len(delivered) == 0


def test_the_mails_remembered_for_one_message_id_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    # A sender chooses the Message-ID, and must not be able to slow this down.
    monkeypatch.setattr(delivered_module, "MAX_PUSHES", 3)
    for created in (0.0, None):
        delivered = nothing_delivered()
        mails = [live(event_id=str(number), timestamp=number, created=created) for number in range(5)]
        assert all(delivered.claim(mail) for mail in mails)
        assert [delivered.claim(mail) for mail in mails[2:]] == [False] * 3
        assert not delivered.claim(recovered())
        assert delivered.claim(mails[0])


def test_push_records_fit_into_sixty_bits_and_contain_the_event_type() -> None:
    records = [
        push_record(live(kind=kind, event_id=f"event {number}", timestamp=number * 1e6))
        for kind in ("", ".spam", ".blocked", ".unauthenticated", ".new")
        for number in range(-50, 50)
    ]
    assert all(LISTED < record < 2**60 for record in records)
    assert len(set(records)) == len(records)
    assert len({record >> 57 for record in records}) == 5
    assert push_record(recovered()) == push_record(recovered(kind=".spam", timestamp=5)) == LISTED


# Identities from a journal


def test_events_in_the_journal_are_not_new() -> None:
    delivered = nothing_delivered()
    delivered.load(kept(live(), live("n", ".spam"), recovered("o"), live("p", created=None), other("1")))
    known: list[Event] = [live(), recovered(), live("n", ".spam"), recovered("n"), recovered("o"), live("o")]
    for event in [*known, live("o", ".spam"), live("p"), recovered("p"), other("1")]:
        assert not delivered.claim(event)
    assert delivered.claim(live("q"))
    assert delivered.claim(other("2"))
    assert (delivered.floor, delivered.ran_out_until) == (-math.inf, -math.inf)


def test_a_journal_keeps_the_event_types_with_which_a_mail_was_pushed() -> None:
    # It was handled as spam. After a restart, it is released.
    delivered = nothing_delivered()
    delivered.load(kept(live(kind=".spam")))
    assert not delivered.claim(live(kind=".spam"))
    assert not delivered.claim(recovered())
    assert delivered.claim(live())
    # If both are in the journal, neither is new.
    delivered = nothing_delivered()
    delivered.load(kept(live(kind=".spam"), live()))
    assert len(delivered) == 1
    assert not delivered.claim(live(kind=".spam"))
    assert not delivered.claim(live())
    assert delivered.claim(live(kind=".blocked"))


def test_an_empty_journal_changes_nothing() -> None:
    delivered = nothing_delivered()
    delivered.load(())
    assert (len(delivered), delivered.floor) == (0, -math.inf)
    assert delivered.claim(live())


@pytest.mark.parametrize("created", [None, PLAUSIBLE + 1, 1e9])
def test_journaled_identities_without_a_plausible_time_are_kept_below_the_floor(created: float | None) -> None:
    delivered = nothing_delivered()
    [row] = kept(live(created=created))
    assert row.push < 0
    assert row.recorded_at == NOW
    delivered.load([row])
    delivered.forget(NOW + 1e10)
    assert not delivered.claim(live(created=created))
    assert len(delivered) == 1


def test_journaled_identities_are_loaded_in_batches_and_forgotten_by_their_times() -> None:
    delivered = nothing_delivered()
    for first in range(0, 1000, 100):
        for number in range(first, first + 100):
            delivered.load(kept(live(str(number), created=-5000), now=NOW + number - 1000))
    assert len(delivered) == 1000
    delivered.forget(NOW - 500)
    assert 500 <= len(delivered) <= 602
    assert not delivered.has_mail("a@b", "0")
    assert delivered.has_mail("a@b", "500")


# Forgetting


def test_forgotten_mail_lies_below_the_floor_and_remembered_mail_above() -> None:
    delivered = nothing_delivered()
    for number in (0, 50, 200, 300):
        assert delivered.claim(live(str(number), created=number))
    delivered.forget(NOW + 100)
    assert delivered.floor == NOW + 100
    assert [delivered.has_mail("a@b", str(number)) for number in (0, 50, 200, 300)] == [False, False, True, True]
    assert [delivered.may_be_forgotten(at(seconds)) for seconds in (-1, 50, 99.999, 100)] == [True, True, True, False]
    assert not delivered.may_be_forgotten(None)
    assert delivered.ran_out_until == -math.inf


def test_forgetting_raises_the_floor_even_if_nothing_was_there_and_never_lowers_it() -> None:
    delivered = nothing_delivered()
    delivered.forget(-math.inf)
    assert not delivered.may_be_forgotten(datetime.min.replace(tzinfo=UTC))
    delivered.forget(NOW - 20)
    assert delivered.floor == NOW - 20
    delivered.claim(live("0", created=-10))
    delivered.forget(NOW - 5)
    assert not delivered.has_mail("a@b", "0")
    assert delivered.floor == NOW - 5
    delivered.claim(live("1", created=-500))  # came late
    delivered.forget(NOW - 5)
    assert not delivered.has_mail("a@b", "1")
    assert delivered.floor == NOW - 5
    delivered.floor = NOW + 1  # as a journal says
    delivered.claim(live("2", created=-1))
    delivered.forget(NOW)
    assert not delivered.has_mail("a@b", "2")
    assert delivered.floor == NOW + 1


def test_other_events_are_forgotten_by_their_time_of_delivery() -> None:
    now = NOW
    delivered = nothing_delivered(lambda: now)
    assert delivered.claim(other("1"))
    now += 1000
    assert delivered.claim(other("2"))
    delivered.forget(NOW + 500)
    assert delivered.claim(other("1"))
    assert not delivered.claim(other("2"))
    assert delivered.floor == NOW + 500


def test_mails_with_one_message_id_are_kept_as_long_as_the_youngest() -> None:
    delivered = nothing_delivered()
    assert delivered.claim(live(event_id="1", timestamp=0, created=0))
    assert delivered.claim(live(event_id="2", timestamp=1000, created=1000))
    delivered.forget(NOW + 500)
    # A listing has the second one again, which lies above the floor.
    assert not delivered.may_be_forgotten(at(1000))
    assert not delivered.claim(recovered(created=1000))
    delivered.forget(NOW + 1000.5)
    assert delivered.may_be_forgotten(at(1000))
    assert len(delivered) == 0


def test_a_known_time_is_kept_when_the_mail_arrives_again_without_one() -> None:
    delivered = nothing_delivered()
    delivered.claim(live(created=5))
    delivered.claim(live(kind=".spam", created=None))
    delivered.forget(NOW + 5)
    assert len(delivered) == 1
    delivered.forget(NOW + 10)
    assert len(delivered) == 0


@pytest.mark.parametrize("created", [0.0, -1.0, -99.0, -100.0, -500.0, -1e4, -1e9])
@pytest.mark.parametrize("origin", ["live", RECOVERED])
def test_a_mail_created_long_ago_is_kept_as_long_as_a_new_one(created: float, origin: str) -> None:
    mail = attrs.evolve(live(created=created), origin=origin)
    delivered = nothing_delivered()
    assert delivered.claim(mail)
    delivered.forget(NOW - KEEP)
    delivered.forget(NOW - 100)  # which is a generation more
    assert not delivered.claim(mail)
    delivered.claim(live("new"))
    delivered.forget(NOW)
    assert not delivered.claim(mail)
    delivered.forget(NOW + 0.1)
    assert len(delivered) == 0


def test_a_held_mail_released_late_and_pushed_twice_is_delivered_once() -> None:
    now = NOW
    delivered = nothing_delivered(lambda: now)
    held = live("held", created=5)
    assert delivered.claim(live("another"))
    for _ in range(100):  # nothing comes but what was created when the clock was asked last
        now += KEEP / 8
        delivered.forget(now - KEEP)
    assert delivered.may_be_forgotten(held.message.created_at)
    assert delivered.claim(held)
    for _ in range(7):
        assert not delivered.claim(held)
        assert not delivered.claim(recovered("held", created=5))
        now += KEEP / 8
        delivered.forget(now - KEEP)
    assert not delivered.claim(held)
    now += KEEP / 2
    delivered.forget(now - KEEP)
    assert len(delivered) == 0


@repeatable
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(0, 500), st.floats(0, 1e5)),  # the clock goes on
            st.one_of(st.floats(-150, 150), st.floats(-1e5, 2 * PLAUSIBLE)),  # a mail's time, seen from there
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_the_time_of_an_identity_is_close_to_the_time_of_delivery(
    steps: list[tuple[float, float, bool]],
) -> None:
    now = forgotten_at = NOW
    delivered = nothing_delivered(lambda: now)
    for seconds, created, forgets in steps:
        now += seconds
        if forgets:
            delivered.forget(now - KEEP)
            forgotten_at = now
        created_at = at(now + created - NOW)
        assert created_at is not None
        time = delivered._time_of(created_at)
        assert (time is None) is (created_at.timestamp() > now + PLAUSIBLE)
        assert time is None or time >= max(created_at.timestamp(), forgotten_at - KEEP / 8)
        assert time is None or time <= max(created_at.timestamp(), now)
    assert delivered._time_of(None) is None


def test_the_clock_is_read_rarely() -> None:
    now = NOW
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return now

    delivered = nothing_delivered(clock)
    for number in range(10_000):
        now += 0.1
        assert delivered.claim(live(str(number), created=now - NOW - 3))
    assert 9 <= asked <= 11
    # The clock is read each time for a mail that was not created close to its last reading.
    asked = 0
    for number in range(5):
        assert delivered.claim(live(f"old {number}", created=-1e6))
    assert asked == 5


def test_a_clock_that_was_stepped_back_is_read_again() -> None:
    now = NOW + 1e6
    delivered = nothing_delivered(lambda: now)
    assert delivered.claim(live("1", created=1e6))
    now = NOW
    assert delivered.claim(live("2", created=0))
    assert delivered._time_of(at(-1e5)) == NOW - 100
    assert delivered._time_of(at(PLAUSIBLE + 1)) is None


def test_a_generation_spans_at_least_fifteen_seconds() -> None:
    delivered = Delivered(lambda: NOW, keep=0.0)
    for number in (0, 15, 16):
        delivered.claim(live(str(number), created=number))
    delivered.forget(NOW + 15)
    assert len(delivered) == 3
    delivered.forget(NOW + 15.5)
    assert [delivered.has_mail("a@b", str(number)) for number in (0, 15, 16)] == [False, False, True]


# Running out of room


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit memory to three generations of one identity."""
    monkeypatch.setattr(identities_module, "GENERATION", 1)
    monkeypatch.setattr(identities_module, "MAX_GENERATIONS", 3)


def test_without_room_the_oldest_is_forgotten_and_the_floor_is_raised(small_memory: None) -> None:
    delivered = nothing_delivered()
    for number in range(3):
        assert delivered.claim(live(str(number), created=number - 100))
        assert delivered.claim(other(str(number)))
    assert (delivered.floor, delivered.ran_out_until) == (-math.inf, -math.inf)
    assert delivered.claim(live("3", created=-97))
    assert delivered.claim(other("3"))
    assert delivered.ran_out_until == delivered.floor == math.nextafter(NOW - 100, math.inf)
    assert not delivered.has_mail("a@b", "0")
    assert delivered.has_mail("a@b", "1")
    assert delivered.claim(other("0"))
    assert not delivered.claim(other("2"))
    assert len(delivered) == 6


def test_an_old_identity_that_is_forgotten_late_does_not_lower_the_floor(small_memory: None) -> None:
    delivered = nothing_delivered()
    for number in [-1, -9, -8, -7, -6]:
        delivered.claim(live(str(number), created=number))
    assert delivered.ran_out_until == delivered.floor == math.nextafter(NOW - 1, math.inf)


def test_without_room_the_floor_is_not_raised_beyond_now(small_memory: None) -> None:
    delivered = nothing_delivered()
    for number in range(5):
        delivered.claim(live(str(number), created=PLAUSIBLE - number))
    assert delivered.ran_out_until == delivered.floor == math.nextafter(NOW, math.inf)
    assert delivered.may_be_forgotten(at(0))
    assert not delivered.may_be_forgotten(at(1))


def test_a_journal_with_too_many_identities_is_loaded_as_far_as_there_is_room(small_memory: None) -> None:
    delivered = nothing_delivered()
    delivered.floor = NOW - 1000
    for number in range(5):
        delivered.load(kept(live(str(number), created=-5000), other(str(number)), now=NOW + number - 100))
    assert delivered.ran_out_until == delivered.floor == math.nextafter(NOW - 99, math.inf)
    assert [delivered.has_mail("a@b", str(number)) for number in range(5)] == [False, False, True, True, True]
    assert delivered.claim(other("0"))
    assert not delivered.claim(other("4"))


def test_a_mail_renewed_without_room_is_not_the_one_that_is_forgotten(small_memory: None) -> None:
    delivered = nothing_delivered()
    for number in range(3):
        delivered.claim(live(str(number), created=number - 100))
    delivered.claim(live("0", ".spam", created=-50))
    assert delivered.has_mail("a@b", "0")
    assert not delivered.claim(live("0"))
    assert delivered.floor <= math.nextafter(NOW - 99, math.inf)


# Mails without a time


@pytest.mark.parametrize("created", [None, PLAUSIBLE + 0.1, 1e10])
def test_a_mail_without_a_plausible_time_is_kept_apart_and_leaves_the_floor(created: float | None) -> None:
    delivered = nothing_delivered()
    assert delivered.claim(live(created=created))
    assert delivered.claim(live(kind=".spam", created=created))
    assert delivered.claim(live(kind=".blocked", created=0))
    assert not delivered.claim(recovered(created=created))
    assert delivered.floor == -math.inf
    delivered.forget(NOW + 1e11)
    assert len(delivered) == 1
    assert not delivered.claim(live(created=0))
    for kind in (".spam", "", ".blocked"):
        delivered.give_back(live(kind=kind, created=created))
    assert len(delivered) == 0
    assert delivered.claim(recovered(created=created))
    assert delivered.has_mail("a@b", "m")


def test_a_time_is_plausible_up_to_an_hour_ahead_of_the_clock() -> None:
    now = NOW
    delivered = nothing_delivered(lambda: now)
    delivered.claim(live("1", created=PLAUSIBLE))
    delivered.claim(live("2", created=PLAUSIBLE + 10))
    now += 10
    delivered.claim(live("3", created=PLAUSIBLE + 10))
    delivered.forget(NOW + PLAUSIBLE + 10)
    assert [delivered.has_mail("a@b", number) for number in ("1", "2", "3")] == [True, True, True]
    delivered.forget(NOW + PLAUSIBLE + 10.1)
    assert [delivered.has_mail("a@b", number) for number in ("1", "2", "3")] == [False, True, False]
    delivered.forget(NOW + 1e10)
    assert delivered.has_mail("a@b", "2")


def test_mails_without_a_time_are_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered_module, "MAX_UNDATED", 3)
    delivered = nothing_delivered()
    for number in range(4):
        delivered.claim(live(str(number), created=None))
    delivered.claim(live("dated"))
    assert [delivered.has_mail("a@b", str(number)) for number in range(4)] == [False, True, True, True]
    assert delivered.has_mail("a@b", "dated")
    assert (delivered.floor, delivered.ran_out_until) == (-math.inf, -math.inf)


# A model: the complete list of delivered events

Step: TypeAlias = tuple[str, int, str, bool, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "claim", "give back", "restart"]),
        st.integers(0, 5),
        st.sampled_from(["", ".spam"]),
        st.booleans(),
        st.integers(0, 2),
    ),
    max_size=40,
)


def event_of(step: Step) -> MessageReceivedEvent:
    _, number, kind, is_recovered, push = step
    created = None if number == 5 else number
    if is_recovered:
        return recovered(str(number), kind, created, timestamp=0)
    # The first push has no event_id. The others are seconds apart.
    return live(str(number), kind, created, event_id=str(push) if push else None, timestamp=push * 10)


def is_same_event(one: MessageReceivedEvent, other: MessageReceivedEvent) -> bool:
    if one.message.message_id != other.message.message_id:
        return False
    if RECOVERED in (one.origin, other.origin):
        return True
    if one.event_type != other.event_type:
        return False
    return None in (one.event_id, other.event_id) or one.event_id == other.event_id


@repeatable
@given(steps)
def test_it_decides_as_a_search_of_all_delivered_events_would(steps: list[Step]) -> None:
    log: list[MessageReceivedEvent] = []
    delivered = nothing_delivered()
    for step in steps:
        event = event_of(step)
        twins = [e for e in log if is_same_event(e, event) and push_record(e) == push_record(event)]
        if step[0] == "claim":
            known = any(is_same_event(e, event) for e in log)
            assert delivered.claim(event) is not known
            if not known:
                log.append(event)
        elif step[0] == "restart":
            delivered = nothing_delivered()
            delivered.load(kept(*log))
        else:
            delivered.give_back(event)
            if twins:
                log.remove(twins[0])
        for number in range(6):
            assert delivered.has_mail("a@b", str(number)) is any(e.message.message_id == str(number) for e in log)


Arrival: TypeAlias = tuple[str, int, int, int]

arrivals = st.lists(
    st.tuples(
        st.sampled_from(["push", "list", "list all", "forget", "restart"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(0, 1000),
    ),
    max_size=60,
)


@repeatable
@given(arrivals, st.integers(1, 3), st.integers(1, 4))
def test_no_listed_mail_is_delivered_twice_even_with_little_memory(
    arrivals: list[Arrival], generation: int, generations: int
) -> None:
    # Recovery ignores listed mail below the floor. AgentMail pushes a mail once and lists it from then on.
    pushed: list[tuple[int, int]] = []
    handed_over: list[tuple[int, int]] = []
    journal: list[KeptIdentity] = []

    def mail(number: int, push: int, origin: str) -> MessageReceivedEvent:
        created = number * 100 - 900 + push * 250
        event = live(str(number), "", created, event_id=f"{number} {push}", timestamp=created)
        return attrs.evolve(event, origin=origin)

    def hand_over(number: int, push: int, origin: str) -> None:
        event = mail(number, push, origin)
        if origin == RECOVERED and delivered.may_be_forgotten(event.message.created_at):
            return
        if delivered.claim(event):
            handed_over.append((number, push))
            journal.extend(kept(event))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities_module, "GENERATION", generation)
        patch.setattr(identities_module, "MAX_GENERATIONS", generations)
        delivered = nothing_delivered()
        for what, number, push, time in arrivals:
            if what == "push" and (number, push) not in pushed and (number, push) not in handed_over:
                pushed.append((number, push))
                hand_over(number, push, "live")
            elif what == "list":
                hand_over(number, push, RECOVERED)
            elif what == "list all":
                for known in list(pushed):
                    hand_over(*known, RECOVERED)
            elif what == "forget":
                delivered.forget(NOW - time)
            elif what == "restart":
                floor = delivered.floor
                delivered = nothing_delivered()
                delivered.floor = floor
                delivered.load(sorted(journal, key=lambda known: known.recorded_at))
                assert delivered.floor >= floor
            assert len(handed_over) == len(set(handed_over))


def test_the_identity_of_an_event_is_that_of_its_row_in_a_journal() -> None:
    for event in (live(event_id="1", timestamp=5), recovered(timestamp=5), other("1")):
        [known] = kept(event)
        assert known.key == identity(event)
