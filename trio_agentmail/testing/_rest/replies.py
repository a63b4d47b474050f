"""A reply to a message and a forwarded message: who gets it, and what it says."""

from collections.abc import Iterable, Mapping
from email.utils import format_datetime
from html import escape

import attrs

from trio_agentmail.events import Attachment, Message
from trio_agentmail.testing._mail.events import new_id

from .errors import unprocessable
from .outgoing import Outgoing, bare_address, is_address

__all__ = ["forward_of", "reply_to"]


def reply_to(message: Message, outgoing: Outgoing, *, to_all: bool) -> Outgoing:
    """The reply, to whom `outgoing` says; else to the sender, or to those to whom the inbox itself had sent it.

    Args:
        to_all: To everybody who got the message, too.

    Raises:
        Refusal: there is no such person.
    """
    sent = "sent" in message.labels
    answered = message.to if sent else tuple(filter(is_address, message.reply_to)) or (message.from_,)
    to, cc = outgoing.to or tuple(filter(is_address, answered)), outgoing.cc
    if to_all:
        everybody = (*answered, *message.to)
        to = _others(everybody, [message.inbox_id])
        cc = _others(message.cc, [message.inbox_id, *map(bare_address, to)])
    elif not to:
        raise unprocessable("the message has no sender who could be answered: say in `to` who gets the reply")
    return attrs.evolve(outgoing, to=to, cc=cc, subject=_prefixed("Re: ", message.subject))


def forward_of(message: Message, contents: Mapping[str, bytes], outgoing: Outgoing) -> Outgoing:
    """The message, after what `outgoing` says, with its attachments.

    Args:
        contents: Of the message's attachments, by their ids.
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
    )


def _others(addresses: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Each once, but not those whom we know."""
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
