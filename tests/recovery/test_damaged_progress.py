"""Progress in a journal that cannot be read is a `JournalError` on entering, and the journal stays as it is."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.hypothesis_settings import json_values, repeatable
from tests.helpers.recovering import DAY, inbox, recovering
from tests.helpers.rest_api import EPOCH, mail
from tests.helpers.sqlite_stores import open_store, state_of
from trio_agentmail import JournalError, SQLiteJournal, Subscribe, open_agentmail_stream
from trio_agentmail._recovery.progress import decode_progress
from trio_agentmail.testing import FakeAgentMail

SCAN = [EPOCH - 300, EPOCH, EPOCH - 10, EPOCH - 100]
TARGET = {
    "inbox_id": "a",
    "pod_id": None,
    "wanted": {"message.received": EPOCH - 500},
    "missing_since": EPOCH - 10,
    "swept_until": EPOCH - 20,
    "look": SCAN,
    "sweep": [EPOCH - DAY, EPOCH - 5, None, EPOCH - 2000],
}
STATE = {"targets": [TARGET], "clock_is_known": True, "source": [["a", "h"]]}

DAMAGED: dict[str, Any] = {
    "no key": {},
    "no source": {"targets": [], "clock_is_known": True},
    "no targets": {"clock_is_known": True, "source": []},
    "targets that are no list": STATE | {"targets": TARGET},
    "a clock that is no bool": STATE | {"clock_is_known": 1},
    "a target that is a list": STATE | {"targets": [["a", None, {}, EPOCH, EPOCH]]},
    "a target without an inbox": STATE | {"targets": [{name: TARGET[name] for name in TARGET if name != "inbox_id"}]},
    "an inbox that is a number": STATE | {"targets": [TARGET | {"inbox_id": 7}]},
    "a pod that is a list": STATE | {"targets": [TARGET | {"pod_id": []}]},
    "wanted that is a list": STATE | {"targets": [TARGET | {"wanted": ["message.received"]}]},
    "a wanted time that is null": STATE | {"targets": [TARGET | {"wanted": {"message.received": None}}]},
    "a time that is a string": STATE | {"targets": [TARGET | {"missing_since": "2026-01-01"}]},
    "a time that is a bool": STATE | {"targets": [TARGET | {"swept_until": True}]},
    "a time 30 million years away": STATE | {"targets": [TARGET | {"swept_until": 10**15}]},
    "a scan that is an object": STATE | {"targets": [TARGET | {"look": {}}]},
    "a scan of three": STATE | {"targets": [TARGET | {"sweep": SCAN[:3]}]},
    "a scan since false": STATE | {"targets": [TARGET | {"sweep": [*SCAN[:2], False, EPOCH]}]},
    "a position that is null": STATE | {"targets": [TARGET | {"look": [*SCAN[:3], None]}]},
    "held mail that is an object": STATE | {"source": {"a": "h"}},
    "held mail of three": STATE | {"source": [["a", "h", "x"]]},
    "held mail without an id": STATE | {"source": [["a", None]]},
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_progress_of_another_shape_is_a_journal_error(name: str, autojump_clock: MockClock) -> None:
    with pytest.raises(JournalError, match=r"^the journal is damaged: its (record|list) of .* cannot be read$"):
        async with recovering(kept=json.dumps(DAMAGED[name]).encode()):
            pass  # pragma: no cover


async def test_a_stream_with_damaged_progress_is_not_entered_and_changes_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, fake, subscribe = tmp_path / "agent.db", FakeAgentMail(), Subscribe(inbox_ids=["agent@example.com"])
    async with open_agentmail_stream(subscribe, backend=fake, journal=SQLiteJournal(path)):
        pass
    with open_store(path, None) as store:
        damaged, floor = state_of(store)
    damaged = damaged.replace(b'"targets"', b'"target"')
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE journal SET state = ?", (damaged,))
    for _ in range(2):
        with pytest.raises(JournalError, match="the journal is damaged"):
            async with open_agentmail_stream(subscribe, backend=fake, journal=SQLiteJournal(path)):
                pass  # pragma: no cover
    with open_store(path, None) as store:
        assert state_of(store) == (damaged, floor)
    async with open_agentmail_stream(subscribe, backend=fake, journal=SQLiteJournal(path), recovery=None):
        pass


# Any JSON


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in a JSON document."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*way, name))


def with_value(way: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of the state in which the value in that place is another."""
    if not way:
        return value
    state: Any = deepcopy(STATE)
    inner = state
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    return state


@repeatable
@given(json_values)
def test_any_json_is_progress_or_a_journal_error(value: Any) -> None:
    with suppress(JournalError):
        decode_progress(json.dumps(value).encode())


@repeatable
@given(st.sampled_from(list(places(STATE))), json_values)
@example(("targets", 0, "missing_since"), -1e12)
@example(("targets", 0, "missing_since"), 10**12)
@example(("targets", 0, "look", 3), 1e12)
def test_progress_with_any_value_in_any_place_is_refused_or_recovery_runs_with_it(
    way: tuple[Any, ...], value: Any
) -> None:
    async def main() -> None:
        kept = json.dumps(with_value(way, value)).encode()
        try:
            async with recovering(inbox(mail("m", -1)), kept=kept) as world:
                world.subscribed()
                await world.until(100)
                assert world.recoverer.missing_since == float("inf")
                decode_progress(world.journal.state)
        except JournalError:
            pass

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_unchanged_progress_is_not_refused() -> None:
    assert decode_progress(json.dumps(STATE).encode()) is not None
