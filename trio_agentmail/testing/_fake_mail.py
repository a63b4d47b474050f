"""What happens to mail at AgentMail: it comes, is sent, held, released, labelled, deleted."""

from collections.abc import Collection, Sequence
from datetime import datetime
from email.message import EmailMessage
from typing import TypeVar, overload

import trio

from trio_agentmail.events import Event, Message, MessageReceivedEvent, MessageSentEvent

from ._agentmail.mail.attachments import AttachedFile
from ._agentmail.mail.events import SENDER, SUBJECT, TEXT
from ._agentmail.outcome import Outcome
from ._fake_http import FakeHttp
from ._fake_websockets import FakeWebSockets

__all__ = ["FakeMail"]

T = TypeVar("T")


class FakeMail(FakeWebSockets, FakeHttp):
    """The mail of `FakeAgentMail`, and what is pushed when something happens to it."""

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None) -> None:
        """Make an inbox, or put one into another pod. An inbox that mail comes to, or that somebody has
        subscribed to, need not be added.

        Args:
            pod_id: `None`: a new inbox is in the pod `default`.
        """
        self._agentmail.add_inbox(inbox_id, pod_id=pod_id, now=self._now())

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
        """A mail comes, is kept, and is pushed to those who listen for it.

        Args:
            mail: As it stands in RFC 5322: an `email.message.EmailMessage`, or the bytes of an `.eml` file. It goes to
                every inbox that its To, Cc, Bcc or Delivered-To addresses, without its Bcc, and is in the thread of the
                mail that its In-Reply-To or References names. With it, only `inbox_id`, `event_type`, `held` and
                `body_in_push` are given. `None`: a mail as the other arguments say.
            inbox_id: With a `mail`: the one inbox that it goes to, whatever its headers say.
            to: `None`: the inbox.
            event_type: `"message.received"`, or one of its three kinds, like `"message.received.spam"`.
            message_id: `None`, here as below: a new one. That of a mail of the inbox: in that one's place,
                and in its thread. If the inbox itself has sent that one, it has the labels of both.
            thread_id: That of other mails of the inbox: it is a thread with them.
            timestamp: The mail's own time, aware. `None`: now.
            attachments: Files, each a dict like `{"filename": "a.pdf", "content": b"…", "content_type":
                "application/pdf"}`, with `"content_disposition": "inline"` and a `content_id` for what its HTML shows.
                They are in the event, and the REST API has their content.
            held: Agent Armor holds it, until `release`: it has the label `agent-armor-held`, and what is pushed is a
                `message.security.review`.
            body_in_push: Whether text and HTML are pushed, and not only kept: AgentMail leaves out large ones.

        Returns:
            The event as it was pushed, or as it would be if the mail were not held; for a `mail`, of each inbox. What
            cannot be given here, `attrs.evolve` and `emit` can.

        Raises:
            TypeError: The timestamp has no offset; or neither a mail nor an inbox is given; or an argument is of
                another type, or none that goes with a `mail`.
            ValueError: The thread is one of another inbox; or the mail is for none of the inboxes that there are; or
                there is no such event_type.
        """
        if mail is not None:
            said = (from_, subject, text, html, to, message_id, thread_id, event_id, timestamp)
            if said != (SENDER, SUBJECT, TEXT, None, None, None, None, None, None) or attachments:
                raise TypeError(
                    "with a mail, deliver() takes inbox_id, event_type, held and body_in_push: the mail says the rest"
                )
            return await self._push_all(
                self._agentmail.deliver_raw(
                    mail,
                    inbox_id=inbox_id,
                    event_type=event_type,
                    held=held,
                    body_in_push=body_in_push,
                    now=self._now(),
                )
            )
        if inbox_id is None:
            raise TypeError("deliver() takes an inbox_id, or a mail that is addressed to one")
        return await self._push_all(
            self._agentmail.deliver(
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
                now=self._now(),
            )
        )

    def messages(self, inbox_id: str, *labels: str) -> tuple[Message, ...]:
        """The mails that an inbox has now, the newest last: whole, whatever is indexed or hidden.

        Args:
            labels: Only those with all of these, for example `"sent"`.
        """
        return self._agentmail.messages(inbox_id, *labels)

    async def send(
        self,
        *,
        inbox_id: str,
        to: str | Sequence[str] = SENDER,
        subject: str | None = "Re: Hello",
        text: str | None = "Hello, Jane!",
        html: str | None = None,
        message_id: str | None = None,
        thread_id: str | None = None,
        timestamp: datetime | None = None,
        attachments: Sequence[AttachedFile] = (),
    ) -> MessageSentEvent:
        """The inbox sends a mail, as by the REST API: it is kept, and `message.sent` is pushed; inboxes here that it is
        for get it, and the others are taken to have got it, but for those at AgentMail that do not exist.

        The arguments are those of `deliver`.

        Returns:
            The first of the events.
        """
        return await self._push_all(
            self._agentmail.send(
                inbox_id=inbox_id,
                to=to,
                subject=subject,
                text=text,
                html=html,
                message_id=message_id,
                thread_id=thread_id,
                timestamp=timestamp,
                attachments=attachments,
                now=self._now(),
            )
        )

    async def release(self, inbox_id: str, message_id: str) -> MessageReceivedEvent:
        """Someone releases a held mail: it comes as received, with its old times, and a `message.security.override`.

        Returns:
            The event as it was pushed.

        Raises:
            KeyError: There is no such mail.
            ValueError: It is not held.
        """
        return await self._push_all(self._agentmail.release(inbox_id, message_id, now=self._now()))

    async def label(
        self, inbox_id: str, message_id: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> None:
        """Labels of a mail change, of which nobody is told.

        Raises:
            KeyError: There is no such mail.
        """
        labels = self._agentmail.label(inbox_id, message_id, add=add, remove=remove, now=self._now())
        self._note(f"the mail {message_id} in {inbox_id}: labels {', '.join(labels)}")
        await trio.lowlevel.checkpoint()

    async def delete(self, inbox_id: str, message_id: str) -> None:
        """A mail is deleted, of which nobody is told.

        Raises:
            KeyError: There is no such mail.
        """
        self._agentmail.delete(inbox_id, message_id, now=self._now())
        self._note(f"the mail {message_id} in {inbox_id}: deleted")
        await trio.lowlevel.checkpoint()

    async def emit(self, event: Event) -> None:
        """Push any event to the connections whose subscription it matches. A mail in it is not kept: see `deliver`.

        This waits for no client. On each connection everything comes in the order in which it was pushed.

        Raises:
            TypeError: The event has no wire form, like `Disconnected`.
        """
        self._push_event(event)
        await trio.lowlevel.checkpoint()

    async def _push_all(self, outcome: Outcome[T]) -> T:
        """Push the events of an operation, and return its value."""
        for event in outcome.events:
            self._push_event(event)
        await trio.lowlevel.checkpoint()
        return outcome.value
