"""When recovery looks, and since when."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import (
    CaughtUp,
    Disconnected,
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


async def receive_until(events: trio.MemoryReceiveChannel[Event], kind: type[Event]) -> list[Event]:
    """All events up to the first one of a kind."""
    received: list[Event] = []
    while not received or not isinstance(received[-1], kind):
        received.append(await events.receive())
    return received


@pytest.mark.parametrize(("sweep_interval", "longest"), [(2.0, 2.0), (300.0, 30.0)])
async def test_sweeps_go_on_after_a_gap_as_often_as_they_were_asked_for(
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
        fake.swallow_pushes()
        await fake.deliver(inbox_id=INBOX)
        began = trio.current_time()
        assert isinstance(await events.receive(), MessageReceivedEvent)
        assert trio.current_time() - began <= longest + 0.1
