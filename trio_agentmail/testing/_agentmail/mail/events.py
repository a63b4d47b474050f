"""Makes messages like AgentMail's, and the events that announce them."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

import attrs

from trio_agentmail._event_types import RECEIVED_TYPES
from trio_agentmail.events import (
    AgentArmorManualOverride,
    AgentArmorReleaseActor,
    AgentArmorResult,
    Attachment,
    Message,
    MessageReceivedEvent,
    MessageSecurity,
    MessageSecurityOverride,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Send,
)
from trio_agentmail.testing._agentmail.checks import check_name, check_text, check_texts

from .extraction import extract_html, extract_text

__all__ = [
    "ARRIVAL_LABELS",
    "HELD",
    "ORGANIZATION",
    "RECEIVED",
    "SENDER",
    "SUBJECT",
    "TEXT",
    "answered_ids",
    "bodies",
    "hold",
    "new_id",
    "new_message",
    "override_event",
    "received_event",
    "received_labels",
    "recipients_of",
    "released",
    "review_event",
    "sent_event",
    "to_milliseconds",
]

HELD = "agent-armor-held"
"""The label of mail that Agent Armor holds for a security review."""

ORGANIZATION = "organization"

SENDER, SUBJECT, TEXT = "Jane <jane@example.com>", "Hello", "Hello!"
"""The defaults of a delivered mail."""

RECEIVED = {
    event_type: "unread" if event_type == "message.received" else event_type.removeprefix("message.received.")
    for event_type in RECEIVED_TYPES
}
"""The event types that announce a mail. The value is the label that such a mail has in addition to `received`."""

ARRIVAL_LABELS = frozenset({"received", *RECEIVED.values(), HELD})
"""All labels that describe the arrival of a mail."""


def new_id() -> str:
    """Return a globally unique id. Consecutive numbers would not be unique for clients that keep ids in a file."""
    return str(uuid.uuid4())


def to_milliseconds(time: datetime) -> datetime:
    """Round a time down to milliseconds, the precision of AgentMail."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def preview(text: str | None) -> str | None:
    """Return the beginning of a text for a listing."""
    return None if text is None else " ".join(text.split())[:200]


class Bodies(TypedDict):
    """The fields of a message that are computed from its text and HTML."""

    text: str | None
    html: str | None
    preview: str | None
    extracted_text: str | None
    extracted_html: str | None


def bodies(text: str | None, html: str | None) -> Bodies:
    """Return the fields of a message that are computed from its text and HTML."""
    return Bodies(
        text=text,
        html=html,
        preview=preview(text),
        extracted_text=extract_text(text),
        extracted_html=extract_html(html),
    )


def recipients_of(message: Message) -> tuple[str, ...]:
    """Return the addresses in `to`, `cc` and `bcc`."""
    return (*message.to, *message.cc, *message.bcc)


def answered_ids(in_reply_to: str | None, references: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of the mails that a mail replies to, the nearest first."""
    nearest = (in_reply_to,) if in_reply_to else ()
    return tuple(dict.fromkeys((*nearest, *reversed(references))))


def new_message(
    *,
    inbox_id: str,
    from_: str,
    to: str | Sequence[str],
    subject: str | None,
    text: str | None,
    html: str | None,
    labels: Sequence[str],
    message_id: str | None,
    thread_id: str | None,
    timestamp: datetime | None,
    attachments: tuple[Attachment, ...] = (),
    now: datetime,
) -> Message:
    """Return a message that an inbox receives or sends now. See `FakeAgentMail.deliver` for the arguments.

    Raises:
        TypeError: The timestamp has no offset, or an argument has the wrong type.
        ValueError: `inbox_id` is empty.
    """
    check_name("inbox_id", inbox_id)
    check_texts("to", [to] if isinstance(to, str) else to)
    check_text("from_", from_, or_none=False)  # may be empty: a mail need not have a sender
    for name, value in (
        ("subject", subject),
        ("text", text),
        ("html", html),
        ("message_id", message_id),
        ("thread_id", thread_id),
    ):
        check_text(name, value)
    if not isinstance(timestamp, datetime | None):
        raise TypeError(f"timestamp is a datetime, not {type(timestamp).__name__}")
    if timestamp is not None and timestamp.tzinfo is None:
        raise TypeError("the timestamp has no offset: give it one, for example tzinfo=UTC")
    return Message(
        inbox_id=inbox_id,
        message_id=message_id or f"<{new_id()}@mail.example>",
        thread_id=thread_id or new_id(),
        labels=tuple(labels),
        timestamp=timestamp or now,
        from_=from_,
        to=(to,) if isinstance(to, str) else tuple(to),
        subject=subject,
        **bodies(text, html),
        attachments=attachments,
        size=sum(len(body.encode(errors="surrogatepass")) for body in (text, html) if body is not None)
        + sum(attachment.size or 0 for attachment in attachments),
        created_at=now,
        updated_at=now,
    )


def received_event(
    *,
    inbox_id: str,
    from_: str,
    to: str | Sequence[str] | None,
    subject: str | None,
    text: str | None,
    html: str | None,
    event_type: str,
    message_id: str | None,
    thread_id: str | None,
    event_id: str | None,
    timestamp: datetime | None,
    attachments: tuple[Attachment, ...] = (),
    held: bool = False,
    now: datetime,
) -> MessageReceivedEvent:
    """Return the event that announces a mail which arrives now, without its thread.

    See `FakeAgentMail.deliver` for the arguments.
    """
    message = new_message(
        inbox_id=inbox_id,
        from_=from_,
        to=inbox_id if to is None else to,
        subject=subject,
        text=text,
        html=html,
        labels=received_labels(event_type),
        message_id=message_id,
        thread_id=thread_id,
        timestamp=timestamp,
        attachments=attachments,
        now=now,
    )
    if held:
        message = hold(message)
    return MessageReceivedEvent(event_type=event_type, event_id=event_id or new_id(), message=message)


def received_labels(event_type: str) -> tuple[str, ...]:
    """Return the labels of a mail that an event of this type announces.

    Raises:
        ValueError: Events of this type do not announce mail.
    """
    if event_type not in RECEIVED:
        raise ValueError(f"the event_type of a received mail is one of {', '.join(RECEIVED)}, not {event_type!r}")
    return "received", RECEIVED[event_type]


def hold(message: Message) -> Message:
    """Return a message with the verdict and label of mail that Agent Armor holds."""
    verdict = AgentArmorResult(
        status="complete",
        verdict="review",
        reason="it asks for a secret",
        model="emulated",
        completed_at=message.created_at,
    )
    return attrs.evolve(message, labels=(*message.labels, HELD), agent_armor=verdict)


def sent_event(message: Message) -> MessageSentEvent:
    """Return the event that announces a sent message."""
    send = Send(
        inbox_id=message.inbox_id,
        thread_id=message.thread_id,
        message_id=message.message_id,
        timestamp=message.timestamp,
        recipients=message.to,
    )
    return MessageSentEvent(event_id=new_id(), send=send)


def review_event(message: Message) -> MessageSecurityReviewEvent:
    """Return the event that announces a held message."""
    security = MessageSecurity(
        organization_id=ORGANIZATION,
        inbox_id=message.inbox_id,
        message_id=message.message_id,
        agent_armor=message.agent_armor,
    )
    return MessageSecurityReviewEvent(event_id=new_id(), message=security)


def released(message: Message, now: datetime) -> Message:
    """Return a held message after its release. Of its times, only `updated_at` changes."""
    override = AgentArmorManualOverride(
        override_id=new_id(),
        actor=AgentArmorReleaseActor(kind="console"),
        reason="it is harmless",
        original_verdict="review",
        released_at=now,
    )
    return attrs.evolve(
        message,
        labels=tuple(label for label in message.labels if label != HELD),
        agent_armor=attrs.evolve(message.agent_armor or AgentArmorResult(), manual_override=override),
        updated_at=now,
    )


def override_event(message: Message) -> MessageSecurityOverrideEvent:
    """Return the event that announces the release of a message."""
    assert message.agent_armor is not None
    override = message.agent_armor.manual_override
    assert override is not None
    security = MessageSecurityOverride(
        organization_id=ORGANIZATION,
        inbox_id=message.inbox_id,
        message_id=message.message_id,
        manual_override=override,
    )
    return MessageSecurityOverrideEvent(event_id=override.override_id, message=security)
