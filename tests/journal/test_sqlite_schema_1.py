"""A journal of schema 1 is migrated with all that it contains."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sqlite_stores import NOW, SCOPE, add, identities, keep, open_store, pending, state_of
from trio_agentmail import JournalError, JournalMismatchError, Message, MessageReceivedEvent
from trio_agentmail._codec import encode_object
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import digest, identity
from trio_agentmail._journal.protocol import KeptIdentity
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import Ack, DeadRecord, Drop, PendingRecord
from trio_agentmail._recovery.progress import decode_progress
from trio_agentmail._recovery.source import Target

FIRST_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE journal (scope TEXT NOT NULL, state BLOB NOT NULL, forgotten_until REAL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key NOT NULL,
    created REAL,
    recorded_at REAL NOT NULL,
    origin TEXT NOT NULL,
    event_type TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'handled', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    under_way INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    ended_at REAL,
    UNIQUE (kind, key)
);
CREATE INDEX unhandled ON events (state, id) WHERE state != 'handled';
CREATE TABLE texts (id INTEGER PRIMARY KEY, text BLOB NOT NULL);
PRAGMA application_id = 1097289066;
PRAGMA user_version = 1;
"""

RECEIVED, SPAM = "message.received", "message.received.spam"


def first_key(message_id: str) -> str:
    return f"agent@agentmail.to\0<{message_id}@example.com>"


def new_key(message_id: str, event_type: str = RECEIVED) -> bytes:
    event = MessageReceivedEvent(
        event_type=event_type,
        message=Message(inbox_id="agent@agentmail.to", message_id=f"<{message_id}@example.com>"),
    )
    known = identity(event)
    assert known is not None
    return known


@contextmanager
def first_journal(path: Path, scope: str = SCOPE, state: bytes = b"", floor: float | None = None) -> Iterator[Any]:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_SCHEMA)
        connection.execute("INSERT INTO journal VALUES (?, ?, ?)", (scope, state, floor))
        yield connection
        connection.commit()


def test_a_journal_of_schema_1_is_migrated_with_all_that_it_contains(path: Path) -> None:
    at = NOW - 1000
    long_id = "x" * 300
    with first_journal(path) as connection:
        rows: list[tuple[Any, ...]] = [
            # id, kind, key, created, recorded_at, origin, event_type, state, attempts, under_way, error, ended_at
            (1, RECEIVED, first_key("handled"), at - 50, at, "live", RECEIVED, "handled", 1, 0, None, NOW),
            (2, SPAM, first_key("pending"), at - 49, at + 1, "recovered", SPAM, "pending", 0, 0, None, None),
            (3, RECEIVED, digest(first_key(long_id)), at - 48, at + 2, "live", RECEIVED, "dead", 5, 0, "no", NOW + 9),
            (4, "", "event 4", None, at + 3, "live", "message.sent", "handled", 0, 0, None, NOW),
            (5, "", digest("no JSON"), None, at + 4, "live", "an unknown event", "pending", 0, 0, None, None),
            (7, RECEIVED, first_key("suspect"), at - 45, at + 5, "live", RECEIVED, "pending", 2, 1, "once", None),
            (8, RECEIVED, first_key("pending"), at - 44, at + 6, "live", RECEIVED, "handled", 0, 0, None, NOW),
            (9, "", digest("y" * 300), None, at + 7, "live", "message.sent", "handled", 0, 0, None, NOW),
        ]
        connection.executemany(f"INSERT INTO events VALUES ({', '.join('?' * 12)})", rows)
        texts = [(2, b"two"), (3, b"three \xff"), (5, b"no JSON"), (7, b"seven")]
        connection.executemany("INSERT INTO texts VALUES (?, ?)", texts)
    for _ in range(2):
        with open_store(path) as store:
            assert identities(store) == [
                KeptIdentity(new_key("handled"), at, 0),
                KeptIdentity(new_key("pending", SPAM), at + 1, 0),
                KeptIdentity(new_key(long_id), at + 2, 0),
                KeptIdentity(digest("event 4"), at + 3, 0),
                KeptIdentity(digest("no JSON"), at + 4, 0),
                KeptIdentity(new_key("suspect"), at + 5, 0),
                KeptIdentity(new_key("pending"), at + 6, 0),
                KeptIdentity(digest("y" * 300), at + 7, 0),
            ]
            assert store.pending() == [
                PendingRecord(2, new_key("pending", SPAM), 0, False, "recovered", SPAM),
                PendingRecord(5, digest("no JSON"), 0, False, "live", "an unknown event"),
                PendingRecord(7, new_key("suspect"), 2, True, "live", RECEIVED),
            ]
            assert store.dead_letters() == [DeadRecord(3, 5, "no", NOW + 9, "live", b"three \xff")]
            assert store.texts(range(1, 10), 1000) == dict(texts)
            assert store.last_id() == 9  # that event was handled
            assert state_of(store) == (b"", -math.inf)
            assert store._connection.execute("PRAGMA user_version").fetchone() == (2,)
            assert store._connection.execute("SELECT id FROM events ORDER BY id").fetchall() == [(2,), (3,), (5,), (7,)]
    assert read_journal(path)[0] == 3
    with open_store(path) as store:
        store.apply([Ack(number) for number in (2, 5, 7)])
        store.apply([Drop(3)])
        add(store, 10)
        assert (pending(store), store.dead_letters(), store.last_id()) == ([10], [], 10)
    with pytest.raises(JournalMismatchError, match="belongs to here"):
        SQLiteStore(path, "elsewhere")


def test_events_in_a_journal_of_schema_1_are_not_delivered_again_as_new(path: Path) -> None:
    with first_journal(path) as connection:
        for id, kind in ((1, RECEIVED), (2, SPAM)):
            connection.execute(
                "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
                " VALUES (?, ?, ?, ?, ?, 'live', ?, 'handled')",
                (id, kind, first_key(str(id)), NOW, NOW, kind),
            )
    delivered = Delivered(lambda: NOW, keep=3600)
    with open_store(path) as store:
        delivered.load(identities(store))
    for number in (1, 2):
        for event_type in (RECEIVED, SPAM):
            mail = Message(inbox_id="agent@agentmail.to", message_id=f"<{number}@example.com>")
            assert not delivered.claim(MessageReceivedEvent(event_type=event_type, message=mail))


def test_a_mail_without_a_time_in_schema_1_is_as_old_as_its_recording(path: Path) -> None:
    with first_journal(path) as connection:
        connection.execute(
            "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
            " VALUES (1, ?, ?, NULL, ?, 'live', ?, 'handled')",
            (RECEIVED, first_key("1"), NOW - 5, RECEIVED),
        )
    with open_store(path) as store:
        [known] = identities(store)
        assert known == KeptIdentity(new_key("1"), NOW - 5, -1)


def test_no_identity_in_schema_1_is_older_than_its_mail(path: Path) -> None:
    # AgentMail's clock was ahead. Listings and forgetting go by `created_at`, and not by our time.
    with first_journal(path) as connection:
        connection.execute(
            "INSERT INTO events (id, kind, key, created, recorded_at, origin, event_type, state)"
            " VALUES (1, ?, ?, ?, ?, 'live', ?, 'handled')",
            (RECEIVED, first_key("1"), NOW + 90, NOW, RECEIVED),
        )
    with open_store(path) as store:
        keep(store, forgotten_until=NOW + 60)
        assert identities(store) == [KeptIdentity(new_key("1"), NOW + 90, 0)]


def test_the_state_of_recovery_in_schema_1_is_migrated(path: Path) -> None:
    kept = {
        "targets": [
            ["a@agentmail.to", None, {RECEIVED: NOW - 500}, NOW - 100, NOW - 200],
            [None, "pod", {RECEIVED: NOW - 500, SPAM: NOW - 50}, NOW - 300, NOW - 400],
            [None, None, {}, NOW, NOW],
        ],
        "source": {"threads": {"a": 1}},
    }
    with first_journal(path, state=encode_object(kept), floor=NOW - 1000):
        pass
    with open_store(path) as store:
        state, forgotten_until = state_of(store)
    assert NOW - 1000 <= forgotten_until < NOW - 999
    decoded = decode_progress(state)
    assert decoded is not None
    progress, clock_is_known, source = decoded
    assert clock_is_known
    assert source == {"threads": {"a": 1}}
    assert {
        target: (its.wanted, its.gap, its.complete_until, its.swept_until, its.gap_scan, its.sweep)
        for target, its in progress.items()
    } == {
        Target("a@agentmail.to", None): ({RECEIVED: NOW - 500}, NOW - 100, NOW - 100, NOW - 200, None, None),
        Target(None, "pod"): ({RECEIVED: NOW - 500, SPAM: NOW - 50}, NOW - 300, NOW - 300, NOW - 400, None, None),
        Target(None, None): ({}, NOW, NOW, NOW, None, None),
    }


def test_an_empty_journal_of_schema_1_is_like_a_new_one(path: Path) -> None:
    with first_journal(path):
        pass
    with open_store(path) as store:
        assert (store.last_id(), identities(store), state_of(store)) == (0, [], (b"", -math.inf))
        add(store, 1)
        store.apply([Ack(1)])
    with open_store(path) as store:
        assert store.last_id() == 1


def test_a_journal_of_schema_1_with_a_damaged_state_is_left_as_it_was(path: Path) -> None:
    with first_journal(path, state=b'{"targets": 7}'):
        pass
    for _ in range(2):
        with pytest.raises(JournalError):
            SQLiteStore(path, SCOPE)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT state FROM journal").fetchone() == (b'{"targets": 7}',)
