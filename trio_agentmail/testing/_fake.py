"""`FakeAgentMail`: the public interface of the fake, and the assembly of its parts.

This module is long because of the signatures and docstrings of the interface.
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
from ._wire.http import RestService
from ._wire.ports import Services, serve_on_ports
from ._wire.transport import FakeTransport
from ._wire.websockets import WebSockets

__all__ = ["FakeAgentMail"]

T = TypeVar("T")


class FakeAgentMail:
    """An AgentMail in memory: pass it as `backend=`, or `serve()` it on local ports.

    It needs no start and no shutdown, since its tasks live inside the connections that it serves. If it has a bug, the
    block that has the connection open raises the exception unchanged.

    It keeps the mail that is delivered to it, and its REST API lists that mail: see `http_transport()`.

    Args:
        api_keys: The known API keys, or a mapping of them to their permissions. `None` means that any key is accepted.
        permissions: The permissions of keys for which `api_keys` gives none, for example `{"message_read",
            "label_spam_read"}`. `None` means all. A key without any permission gets a 403 when it requests a WebSocket.

    Raises:
        TypeError: `api_keys` or `permissions` is a string and not a collection of strings.
        ValueError: AgentMail has no such permission. Assigning to `api_keys` or `permissions` raises the same
            exceptions.

    Attributes:
        mail: Access to the inboxes and their mail.
        faults: The faults that a test can cause.
        record: The record of what clients have done.
    """

    def __init__(
        self,
        *,
        api_keys: Collection[str] | Mapping[str, Collection[str] | None] | None = None,
        permissions: Collection[str] | None = None,
    ) -> None:
        # Each part knows only parts that are made before it.
        self._clock = FakeClock()
        self._agentmail = AgentMail(keys=KeyRing(api_keys, permissions), now=self._clock.created)
        pending = PendingFaults()
        self._log = Log(pending.left)
        self.record = Record()
        self._connections = Connections(self._agentmail, pending, self._log)
        self._websockets = WebSockets(self._agentmail, self._connections, pending, self.record, self._log, self._clock)
        self._rest = RestService(
            self._agentmail, pending, self.record, self._log, self._clock, self._connections.push_event
        )
        self.mail = Mailboxes(self._agentmail, self._connections, self._log, self._clock)
        self.faults = Faults(pending, self._connections, self._log)
        # If the pytest plug-in is loaded, its report of a failed test includes `explain()`.
        if (plugin := sys.modules.get("trio_agentmail._pytest_plugin")) is not None:
            plugin.made.append(self)

    @property
    def api_keys(self) -> ApiKeys:
        """The known API keys. A change affects later handshakes and requests."""
        return self._agentmail.keys.api_keys

    @api_keys.setter
    def api_keys(self, api_keys: ApiKeys) -> None:
        self._agentmail.keys.api_keys = api_keys

    @property
    def permissions(self) -> Collection[str] | None:
        """The permissions of keys without any in `api_keys`. A change affects later subscriptions and requests."""
        return self._agentmail.keys.permissions

    @permissions.setter
    def permissions(self, permissions: Collection[str] | None) -> None:
        self._agentmail.keys.permissions = permissions

    # A `Backend`

    @property
    def api_key(self) -> str:
        """The default API key of streams if `$AGENTMAIL_API_KEY` is not set: a known key, if there is any."""
        return next(iter(self.api_keys or ()), "am_fake_key")

    def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AbstractAsyncContextManager[WebSocket]:
        """Open a WebSocket to this fake, in memory. The host in the URL does not matter."""
        return self._websockets.open_websocket(url, headers=headers, max_message_size=max_message_size)

    def http_transport(self, ssl_context: ssl.SSLContext | None = None) -> FakeTransport:
        """Return an in-memory transport to the REST API, for an `AsyncClient` of httpx2 or httpx under Trio.

        The host in the URL of a request does not matter.
        """
        return FakeTransport(self._rest.respond)

    def now(self) -> float:
        """Return the fake's time, in seconds since the Unix epoch. On a mock clock, it advances with that clock."""
        return self._clock.time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        """Call a function that blocks on disk I/O: in a thread, or directly on a mock clock, which ignores threads."""
        if is_on_mock_clock():
            await trio.lowlevel.checkpoint()
            return function()
        return await trio.to_thread.run_sync(function)

    # How clients reach the fake

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Have streams without a `backend` connect to this fake within the block.

        This applies to all streams of the process. They need no API key.

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
        """Listen on 127.0.0.1 within the block. The end of the block cuts the remaining connections.

        Args:
            port: The port of the WebSocket. `0` means any free port.
            ssl_context: A server-side context for TLS, with a certificate for `localhost`. By default, TLS is not used.
            http_port: The port of the REST API. `0` means any free port.
            host: The IP address to listen on. `0.0.0.0` and `::` mean all addresses of this machine, and the URLs
                then contain the loopback address.
            allow_hosts: Names and addresses that are accepted in the `Host` header, besides `localhost`, loopback
                addresses and the address that the client has connected to. Requests with other names, and requests from
                web pages on other hosts, get a 403.

        Yields:
            The URLs of both ports.

        Raises:
            TypeError: `allow_hosts` is not a collection of strings.
            ValueError: One of them is neither a name nor an IP address.
            OSError: A port is in use, or this machine does not have the address.
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
        """Have a mail arrive. The fake keeps it, and pushes it to the connections whose subscription it matches.

        Args:
            mail: A complete mail in the format of RFC 5322: an `email.message.EmailMessage`, or the bytes of an `.eml`
                file. It goes to every inbox in its To, Cc, Bcc or Delivered-To, without its Bcc. It joins the thread of
                the mail that its In-Reply-To or References names. Only `inbox_id`, `event_type`, `held` and
                `body_in_push` can be combined with it. If it is `None`, the other arguments describe the mail.
            inbox_id: The inbox. A `mail` goes to this inbox alone, and the recipients in its headers do not matter.
            to: The recipients. `None` means the inbox.
            event_type: `"message.received"`, or one of its variants, such as `"message.received.spam"`.
            message_id: The Message-ID; `None`, here and below, for a new one. If the inbox has a mail of this id, the
                new mail replaces it, in its thread. If the inbox itself has sent that mail, the new one has the labels
                of both.
            thread_id: The thread that the mail joins.
            timestamp: The mail's own time, aware. `None` means now.
            attachments: Files, each a dict like `{"filename": "a.pdf", "content": b"…", "content_type":
                "application/pdf"}`. For a picture in the HTML, add `"content_disposition": "inline"` and a
                `content_id`. The event lists the files, and the REST API has their content.
            held: Whether Agent Armor holds the mail until `mail.release`. A held mail has the label
                `agent-armor-held`, and a `message.security.review` is pushed instead of it.
            body_in_push: Whether the pushed event contains text and HTML. AgentMail does not push large ones.

        Returns:
            The event as it was pushed, or as it would be if the mail were not held. For a `mail`, a tuple with one
            event for each inbox. To push an event with other fields, use `attrs.evolve` and `emit`.

        Raises:
            TypeError: The timestamp has no offset; neither a mail nor an inbox is given; or an argument has a wrong
                type, or cannot be combined with a `mail`.
            ValueError: The thread belongs to another inbox; no existing inbox is a recipient of the mail; or the event
                type does not exist.
        """
        now = self._clock.now()
        if mail is not None:
            others = (from_, subject, text, html, to, message_id, thread_id, event_id, timestamp)
            if others != (SENDER, SUBJECT, TEXT, None, None, None, None, None, None) or attachments:
                raise TypeError("with a mail, deliver() only takes inbox_id, event_type, held and body_in_push")
            whole = self._agentmail.deliver_raw(
                mail, inbox_id=inbox_id, event_type=event_type, held=held, body_in_push=body_in_push, now=now
            )
            return await push(whole, self._connections)
        if inbox_id is None:
            raise TypeError("deliver() needs an inbox_id, or a mail that is addressed to an inbox")
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
        """Push any event to the connections whose subscription it matches.

        Unlike `deliver`, this does not keep the mail in an event. Pushing never waits for a client. Each connection
        sends everything in the order in which it was pushed.

        Raises:
            TypeError: The event has no wire form, like `Disconnected`.
        """
        self._connections.push_event(event)
        await trio.lowlevel.checkpoint()

    async def send_raw(self, frame: str | bytes) -> None:
        """Push a text or binary frame unchanged to every subscribed connection. Filters do not apply.

        Raises:
            TypeError: The frame is neither str nor bytes.
            ValueError: The frame cannot be encoded as UTF-8.
        """
        await self._connections.send_raw(frame)

    async def drop_connections(self, code: int | None = None, reason: str = "") -> None:
        """End all connections, once they have sent what was pushed to them.

        Args:
            code: The code of the close frame, as for `faults.close_connections(code, reason)`. With `None`, connections
                are cut without a close frame, as by `faults.drop_connections()`.
            reason: The reason in the close frame.
        """
        if code is None:
            await self.faults.drop_connections()
        else:
            await self.faults.close_connections(code, reason)

    def chaos(
        self, seed: int, *, every: float = 60.0, faults: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[list[tuple[float, str]]]:
        """Cause random faults within the block. See `faults.chaos`."""
        return self.faults.chaos(seed, every=every, faults=faults)

    # Observing

    @property
    def connected(self) -> int:
        """The number of WebSockets that are open now, including silent ones."""
        return self._connections.open

    @property
    def subscribed(self) -> int:
        """The number of open WebSockets with a confirmed subscription, including silent ones."""
        return self._connections.subscribed

    async def wait_connected(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `connected` is at least `n`. If `n` is 0, wait until every connection has ended.

        `wait_for` describes `within` and what is raised.
        """
        await self._log.wait_for(
            lambda: self.connected >= n if n else not self._connections,
            within,
            lambda _: f"{self.connected} WebSockets are open instead of {n}",
        )

    async def wait_subscribed(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `subscribed` is at least `n`.

        `wait_for` describes `within` and what is raised.
        """
        await self._log.wait_for(
            lambda: self.subscribed >= n,
            within,
            lambda _: f"{self.subscribed} WebSockets are subscribed instead of {n}",
        )

    async def wait_for(self, condition: Callable[[], T], within: float = 60.0) -> T:
        """Wait until a condition holds.

        The condition is checked after each change at the fake, when all tasks are blocked, and from time to time. For
        example `await fake.wait_for(lambda: fake.mail.messages("agent@agentmail.to", "sent"))`.

        Args:
            condition: A synchronous function that returns a true value when the condition holds.
            within: The maximum time to wait, in seconds of Trio's clock; `math.inf` for no limit.

        Returns:
            The result of the condition.

        Raises:
            AssertionError: The condition did not hold in time. The message contains the text of `explain`.
            TypeError: The condition is an async function.
        """
        return await self._log.wait_for(condition, within)

    def explain(self) -> str:
        """Describe what has recently happened at the fake.

        The text shows connections and subscriptions; pushes, with the reason for each connection that did not get
        them; REST requests; and the faults that are still to come.
        """
        return self._log.explain()

    async def _retire(self) -> None:
        """End all connections, refuse new ones, and stop calling the log's `on_note`."""
        self._websockets.retire()
        await self._connections.cut()
        await self.wait_connected(0)
        self._log.on_note = lambda _: None
