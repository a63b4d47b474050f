"""Sends a message from an inbox, and makes the events that report it.

The inbox keeps the message, and `message.sent` is pushed. `message.delivered` follows, with the recipients whose
servers have accepted it. `message.bounced` follows, with the recipients that do not exist: addresses `@agentmail.to`
without an inbox here. Other domains are assumed to accept everything. No mail leaves this process. Each recipient with
an inbox here gets the message, and `message.received` is pushed.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
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
from trio_agentmail.testing._agentmail.outcome import Outcome

from .addresses import bare_address
from .directory import Inbox
from .events import answered_ids, new_id, recipients_of, sent_event
from .mail import Mail
from .store import NO_CONTENTS, MailStore
from .writing import write_mail

__all__ = ["send_message"]

OWN_DOMAIN = "@agentmail.to"


def send_message(
    store: MailStore, message: Message, now: datetime, *, contents: Mapping[str, bytes] = NO_CONTENTS
) -> Outcome[MessageSentEvent]:
    """Send a message from an inbox. The value of the outcome is the `message.sent`, which is the first event.

    Args:
        contents: The content of each attachment, by its id.

    Raises:
        ValueError: See `MailStore.add`.
    """
    # The raw message is written only once, so that the sender and all recipients have the same one.
    raw = write_mail(message, contents, message.headers)
    mail = store.add(attrs.evolve(message, size=len(raw)), now, contents=contents, raw=raw)
    store.index(now)
    sent = sent_event(attrs.evolve(message, to=recipients_of(message)))
    recipients = list(dict.fromkeys(map(bare_address, recipients_of(message))))
    # The order matters: each step labels the mail, and the events of later steps show the labels.
    reports = tuple(_report(store, mail, recipients, now))
    arrivals = (
        _arrive(store, mail, inbox, now) for inbox in map(store.directory.inbox, recipients) if inbox is not None
    )
    return Outcome(sent, (sent, *reports, *arrivals))


def _report(store: MailStore, mail: Mail, recipients: list[str], now: datetime) -> Iterator[Event]:
    """Yield the events that report accepted and missing recipients, and label the mail."""
    message = mail.message
    about: dict[str, Any] = {
        "inbox_id": message.inbox_id,
        "thread_id": message.thread_id,
        "message_id": message.message_id,
        "timestamp": now,
    }
    missing = [
        address for address in recipients if address.endswith(OWN_DOMAIN) and store.directory.inbox(address) is None
    ]
    accepted = tuple(address for address in recipients if address not in missing)
    if accepted:
        _label(store, mail, "delivered", now)
        yield MessageDeliveredEvent(event_id=new_id(), delivery=Delivery(recipients=accepted, **about))
    if missing:
        _label(store, mail, "bounced", now)
        bounced = tuple(Recipient(address=address, status="bounced") for address in missing)
        bounce = Bounce(type="Permanent", sub_type="General", recipients=bounced, **about)
        yield MessageBouncedEvent(event_id=new_id(), bounce=bounce)


def _arrive(store: MailStore, sent: Mail, inbox: Inbox, now: datetime) -> MessageReceivedEvent:
    """Put a sent message into the inbox of a recipient."""
    message = sent.message
    event_id = new_id()
    if inbox.inbox_id == message.inbox_id:
        # A message to oneself is one mail, sent and received.
        for label in ("received", "unread"):
            _label(store, sent, label, now)
        mail = sent
    else:
        answers = answered_ids(message.in_reply_to, message.references)
        thread_id = store.thread_with(inbox.inbox_id, (message.message_id, *answers)) or new_id()
        received = attrs.evolve(
            message, inbox_id=inbox.inbox_id, thread_id=thread_id, labels=("received", "unread"), bcc=()
        )
        mail = store.add(
            received, now, event_type="message.received", event_id=event_id, contents=sent.contents, raw=sent.raw
        )
        store.index(now)
    return MessageReceivedEvent(event_id=event_id, message=mail.message, thread=store.thread_in_event(mail.message))


def _label(store: MailStore, mail: Mail, label: str, now: datetime) -> None:
    labels = tuple(dict.fromkeys((*mail.labels, label)))
    store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=now), now)
