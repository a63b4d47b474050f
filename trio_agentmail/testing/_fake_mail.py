"""What happens to mail at AgentMail: it comes, is sent, held, released, labelled, deleted."""

from collections.abc import Collection, Sequence
from datetime import datetime
from email.message import EmailMessage
from typing import overload

import attrs
import trio

from trio_agentmail.events import Event, Message, MessageReceivedEvent, MessageSentEvent

from ._checks import check_name, check_text, check_texts
from ._fake_http import FakeHttp
from ._fake_websockets import FakeWebSockets
from ._mail.attachments import AttachedFile, attach, check_files
from ._mail.events import (
    HELD,
    SENDER,
    SUBJECT,
    TEXT,
    hold,
    new_id,
    new_message,
    override_event,
    received_event,
    received_labels,
    released,
    review_event,
)
from ._mail.mail import Mail
from ._mail.rfc5322 import ParsedMail, parse_mail

__all__ = ["FakeMail"]


class FakeMail(FakeWebSockets, FakeHttp):
    """The mail of `FakeAgentMail`, and what is pushed when something happens to it."""

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None) -> None:
        """Make an inbox, or put one into another pod. An inbox that mail comes to, or that somebody has
        subscribed to, need not be added.

        Args:
            pod_id: `None`: a new inbox is in the pod `default`.
        """
        check_name("inbox_id", inbox_id)
        check_text("pod_id", pod_id)
        self._store.add_inbox(inbox_id, self._now(), pod_id)

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
        now = self._now()
        if inbox_id is not None:
            check_name("inbox_id", inbox_id)
        if mail is not None:
            said = (from_, subject, text, html, to, message_id, thread_id, event_id, timestamp)
            if said != (SENDER, SUBJECT, TEXT, None, None, None, None, None, None) or attachments:
                raise TypeError(
                    "with a mail, deliver() takes inbox_id, event_type, held and body_in_push: the mail says the rest"
                )
            parsed = parse_mail(mail)
            inboxes = self._addressed(parsed) if inbox_id is None else [inbox_id]
            return tuple(
                [await self._deliver_to(inbox, parsed, event_type, held, body_in_push, now) for inbox in inboxes]
            )
        if inbox_id is None:
            raise TypeError("deliver() takes an inbox_id, or a mail that is addressed to one")
        attached, contents = attach(check_files(attachments))
        event = received_event(
            inbox_id=inbox_id,
            from_=from_,
            subject=subject,
            text=text,
            html=html,
            to=to,
            event_type=event_type,
            message_id=message_id,
            thread_id=thread_id or self._store.thread_with(inbox_id, _known(message_id)),
            event_id=event_id,
            timestamp=timestamp,
            attachments=attached,
            held=held,
            now=now,
        )
        return await self._announce(
            self._store.add(
                event.message,
                now,
                event_type=event_type,
                event_id=event.event_id or "",
                body_in_push=body_in_push,
                contents=contents,
            )
        )

    def _addressed(self, mail: ParsedMail) -> list[str]:
        inboxes = [inbox.inbox_id for name, inbox in self._store.inboxes.items() if name in mail.recipients]
        if not inboxes:
            recipients = ", ".join(mail.recipients) or "nobody"
            known = ", ".join(inbox.inbox_id for inbox in self._store.inboxes.values()) or "none"
            raise ValueError(
                f"the mail is addressed to {recipients}, and the inboxes here are: {known}. "
                "Make the inbox first, or name the one that it goes to"
            )
        return inboxes

    async def _deliver_to(
        self, inbox_id: str, mail: ParsedMail, event_type: str, held: bool, body_in_push: bool, now: datetime
    ) -> MessageReceivedEvent:
        message = mail.message(
            inbox_id=inbox_id,
            thread_id=self._store.thread_with(inbox_id, (*_known(mail.message_id), *mail.answers)) or new_id(),
            labels=received_labels(event_type),
            now=now,
        )
        return await self._announce(
            self._store.add(
                hold(message) if held else message,
                now,
                event_type=event_type,
                event_id=new_id(),
                body_in_push=body_in_push,
                raw=mail.raw,
                contents=mail.contents,
            )
        )

    async def _announce(self, mail: Mail) -> MessageReceivedEvent:
        """Push that a mail has come, or is held."""
        self._index()
        announcement = self._announcement(mail)
        await self.emit(review_event(mail.message) if HELD in mail.labels else announcement)
        return announcement

    def messages(self, inbox_id: str, *labels: str) -> tuple[Message, ...]:
        """The mails that an inbox has now, the newest last: whole, whatever is indexed or hidden.

        Args:
            labels: Only those with all of these, for example `"sent"`.
        """
        wanted = frozenset(labels)
        return tuple(mail.message for mail in self._store.mails(inbox_id) if wanted.issubset(mail.labels))

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
        now = self._now()
        attached, contents = attach(check_files(attachments))
        message = new_message(
            inbox_id=inbox_id,
            from_=inbox_id,
            to=to,
            subject=subject,
            text=text,
            html=html,
            labels=("sent",),
            message_id=message_id,
            thread_id=thread_id or self._store.thread_with(inbox_id, _known(message_id)),
            timestamp=timestamp,
            attachments=attached,
            now=now,
        )
        mail, event = self._post_office.accept(message, now, contents=contents)
        self._post_office.carry(mail, now)
        await trio.lowlevel.checkpoint()
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
        check_texts("add", add)
        check_texts("remove", remove)
        mail = self._mail(inbox_id, message_id)
        labels = tuple(label for label in dict.fromkeys((*mail.labels, *add)) if label not in remove)
        now = self._now()
        self._store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=now), now)
        self._note(f"the mail {message_id} in {inbox_id}: labels {', '.join(labels)}")
        await trio.lowlevel.checkpoint()

    async def delete(self, inbox_id: str, message_id: str) -> None:
        """A mail is deleted, of which nobody is told.

        Raises:
            KeyError: There is no such mail.
        """
        self._store.delete(self._mail(inbox_id, message_id), self._now())
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

    def _mail(self, inbox_id: str, message_id: str) -> Mail:
        mail = self._store.mail(inbox_id, message_id)
        if mail is None:
            raise KeyError(f"there is no mail {message_id} in the inbox {inbox_id}")
        return mail

    def _announcement(self, mail: Mail) -> MessageReceivedEvent:
        message = mail.message
        if not mail.body_in_push:
            message = attrs.evolve(message, text=None, html=None, extracted_text=None, extracted_html=None)
        return MessageReceivedEvent(
            event_type=mail.event_type,
            event_id=mail.event_id,
            message=message,
            thread=self._store.told_thread(message),
        )


def _known(message_id: str | None) -> tuple[str, ...]:
    return () if message_id is None else (message_id,)
