"""Mail for `FakeAgentMail`: the operations of `AgentMail`, at the present time, with their events pushed."""

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
    """The mail of `FakeAgentMail`."""

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None) -> None:
        """Create an inbox, or move one to another pod.

        An inbox that mail is delivered to or that a subscription names is created by that.

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
        """Receive a mail: keep it, and push it to the subscriptions that match.

        Args:
            mail: A whole mail in the format of RFC 5322: an `email.message.EmailMessage`, or the bytes of an `.eml`
                file. Every inbox that its To, Cc, Bcc or Delivered-To names receives it, without the Bcc, in the thread
                of the mail that its In-Reply-To or References names. Only `inbox_id`, `event_type`, `held` and
                `body_in_push` can be given with it. `None`: the other arguments describe the mail.
            inbox_id: The inbox that receives the mail. With a `mail`, only this inbox receives it, whatever its headers
                say.
            to: The recipients; `None`: the inbox.
            event_type: `"message.received"`, or one of its variants, like `"message.received.spam"`.
            message_id: The Message-ID; `None`: a new one. A mail with the Message-ID of another mail in the inbox
                replaces that one and stays in its thread. If the inbox itself had sent the other one, the mail has the
                labels of both.
            thread_id: The thread in the inbox; `None`: a new one.
            event_id: The id of the event; `None`: a new one.
            timestamp: The time of the mail itself, aware; `None`: now.
            attachments: Files, each a dict like `{"filename": "a.pdf", "content": b"…", "content_type":
                "application/pdf"}`. A file that the HTML shows also has `"content_disposition": "inline"` and a
                `content_id`. The event describes the files, and the REST API has their content.
            held: Whether Agent Armor holds the mail until `release`. A held mail has the label `agent-armor-held`, and
                a `message.security.review` is pushed instead of the mail.
            body_in_push: Whether the pushed event has the text and the HTML. AgentMail leaves out large ones.

        Returns:
            The event that was pushed or, for a held mail, the event that `release` will push. For a `mail`, a tuple
            with the event of each inbox. For an event with other fields, use `attrs.evolve` and `emit`.

        Raises:
            TypeError: The timestamp has no offset, an argument has the wrong type or cannot be given with a `mail`, or
                neither `mail` nor `inbox_id` is given.
            ValueError: The thread is in another inbox, no inbox here is a recipient of the `mail`, or the event type is
                unknown.
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
        """Return the mails in an inbox, the newest last, including those that listings hide or do not have yet.

        Args:
            labels: Return only the mails that have all of these labels, for example `"sent"`.
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
        """Send a mail from an inbox, as the REST API does: keep it, and push `message.sent`.

        Recipients that are inboxes here receive it. All other recipients are reported as delivered, except addresses
        `@agentmail.to` that are no inbox here, which bounce.

        The arguments are those of `deliver`.

        Returns:
            The `message.sent`, which is the first of the pushed events.
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
        """Release a held mail: push it as received, with its old times, and then a `message.security.override`.

        Returns:
            The event by which the mail was pushed.

        Raises:
            KeyError: The mail does not exist.
            ValueError: The mail is not held.
        """
        return await self._push_all(self._agentmail.release(inbox_id, message_id, now=self._now()))

    async def label(
        self, inbox_id: str, message_id: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> None:
        """Change the labels of a mail. AgentMail pushes no event for that.

        Args:
            add: Labels to add.
            remove: Labels to remove.

        Raises:
            KeyError: The mail does not exist.
        """
        labels = self._agentmail.label(inbox_id, message_id, add=add, remove=remove, now=self._now())
        self._note(f"the mail {message_id} in {inbox_id}: labels {', '.join(labels)}")
        await trio.lowlevel.checkpoint()

    async def delete(self, inbox_id: str, message_id: str) -> None:
        """Delete a mail. AgentMail pushes no event for that.

        Raises:
            KeyError: The mail does not exist.
        """
        self._agentmail.delete(inbox_id, message_id, now=self._now())
        self._note(f"the mail {message_id} in {inbox_id}: deleted")
        await trio.lowlevel.checkpoint()

    async def emit(self, event: Event) -> None:
        """Push any event to the connections whose subscription matches it. A mail in it is not kept; see `deliver`.

        This does not wait for clients. Each connection receives everything in the order in which it was pushed.

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
