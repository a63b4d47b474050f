"""Received mail, the delivery status of sent mail, and the events about both.

This module is longer than others because most of it is the fields of a mail.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from .base import ServerEvent
from .security import AgentArmorResult

__all__ = [
    "Attachment",
    "Bounce",
    "Complaint",
    "Delivery",
    "Message",
    "MessageBouncedEvent",
    "MessageComplainedEvent",
    "MessageDeliveredEvent",
    "MessageOpenedEvent",
    "MessageReceivedEvent",
    "MessageRejectedEvent",
    "MessageSentEvent",
    "Open",
    "Recipient",
    "Reject",
    "Send",
    "ThreadItem",
]


@attrs.frozen(kw_only=True)
class Attachment:
    """The description of an attachment. Fetch its content through the REST API.

    Attributes:
        size: The size in bytes.
        content_disposition: `"inline"` or `"attachment"`.
        content_id: The Content-ID with which the HTML refers to the attachment.
    """

    attachment_id: str | None = None
    filename: str | None = None
    size: int | None = None
    content_type: str | None = None
    content_disposition: str | None = None
    content_id: str | None = None


@attrs.frozen(kw_only=True)
class Message:
    """A received mail.

    Addresses are strings of the form `user@example.com` or `Name <user@example.com>`.

    Attributes:
        labels: For example `("received", "unread")`.
        timestamp: The mail's own time. The sender chooses it, so it may be far in the past or in the future.
        from_: The sender; `""` if there is none.
        subject: The subject; `None` if the mail has none.
        preview: The beginning of the text.
        text: The plain text. `None` if the mail has none, or if the body is so large that AgentMail left it out.
            In that case, fetch the message.
        html: The HTML. `None` in the same cases as `text`.
        extracted_text: The new text, without quoted text.
        extracted_html: The new HTML, without quoted HTML.
        in_reply_to: The `message_id` of the mail that this one answers.
        references: The `message_id`s of the thread so far.
        headers: The headers that AgentMail passes on. Headers whose value is not a string are left out.
        agent_armor: Present on mail that was received while Agent Armor was on.
        size: The size in bytes.
        updated_at: When AgentMail last changed the message.
        created_at: When AgentMail received the message.
    """

    inbox_id: str
    message_id: str
    thread_id: str | None = None
    labels: tuple[str, ...] = ()
    timestamp: datetime | None = None
    from_: str = ""
    reply_to: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    subject: str | None = None
    preview: str | None = None
    text: str | None = attrs.field(default=None, repr=False)
    html: str | None = attrs.field(default=None, repr=False)
    extracted_text: str | None = attrs.field(default=None, repr=False)
    extracted_html: str | None = attrs.field(default=None, repr=False)
    attachments: tuple[Attachment, ...] = ()
    in_reply_to: str | None = None
    calendar_event_id: str | None = None
    references: tuple[str, ...] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, hash=False)
    agent_armor: AgentArmorResult | None = None
    size: int | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class ThreadItem:
    """The thread of a mail, in its state after that mail.

    Attributes:
        timestamp: The time of the last message.
        received_timestamp: The time of the last received message.
        sent_timestamp: The time of the last sent message.
        size: The size in bytes.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    labels: tuple[str, ...] = ()
    timestamp: datetime | None = None
    received_timestamp: datetime | None = None
    sent_timestamp: datetime | None = None
    senders: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    subject: str | None = None
    preview: str | None = None
    attachments: tuple[Attachment, ...] = ()
    last_message_id: str | None = None
    message_count: int | None = None
    size: int | None = None
    updated_at: datetime | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Send:
    """A mail that left an inbox."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Delivery:
    """A sent mail that its recipients' servers accepted."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Recipient:
    """A recipient of a bounced mail, with the status of the failed delivery."""

    address: str | None = None
    status: str | None = None


@attrs.frozen(kw_only=True)
class Bounce:
    """A sent mail that could not be delivered.

    Attributes:
        type: For example `"Permanent"`.
        sub_type: For example `"General"`.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    sub_type: str | None = None
    recipients: tuple[Recipient, ...] = ()


@attrs.frozen(kw_only=True)
class Complaint:
    """A sent mail that recipients marked as spam.

    Attributes:
        type: For example `"abuse"`.
        sub_type: A more specific type.
    """

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    sub_type: str | None = None
    recipients: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Reject:
    """A mail that AgentMail rejected before sending it, for example because it contains a virus."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Open:
    """A sent mail, with tracking on, that was opened for the first time."""

    inbox_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None


@attrs.frozen(kw_only=True)
class MessageReceivedEvent(ServerEvent):
    """A mail was received.

    Attributes:
        event_type: `"message.received"`. If the subscription asks for them, also `"message.received.spam"`,
            `"message.received.blocked"` and `"message.received.unauthenticated"`.
    """

    event_type: str = "message.received"
    message: Message
    thread: ThreadItem | None = None


@attrs.frozen(kw_only=True)
class MessageSentEvent(ServerEvent):
    """One of your mails was sent."""

    event_type: str = "message.sent"
    send: Send


@attrs.frozen(kw_only=True)
class MessageDeliveredEvent(ServerEvent):
    """One of your mails was accepted by its recipients' servers."""

    event_type: str = "message.delivered"
    delivery: Delivery


@attrs.frozen(kw_only=True)
class MessageBouncedEvent(ServerEvent):
    """One of your mails could not be delivered."""

    event_type: str = "message.bounced"
    bounce: Bounce


@attrs.frozen(kw_only=True)
class MessageComplainedEvent(ServerEvent):
    """A recipient marked one of your mails as spam."""

    event_type: str = "message.complained"
    complaint: Complaint


@attrs.frozen(kw_only=True)
class MessageRejectedEvent(ServerEvent):
    """One of your mails was rejected before it was sent."""

    event_type: str = "message.rejected"
    reject: Reject


@attrs.frozen(kw_only=True)
class MessageOpenedEvent(ServerEvent):
    """One of your mails, with tracking on, was opened for the first time. Sent once per mail."""

    event_type: str = "message.opened"
    open: Open


AnyMailEvent: TypeAlias = (
    MessageReceivedEvent
    | MessageSentEvent
    | MessageDeliveredEvent
    | MessageBouncedEvent
    | MessageComplainedEvent
    | MessageRejectedEvent
    | MessageOpenedEvent
)

# Identities in a journal contain the position of a type among the `message.received*` types: append new ones.
MailEventType: TypeAlias = Literal[
    "message.received",
    "message.received.spam",
    "message.received.blocked",
    "message.received.unauthenticated",
    "message.sent",
    "message.delivered",
    "message.bounced",
    "message.complained",
    "message.rejected",
    "message.opened",
]
