"""`FakeAgentMail`: the public side of the fake, and what it does as AgentMail."""

import ssl
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import attrs
import trio

from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.events import Event, MessageReceivedEvent, MessageSentEvent

from ._fake_connection import fake_tasks
from ._fake_events import HELD, new_message, override_event, received_event, released, review_event, sent_event
from ._fake_http import FakeHttp
from ._fake_websockets import FakeWebSockets
from ._mail_store import Mail

__all__ = ["FakeAgentMail"]


class FakeAgentMail(FakeWebSockets, FakeHttp):
    """An AgentMail in memory: pass it as `backend=`, or `serve()` it on a port of this machine.

    It has neither a start nor an end: its tasks live inside the connections that it serves. A bug in it comes
    out of the block that has the connection open, as itself.

    It remembers the mail that it was given, and its REST API lists it: `http_transport()` is the way there.

    Faults are asked for, by method, before the connection, push or request that they are for: each new one takes
    the next fault of its kind, in the order in which they were asked for, and goes well when none is left. `times`
    is how many a fault is for; `None`: all that follow, until `clear_faults()`.

    Args:
        api_keys: The API keys that it knows; `None`: it knows any.
        permissions: What the keys may do, for example `{"message_read", "label_spam_read"}`; `None`: everything.

    Attributes:
        api_keys: As given; may be changed, for the handshakes and requests to come.
        permissions: As given; may be changed, for the subscriptions and requests to come.
        handshakes: Every request for a WebSocket that was read, granted or not, in order.
        subscriptions: Every valid `subscribe` frame, confirmed or not, in order.
        close_codes: Of every WebSocket that `drop_connections` or a fault did not end, when it has ended: the
            code with which the client closed it, or `None` where it just went.
        requests: Every request to the REST API that was read, in order.
    """

    def __init__(self, *, api_keys: Collection[str] | None = None, permissions: Collection[str] | None = None) -> None:
        super().__init__()
        self.api_keys = api_keys
        self.permissions = permissions

    @property
    def api_key(self) -> str:
        """The API key that is used when the caller gives none."""
        return "am_fake_key"

    @asynccontextmanager
    async def serve(
        self,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        *,
        http_port: int = 0,
        host: str = "127.0.0.1",
    ) -> AsyncIterator[AgentMailEnvironment]:
        """Listen on 127.0.0.1 for the block, at whose end the connections that are left are cut.

        Args:
            port: That of the WebSocket. `0`: any that is free.
            ssl_context: Speak TLS, with this server's context; its certificate must be for `localhost`.
            http_port: That of the REST API. `0`: any that is free.
            host: The IP address to listen on, in place of 127.0.0.1. Of `0.0.0.0` and `::`, which are all addresses
                of this machine, the loopback address is yielded.

        Yields:
            Where a client finds it.

        Raises:
            OSError: A port is not free, or the address is not one of this machine.
        """
        async with await _listener(host, port) as websockets, await _listener(host, http_port) as http:
            async with fake_tasks() as spawn:
                spawn(self._accept_websockets, websockets, ssl_context, spawn)
                spawn(self._accept_http, http, ssl_context, spawn)
                name, s = (_name_in_url(host), "") if ssl_context is None else ("localhost", "s")
                yield AgentMailEnvironment(
                    http=f"http{s}://{name}:{http.socket.getsockname()[1]}",
                    websockets=f"ws{s}://{name}:{websockets.socket.getsockname()[1]}",
                    insecure=host != "127.0.0.1",
                )

    # What happens at AgentMail

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None) -> None:
        """Make an inbox, or put one into another pod. An inbox that mail comes to, or that somebody has
        subscribed to, need not be added.

        Args:
            pod_id: `None`: a new inbox is in the pod `default`.
        """
        self._store.add_inbox(inbox_id, self._now(), pod_id)

    async def deliver(
        self,
        *,
        inbox_id: str,
        from_: str = "Jane <jane@example.com>",
        subject: str | None = "Hello",
        text: str | None = "Hello!",
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        event_type: str = "message.received",
        message_id: str | None = None,
        thread_id: str | None = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        held: bool = False,
        body_in_push: bool = True,
    ) -> MessageReceivedEvent:
        """A mail comes, is kept, and is pushed to those who listen for it.

        Args:
            to: `None`: the inbox.
            event_type: `"message.received"`, or one of its three kinds, like `"message.received.spam"`.
            message_id: `None`, here as below: a new one. That of a mail of the inbox: in that one's place.
            thread_id: That of other mails of the inbox: it is a thread with them.
            timestamp: The mail's own time, aware. `None`: now.
            held: Agent Armor holds it, until `release`: it has the label `agent-armor-held`, and what is pushed is a
                `message.security.review`.
            body_in_push: Whether text and HTML are pushed, and not only kept: AgentMail leaves out large ones.

        Returns:
            The event as it was pushed, or as it would be if the mail were not held. What cannot be given here,
            `attrs.evolve` and `emit` can.

        Raises:
            TypeError: The timestamp has no offset.
            ValueError: The thread is one of another inbox.
        """
        now = self._now()
        event = received_event(
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
            held=held,
            now=now,
        )
        mail = self._store.add(
            event.message, now, event_type=event_type, event_id=event.event_id or "", body_in_push=body_in_push
        )
        self._index()
        announcement = self._announcement(mail)
        await self.emit(review_event(mail.message) if held else announcement)
        return announcement

    async def send(
        self,
        *,
        inbox_id: str,
        to: str | Sequence[str] = "Jane <jane@example.com>",
        subject: str | None = "Re: Hello",
        text: str | None = "Hello, Jane!",
        html: str | None = None,
        message_id: str | None = None,
        thread_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> MessageSentEvent:
        """The inbox sends a mail, which is kept, and `message.sent` is pushed.

        The arguments are those of `deliver`.
        """
        now = self._now()
        message = new_message(
            inbox_id=inbox_id,
            from_=inbox_id,
            to=to,
            subject=subject,
            text=text,
            html=html,
            labels=("sent",),
            message_id=message_id,
            thread_id=thread_id,
            timestamp=timestamp,
            now=now,
        )
        self._store.add(message, now)
        self._index()
        event = sent_event(message)
        await self.emit(event)
        return event

    async def release(self, inbox_id: str, message_id: str) -> MessageReceivedEvent:
        """Someone releases a held mail: it comes as received, with its old times, and a `message.security.override`.

        Returns:
            The event as it was pushed.

        Raises:
            KeyError: There is no such mail.
            ValueError: It is not held.
        """
        mail = self._mail(inbox_id, message_id)
        if HELD not in mail.labels:
            raise ValueError(f"the mail {message_id} in the inbox {inbox_id} is not held")
        now = self._now()
        self._store.replace(mail, released(mail.message, now), now)
        event = self._announcement(mail)
        await self.emit(event)
        await self.emit(override_event(mail.message))
        return event

    async def label(
        self, inbox_id: str, message_id: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> None:
        """Labels of a mail change, of which nobody is told.

        Raises:
            KeyError: There is no such mail.
        """
        mail = self._mail(inbox_id, message_id)
        labels = tuple(label for label in dict.fromkeys((*mail.labels, *add)) if label not in remove)
        now = self._now()
        self._store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=now), now)
        await trio.lowlevel.checkpoint()

    async def delete(self, inbox_id: str, message_id: str) -> None:
        """A mail is deleted, of which nobody is told.

        Raises:
            KeyError: There is no such mail.
        """
        self._store.delete(self._mail(inbox_id, message_id), self._now())
        await trio.lowlevel.checkpoint()

    async def emit(self, event: Event) -> None:
        """Push any event to the connections whose subscription it matches. A mail in it is not kept: see `deliver`.

        This waits for no client. On each connection everything comes in the order in which it was pushed.

        Raises:
            TypeError: The event has no wire form, like `Disconnected`.
        """
        self._push_event(event)
        await trio.lowlevel.checkpoint()

    def clear_faults(self) -> None:
        """What comes from now on goes well, and what `reorder_pushes` holds back comes now."""
        self._connection_faults.clear()
        self._clear_push_faults(self._push_now)
        self._request_faults.clear()

    def _mail(self, inbox_id: str, message_id: str) -> Mail:
        mail = self._store.mail(inbox_id, message_id)
        if mail is None:
            raise KeyError(f"there is no mail {message_id} in the inbox {inbox_id}")
        return mail

    def _announcement(self, mail: Mail) -> MessageReceivedEvent:
        message = mail.message
        if not mail.body_in_push:
            message = attrs.evolve(message, text=None, html=None)
        thread = self._store.thread(message.thread_id) if message.thread_id is not None else None
        return MessageReceivedEvent(
            event_type=mail.event_type,
            event_id=mail.event_id,
            message=message,
            thread=None if thread is None else thread.state(),
        )


async def _listener(host: str, port: int) -> trio.SocketListener:
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on port {port} of {host}: {exc.strerror}") from exc
    return listener


def _name_in_url(host: str) -> str:
    """How a client on this machine writes an address on which we listen."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
