"""Users' tests run at the speed of memory: `--durations` says how long the week of docs/testing.md takes.

Where something costs the same however much mail there is, it is the lines that are run that are counted, and no time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import MessageReceivedEvent, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail


@pytest.mark.parametrize("days", [1, pytest.param(7, marks=pytest.mark.long)])
async def test_a_week_with_a_mail_and_a_reconnect_an_hour_misses_nothing(
    days: int, fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
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
        await fake_agentmail.deliver(inbox_id="agent@agentmail.to")
        await trio.sleep(1800)
        await fake_agentmail.drop_connections()
    assert came == 24 * days


@contextmanager
def lines_run() -> Iterator[list[int]]:
    """Count the lines of Python that the block runs."""
    count = [0]

    def trace(_frame: FrameType, event: str, _arg: Any) -> Any:
        count[0] += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


async def test_finding_the_mail_of_an_inbox_costs_the_same_however_much_others_have() -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id="agent@agentmail.to")
    costs = []
    for mails in (1, 300):
        for _ in range(mails):
            await fake.deliver(inbox_id="other@agentmail.to")
        with lines_run() as count:
            assert len(fake.mail.messages("agent@agentmail.to")) == 1
        costs += count
    assert costs[1] < 2 * costs[0]


@pytest.mark.parametrize("kind", ["sent", "spam"])
async def test_a_mail_that_comes_costs_the_same_however_many_there_are_in_its_thread(kind: str) -> None:
    fake = FakeAgentMail()
    first = await fake.deliver(inbox_id="agent@agentmail.to", thread_id="t")
    await fake.mail.label("agent@agentmail.to", first.message.message_id, add=[kind])
    costs = []
    for mails in (1, 1000):
        for _ in range(mails):
            await fake.deliver(inbox_id="agent@agentmail.to", thread_id="t")
        with lines_run() as count:
            await fake.deliver(inbox_id="agent@agentmail.to", thread_id="t")
        costs += count
    assert costs[1] < 2 * costs[0]
