"""What a journal decides, with no store and no clock: changes come out, and results and times are passed in."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.helpers.journals import delivered, ids, mail
from trio_agentmail import CaughtUp, Disconnected, Event, Subscribed
from trio_agentmail._identity import identity
from trio_agentmail._journal.delivery_order import ALONE_FOR
from trio_agentmail._journal.entry import Entry, new_record
from trio_agentmail._journal.lifecycle import CRASHED, Decision, Lifecycle, Rules
from trio_agentmail._journal.protocol import nothing_kept
from trio_agentmail._journal.store import (
    Ack,
    Add,
    BeginAttempt,
    Bury,
    Drop,
    Fail,
    Loaded,
    PendingRecord,
    Requeue,
    TakeBackAttempt,
)

NOW = 1000.0
TIME_OF_DAY = 1_800_000_000.0
DELAY = 60.0
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def key(event: Event) -> bytes:
    found = identity(event)
    assert found is not None
    return found


def pending(number: int, attempts: int = 0, *, under_way: bool = False) -> PendingRecord:
    return PendingRecord(number, key(mail(number)), attempts, under_way, "live", "message.received")


def started(*records: PendingRecord, max_attempts: int = 3, max_pending: int = 100) -> Lifecycle:
    """A lifecycle that found these events pending, none of which is a dead letter."""
    lifecycle = Lifecycle(Rules(max_attempts=max_attempts, retry_delay=DELAY, max_pending=max_pending))
    last_id = max((record.id for record in records), default=0)
    assert lifecycle.start(Loaded(nothing_kept(), records, last_id), TIME_OF_DAY) == []
    return lifecycle


def store(decision: Decision | None, result: Any = None, now: float = NOW) -> None:
    """Do with a decision what a journal does, without a store."""
    assert decision is not None
    assert decision.then is not None
    decision.then(result, now)


def record(lifecycle: Lifecycle, event: Event) -> Decision | None:
    return lifecycle.record(event, new_record(event, TIME_OF_DAY))


def entry(lifecycle: Lifecycle, event: Event) -> Entry:
    found = lifecycle.find(key(event))
    assert found is not None
    return found


def take(lifecycle: Lifecycle, now: float = NOW) -> Event | None:
    first = lifecycle.first(now)
    if isinstance(first, Entry) and first.content is None:
        for found in lifecycle.to_read(first):
            raw = mail(found.id).raw.encode()
            lifecycle.add_text(found, raw)
    return None if first is None else lifecycle.take(now)


def take_all(lifecycle: Lifecycle, now: float = NOW) -> list[str | None]:
    events: list[Event] = []
    while (event := take(lifecycle, now)) is not None:
        events.append(event)
    return ids(events)


def added(lifecycle: Lifecycle, numbers: Iterable[int]) -> None:
    for number in numbers:
        store(record(lifecycle, mail(number)), True)


# Recording


def test_ids_ascend_from_the_last_one_that_was_stored() -> None:
    lifecycle = started(pending(1), pending(7))
    changes = [decision.change for number in (8, 9) if (decision := record(lifecycle, mail(number)))]
    assert [change.id for change in changes if isinstance(change, Add)] == [8, 9]


def test_an_event_is_delivered_when_it_is_stored_and_not_before() -> None:
    lifecycle = started()
    decision = record(lifecycle, mail(1))
    assert lifecycle.first(NOW) is None
    assert lifecycle.waiting == 1
    store(decision, True)
    assert take(lifecycle) == mail(1)
    assert lifecycle.waiting == 0


def test_nothing_overtakes_an_event_that_is_not_stored() -> None:
    lifecycle = started()
    first, second = record(lifecycle, mail(1)), record(lifecycle, mail(2))
    lifecycle.add_notice(Subscribed())
    store(second, True)
    assert take(lifecycle) is None
    store(first, True)
    assert take_all(lifecycle) == ["event 1", "event 2", "Subscribed"]


def test_a_pending_event_is_not_recorded_twice() -> None:
    lifecycle = started(pending(1))
    assert record(lifecycle, mail(1)) is None
    assert lifecycle.pending == 1


def test_an_event_that_the_store_knows_is_not_delivered() -> None:
    lifecycle = started()
    store(record(lifecycle, mail(1)), False)
    assert take(lifecycle) is None
    assert (lifecycle.pending, lifecycle.waiting) == (0, 0)


def test_it_is_full_at_max_pending_until_an_event_is_handled() -> None:
    lifecycle = started(pending(1), max_pending=2)
    assert not lifecycle.is_full
    added(lifecycle, [2])
    assert lifecycle.is_full
    decision = lifecycle.ack(entry(lifecycle, mail(1)))
    assert lifecycle.is_full  # it is not durable yet
    store(decision)
    assert not lifecycle.is_full


def test_only_the_most_common_types_are_named() -> None:
    lifecycle = started()
    added(lifecycle, range(3))
    store(record(lifecycle, delivered(1)), True)
    assert lifecycle.most_common_types() == "3 message.received, 1 message.delivered"


def test_gaps_without_an_event_between_them_are_merged() -> None:
    lifecycle = started()
    for notice in (Disconnected(reason="first"), Subscribed(), CaughtUp(since=SINCE), Disconnected(reason="second")):
        lifecycle.add_notice(notice)
    assert take(lifecycle) == Disconnected(reason="first")
    assert take(lifecycle) is None


# Attempts


def test_a_handled_event_is_no_longer_pending() -> None:
    lifecycle = started()
    added(lifecycle, [1])
    decision = lifecycle.ack(entry(lifecycle, mail(1)))
    assert decision.change == Ack(1)
    assert take(lifecycle) is None  # it would be handled twice
    store(decision)
    assert lifecycle.find(key(mail(1))) is None


def test_a_failed_event_is_redelivered_after_the_delay_with_the_next_attempt() -> None:
    lifecycle = started()
    added(lifecycle, [1, 2])
    take(lifecycle)
    one = entry(lifecycle, mail(1))
    assert lifecycle.begin_attempt(one).change == BeginAttempt(1)
    decision = lifecycle.fail(one, "ValueError: no", TIME_OF_DAY)
    assert decision.change == Fail(1, "ValueError: no")
    store(decision)
    assert take_all(lifecycle) == ["event 2"]
    assert lifecycle.changes_at(NOW) == NOW + DELAY
    assert take(lifecycle, NOW + DELAY - 1) is None
    event = take(lifecycle, NOW + DELAY)
    assert event is not None
    assert (event, event.origin, event.attempt) == (mail(1), "redelivered", 2)  # type: ignore[union-attr]


def test_retries_come_before_new_events() -> None:
    lifecycle = started()
    added(lifecycle, [1])
    take(lifecycle)
    one = entry(lifecycle, mail(1))
    lifecycle.begin_attempt(one)
    store(lifecycle.fail(one, "", TIME_OF_DAY))
    added(lifecycle, [2])
    assert take_all(lifecycle, NOW + DELAY) == ["event 1", "event 2"]


def test_the_last_attempt_that_fails_makes_a_dead_letter() -> None:
    lifecycle = started(pending(1, attempts=2), max_attempts=3)
    take(lifecycle)
    one = entry(lifecycle, mail(1))
    lifecycle.begin_attempt(one)
    decision = lifecycle.fail(one, "ValueError: no", TIME_OF_DAY)
    assert decision.change == Bury(1, "ValueError: no", TIME_OF_DAY)
    store(decision)
    assert lifecycle.pending == 0
    assert take(lifecycle, math.inf) is None


def test_an_interrupted_attempt_does_not_count() -> None:
    lifecycle = started(pending(1), max_attempts=1)
    take(lifecycle)
    one = entry(lifecycle, mail(1))
    lifecycle.begin_attempt(one)
    assert lifecycle.take_back_attempt(one, NOW).change == TakeBackAttempt(1)
    event = take(lifecycle, NOW + DELAY)
    assert event is not None
    assert event.attempt == 1  # type: ignore[union-attr]


def test_attempts_that_are_under_way_at_the_end_do_not_count() -> None:
    lifecycle = started(pending(1), pending(2), pending(3))
    lifecycle.begin_attempt(entry(lifecycle, mail(1)))
    lifecycle.begin_attempt(entry(lifecycle, mail(3)))
    assert lifecycle.interrupted() == [TakeBackAttempt(1), TakeBackAttempt(3)]


def test_a_second_attempt_at_the_same_time_is_refused() -> None:
    lifecycle = started(pending(1))
    lifecycle.begin_attempt(entry(lifecycle, mail(1)))
    with pytest.raises(RuntimeError, match="is being processed already"):
        lifecycle.begin_attempt(entry(lifecycle, mail(1)))


# After a crash


def test_suspects_come_first_and_alone_those_with_the_fewest_attempts_first() -> None:
    lifecycle = started(pending(1), pending(2, 2, under_way=True), pending(3, 1, under_way=True), pending(4))
    for number in (3, 2):
        assert take(lifecycle) == mail(number)
        assert take(lifecycle) is None
        suspect = entry(lifecycle, mail(number))
        lifecycle.begin_attempt(suspect)
        assert lifecycle.changes_at(NOW) == math.inf
        assert take(lifecycle, NOW + 10 * ALONE_FOR) is None
        store(lifecycle.ack(suspect))
    assert take_all(lifecycle) == ["event 1", "event 4"]


def test_a_suspect_without_an_attempt_keeps_the_others_waiting_for_a_minute_only() -> None:
    lifecycle = started(pending(1, 1, under_way=True), pending(2))
    assert take(lifecycle) == mail(1)
    assert lifecycle.changes_at(NOW) == NOW + ALONE_FOR
    assert take(lifecycle, NOW + ALONE_FOR - 1) is None
    assert take(lifecycle, NOW + ALONE_FOR) == mail(2)


def test_a_suspect_that_fails_is_redelivered_after_the_delay_like_any_event() -> None:
    lifecycle = started(pending(1, 1, under_way=True), pending(2))
    take(lifecycle)
    suspect = entry(lifecycle, mail(1))
    lifecycle.begin_attempt(suspect)
    store(lifecycle.fail(suspect, "", TIME_OF_DAY))
    assert take_all(lifecycle) == ["event 2"]
    assert take(lifecycle, NOW + DELAY) == mail(1)


def test_an_event_whose_last_allowed_attempt_ended_with_a_crash_is_a_dead_letter() -> None:
    lifecycle = Lifecycle(Rules(max_attempts=2, retry_delay=DELAY, max_pending=100))
    crashed = pending(1, 2, under_way=True)
    waiting = pending(2, 2)  # its last attempt has ended; `max_attempts` was larger then
    dead = lifecycle.start(Loaded(nothing_kept(), [crashed, waiting], 2), TIME_OF_DAY)
    assert dead == [(crashed, Bury(1, CRASHED, TIME_OF_DAY))]
    assert take_all(lifecycle) == ["event 2"]


# Dead letters


def test_a_requeued_dead_letter_is_last_and_as_if_it_had_never_been_tried() -> None:
    lifecycle = started(pending(2))
    decision = lifecycle.requeue(1)
    assert decision.change == Requeue(1)
    store(decision, pending(1))
    store(lifecycle.requeue(9), None)
    assert take(lifecycle) == mail(2)
    event = take(lifecycle)
    assert event is not None
    assert (event, event.attempt) == (mail(1), 1)  # type: ignore[union-attr]
    assert take(lifecycle) is None


def test_a_dead_letter_that_is_dropped_is_deleted() -> None:
    assert started().drop(1).change == Drop(1)


def test_a_requeued_event_that_is_tried_before_its_delivery_has_one_retry() -> None:
    lifecycle = started(pending(2))
    store(lifecycle.requeue(1), pending(1))
    one = entry(lifecycle, mail(1))  # the consumer still has the event
    lifecycle.begin_attempt(one)
    store(lifecycle.fail(one, "", TIME_OF_DAY))
    assert take_all(lifecycle) == ["event 2", "event 1"]
    lifecycle.begin_attempt(one)
    lifecycle.take_back_attempt(one, NOW + 1)
    assert lifecycle.waiting == 1
    assert take_all(lifecycle, NOW + 1 + DELAY) == ["event 1"]
