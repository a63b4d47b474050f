"""In memory, the REST API answers the calls of the code under test: a plain httpx client's, and the official SDK's."""

import agentmail
import httpx
import pytest
from trio.testing import MockClock

from trio_agentmail import AgentMailEnvironment
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


@pytest.mark.parametrize("environment", [AgentMailEnvironment.PROD, AgentMailEnvironment.EU_PROD])
async def test_a_plain_client_meets_the_fake_whatever_its_base_url(
    environment: AgentMailEnvironment, fake_agentmail: FakeAgentMail, autojump_clock: MockClock
) -> None:
    mail = await fake_agentmail.deliver(inbox_id=INBOX)
    async with httpx.AsyncClient(
        transport=fake_agentmail.http_transport(),
        base_url=environment.http,
        headers={"Authorization": "Bearer am_any"},
    ) as client:
        listing = (await client.get(f"/v0/inboxes/{INBOX}/messages")).json()
    assert [message["message_id"] for message in listing["messages"]] == [mail.message.message_id]


async def test_under_trio_the_sdk_lists_and_answers_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX, from_="jane@example.com")
    async with httpx.AsyncClient(transport=fake.http_transport()) as http:
        client = agentmail.AsyncAgentMail(api_key="am_any", httpx_client=http)
        # The SDK's own retries need asyncio.
        messages = await client.inboxes.messages.list(INBOX, request_options={"max_retries": 0})
        [message] = messages.messages
        assert message.message_id == mail.message.message_id
        await client.inboxes.messages.reply(
            INBOX, message.message_id, text="Hi, Jane!", request_options={"max_retries": 0}
        )
    [answer] = fake.messages(INBOX, "sent")
    assert (answer.text, answer.to, answer.thread_id) == ("Hi, Jane!", ("jane@example.com",), mail.message.thread_id)
