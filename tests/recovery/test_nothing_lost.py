"""No mail is lost and none comes twice: regressions of the whole stream."""

import json
import sqlite3
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.backends import FakeBackend
from tests.helpers.steps import Hasty
from trio_agentmail import (
    AgentMailSession,
    CaughtUp,
    Disconnected,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Recovery,
    RecoveryFailed,
    SQLiteJournal,
    Subscribe,
    open_agentmail_session,
)
from trio_agentmail.testing import FakeAgentMail

A, B = "a@agentmail.to", "b@agentmail.to"
ONE, BOTH = Subscribe(inbox_ids=[A]), Subscribe(inbox_ids=[A, B])


class Backend(FakeBackend):
    """A backend whose requests take time, and whose clock can be set."""

    def __init__(self, fake: FakeAgentMail, request_takes: float = 0.0) -> None:
        super().__init__(fake)
        self.request_takes = request_takes
        self.set_forward = 0.0

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> httpx2.AsyncBaseTransport:
        return Slow(super().http_transport(ssl_context), self.request_takes)

    def now(self) -> float:
        return super().now() + self.set_forward


class Slow(httpx2.AsyncBaseTransport):
    def __init__(self, transport: httpx2.AsyncBaseTransport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(self._seconds)
        return await self._transport.handle_async_request(request)


class Reader:
    """Reads events as they come, and notes when."""

    def __init__(self, session: AgentMailSession, journal: SQLiteJournal | None) -> None:
        self.session = session
        self.came: list[tuple[float, Event]] = []
        self._journal = journal

    async def run(self) -> None:
        async for event in self.session.events:
            self.came.append((trio.current_time(), event))
            if self._journal is not None:
                await self._journal.ack(event)

    @property
    def subjects(self) -> list[str]:
        return [event.message.subject or "" for _, event in self.came if isinstance(event, MessageReceivedEvent)]

    def all(self, cls: type[Any]) -> list[Any]:
        return [event for _, event in self.came if isinstance(event, cls)]

    def when(self, subject: str) -> float:
        """Return when a mail came, on Trio's clock."""
        [when] = [
            when
            for when, event in self.came
            if isinstance(event, MessageReceivedEvent) and event.message.subject == subject
        ]
        return when


@pytest.fixture
def fake() -> FakeAgentMail:
    fake = FakeAgentMail()
    fake.mail.add_inbox(A)
    fake.mail.add_inbox(B)
    return fake


@asynccontextmanager
async def reading(
    backend: FakeAgentMail | Backend, subscribe: Subscribe = ONE, journal: SQLiteJournal | None = None, **more: Any
) -> AsyncIterator[Reader]:
    quick = ReconnectPolicy(initial_delay=0.1, max_delay=1.0)
    async with open_agentmail_session(
        subscribe, backend=backend, journal=journal, reconnect=quick, ping_interval=None, **more
    ) as session:
        reader = Reader(session, journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            await trio.sleep(1)
            yield reader
            nursery.cancel_scope.cancel()


def ago(fake: FakeAgentMail, **ago: float) -> datetime:
    return datetime.fromtimestamp(fake.now(), UTC) - timedelta(**ago)


# Identities


@pytest.mark.parametrize("with_journal", [False, True])
async def test_mail_forgotten_during_a_slow_scan_does_not_come_again(
    fake: FakeAgentMail,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    with_journal: bool,
) -> None:
    # A generation fills quickly, and a sweep of all of sweep_depth takes longer than sweep_interval.
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 40)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Hasty))
    recovery = Recovery(overlap=30, sweep_interval=20, sweep_depth=300, sweep_rate=6)
    journal = SQLiteJournal(tmp_path / "agent.db") if with_journal else None
    async with reading(Backend(fake, request_takes=2), journal=journal, recovery=recovery) as reader:
        for number in range(3_000):
            await fake.deliver(inbox_id=A, subject=f"{number}")
            await trio.sleep(0.5)
        await trio.sleep(1_000)
        assert Counter(reader.subjects) == Counter(f"{number}" for number in range(3_000))
        assert reader.session.statistics().recovered == 0
        assert reader.session.statistics().remembered < 1_500  # some were forgotten
        assert reader.all(RecoveryFailed) == []


async def test_a_gap_larger_than_a_generation_is_closed_through_another_loss(
    fake: FakeAgentMail, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 40)
    inboxes = [f"{number}@agentmail.to" for number in range(9)]
    async with reading(Backend(fake, request_takes=0.1), Subscribe(inbox_ids=inboxes)) as reader:
        await trio.sleep(400)
        async with fake.faults.outage():
            for number in range(900):
                await fake.deliver(inbox_id=inboxes[number % 9], subject=f"{number}")
                await trio.sleep(0.1)
        await fake.wait_subscribed(1)
        await fake.deliver(inbox_id=inboxes[0], subject="live")
        await trio.sleep(2)
        assert 0 < len(reader.subjects) < 800
        await fake.drop_connections()
        await trio.sleep(2_000)
        assert Counter(reader.subjects) == Counter(["live", *(f"{number}" for number in range(900))])
        assert reader.all(RecoveryFailed) == []
        assert reader.session.statistics().missing_since is None


@pytest.mark.parametrize("recovery", [None, Recovery(overlap=30, sweep_interval=60, sweep_depth=600)])
async def test_mail_that_a_stalled_consumer_reads_days_later_does_not_come_again(
    fake: FakeAgentMail, autojump_clock: MockClock, recovery: Recovery | None
) -> None:
    async with open_agentmail_session(
        ONE, backend=fake, recovery=recovery, buffer_size=1, ping_interval=None
    ) as session:
        await session.events.receive()
        mails = [await fake.deliver(inbox_id=A, subject=f"{number}") for number in range(5)]
        for mail in mails:
            await fake.emit(mail)  # again; it waits to be read
        await trio.sleep(2 * 86_400)
        came = []
        with trio.move_on_after(60):
            async for event in session.events:
                assert isinstance(event, MessageReceivedEvent)
                came.append(event.message.subject)
        assert came == [f"{number}" for number in range(5)]
        assert session.statistics().duplicates == 5


async def test_a_push_unread_for_longer_than_sweep_depth_is_not_taken_for_new_mail(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    recovery = Recovery(overlap=30, sweep_interval=60, sweep_depth=600)
    async with open_agentmail_session(
        BOTH, backend=fake, recovery=recovery, buffer_size=1, ping_interval=None
    ) as session:
        await trio.sleep(1000)
        mails = [await fake.deliver(inbox_id=A, subject=f"{number}", held=True) for number in range(4)]
        for mail in mails[:2]:
            await fake.mail.release(A, mail.message.message_id)  # it is pushed, and waits; the next sweep finds it
        # Meanwhile B is swept. When A is swept at last, identities are forgotten just as pushes are read.
        await trio.sleep(1000)
        came = []
        with trio.move_on_after(1000):
            async for event in session.events:
                await wait_all_tasks_blocked()
                if isinstance(event, MessageReceivedEvent):
                    came.append(event.message.subject)
        assert sorted(map(str, came)) == ["0", "1"]


# Scans, whatever the connection does


async def test_a_scan_goes_on_while_the_connection_is_cut_every_two_seconds(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(Backend(fake, request_takes=0.5)) as reader:
        await trio.sleep(400)
        async with fake.faults.outage():
            for number in range(300):
                await fake.deliver(inbox_id=A, subject=f"{number}")
        for _ in range(60):
            await trio.sleep(2)
            await fake.drop_connections()
        assert sorted(reader.subjects) == sorted(f"{number}" for number in range(300))


async def test_back_dated_mail_of_a_gap_is_found_despite_a_loss_every_25_seconds(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        await trio.sleep(400)
        await fake.drop_connections()
        await fake.deliver(inbox_id=A, subject="an hour old", timestamp=ago(fake, hours=1))
        came = trio.current_time()
        for _ in range(4):
            await trio.sleep(25)
            await fake.drop_connections()
        assert reader.when("an hour old") - came < 35


async def test_sweeps_go_on_despite_a_loss_every_25_seconds(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake) as reader:
        await trio.sleep(400)
        for number in range(30):
            fake.faults.swallow_pushes()
            await fake.deliver(inbox_id=A, subject=f"{number}", timestamp=ago(fake, hours=number % 20))
            await trio.sleep(25)
            await fake.drop_connections()
        await trio.sleep(40)
        assert sorted(reader.subjects) == sorted(f"{number}" for number in range(30))


async def test_missed_mail_is_found_though_its_thread_gets_mail_while_threads_are_listed(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    recovery = Recovery(overlap=10, sweep_interval=60, sweep_depth=300)
    async with reading(Backend(fake, request_takes=1), Subscribe(), recovery=recovery) as reader:

        def times_listed() -> int:
            return sum(request.path == "/v0/threads" for request in fake.record.requests)

        async def all_threads_get_mail() -> None:
            for number in range(250):
                await fake.deliver(inbox_id=A, thread_id=f"thread-{number}")

        await all_threads_get_mail()
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=A, subject="missed", thread_id="thread-249", timestamp=ago(fake, minutes=2))
        for _ in range(3):
            before = times_listed()
            await fake.wait_for(lambda: times_listed() > before, within=600)  # noqa: B023  it is called in this turn
            # They are listed from the oldest on. Now each is newer than the scan, and the last is still the last.
            await all_threads_get_mail()
        await trio.sleep(30)
        assert "missed" in reader.subjects


async def test_mail_comes_within_seconds_while_only_the_websocket_is_down(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake, BOTH) as reader:
        fake.faults.refuse_connections(times=None)
        await fake.drop_connections()
        came: dict[str, float] = {}
        for number in range(60):
            came[f"{number}"] = trio.current_time()
            await fake.deliver(inbox_id=(A, B)[number % 2], subject=f"{number}")
            await trio.sleep(1)
        await trio.sleep(6)
        assert [subject for subject in came if reader.when(subject) - came[subject] > 6] == []
        assert len(reader.all(Disconnected)) == 1
        assert reader.all(CaughtUp) == []  # there is no connection
        assert len(fake.record.requests) < 1 + 2 + 60 + 2 * 14  # the time, the first sweep, the mails, and the polls
        fake.faults.clear()
        await trio.sleep(100)
        assert len(reader.subjects) == 60
        assert len(reader.all(CaughtUp)) == 1


async def test_mail_of_a_gap_comes_within_half_a_minute_after_the_rest_api_recovers(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        fake.faults.fail_requests(503, times=None)
        await fake.drop_connections()
        await fake.deliver(inbox_id=A, subject="missed")
        await trio.sleep(600)
        assert reader.subjects == []
        assert [failed.inbox_id for failed in reader.all(RecoveryFailed)] == [A]
        fake.faults.clear()
        await trio.sleep(40)  # half a minute, and the attempts of the request that was under way
        assert reader.subjects == ["missed"]
        assert isinstance(reader.came[-1][1], CaughtUp)


# Clocks


@pytest.mark.parametrize("seconds", [3600.0, -3600.0], ids=["forward", "back"])
async def test_setting_our_clock_before_a_loss_makes_no_difference(
    fake: FakeAgentMail, autojump_clock: MockClock, seconds: float
) -> None:
    backend = Backend(fake)
    async with reading(backend) as reader:
        await trio.sleep(100)
        backend.set_forward = seconds
        await fake.deliver(inbox_id=A, subject="pushed")
        await fake.drop_connections()
        await fake.deliver(inbox_id=A, subject="missed")
        await trio.sleep(2)
        assert reader.subjects == ["pushed", "missed"]
        assert isinstance(reader.came[-1][1], CaughtUp)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0], ids=["forward", "back"])
async def test_an_inbox_that_is_added_after_our_clock_was_set_begins_when_it_was_added(
    fake: FakeAgentMail, autojump_clock: MockClock, seconds: float
) -> None:
    backend = Backend(fake)
    async with reading(backend) as reader:
        await trio.sleep(1000)
        await fake.deliver(inbox_id=B, subject="old")
        backend.set_forward = seconds
        await trio.sleep(10)
        await reader.session.subscribe(BOTH)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=B, subject="new")
        await trio.sleep(700)
        assert reader.subjects == ["new"]


@pytest.mark.parametrize("subscribe", [BOTH, Subscribe()], ids=["inbox", "key"])
@pytest.mark.parametrize("seconds", [1, 4, 7])
async def test_an_added_inbox_begins_when_subscribe_is_called_however_long_it_takes(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe, seconds: float
) -> None:
    async with reading(fake) as reader, trio.open_nursery() as nursery:
        await fake.deliver(inbox_id=B, subject="before")
        await trio.sleep(2)
        fake.faults.delay_connections(8)
        nursery.start_soon(reader.session.subscribe, subscribe)
        await trio.sleep(seconds)
        await fake.deliver(inbox_id=B, subject="meanwhile")
        await trio.sleep(60)
        assert reader.subjects == ["meanwhile"]


# Malformed times


@pytest.mark.parametrize("created", ["2099-01-01T00:00:00Z", "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00"])
async def test_one_odd_time_neither_ends_recovery_nor_keeps_a_journal_from_opening(
    fake: FakeAgentMail, autojump_clock: MockClock, tmp_path: Path, created: str
) -> None:
    path = tmp_path / "agent.db"
    message = {"inbox_id": A, "message_id": "<odd>", "labels": ["received"], "created_at": created, "subject": "odd"}
    recovery = Recovery(sweep_depth=3_600)
    async with reading(fake, journal=SQLiteJournal(path), recovery=recovery) as reader:
        await fake.send_raw(json.dumps({"type": "event", "event_type": "message.received", "message": message}))
        await trio.sleep(3 * 3_600)
        assert reader.subjects == ["odd"]
    for number in range(2):
        async with reading(fake, journal=SQLiteJournal(path), recovery=recovery) as reader:
            await trio.sleep(3_600)
            await fake.drop_connections()
            await fake.deliver(inbox_id=A, subject=f"missed {number}")
            await trio.sleep(60)
            assert reader.subjects == [f"missed {number}"]


# Two mails of one Message-ID


async def test_two_mails_of_one_message_id_are_both_handled_once_also_across_a_restart(
    fake: FakeAgentMail, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "agent.db"
    async with reading(fake, journal=SQLiteJournal(path)) as reader:
        for page in (1, 2):
            await fake.deliver(inbox_id=A, message_id="<scan@printer.example>", subject=f"page {page}")
            await trio.sleep(1)
        assert reader.subjects == ["page 1", "page 2"]
    async with reading(fake, journal=SQLiteJournal(path)) as reader:
        await fake.deliver(inbox_id=A, message_id="<scan@printer.example>", subject="page 3")
        await trio.sleep(1000)
        assert reader.subjects == ["page 3"]
        assert reader.session.statistics().recovered == 0


async def test_a_mail_that_is_pushed_again_under_another_event_id_is_one_mail(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        frame = {"type": "event", "event_type": "message.received"}
        message = {"inbox_id": A, "message_id": "<m>", "subject": "one", "timestamp": "2026-01-01T00:00:00.900Z"}
        later = message | {"timestamp": "2026-01-01T00:00:01.100Z"}
        await fake.send_raw(json.dumps(frame | {"event_id": "1", "message": message}))
        await fake.send_raw(json.dumps(frame | {"event_id": "2", "message": later}))
        await fake.send_raw(json.dumps(frame | {"event_id": "1", "message": message | {"timestamp": None}}))
        await trio.sleep(1)
        assert reader.subjects == ["one"]
        assert reader.session.statistics().duplicates == 2
