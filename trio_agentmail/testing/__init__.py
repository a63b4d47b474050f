"""An AgentMail in memory, to test what you build on this package.

Real WebSocket frames, no network, and on Trio's mock clock no waiting either:

    from trio_agentmail.testing import FakeAgentMail

    async def test_my_agent_answers(autojump_clock):
        fake = FakeAgentMail()
        async with open_agentmail_stream(backend=fake) as events:
            assert isinstance(await anext(events), Subscribed)
            await fake.deliver(inbox_id="agent@agentmail.to", from_="jane@example.com", text="Hello?")
            event = await anext(events)
            ...

Everything that can go wrong can be asked for:

    fake.faults.reject_handshakes(503, times=2)
    await fake.drop_connections()

Mail is kept, and the REST API lists it:

    async with httpx2.AsyncClient(transport=fake.http_transport(), base_url="https://api.agentmail.to/v0") as client:
        ...

For clients in other processes or languages, the same fake listens on ports of this machine:

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
