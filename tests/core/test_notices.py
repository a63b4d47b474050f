"""Notices that have not been taken do not pile up, and none that says something new is dropped."""

from collections import deque
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.hypothesis_settings import repeatable
from trio_agentmail import CaughtUp, Disconnected, ErrorEvent, Event, RecoveryFailed, Subscribed, UnknownEvent
from trio_agentmail._notices import merge_notice
from trio_agentmail.events import Notice

THEN = datetime(2025, 1, 1, tzinfo=UTC)
S = Subscribed()
C = CaughtUp(since=THEN)
F = RecoveryFailed(since=THEN, reason="forbidden")
X = ErrorEvent()
EVENT = UnknownEvent(event_type="new", event_id="1", reason="")


def D(number: int = 0) -> Disconnected:
    return Disconnected(reason=f"loss {number}", code=1006, last_received=THEN)


def merged(items: list[Event]) -> list[Event]:
    waiting: deque[Event] = deque()
    for item in items:
        if isinstance(item, Notice):
            merge_notice(waiting, item)
        else:
            waiting.append(item)
    return list(waiting)


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        ([D(1)], [D(1)]),
        ([D(1), D(2)], [D(1)]),
        ([D(1), S, D(2)], [D(1)]),
        ([D(1), S, C, D(2), S, C], [D(1), S, C]),
        ([S, D(1), S, D(2), S], [S, D(1), S]),
        ([S, S, C, C], [S, S, C, C]),
        # Anything but a Subscribed or a CaughtUp keeps two gaps apart: mail, and notices of other failures.
        ([D(1), S, EVENT, D(2)], [D(1), S, EVENT, D(2)]),
        ([D(1), EVENT, S, D(2), S, D(3)], [D(1), EVENT, S, D(2)]),
        ([D(1), S, F, D(2)], [D(1), S, F, D(2)]),
        ([D(1), S, X, D(2)], [D(1), S, X, D(2)]),
        ([D(1), S, F, S, D(2), S, C, D(3)], [D(1), S, F, S, D(2)]),
        ([EVENT, D(1)], [EVENT, D(1)]),
    ],
    ids=repr,
)
def test_a_gap_that_has_not_been_seen_is_merged_with_the_next(given_: list[Event], left: list[Event]) -> None:
    assert merged(given_) == left


@repeatable
@given(st.lists(st.sampled_from([D(1), D(2), S, C, F, X, EVENT])))
def test_nothing_is_lost_but_gaps_and_the_news_that_they_are_over(items: list[Event]) -> None:
    left = merged(items)
    kept = [item for item in items if not isinstance(item, Disconnected | Subscribed | CaughtUp)]
    assert [item for item in left if not isinstance(item, Disconnected | Subscribed | CaughtUp)] == kept
    # The remaining notices say as well as all of them whether the stream is in order now.
    assert state(left) == state(items)
    # Between two remaining gaps, there is something that the consumer has to see.
    assert merged(left) == left


def state(items: list[Event]) -> str | None:
    words = {Disconnected: "lost", Subscribed: "subscribed"}
    return next((words[type(item)] for item in reversed(items) if type(item) in words), None)
