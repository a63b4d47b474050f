"""Chaos on real sockets: a server of the `websockets` package fails in every way that it can.

The server is not ours; the mail that it pushes and the REST API beside it are those of `FakeAgentMail`. Time is real.
The server's log, which contains all mail, is what the run is judged by. The seed decides the faults, their order, and
the mail that arrives with them. The moments at which they strike depend on the machine as well. A run that fails prints
its seed:
`CHAOS_SEED=<seed> pytest -m long tests/reliability/test_chaos_sockets.py`.
"""

import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import Server as WebsocketsServer
from websockets.trio.server import ServerConnection
from websockets.trio.server import serve as websockets_serve

from tests.helpers.servers import KEY, SUBSCRIBED, reserved_port
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    Disconnected,
    MessageReceivedEvent,
    ReconnectPolicy,
    Recovery,
    Subscribe,
    Subscribed,
    open_agentmail_session,
)
from trio_agentmail._nursery import background_nursery
from trio_agentmail.testing import FakeAgentMail, encode_event

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))

# A sweep a second, since it is what finds a swallowed push. `SECOND_LOOK_AFTER` is then a second as well.
RECOVERY = Recovery(overlap=60, sweep_interval=1.0, sweep_depth=600)
RECONNECT = ReconnectPolicy(initial_delay=0.01, max_delay=0.1)

INBOXES = ("support@agentmail.to", "sales@agentmail.to")
MAILS = 400
FAULTS = 20
MAILS_OF_A_FAULT = 10
"""Half of them arrive at its worst moment."""


class MailServer:
    """Pushes mail over WebSockets, and fails on command.

    Attributes:
        fake: Stores the mail, and lists it over HTTP.
        log: All mail that has arrived.
        happened: The number of failures of each kind.
        bugs: Exceptions of this server itself, which the websockets package would only log.
    """

    def __init__(self, port: int, draw: random.Random) -> None:
        self.port = port
        self.fake = FakeAgentMail(api_keys={KEY})
        for inbox_id in INBOXES:
            self.fake.mail.add_inbox(inbox_id)
        self.log: list[MessageReceivedEvent] = []
        self.happened: Counter[str] = Counter()
        self.bugs: list[Exception] = []
        self.subscribed: dict[ServerConnection, list[str]] = {}
        """The subscribed connections, with their inboxes."""
        self.handshakes_to_refuse = 0
        self._draw = draw
        self._numbers = count()
        self._nursery: trio.Nursery
        self._running: WebsocketsServer

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[AgentMailEnvironment]:
        async with self.fake.serve() as environment, background_nursery() as self._nursery:
            await self.come_up()
            yield AgentMailEnvironment(http=environment.http, websockets=f"ws://127.0.0.1:{self.port}")
            await self.go_down()
        if self.bugs:
            raise self.bugs[0]

    # Mail

    async def arrive(self, *, pushes: int = 1) -> MessageReceivedEvent:
        """Let a mail arrive: log it, and push it to all subscribed connections, `pushes` times."""
        number = next(self._numbers)
        # The clock of some senders is slow, and listings are sorted by it. A Message-ID may contain anything.
        slow = timedelta(seconds=self._draw.uniform(0, 30) if self._draw.random() < 0.1 else 0)
        mail = await self.fake.deliver(
            inbox_id=self._draw.choice(INBOXES),
            message_id=f"<{number}{self._draw.choice(['', '/ä?#%2F'])}@chaos.example>",
            text=f"text of {number}",
            timestamp=datetime.now(UTC) - slow,
        )
        self.log.append(mail)
        for _ in range(pushes):
            await self.push(mail)
        return mail

    async def push(self, mail: MessageReceivedEvent) -> None:
        for websocket, inbox_ids in list(self.subscribed.items()):
            if mail.message.inbox_id in inbox_ids:
                with suppress(ConnectionClosed):
                    await websocket.send(encode_event(mail))

    # WebSockets

    async def come_up(self) -> None:
        self._running = await self._nursery.start(
            partial(
                websockets_serve,
                self._serve_websocket,
                self.port,
                host="127.0.0.1",
                process_request=self._consider,
                ping_interval=None,
                close_timeout=1.0,
            )
        )

    async def go_down(self) -> None:
        """Stop listening, so that connections are refused."""
        await self._running.aclose()

    def _consider(self, websocket: ServerConnection, _: Request) -> Response | None:
        if not self.handshakes_to_refuse:
            return None
        self.handshakes_to_refuse -= 1
        self.happened["handshake 503"] += 1
        return websocket.respond(503, "not now")

    async def _serve_websocket(self, websocket: ServerConnection) -> None:
        try:
            with suppress(ConnectionClosed):
                inbox_ids = json.loads(await websocket.recv())["inbox_ids"]
                await websocket.send(SUBSCRIBED)
                self.subscribed[websocket] = inbox_ids
                await websocket.wait_closed()
        except Exception as exc:  # noqa: BLE001  raised when the server ends
            self.bugs.append(exc)
        finally:
            self.subscribed.pop(websocket, None)

    def unsubscribe_all(self) -> list[ServerConnection]:
        """Stop pushing to the connections that are subscribed, since they are about to be cut."""
        websockets = list(self.subscribed)
        self.subscribed.clear()
        return websockets


def identity(mail: MessageReceivedEvent) -> tuple[str, str]:
    return mail.message.inbox_id, mail.message.message_id


@attrs.define
class Client:
    """Notes what comes out of the stream."""

    came: dict[tuple[str, str], list[MessageReceivedEvent]] = attrs.field(factory=dict)
    codes: Counter[int] = attrs.field(factory=Counter)
    """The close codes of lost connections."""
    subscriptions: int = 0

    def has(self, mail: MessageReceivedEvent) -> bool:
        return identity(mail) in self.came

    async def consume(self, events: trio.MemoryReceiveChannel[Any]) -> None:
        async for event in events:
            match event:
                case MessageReceivedEvent():
                    self.came.setdefault(identity(event), []).append(event)
                case Disconnected():
                    self.codes[event.code] += 1
                case Subscribed():
                    self.subscriptions += 1


async def until(is_so: Callable[[], bool], patience: float) -> bool:
    with trio.move_on_after(patience):
        while not is_so():  # noqa: ASYNC110  no trio.Event tells what happens on a socket
            await trio.sleep(0.005)
    return is_so()


# The faults


@attrs.frozen
class Chaos:
    server: MailServer
    client: Client
    session: AgentMailSession
    draw: random.Random

    async def mails(self, *, pushes: int = 1) -> list[MessageReceivedEvent]:
        return [await self.server.arrive(pushes=pushes) for _ in range(MAILS_OF_A_FAULT // 2)]

    async def close(self, code: int) -> None:
        """Close with a close frame, while mail arrives."""
        await self.mails()
        websockets = self.server.unsubscribe_all()
        await self.mails()
        for websocket in websockets:
            await websocket.aclose(code, "chaos")
            sent = websocket.protocol.close_sent
            self.server.happened[f"close {code}"] += sent is not None and sent.code == code

    async def abort(self) -> None:
        """End the TCP connection, without a close frame."""
        await self.mails()
        websockets = self.server.unsubscribe_all()
        await self.mails()
        for websocket in websockets:
            await trio.aclose_forcefully(websocket.stream)
            self.server.happened["abort"] += 1

    async def reset(self) -> None:
        """Reset the TCP connection, so that mail that was pushed and not read is lost."""
        await self.mails()
        for websocket in self.server.unsubscribe_all():
            stream = websocket.stream
            assert isinstance(stream, trio.SocketStream)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await trio.aclose_forcefully(stream)
            self.server.happened["RST"] += 1
        await self.mails()

    async def refuse(self) -> None:
        """Stop listening for a while. The client is refused several times, since its back-off is 0.1 s at most."""
        await self.mails()
        await self.server.go_down()
        await self.mails()
        await trio.sleep(self.draw.uniform(0.25, 0.5))
        # The server cannot see the refused connections; the client can.
        refused = f"connection refused: 127.0.0.1 port {self.server.port}"
        self.server.happened["refused"] += refused in (self.session.statistics().last_error or "")
        await self.server.come_up()

    async def refuse_handshakes(self) -> None:
        self.server.handshakes_to_refuse = self.draw.randint(1, 3)
        await self.abort()
        await until(lambda: not self.server.handshakes_to_refuse, 5)

    async def duplicate(self) -> None:
        """Push new mail twice, and push mail again that arrived long ago or was recovered."""
        twice = await self.mails(pushes=2)
        again = self.draw.sample(self.server.log, min(MAILS_OF_A_FAULT, len(self.server.log)))
        await self.mails()
        for mail in again:
            await self.server.push(mail)
        # The connections that are still subscribed have received all of it.
        self.server.happened["duplicate"] += len(self.server.subscribed) * (len(twice) + len(again))

    async def swallow(self) -> None:
        """Do not push mail, on a connection that stays.

        This counts only if that mail is delivered before the next fault, since only a sweep can find it then. The
        recovery of a later gap would find it too, since the whole run is shorter than `Recovery.overlap`.
        """
        swallowed = await self.mails(pushes=0) + await self.mails(pushes=0)
        was_subscribed = list(self.server.subscribed)
        was_found = await until(lambda: all(self.client.has(mail) for mail in swallowed), 10)
        stayed = bool(was_subscribed) and was_subscribed == list(self.server.subscribed)
        self.server.happened["swallow"] += was_found and stayed

    async def fail_requests(self, status: int) -> None:
        """Answer the requests after a reconnect with an error."""
        headers = [("Retry-After", "1")] if status == 429 else []
        times, asked = self.draw.randint(1, 2), len(self.server.fake.record.requests)
        self.server.fake.faults.fail_requests(status, headers=headers, times=times)
        await self.abort()

        def failed() -> int:
            return sum(request.status == status for request in self.server.fake.record.requests[asked:])

        await until(lambda: failed() == times, 5)
        self.server.happened[f"REST {status}"] += failed()

    async def play(self) -> None:
        kinds: dict[str, Callable[[], Any]] = {
            "close 1001": partial(self.close, 1001),
            "close 1011": partial(self.close, 1011),
            "close 4000": partial(self.close, 4000),
            "abort": self.abort,
            "RST": self.reset,
            "refused": self.refuse,
            "handshake 503": self.refuse_handshakes,
            "duplicate": self.duplicate,
            "swallow": self.swallow,
            "REST 500": partial(self.fail_requests, 500),
            "REST 429": partial(self.fail_requests, 429),
        }
        self.server.happened.update(dict.fromkeys(kinds, 0))
        faults = [*kinds, *self.draw.sample(list(kinds), FAULTS - len(kinds))]  # each kind at least once
        self.draw.shuffle(faults)
        for fault in faults:
            # Sometimes the connection is cut again as soon as it is subscribed.
            await trio.sleep(self.draw.choice([0, self.draw.uniform(0, 0.3)]))
            assert await until(lambda: bool(self.server.subscribed), 5), f"seed {SEED}: no subscription before {fault}"
            await kinds[fault]()

    async def ordinary_mail(self) -> None:
        for _ in range(MAILS - FAULTS * MAILS_OF_A_FAULT):
            await trio.sleep(self.draw.uniform(0, 0.06))
            await self.server.arrive()


@pytest.mark.long
async def test_on_real_sockets_no_mail_is_lost_or_comes_twice_whatever_goes_wrong() -> None:
    print(f"CHAOS_SEED={SEED}")  # now, since anything may end the run
    began = trio.current_time()
    client = Client()
    with reserved_port() as port:
        server = MailServer(port, random.Random(f"{SEED} mail"))
        async with server.serving() as environment:
            subscribe = Subscribe(inbox_ids=INBOXES)
            async with open_agentmail_session(
                subscribe, api_key=KEY, environment=environment, reconnect=RECONNECT, recovery=RECOVERY
            ) as session:
                async with background_nursery() as consuming:
                    consuming.start_soon(client.consume, session.events)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(Chaos(server, client, session, random.Random(f"{SEED} faults")).play)
                        nursery.start_soon(
                            Chaos(server, client, session, random.Random(f"{SEED} ordinary")).ordinary_mail
                        )
                    await until(lambda: all(client.has(mail) for mail in server.log), 8)
                    # One more sweep lists all mail, so that anything that can come twice does.
                    await trio.sleep(RECOVERY.sweep_interval + 0.2)
                    duplicates = session.statistics().duplicates

    # The judge
    mails = {identity(mail): mail for mail in server.log}
    lost = [key for key in mails if key not in client.came]
    twice = [key for key, times in client.came.items() if len(times) > 1]
    wrong = [
        key
        for key, [event, *_] in client.came.items()
        if key not in mails or event.message.text != mails[key].message.text
    ]
    recovered = sum(event.origin == "recovered" for times in client.came.values() for event in times)
    verdict = (
        f"seed {SEED}: {len(mails)} mails, {FAULTS} faults, {client.subscriptions} subscriptions in "
        f"{trio.current_time() - began:.1f} s: recovered {recovered}, lost {len(lost)}, twice {len(twice)}; "
        f"{duplicates} duplicates were pushed\n"
        f"what the server did: {dict(server.happened)}\nwhat the client saw: {dict(client.codes)}"
    )
    print(verdict)
    assert len(mails) == MAILS, verdict
    assert not lost, f"lost: {lost[:5]}\n{verdict}"
    assert not twice, f"twice: {twice[:5]}\n{verdict}"
    assert not wrong, f"never sent, or with another text: {wrong[:5]}\n{verdict}"
    # A fault that did not happen tests nothing.
    assert recovered > 0, verdict
    assert duplicates > 0, verdict
    assert all(server.happened.values()), verdict
    assert {1001, 1011, 4000, 1006} <= client.codes.keys(), verdict
