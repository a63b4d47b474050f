"""An AgentMail in memory, for testing code that is built on this package.

It speaks real WebSocket frames, but uses no network. On Trio's mock clock, tests do not wait either:

    from trio_agentmail.testing import FakeAgentMail

    async def test_my_agent_answers(autojump_clock):
        fake = FakeAgentMail()
        async with open_agentmail_stream(backend=fake) as events:
            assert isinstance(await anext(events), Subscribed)
            await fake.deliver(inbox_id="agent@agentmail.to", from_="jane@example.com", text="Hello?")
            event = await anext(events)
            ...

A test can cause failures of the server and of the network:

    fake.faults.reject_handshakes(503, times=2)
    await fake.drop_connections()

The fake keeps the mail that is delivered to it, and its REST API lists it:

    async with httpx2.AsyncClient(transport=fake.http_transport(), base_url="https://api.agentmail.to/v0") as client:
        ...

For clients in other processes or languages, the same fake can listen on local ports:

    async with fake.serve() as environment:
        ...  # environment.websockets is ws://127.0.0.1:<port>, environment.http is http://127.0.0.1:<another>
"""

from ._agentmail.mail.attachments import AttachedFile
from ._encode import encode_event
from ._fake import FakeAgentMail
from ._make_event import make_event
from ._wire.handshake import Handshake
from ._wire.request import Request

__all__ = ["AttachedFile", "FakeAgentMail", "Handshake", "Request", "encode_event", "make_event"]
