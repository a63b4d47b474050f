"""Replies and forwarded messages: their recipients, text and thread."""

from collections.abc import Iterable, Mapping
from email.utils import format_datetime
from html import escape

import attrs

from trio_agentmail.events import Attachment, Message
from trio_agentmail.testing._agentmail.mail.addresses import bare_address, is_address
from trio_agentmail.testing._agentmail.mail.events import new_id
from trio_agentmail.testing._agentmail.refusals import unprocessable

from .outgoing import Outgoing

__all__ = ["forward_of", "reply_to"]


def reply_to(message: Message, outgoing: Outgoing, *, to_all: bool) -> Outgoing:
    """Complete a reply to a message.

    If `outgoing` has no `to`, the reply goes to the Reply-To or sender of the message or, if the inbox itself has sent
    the message, to its recipients.

    Args:
        to_all: Whether the reply goes to the sender and all recipients of the message. The `to` and `cc` of `outgoing`
            are then ignored.

    Raises:
        Refusal: `outgoing` has no `to`, and the message has no address to reply to.
    """
    sent = "sent" in message.labels
    answered = message.to if sent else tuple(filter(is_address, message.reply_to)) or (message.from_,)
    to, cc = outgoing.to or tuple(filter(is_address, answered)), outgoing.cc
    if to_all:
        all_addresses = (*answered, *message.to)
        to = _others(all_addresses, [message.inbox_id])
        cc = _others(message.cc, [message.inbox_id, *map(bare_address, to)])
    elif not to:
        raise unprocessable("the message has no sender to reply to: give the recipients of the reply in `to`")
    return attrs.evolve(
        outgoing,
        to=to,
        cc=cc,
        subject=_prefixed("Re: ", message.subject),
        thread_id=message.thread_id,
        in_reply_to=message.message_id,
        references=(*message.references, message.message_id),
    )


def forward_of(message: Message, contents: Mapping[str, bytes], outgoing: Outgoing) -> Outgoing:
    """Complete a message that forwards another one, by appending its text and its attachments to `outgoing`.

    Args:
        message: The message to forward.
        contents: The content of each attachment of `message`, by its id.
    """
    assert message.timestamp is not None
    head = [
        "---------- Forwarded message ---------",
        f"From: {message.from_}",
        f"Date: {format_datetime(message.timestamp)}",
        f"Subject: {message.subject or ''}",
        f"To: {', '.join(message.to)}",
    ]
    plain, html = outgoing.text, outgoing.html
    if message.text is not None or message.html is None:
        plain = _joined("\n\n", outgoing.text, "\n".join([*head, "", message.text or ""]))
    if message.html is not None:
        before = outgoing.html if outgoing.html is not None else escape(outgoing.text or "").replace("\n", "<br>")
        html = _joined("<br><br>", before, "<br>".join(map(escape, head)) + "<br><br>" + message.html)
    copies = {str(attachment.attachment_id): new_id() for attachment in message.attachments}
    return attrs.evolve(
        outgoing,
        subject=outgoing.subject or _prefixed("Fwd: ", message.subject),
        text=plain,
        html=html,
        attachments=(*outgoing.attachments, *_copied(message.attachments, copies)),
        contents={**outgoing.contents, **{copies[old]: contents[old] for old in copies if old in contents}},
        thread_id=message.thread_id,
        references=(*message.references, message.message_id),
    )


def _others(addresses: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return the valid addresses, each only once, without those in `known`, which are bare addresses."""
    seen = {address.lower() for address in known}
    others = []
    for address in addresses:
        if is_address(address) and bare_address(address) not in seen:
            seen.add(bare_address(address))
            others.append(address)
    return tuple(others)


def _prefixed(prefix: str, subject: str | None) -> str:
    if subject is not None and subject.lower().startswith(prefix.strip().lower()):
        return subject
    return prefix + (subject or "")


def _joined(between: str, *texts: str | None) -> str:
    return between.join(text for text in texts if text)


def _copied(attachments: Iterable[Attachment], copies: Mapping[str, str]) -> list[Attachment]:
    return [attrs.evolve(old, attachment_id=copies[str(old.attachment_id)]) for old in attachments]
