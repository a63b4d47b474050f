"""A longer test of `answering_agent.py` than the documentation shows. During an outage, each gap requests every few
seconds, so a simulated day is tens of thousands of requests."""

import pytest
import trio
from trio.testing import MockClock

from tests.examples.answering_agent import INBOX
from tests.project.test_example_agent import start_agent
from trio_agentmail.testing import FakeAgentMail


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_after_a_day_of_outage_every_mail_is_answered_once(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    async with fake_agentmail.faults.outage():
        for hour in range(24):
            await fake_agentmail.deliver(inbox_id=INBOX, subject=f"The mail of hour {hour}")
            await trio.sleep(3600)
    await fake_agentmail.wait_for(lambda: len(fake_agentmail.mail.messages(INBOX, "sent")) == 24)
    await trio.sleep(3600)
    assert len({answer.in_reply_to for answer in fake_agentmail.mail.messages(INBOX, "sent")}) == 24
