"""Users' tests run at the speed of memory. `pytest -m long` simulates the week of which docs/testing.md tells."""

import sys
import time

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import MessageReceivedEvent, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

SECONDS_FOR_A_WEEK = 15


@pytest.mark.parametrize("days", [1, pytest.param(7, marks=pytest.mark.long)])
async def test_a_week_with_a_mail_and_a_reconnect_an_hour_passes_in_seconds(
    days: int, agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    came = 0

    async def consume() -> None:
        nonlocal came
        async with open_agentmail_stream() as events:
            async for event in events:
                came += isinstance(event, MessageReceivedEvent)

    began = time.process_time()
    nursery.start_soon(consume)
    for _ in range(24 * days):
        await trio.sleep(1800)
        await agentmail.deliver(inbox_id="agent@agentmail.to")
        await trio.sleep(1800)
        await agentmail.drop_connections()
    took = time.process_time() - began
    assert came == 24 * days
    if sys.gettrace() is None:  # not while coverage is measured
        assert took < SECONDS_FOR_A_WEEK * (days / 7 + 0.2)
