"""Tests of `answering_agent.py`."""

import httpx2
import trio
from trio.testing import MockClock

from tests.examples.answering_agent import INBOX, run
from trio_agentmail.testing import FakeAgentMail


async def start_agent(nursery: trio.Nursery, fake_agentmail: FakeAgentMail) -> None:
    api = httpx2.AsyncClient(
        transport=fake_agentmail.http_transport(),
        base_url="https://api.agentmail.to",
        headers={"Authorization": "Bearer am_any"},
    )
    nursery.start_soon(run, api)
    await fake_agentmail.wait_subscribed()
    await trio.sleep(60)


async def test_a_mail_is_answered(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    mail = await fake_agentmail.deliver(inbox_id=INBOX, from_="Jane <jane@example.com>", subject="Lunch?")
    [answer] = await fake_agentmail.wait_for(lambda: fake_agentmail.mail.messages(INBOX, "sent"))
    assert answer.to == ("Jane <jane@example.com>",)
    assert answer.in_reply_to == mail.message.message_id
    assert answer.text == "Thank you. We have read “Lunch?”."


async def test_a_mail_during_a_reconnect_is_answered(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    await fake_agentmail.drop_connections()
    await fake_agentmail.deliver(inbox_id=INBOX)  # while there is no connection
    await fake_agentmail.wait_for(lambda: fake_agentmail.mail.messages(INBOX, "sent"))
    assert len(fake_agentmail.record.handshakes) == 2


async def test_a_mail_that_is_pushed_twice_is_answered_once(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    fake_agentmail.faults.duplicate_pushes()
    await fake_agentmail.deliver(inbox_id=INBOX)
    await trio.sleep(3600)
    assert len(fake_agentmail.mail.messages(INBOX, "sent")) == 1


async def test_an_answer_whose_request_fails_is_sent_once(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    fake_agentmail.faults.break_requests(path="/reply")
    fake_agentmail.faults.fail_requests(503, path="/reply")
    await fake_agentmail.deliver(inbox_id=INBOX)
    await trio.sleep(3600)
    assert len(fake_agentmail.mail.messages(INBOX, "sent")) == 1


async def test_after_hours_of_outage_every_mail_is_answered_once(
    fake_agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, fake_agentmail)
    async with fake_agentmail.faults.outage():
        for hour in range(3):
            await fake_agentmail.deliver(inbox_id=INBOX, subject=f"The mail of hour {hour}")
            await trio.sleep(3600)
    await fake_agentmail.wait_for(lambda: len(fake_agentmail.mail.messages(INBOX, "sent")) == 3)
    await trio.sleep(3600)
    assert len({answer.in_reply_to for answer in fake_agentmail.mail.messages(INBOX, "sent")}) == 3
