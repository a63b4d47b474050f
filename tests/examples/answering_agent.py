"""An agent that answers every mail once."""

import hashlib
from urllib.parse import quote

import httpx2
import trio

from trio_agentmail import Message, MessageReceivedEvent, Subscribe, open_agentmail_stream

INBOX = "agent@agentmail.to"


async def run(api: httpx2.AsyncClient) -> None:
    async with open_agentmail_stream(Subscribe(inbox_ids=[INBOX])) as events:
        async for event in events:
            match event:
                case MessageReceivedEvent(message=message):
                    await answer(api, message)


async def answer(api: httpx2.AsyncClient, message: Message) -> None:
    path = f"/v0/inboxes/{quote(INBOX, safe='')}/messages/{quote(message.message_id, safe='')}/reply"
    body = {"text": f"Thank you. We have read “{message.subject}”."}
    key = hashlib.sha256(message.message_id.encode()).hexdigest()  # AgentMail sends only once for one key
    while True:
        try:
            response = await api.post(path, json=body, headers={"Idempotency-Key": key})
        except httpx2.TransportError:
            pass
        else:
            if not response.is_server_error:
                response.raise_for_status()
                return
        await trio.sleep(10)
