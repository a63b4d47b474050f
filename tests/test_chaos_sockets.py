"""Chaos on real sockets: a server of the `websockets` package, with HTTP beside it, breaks in every way that it can.

Neither is our fake, and time is real. The judge is the log of that server, which knows what mail there was. The seed
decides the faults, their order and what mail comes with them; at which moment of a connection they strike, the machine
decides as well. A run that fails prints its seed: `CHAOS_SEED=<seed> pytest -m long tests/test_chaos_sockets.py`.
"""

import json
import os
import random
import socket
import struct
from bisect import insort
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import h11
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import Server as WebsocketsServer
from websockets.trio.server import ServerConnection
from websockets.trio.server import serve as websockets_serve

from tests.servers import KEY, SUBSCRIBED, reserved_port
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

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))

# A sweep a second, since it is what finds a swallowed push. `SECOND_LOOK_AFTER` is then a second as well.
RECOVERY = Recovery(overlap=60, sweep_interval=1.0, sweep_depth=600)
RECONNECT = ReconnectPolicy(initial_delay=0.01, max_delay=0.1)

INBOXES = ("support@agentmail.to", "sales@agentmail.to")
MAILS = 400
FAULTS = 20
MAILS_OF_A_FAULT = 10
"""Half of them at its worst moment."""

PAGE = 50
"""Mails of a page, at most: less than the client asks for, so that listings have pages."""

Answer: TypeAlias = tuple[int, dict[str, Any]]
"""A status and a JSON object."""


@attrs.frozen(order=True)
class Mail:
    """A mail in the server's log, which is in the order of the mails' own times, as the listing is."""

    timestamp: datetime
    message_id: str
    inbox_id: str
    created_at: datetime

    @property
    def text(self) -> str:
        return f"text of {self.message_id}"

    def as_json(self) -> dict[str, Any]:
        """As a listing has it: without its text."""
        return {
            "inbox_id": self.inbox_id,
            "thread_id": f"thread of {self.message_id}",
            "message_id": self.message_id,
            "labels": ["received", "unread"],
            "timestamp": self.timestamp.isoformat(),
            "created_at": self.created_at.isoformat(),
            "from": "somebody@example.com",
            "to": [self.inbox_id],
        }

    def as_push(self) -> str:
        message = self.as_json() | {"text": self.text}
        event = {"type": "event", "event_type": "message.received", "event_id": f"event of {self.message_id}"}
        return json.dumps(event | {"message": message})


class MailServer:
    """Pushes mail over WebSockets, lists it over HTTP, and breaks when it is told to.

    Attributes:
        log: All mail that ever came, by inbox.
        happened: How often it broke, in which way.
        bugs: What this server itself did wrong; the websockets package would only log it.
    """

    def __init__(self, port: int, draw: random.Random) -> None:
        self.port = port
        self.http_port = 0
        self.log: dict[str, list[Mail]] = {inbox_id: [] for inbox_id in INBOXES}
        self.happened: Counter[str] = Counter()
        self.bugs: list[Exception] = []
        self.subscribed: dict[ServerConnection, list[str]] = {}
        """Who is subscribed, and to which inboxes."""
        self.handshakes_to_refuse = 0
        self.statuses_to_answer: deque[int] = deque()
        """What the next requests are answered with, instead of what they ask for."""
        self._draw = draw
        self._count = 0
        self._nursery: trio.Nursery
        self._running: WebsocketsServer

    @property
    def mails(self) -> list[Mail]:
        return [mail for mails in self.log.values() for mail in mails]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with background_nursery() as self._nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.http_port = listeners[0].socket.getsockname()[1]
            await self._nursery.start(trio.serve_listeners, self._serve_http, listeners)
            await self.come_up()
            yield
            await self.go_down()
        if self.bugs:
            raise self.bugs[0]

    # Mail

    async def arrive(self, *, pushes: int = 1) -> Mail:
        """A mail comes: it is logged, and pushed so often to all who are subscribed."""
        self._count += 1
        now = datetime.now(UTC)
        # Now and then its sender's clock is slow: the listing is by that clock. And a Message-ID may hold anything.
        slow = timedelta(seconds=self._draw.uniform(0, 30) if self._draw.random() < 0.1 else 0)
        message_id = f"<{self._count}{self._draw.choice(['', '/ä?#%2F'])}@chaos.example>"
        mail = Mail(now - slow, message_id, self._draw.choice(INBOXES), now)
        insort(self.log[mail.inbox_id], mail)
        for _ in range(pushes):
            await self.push(mail)
        return mail

    async def push(self, mail: Mail) -> None:
        for websocket, inbox_ids in list(self.subscribed.items()):
            if mail.inbox_id in inbox_ids:
                with suppress(ConnectionClosed):
                    await websocket.send(mail.as_push())

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
        """From now on, connections are refused."""
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
        """Nothing is pushed any more to those who were subscribed, since their connections are about to be cut."""
        websockets = list(self.subscribed)
        self.subscribed.clear()
        return websockets

    # HTTP

    async def _serve_http(self, stream: trio.SocketStream) -> None:
        """Answer one request after the other, until the client has gone."""
        http = h11.Connection(h11.SERVER)
        target = ""
        async with stream:
            # A client that reconnects gives up its requests, wherever they are.
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                while not isinstance(event := http.next_event(), h11.ConnectionClosed):
                    if event is h11.NEED_DATA:
                        http.receive_data(await stream.receive_some(2**16))
                    elif isinstance(event, h11.Request):
                        target = event.target.decode()
                        assert (b"authorization", f"Bearer {KEY}".encode()) in list(event.headers)
                    elif isinstance(event, h11.EndOfMessage):
                        await stream.send_all(self._answered(http, target))
                        http.start_next_cycle()

    def _answered(self, http: h11.Connection, target: str) -> bytes:
        status, answer = self._answer(target)
        body = json.dumps(answer).encode()
        headers = [
            ("Date", format_datetime(datetime.now(UTC), usegmt=True)),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *([("Retry-After", "1")] if status == 429 else []),
        ]
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        return b"".join(http.send(event) or b"" for event in events)

    def _answer(self, target: str) -> Answer:
        if self.statuses_to_answer:
            status = self.statuses_to_answer.popleft()
            self.happened[f"REST {status}"] += 1
            return status, {"name": "Trouble", "message": "made by a test"}
        url = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        match [unquote(part) for part in url.path.split("/")[1:]]:
            case ["v0", "inboxes"]:
                return 200, {"count": len(INBOXES), "inboxes": [{"inbox_id": inbox_id} for inbox_id in INBOXES]}
            case ["v0", "inboxes", inbox_id, "messages"] if inbox_id in self.log:
                return 200, self._listing(inbox_id, asked)
            case ["v0", "inboxes", _, "messages", "batch-get"]:
                return 200, {"count": 0, "messages": []}
            case ["v0", "inboxes", inbox_id, "messages", message_id] if inbox_id in self.log:
                for mail in self.log[inbox_id]:
                    if mail.message_id == message_id:
                        return 200, mail.as_json() | {"text": mail.text}
        return 404, {"name": "NotFoundError", "message": "no such thing"}

    def _listing(self, inbox_id: str, asked: dict[str, str]) -> dict[str, Any]:
        after = datetime.fromisoformat(asked["after"])
        mails = [mail for mail in self.log[inbox_id] if mail.timestamp > after]
        if asked.get("ascending") != "true":
            mails.reverse()
        # A token names the last mail of the page before it: a number would shift when back-dated mail comes.
        if token := asked.get("page_token"):
            mails = mails[[mail.message_id for mail in mails].index(token) + 1 :]
        size = min(int(asked["limit"]), PAGE)
        page = mails[:size]
        following = {"next_page_token": page[-1].message_id} if len(mails) > size else {}
        return {"count": len(page), "messages": [mail.as_json() for mail in page]} | following


@attrs.define
class Client:
    """What came out of the stream."""

    came: dict[tuple[str, str], list[MessageReceivedEvent]] = attrs.field(factory=dict)
    codes: Counter[int] = attrs.field(factory=Counter)
    """Of the connections that were lost."""
    subscriptions: int = 0

    def has(self, mail: Mail) -> bool:
        return (mail.inbox_id, mail.message_id) in self.came

    async def consume(self, events: trio.MemoryReceiveChannel[Any]) -> None:
        async for event in events:
            match event:
                case MessageReceivedEvent():
                    self.came.setdefault((event.message.inbox_id, event.message.message_id), []).append(event)
                case Disconnected():
                    self.codes[event.code] += 1
                case Subscribed():
                    self.subscriptions += 1


async def until(is_so: Callable[[], bool], patience: float) -> bool:
    with trio.move_on_after(patience):
        while not is_so():  # noqa: ASYNC110  what happens on a socket sets no event of ours
            await trio.sleep(0.005)
    return is_so()


# The faults


@attrs.frozen
class Chaos:
    server: MailServer
    client: Client
    session: AgentMailSession
    draw: random.Random

    async def mails(self, *, pushes: int = 1) -> list[Mail]:
        return [await self.server.arrive(pushes=pushes) for _ in range(MAILS_OF_A_FAULT // 2)]

    async def close(self, code: int) -> None:
        """Close politely, while mail comes."""
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
        """Cut the TCP connection with an RST, which takes with it what was pushed and has not been read."""
        await self.mails()
        for websocket in self.server.unsubscribe_all():
            stream = websocket.stream
            assert isinstance(stream, trio.SocketStream)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await trio.aclose_forcefully(stream)
            self.server.happened["RST"] += 1
        await self.mails()

    async def refuse(self) -> None:
        """Nobody listens for a while. The client is refused several times, since it waits 0.1 s at most."""
        await self.mails()
        await self.server.go_down()
        await self.mails()
        await trio.sleep(self.draw.uniform(0.25, 0.5))
        # The server cannot see whom it refused: the client tells.
        self.server.happened["refused"] += f":{self.server.port} failed" in (self.session.statistics().last_error or "")
        await self.server.come_up()

    async def refuse_handshakes(self) -> None:
        self.server.handshakes_to_refuse = self.draw.randint(1, 3)
        await self.abort()
        await until(lambda: not self.server.handshakes_to_refuse, 5)

    async def duplicate(self) -> None:
        """Mail is pushed twice, and mail that came long ago, or was recovered, once more."""
        twice = await self.mails(pushes=2)
        again = self.draw.sample(self.server.mails, MAILS_OF_A_FAULT)
        await self.mails()
        for mail in again:
            await self.server.push(mail)
        # What is subscribed still has had it all.
        self.server.happened["duplicate"] += len(self.server.subscribed) * (len(twice) + len(again))

    async def swallow(self) -> None:
        """Nothing is pushed, on a connection that stays.

        It happened if that mail came before the next fault: only a sweep finds it then. The look after a later gap
        would find it as well, since the whole run is shorter than `Recovery.overlap`.
        """
        swallowed = await self.mails(pushes=0) + await self.mails(pushes=0)
        was_subscribed = list(self.server.subscribed)
        was_found = await until(lambda: all(self.client.has(mail) for mail in swallowed), 10)
        stayed = bool(was_subscribed) and was_subscribed == list(self.server.subscribed)
        self.server.happened["swallow"] += was_found and stayed

    async def fail_requests(self, status: int) -> None:
        """The look after a reconnect is answered with trouble."""
        self.server.statuses_to_answer.extend([status] * self.draw.randint(1, 2))
        await self.abort()
        await until(lambda: not self.server.statuses_to_answer, 5)

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
        faults = [*kinds, *self.draw.sample(list(kinds), FAULTS - len(kinds))]  # every kind is there
        self.draw.shuffle(faults)
        for fault in faults:
            # Now and then the connection is hardly there when it is cut again.
            await trio.sleep(self.draw.choice([0, self.draw.uniform(0, 0.3)]))
            assert await until(lambda: bool(self.server.subscribed), 5), f"seed {SEED}: no subscription before {fault}"
            await kinds[fault]()

    async def ordinary_mail(self) -> None:
        for _ in range(MAILS - FAULTS * MAILS_OF_A_FAULT):
            await trio.sleep(self.draw.uniform(0, 0.06))
            await self.server.arrive()


@pytest.mark.long
async def test_on_real_sockets_no_mail_is_lost_or_comes_twice_whatever_goes_wrong() -> None:
    print(f"CHAOS_SEED={SEED}")  # whatever ends the run
    began = trio.current_time()
    client = Client()
    with reserved_port() as port:
        server = MailServer(port, random.Random(f"{SEED} mail"))
        async with server.serving():
            environment = AgentMailEnvironment(
                http=f"http://127.0.0.1:{server.http_port}", websockets=f"ws://127.0.0.1:{port}"
            )
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
                    await until(lambda: all(client.has(mail) for mail in server.mails), 8)
                    # One more sweep lists all that there is: were anything to come twice, it would.
                    await trio.sleep(RECOVERY.sweep_interval + 0.2)
                    duplicates = session.statistics().duplicates

    # The judge
    mails = {(mail.inbox_id, mail.message_id): mail for mail in server.mails}
    lost = [key for key in mails if key not in client.came]
    twice = [key for key, times in client.came.items() if len(times) > 1]
    wrong = [
        key for key, [event, *_] in client.came.items() if key not in mails or event.message.text != mails[key].text
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
    # What did not happen shows nothing.
    assert recovered > 0, verdict
    assert duplicates > 0, verdict
    assert all(server.happened.values()), verdict
    assert {1001, 1011, 4000, 1006} <= client.codes.keys(), verdict
