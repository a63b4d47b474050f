"""Users' tests run at the speed of memory: `--durations` says how long the week of docs/testing.md takes."""

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import MessageReceivedEvent, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail


@pytest.mark.parametrize("days", [1, pytest.param(7, marks=pytest.mark.long)])
async def test_a_week_with_a_mail_and_a_reconnect_an_hour_misses_nothing(
    days: int, agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    came = 0

    async def consume() -> None:
        nonlocal came
        async with open_agentmail_stream() as events:
            async for event in events:
                came += isinstance(event, MessageReceivedEvent)

    nursery.start_soon(consume)
    for _ in range(24 * days):
        await trio.sleep(1800)
        await agentmail.deliver(inbox_id="agent@agentmail.to")
        await trio.sleep(1800)
        await agentmail.drop_connections()
    assert came == 24 * days
