"""The backend of `tests/helpers/websockets_backend.py` over real sockets, with TLS and recovery.

It has no name from this package that is not public, and neither has this test. `tests/core/test_backend.py` has the
same backend in memory, and checks the imports.
"""

import ssl

import pytest
import trio
import trustme

from tests.helpers.websockets_backend import WebsocketsBackend
from trio_agentmail import (
    CaughtUp,
    Disconnected,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Subscribed,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"

QUICK = ReconnectPolicy(initial_delay=0.01, max_delay=0.05)

PATIENCE = 15.0
"""Seconds that a test may take."""


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the context of a client and of a server."""
    authority = trustme.CA()
    client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("localhost").configure_cert(server)
    return client, server


async def until(events: trio.MemoryReceiveChannel[Event], kind: type[Event]) -> list[Event]:
    received: list[Event] = []
    while not received or not isinstance(received[-1], kind):
        received.append(await events.receive())
    return received


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_mail_is_pushed_and_missed_mail_is_recovered(tls: bool) -> None:
    client, server = certificates() if tls else (None, None)
    fake = FakeAgentMail()
    with trio.fail_after(PATIENCE):
        async with (
            fake.serve(ssl_context=server) as environment,
            open_agentmail_stream(
                api_key=fake.api_key,
                environment=environment,
                ssl_context=client,
                reconnect=QUICK,
                backend=WebsocketsBackend(),
            ) as events,
        ):
            await fake.deliver(inbox_id=INBOX, subject="pushed")
            received = await until(events, MessageReceivedEvent)
            await fake.drop_connections()
            await fake.deliver(inbox_id=INBOX, subject="missed")
            received += await until(events, CaughtUp)
            mails = [event for event in received if isinstance(event, MessageReceivedEvent)]
            assert [(mail.message.subject, mail.origin) for mail in mails] == [
                ("pushed", "live"),
                ("missed", "recovered"),
            ]
            assert sum(isinstance(event, Disconnected) for event in received) == 1
            assert sum(isinstance(event, Subscribed) for event in received) == 2
        await fake.wait_for(lambda: fake.connected == 0)
    assert fake.record.close_codes == [1000]


async def test_a_certificate_that_cannot_be_verified_raises_as_itself() -> None:
    _, server = certificates()
    stranger, _ = certificates()
    fake = FakeAgentMail()
    with trio.fail_after(PATIENCE):
        async with fake.serve(ssl_context=server) as environment:
            with pytest.raises(ssl.SSLCertVerificationError):
                async with open_agentmail_stream(
                    api_key=fake.api_key, environment=environment, ssl_context=stranger, backend=WebsocketsBackend()
                ):
                    pytest.fail("entered")
