"""When recovery scans, and from which time on."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import (
    CaughtUp,
    Event,
    MessageReceivedEvent,
    Recovery,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def receive_until(events: trio.MemoryReceiveChannel[Event], kind: type[Event]) -> list[Event]:
    """Receive all events up to the first one of a class."""
    received: list[Event] = []
    with trio.fail_after(60):
        while not received or not isinstance(received[-1], kind):
            received.append(await events.receive())
    return received


@pytest.mark.parametrize(("sweep_interval", "longest"), [(2.0, 2.0), (300.0, 30.0)])
async def test_sweeps_keep_their_interval_after_a_gap(
    autojump_clock: MockClock, sweep_interval: float, longest: float
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), recovery=Recovery(sweep_interval=sweep_interval), backend=fake
    ) as events:
        await events.receive()
        await trio.sleep(1)
        await fake.drop_connections()
        await receive_until(events, CaughtUp)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=INBOX)
        began = trio.current_time()
        assert isinstance(await events.receive(), MessageReceivedEvent)
        assert trio.current_time() - began <= longest + 0.1


@pytest.mark.parametrize(
    ("since", "found"), [(None, ["while we were down"]), (LONG_AGO, ["before we began", "while we were down"])]
)
async def test_the_second_start_begins_where_a_first_start_without_a_scan_was_cut_off(
    autojump_clock: MockClock, tmp_path: Path, since: datetime | None, found: list[str]
) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db")
    await fake.deliver(inbox_id=INBOX, subject="before we began")
    await trio.sleep(10)
    fake.faults.hang_requests(None)
    async with open_agentmail_stream(recovery=Recovery(since=since), journal=journal, backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
    await trio.sleep(10)
    fake.faults.clear()
    await fake.deliver(inbox_id=INBOX, subject="while we were down")
    async with open_agentmail_stream(recovery=Recovery(since=since), journal=journal, backend=fake) as events:
        received = await receive_until(events, CaughtUp)
    mails = [event for event in received if isinstance(event, MessageReceivedEvent)]
    assert [mail.message.subject for mail in mails] == found


async def test_a_start_that_is_cut_off_and_recovers_no_types_keeps_no_progress(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    journal = SQLiteJournal(tmp_path / "agent.db")
    for _ in range(2):
        async with open_agentmail_stream(
            Subscribe(event_types=["message.sent"]), journal=journal, backend=fake
        ) as events:
            assert isinstance(await events.receive(), Subscribed)
        await fake.deliver(inbox_id=INBOX)
    assert not fake.record.requests


async def test_mail_the_journal_has_no_room_for_is_not_lost_however_long_that_lasts(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    recovery = Recovery(overlap=10, sweep_interval=60, sweep_depth=600)
    journal = SQLiteJournal(tmp_path / "agent.db", max_pending=1)
    async with open_agentmail_stream(recovery=recovery, journal=journal, backend=fake):
        await trio.sleep(1)
        await fake.deliver(inbox_id=INBOX, subject="one")
        await fake.deliver(inbox_id=INBOX, subject="two")
        await trio.sleep(1_500)  # the consumer handles neither, and sweeps find nothing missing
    async with open_agentmail_stream(recovery=recovery, journal=journal, backend=fake) as events:
        subjects = []
        with trio.move_on_after(100):
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    subjects.append(event.message.subject)
                await journal.ack(event)
    assert subjects == ["one", "two"]
