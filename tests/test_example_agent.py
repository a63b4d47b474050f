import httpx
import trio
from trio.testing import MockClock

from tests.examples.answering_agent import INBOX, run
from trio_agentmail.testing import FakeAgentMail


async def start_agent(nursery: trio.Nursery, agentmail: FakeAgentMail) -> None:
    api = httpx.AsyncClient(
        transport=agentmail.http_transport(),
        base_url="https://api.agentmail.to",
        headers={"Authorization": "Bearer am_any"},
    )
    nursery.start_soon(run, api)
    await agentmail.wait_subscribed()
    await trio.sleep(60)


async def test_a_mail_is_answered(agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    await start_agent(nursery, agentmail)
    mail = await agentmail.deliver(inbox_id=INBOX, from_="Jane <jane@example.com>", subject="Lunch?")
    [answer] = await agentmail.wait_for(lambda: agentmail.messages(INBOX, "sent"))
    assert answer.to == ("Jane <jane@example.com>",)
    assert answer.in_reply_to == mail.message.message_id
    assert answer.text == "Thank you. We have read “Lunch?”."


async def test_a_mail_in_the_middle_of_a_reconnect_is_answered(
    agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, agentmail)
    await agentmail.drop_connections()
    await agentmail.deliver(inbox_id=INBOX)  # nobody is there
    await agentmail.wait_for(lambda: agentmail.messages(INBOX, "sent"))
    assert len(agentmail.handshakes) == 2


async def test_a_mail_that_is_pushed_twice_is_answered_once(
    agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, agentmail)
    agentmail.duplicate_pushes()
    await agentmail.deliver(inbox_id=INBOX)
    await trio.sleep(3600)
    assert len(agentmail.messages(INBOX, "sent")) == 1


async def test_an_answer_whose_request_is_broken_off_is_sent_once(
    agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, agentmail)
    agentmail.break_requests(path="/reply")
    agentmail.fail_requests(503, path="/reply")
    await agentmail.deliver(inbox_id=INBOX)
    await trio.sleep(3600)
    assert len(agentmail.messages(INBOX, "sent")) == 1


async def test_after_an_outage_of_a_day_every_mail_of_that_day_is_answered_once(
    agentmail: FakeAgentMail, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start_agent(nursery, agentmail)
    async with agentmail.outage():
        for hour in range(24):
            await agentmail.deliver(inbox_id=INBOX, subject=f"The mail of hour {hour}")
            await trio.sleep(3600)
    await agentmail.wait_for(lambda: len(agentmail.messages(INBOX, "sent")) == 24)
    await trio.sleep(3600)
    assert len({answer.in_reply_to for answer in agentmail.messages(INBOX, "sent")}) == 24
