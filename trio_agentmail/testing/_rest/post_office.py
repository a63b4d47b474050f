"""What becomes of mail that is sent: it is kept, goes out, arrives or comes back, and the events tell of that.

Who sends gets `message.sent`. Then come `message.delivered`, of the recipients whose servers took it,
and `message.bounced`, of those who do not exist. That is anybody `@agentmail.to` who has no inbox here. With all other
domains we take it that the mail is welcome; none of it leaves this process. An inbox among the recipients gets the
mail, and `message.received`.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import attrs

from trio_agentmail.events import (
    Bounce,
    Delivery,
    Event,
    Message,
    MessageBouncedEvent,
    MessageDeliveredEvent,
    MessageReceivedEvent,
    MessageSentEvent,
    Recipient,
)
from trio_agentmail.testing._mail.events import answered_ids, bodies, new_id, recipients_of, sent_event
from trio_agentmail.testing._mail.expiring import Expiring
from trio_agentmail.testing._mail.mail import Mail
from trio_agentmail.testing._mail.store import NOTHING, Inbox, MailStore
from trio_agentmail.testing._mail.writing import write_mail

from .errors import conflict
from .outgoing import Outgoing, bare_address

__all__ = ["PostOffice"]

OWN_DOMAIN = "@agentmail.to"


@attrs.frozen
class Sent:
    """The answer to a request that had an idempotency key.

    Attributes:
        request: What was asked for.
    """

    request: tuple[str, bytes]
    answer: dict[str, Any]


class PostOffice:
    """Sends mail.

    Args:
        push: Pushes an event.
        index: Puts what has arrived into the listings, as far as its time has come.
    """

    def __init__(self, store: MailStore, push: Callable[[Event], None], index: Callable[[], None]) -> None:
        self._store = store
        self._push = push
        self._index = index
        self._sent: Expiring[Sent] = Expiring(timedelta(hours=24))

    def once(
        self, key: str | None, request: tuple[str, bytes], now: datetime, send: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Send, unless that was done under this key, and return the answer.

        Raises:
            Refusal: under this key, something else was sent; or what `send` raises.
        """
        sent = self._sent.get(key or "", now)
        if sent is not None:
            if sent.request != request:
                raise conflict("another request had this Idempotency-Key")
            return sent.answer
        answer = send()
        if key is not None:
            self._sent.put(key, Sent(request, answer), now)
        return answer

    def send(
        self,
        inbox: Inbox,
        outgoing: Outgoing,
        now: datetime,
        *,
        thread_id: str | None = None,
        in_reply_to: str | None = None,
        references: tuple[str, ...] = (),
    ) -> Message:
        """Send a mail from an inbox.

        Args:
            thread_id: The thread in that inbox; `None`: a new one.
        """
        domain = inbox.inbox_id.rpartition("@")[2]
        name = inbox.display_name
        message = Message(
            inbox_id=inbox.inbox_id,
            message_id=f"<{new_id()}@{domain}>",
            thread_id=thread_id or new_id(),
            labels=tuple(dict.fromkeys(("sent", *outgoing.labels))),
            timestamp=now,
            from_=inbox.inbox_id if name is None else f"{name} <{inbox.inbox_id}>",
            reply_to=outgoing.reply_to,
            to=outgoing.to,
            cc=outgoing.cc,
            bcc=outgoing.bcc,
            subject=outgoing.subject,
            **bodies(outgoing.text, outgoing.html),
            attachments=outgoing.attachments,
            in_reply_to=in_reply_to,
            references=references,
            headers=outgoing.headers,
            created_at=now,
            updated_at=now,
        )
        mail, _ = self.accept(message, now, contents=outgoing.contents)
        self.carry(mail, now)
        return message

    def accept(
        self, message: Message, now: datetime, *, contents: Mapping[str, bytes] = NOTHING
    ) -> tuple[Mail, MessageSentEvent]:
        """Keep a mail that an inbox sends, and say that it is sent. `carry` is what comes next."""
        # Written now, once: all who have it have the same.
        raw = write_mail(message, contents, message.headers)
        mail = self._store.add(attrs.evolve(message, size=len(raw)), now, contents=contents, raw=raw)
        self._index()
        event = sent_event(attrs.evolve(message, to=recipients_of(message)))
        self._push(event)
        return mail, event

    def carry(self, mail: Mail, now: datetime) -> None:
        """Bring a mail to its recipients, and say what became of it."""
        self._report(mail, now)
        for address in dict.fromkeys(map(bare_address, recipients_of(mail.message))):
            if (recipient := self._store.inbox(address)) is not None:
                self._arrive(mail, recipient, now)

    def _report(self, mail: Mail, now: datetime) -> None:
        """Say who got it, and who does not exist."""
        message = mail.message
        about: dict[str, Any] = {
            "inbox_id": message.inbox_id,
            "thread_id": message.thread_id,
            "message_id": message.message_id,
            "timestamp": now,
        }
        addresses = list(dict.fromkeys(map(bare_address, recipients_of(message))))
        nobody = [
            address for address in addresses if address.endswith(OWN_DOMAIN) and self._store.inbox(address) is None
        ]
        taken = [address for address in addresses if address not in nobody]
        if taken:
            self._label(mail, "delivered", now)
            self._push(MessageDeliveredEvent(event_id=new_id(), delivery=Delivery(recipients=tuple(taken), **about)))
        if nobody:
            self._label(mail, "bounced", now)
            recipients = tuple(Recipient(address=address, status="bounced") for address in nobody)
            bounce = Bounce(type="Permanent", sub_type="General", recipients=recipients, **about)
            self._push(MessageBouncedEvent(event_id=new_id(), bounce=bounce))

    def _arrive(self, sent: Mail, inbox: Inbox, now: datetime) -> None:
        """The mail arrives in an inbox."""
        message = sent.message
        event_id = new_id()
        if inbox.inbox_id == message.inbox_id:
            # Who writes to oneself has one mail, sent and received.
            for label in ("received", "unread"):
                self._label(sent, label, now)
            mail = sent
        else:
            answers = answered_ids(message.in_reply_to, message.references)
            thread_id = self._store.thread_with(inbox.inbox_id, (message.message_id, *answers)) or new_id()
            received = attrs.evolve(
                message, inbox_id=inbox.inbox_id, thread_id=thread_id, labels=("received", "unread"), bcc=()
            )
            mail = self._store.add(
                received, now, event_type="message.received", event_id=event_id, contents=sent.contents, raw=sent.raw
            )
            self._index()
        thread = self._store.told_thread(mail.message)
        self._push(MessageReceivedEvent(event_id=event_id, message=mail.message, thread=thread))

    def _label(self, mail: Mail, label: str, now: datetime) -> None:
        labels = tuple(dict.fromkeys((*mail.labels, label)))
        self._store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=now), now)
