"""A mail as it crosses the Internet (RFC 5322 and MIME), read to what AgentMail shows of it.

What comes from outside need not be well-formed: it is read as far as that goes, and never refused.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email import policy
from email.headerregistry import Address, AddressHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from typing import Any, cast

import attrs

from trio_agentmail.events import Attachment, Message

from ._fake_events import new_id, preview

__all__ = ["ParsedMail", "parse_mail"]

ADDRESSES = ("From", "Reply-To", "To", "Cc", "Bcc", "Delivered-To")


class LenientAddresses(AddressHeader):
    """Addresses as far as they are some: on odd ones the standard library's parser raises."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        try:
            super().parse(value, kwds)
        except Exception:  # noqa: BLE001  of many classes, which differ from one Python to the next
            UnstructuredHeader.parse(value, kwds)
            kwds["groups"] = []


# The parser of message ids raises on odd ones, and on all that are folded. So they are text here, and lines are as long
# as they may be.
HEADERS = HeaderRegistry()
for _name, _class in {"Message-ID": UnstructuredHeader, **dict.fromkeys(ADDRESSES, LenientAddresses)}.items():
    HEADERS.map_to_type(_name, cast(Any, _class))
WIRE = policy.SMTP.clone(max_line_length=998, header_factory=HEADERS)

SHOWN_ELSEWHERE = frozenset({"content-type", "content-transfer-encoding", "mime-version"})


@attrs.frozen(kw_only=True)
class ParsedMail:
    """What a mail says.

    Attributes:
        recipients: The bare addresses, in lower case, of To, Cc, Bcc and Delivered-To, each once.
        answers: The ids of the mails that it answers, the nearest first: In-Reply-To, then References.
        attachments: Their descriptions, each with an id of its own.
        contents: The content of each attachment, by its id.
        raw: The mail itself.
    """

    message_id: str | None
    timestamp: datetime | None
    from_: str
    reply_to: tuple[str, ...]
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    recipients: tuple[str, ...]
    subject: str | None
    text: str | None
    html: str | None
    in_reply_to: str | None
    references: tuple[str, ...]
    headers: Mapping[str, str]
    attachments: tuple[Attachment, ...]
    contents: Mapping[str, bytes] = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False)

    @property
    def answers(self) -> tuple[str, ...]:
        nearest = (self.in_reply_to,) if self.in_reply_to is not None else ()
        return tuple(dict.fromkeys((*nearest, *reversed(self.references))))

    def message(self, *, inbox_id: str, thread_id: str, labels: tuple[str, ...], now: datetime) -> Message:
        """The mail in an inbox that gets it now."""
        return Message(
            inbox_id=inbox_id,
            message_id=self.message_id or f"<{new_id()}@mail.example>",
            thread_id=thread_id,
            labels=labels,
            timestamp=self.timestamp or now,
            from_=self.from_,
            reply_to=self.reply_to,
            to=self.to,
            cc=self.cc,
            bcc=self.bcc,
            subject=self.subject,
            preview=preview(self.text),
            text=self.text,
            html=self.html,
            attachments=self.attachments,
            in_reply_to=self.in_reply_to,
            references=self.references,
            headers=self.headers,
            size=len(self.raw),
            created_at=now,
            updated_at=now,
        )


def parse_mail(mail: EmailMessage | bytes) -> ParsedMail:
    """Read a mail.

    Raises:
        TypeError: it is neither an `EmailMessage` nor bytes.
    """
    if isinstance(mail, EmailMessage):
        raw = mail.as_bytes(policy=WIRE)
    elif isinstance(mail, bytes):
        raw = mail
    else:
        raise TypeError(f"a mail is an email.message.EmailMessage or bytes, not {type(mail).__name__}")
    # An EmailMessage is read again too, so that both ways have one outcome.
    parsed = BytesParser(policy=WIRE).parsebytes(raw)
    assert isinstance(parsed, EmailMessage)
    plain, html = parsed.get_body(["plain"]), parsed.get_body(["html"])
    contents: dict[str, bytes] = {}
    attachments = []
    for part in _leaves(parsed):
        if part is not plain and part is not html:
            content = _content(part)
            attachment = Attachment(
                attachment_id=new_id(),
                filename=part.get_filename(),
                size=len(content),
                content_type=part.get_content_type(),
                content_disposition=part.get_content_disposition() or "attachment",
                content_id=part.get("Content-ID"),
            )
            attachments.append(attachment)
            contents[str(attachment.attachment_id)] = content
    everybody = [address for name in ("To", "Cc", "Bcc", "Delivered-To") for address in _addresses(parsed, name)]
    return ParsedMail(
        message_id=next(iter(_ids(parsed, "Message-ID")), None),
        timestamp=_date(parsed),
        from_=", ".join(map(str, _addresses(parsed, "From"))),
        reply_to=tuple(map(str, _addresses(parsed, "Reply-To"))),
        to=tuple(map(str, _addresses(parsed, "To"))),
        cc=tuple(map(str, _addresses(parsed, "Cc"))),
        bcc=tuple(map(str, _addresses(parsed, "Bcc"))),
        recipients=tuple(dict.fromkeys(address.addr_spec.lower() for address in everybody)),
        subject=None if parsed["Subject"] is None else str(parsed["Subject"]),
        text=None if plain is None else _text(plain),
        html=None if html is None else _text(html),
        in_reply_to=next(iter(_ids(parsed, "In-Reply-To")), None),
        references=_ids(parsed, "References"),
        headers={name: str(value) for name, value in parsed.items() if name.lower() not in SHOWN_ELSEWHERE},
        attachments=tuple(attachments),
        contents=contents,
        raw=raw,
    )


def _leaves(part: MIMEPart) -> Iterator[MIMEPart]:
    """All parts that are not made of others; an attached mail is one."""
    if part.get_content_maintype() != "multipart":
        yield part
        return
    for child in part.iter_parts():
        yield from _leaves(child)


def _content(part: MIMEPart) -> bytes:
    if part.is_multipart():  # an attached mail
        return b"".join(child.as_bytes() for child in part.iter_parts())
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _text(part: MIMEPart) -> str:
    content = _content(part)
    try:
        text = content.decode(part.get_content_charset("utf-8"), errors="replace")
    except LookupError:  # a charset that nobody knows
        text = content.decode(errors="replace")
    return text.replace("\r\n", "\n")


def _addresses(mail: EmailMessage, name: str) -> list[Address]:
    return [address for header in mail.get_all(name, []) for address in header.addresses if address.addr_spec != "<>"]


def _ids(mail: EmailMessage, name: str) -> tuple[str, ...]:
    return tuple(str(mail.get(name, "")).split())


def _date(mail: EmailMessage) -> datetime | None:
    try:
        date = parsedate_to_datetime(str(mail["Date"]))
    except ValueError:
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
