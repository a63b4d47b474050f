"""`FakeAgentMail`: the parts of the fake, put together.

Most of this module is the signatures and docstrings of the interface, which is why it is a long one.
"""

import ssl
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from email.message import EmailMessage
from typing import Self, TypeVar, overload

import trio

from trio_agentmail._backend import WebSocket, installed_backend
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.events import Event, MessageReceivedEvent

from ._agentmail.agentmail import AgentMail
from ._agentmail.keys import ApiKeys, KeyRing
from ._agentmail.mail.attachments import AttachedFile
from ._agentmail.mail.events import SENDER, SUBJECT, TEXT
from ._clock import FakeClock, is_on_mock_clock
from ._faults.table import Faults
from ._log import Log
from ._mailboxes import Mailboxes, push
from ._record import Record
from ._wire.connections import Connections
from ._wire.hooks import PendingFaults
from ._wire.http import RestApi
from ._wire.ports import Services, serve_on_ports
from ._wire.transport import FakeTransport
from ._wire.websockets import WebSockets

__all__ = ["FakeAgentMail"]

T = TypeVar("T")


class FakeAgentMail:
    """An AgentMail in memory: pass it as `backend=`, or `serve()` it on a port of this machine.

    It has neither a start nor an end: its tasks live inside the connections that it serves. A bug in it comes out of
    the block that has the connection open, as itself.

    It keeps the mail that is delivered to it, and its REST API lists it: see `http_transport()`.

    Args:
        api_keys: The API keys that it knows; `None`: it accepts any. A mapping gives the permissions of each key.
        permissions: The permissions of other keys, for example `{"message_read", "label_spam_read"}`; `None`: all. A
            key without any permission gets a 403 when it asks for a WebSocket.

    Raises:
        TypeError: `api_keys` or `permissions` is a string instead of a collection of them. Assigning to the attributes
            raises the same.
        ValueError: AgentMail has no such permission.

    Attributes:
        mail: The inboxes and the mail in them, to look at and to change.
        faults: What can go wrong.
        record: What clients have done.
    """

    def __init__(
        self,
        *,
        api_keys: Collection[str] | Mapping[str, Collection[str] | None] | None = None,
        permissions: Collection[str] | None = None,
    ) -> None:
        # The parts are put together here. Each knows only those that are made before it.
        self._clock = FakeClock()
        self._agentmail = AgentMail(keys=KeyRing(api_keys, permissions), now=self._clock.created)
        pending = PendingFaults()
        self._log = Log(pending.left)
        self.record = Record()
        self._connections = Connections(self._agentmail, pending, self._log)
        self._websockets = WebSockets(self._agentmail, self._connections, pending, self.record, self._log, self._clock)
        self._rest = RestApi(
            self._agentmail, pending, self.record, self._log, self._clock, self._connections.push_event
        )
        self.mail = Mailboxes(self._agentmail, self._connections, self._log, self._clock)
        self.faults = Faults(pending, self._connections, self._log)
        # The pytest plug-in, if it is loaded, shows what happened here if the test fails.
        if (plugin := sys.modules.get("trio_agentmail._pytest_plugin")) is not None:
            plugin.made.append(self)

    @property
    def api_keys(self) -> ApiKeys:
        """The API keys that it knows. It may be changed, for the handshakes and requests to come."""
        return self._agentmail.keys.api_keys

    @api_keys.setter
    def api_keys(self, api_keys: ApiKeys) -> None:
        self._agentmail.keys.api_keys = api_keys

    @property
    def permissions(self) -> Collection[str] | None:
        """The permissions of keys that have none of their own. It may be changed, for the subscriptions and requests to
        come."""
        return self._agentmail.keys.permissions

    @permissions.setter
    def permissions(self, permissions: Collection[str] | None) -> None:
        self._agentmail.keys.permissions = permissions

    # A `Backend`

    @property
    def api_key(self) -> str:
        """The API key of callers that give none while `$AGENTMAIL_API_KEY` is not set: one that is known, if any is."""
        return next(iter(self.api_keys or ()), "am_fake_key")

    def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AbstractAsyncContextManager[WebSocket]:
        """Open a WebSocket to this fake, in memory, whatever the host in the URL."""
        return self._websockets.open_websocket(url, headers=headers, max_message_size=max_message_size)

    def http_transport(self, ssl_context: ssl.SSLContext | None = None) -> FakeTransport:
        """Return a transport to the REST API, in memory, whatever the host in the URL.

        It is for an `AsyncClient` of httpx2 or of httpx, under Trio.
        """
        return FakeTransport(self._rest.respond)

    def now(self) -> float:
        """Return the time of day here, in seconds since the Unix epoch. On a mock clock it passes as that does."""
        return self._clock.time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        """Call a function that waits for a disk: in a thread, except on a mock clock, which waits for none."""
        if is_on_mock_clock():
            await trio.lowlevel.checkpoint()
            return function()
        return await trio.to_thread.run_sync(function)

    # Where it is found

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """For the block, streams in this process that are given no `backend` come here, and need no API key.

        Raises:
            RuntimeError: Another fake is installed already.
        """
        with installed_backend(self):
            yield self

    @asynccontextmanager
    async def serve(
        self,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        *,
        http_port: int = 0,
        host: str = "127.0.0.1",
        allow_hosts: Collection[str] = (),
    ) -> AsyncIterator[AgentMailEnvironment]:
        """Listen on 127.0.0.1 for the block, at whose end the remaining connections are cut.

        Args:
            port: The port of the WebSocket. `0`: any that is free.
            ssl_context: Speak TLS, with this server-side context. Its certificate must be for `localhost`.
            http_port: The port of the REST API. `0`: any that is free.
            host: The IP address to listen on, instead of 127.0.0.1. `0.0.0.0` and `::` are all addresses of this
                machine; then the loopback address is yielded.
            allow_hosts: Names and addresses that are accepted as the header `Host`, besides `localhost`, loopback
                addresses and the address that the client has connected to. Other requests, and those of web pages from
                elsewhere, are answered with 403.

        Yields:
            Where a client finds it.

        Raises:
            TypeError: `allow_hosts` is not a collection of strings.
            ValueError: One of them is neither a name nor an IP address.
            OSError: A port is not free, or the address is not one of this machine.
        """
        async with serve_on_ports(
            Services(self._websockets.serve_tcp, self._rest.respond, self._log.note),
            port,
            ssl_context,
            http_port=http_port,
            host=host,
            allow_hosts=allow_hosts,
        ) as environment:
            yield environment

    @overload
    async def deliver(
        self,
        mail: EmailMessage | bytes,
        /,
        *,
        inbox_id: str | None = None,
        event_type: str = "message.received",
        held: bool = False,
        body_in_push: bool = True,
    ) -> tuple[MessageReceivedEvent, ...]: ...

    @overload
    async def deliver(
        self,
        /,
        *,
        inbox_id: str,
        from_: str = SENDER,
        subject: str | None = SUBJECT,
        text: str | None = TEXT,
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        event_type: str = "message.received",
        message_id: str | None = None,
        thread_id: str | None = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        attachments: Sequence[AttachedFile] = (),
        held: bool = False,
        body_in_push: bool = True,
    ) -> MessageReceivedEvent: ...

    async def deliver(
        self,
        mail: EmailMessage | bytes | None = None,
        /,
        *,
        inbox_id: str | None = None,
        from_: str = SENDER,
        subject: str | None = SUBJECT,
        text: str | None = TEXT,
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        event_type: str = "message.received",
        message_id: str | None = None,
        thread_id: str | None = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        attachments: Sequence[AttachedFile] = (),
        held: bool = False,
        body_in_push: bool = True,
    ) -> MessageReceivedEvent | tuple[MessageReceivedEvent, ...]:
        """Receive a mail: it is kept, and pushed to the connections whose subscription it matches.

        Args:
            mail: A whole mail as RFC 5322 has it: an `email.message.EmailMessage`, or the bytes of an `.eml` file. It
                goes to every inbox that its To, Cc, Bcc or Delivered-To names, without its Bcc. It is in the thread of
                the mail that its In-Reply-To or References names. Besides a mail, only `inbox_id`, `event_type`, `held`
                and `body_in_push` can be given. `None`: the other arguments describe the mail.
            inbox_id: With a `mail`: the one inbox that it goes to, whatever its headers say.
            to: `None`: the inbox.
            event_type: `"message.received"`, or one of its variants, like `"message.received.spam"`.
            message_id: `None`, here and below: a new one. The id of a mail in the inbox: this mail replaces that one,
                in its thread. If the inbox itself has sent that one, the mail has the labels of both.
            thread_id: That of other mails of the inbox: this mail joins their thread.
            timestamp: The mail's own time, aware. `None`: now.
            attachments: Files, each a dict like `{"filename": "a.pdf", "content": b"…", "content_type":
                "application/pdf"}`, with `"content_disposition": "inline"` and a `content_id` for what the HTML shows.
                They are in the event, and the REST API has their content.
            held: Agent Armor holds the mail until `mail.release`: it has the label `agent-armor-held`, and a
                `message.security.review` is pushed.
            body_in_push: Whether text and HTML are pushed as well as kept. AgentMail does not push large ones.

        Returns:
            The event as it was pushed, or as it would be if the mail were not held. For a `mail`, one for each inbox.
            `attrs.evolve` and `emit` can push what cannot be given here.

        Raises:
            TypeError: The timestamp has no offset; neither a mail nor an inbox is given; or an argument has a wrong
                type, or cannot be given with a `mail`.
            ValueError: The thread belongs to another inbox; the mail is for none of the existing inboxes; or there is
                no such event_type.
        """
        now = self._clock.now()
        if mail is not None:
            others = (from_, subject, text, html, to, message_id, thread_id, event_id, timestamp)
            if others != (SENDER, SUBJECT, TEXT, None, None, None, None, None, None) or attachments:
                raise TypeError(
                    "with a mail, deliver() takes inbox_id, event_type, held and body_in_push: the mail says the rest"
                )
            whole = self._agentmail.deliver_raw(
                mail, inbox_id=inbox_id, event_type=event_type, held=held, body_in_push=body_in_push, now=now
            )
            return await push(whole, self._connections)
        if inbox_id is None:
            raise TypeError("deliver() takes an inbox_id, or a mail that is addressed to one")
        outcome = self._agentmail.deliver(
            inbox_id=inbox_id,
            from_=from_,
            subject=subject,
            text=text,
            html=html,
            to=to,
            event_type=event_type,
            message_id=message_id,
            thread_id=thread_id,
            event_id=event_id,
            timestamp=timestamp,
            attachments=attachments,
            held=held,
            body_in_push=body_in_push,
            now=now,
        )
        return await push(outcome, self._connections)

    async def emit(self, event: Event) -> None:
        """Push any event to the connections whose subscription it matches. A mail in it is not kept: see `deliver`.

        Pushing never waits for a client. On each connection everything comes in the order in which it was pushed.

        Raises:
            TypeError: The event has no wire form, like `Disconnected`.
        """
        self._connections.push_event(event)
        await trio.lowlevel.checkpoint()

    async def send_raw(self, frame: str | bytes) -> None:
        """Push a frame as it is, text or binary, to every subscribed connection, whatever its filters.

        Raises:
            TypeError: It is neither str nor bytes.
            ValueError: It cannot be sent as UTF-8.
        """
        await self._connections.send_raw(frame)

    async def drop_connections(self, code: int | None = None, reason: str = "") -> None:
        """End all connections, after what was pushed to them.

        Args:
            code: `None`: cut them without a close frame, as `faults.drop_connections()` does. Otherwise send a close
                frame with this code, as `faults.close_connections(code, reason)` does.
            reason: The reason in the close frame.
        """
        if code is None:
            await self.faults.drop_connections()
        else:
            await self.faults.close_connections(code, reason)

    def chaos(
        self, seed: int, *, every: float = 60.0, faults: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[list[tuple[float, str]]]:
        """For the block, have faults strike now and then. See `faults.chaos`."""
        return self.faults.chaos(seed, every=every, faults=faults)

    # What happens

    @property
    def connected(self) -> int:
        """How many WebSockets are open now, silent ones included."""
        return self._connections.open

    @property
    def subscribed(self) -> int:
        """How many WebSockets with a confirmed subscription are open now, silent ones included."""
        return self._connections.subscribed

    async def wait_connected(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `connected` is at least `n`. For an `n` of 0, wait until every connection has ended.

        Otherwise as `wait_for`.
        """
        await self._log.wait_for(
            lambda: self.connected >= n if n else not self._connections,
            within,
            lambda _: f"{self.connected} WebSockets are open, and were to be {n}",
        )

    async def wait_subscribed(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `subscribed` is at least `n`.

        Otherwise as `wait_for`.
        """
        await self._log.wait_for(
            lambda: self.subscribed >= n,
            within,
            lambda _: f"{self.subscribed} WebSockets are subscribed, and were to be {n}",
        )

    async def wait_for(self, condition: Callable[[], T], within: float = 60.0) -> T:
        """Wait until a condition holds.

        It is checked whenever something has happened here, whenever no task has anything to do, and now and then. For
        example `await fake.wait_for(lambda: fake.mail.messages("agent@agentmail.to", "sent"))`.

        Args:
            condition: A function, not an async one, whose result is true when the condition holds.
            within: Seconds, by Trio's clock; `math.inf`: as long as it takes.

        Returns:
            What the condition returned.

        Raises:
            AssertionError: It did not hold in time. The message contains the text of `explain`.
            TypeError: The condition is an async function.
        """
        return await self._log.wait_for(condition, within)

    def explain(self) -> str:
        """Describe what has happened here lately.

        That is who connected and subscribed to what; what was pushed, to whom, and why not to others; what was
        requested; and which faults have not struck.
        """
        return self._log.explain()

    async def _retire(self) -> None:
        """End all connections, for good, and be silent about what happens from then on."""
        self._websockets.is_retired = True
        await self._connections.cut()
        await self.wait_connected(0)
        self._log.on_note = lambda _: None
