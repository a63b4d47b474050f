"""Parses a mail in the format of RFC 5322 and MIME into the fields that AgentMail shows.

A mail from outside may be malformed in any way. It is parsed as far as possible, and never rejected.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email import policy
from email.generator import BytesGenerator
from email.headerregistry import AddressHeader
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import BinaryIO, cast

import attrs

from trio_agentmail.events import Attachment, Message

from .attachments import AttachedFile, attach
from .events import answered_ids, bodies, new_id
from .lenient import OTHER_SURROGATES, Part, or_default, read_mail, without_header, without_mark, without_surrogates

__all__ = ["ParsedMail", "parse_mail"]

# Headers are written unchanged. To fold them again, the `email` package would have to parse them, which might fail.
WIRE = policy.SMTP.clone(max_line_length=998, refold_source="none")

NOT_SHOWN = frozenset({"bcc", "content-type", "content-transfer-encoding", "mime-version"})


class Writer(BytesGenerator):
    """A generator that writes non-ASCII characters as UTF-8 and replaces lone surrogates, instead of raising."""

    _fp: BinaryIO

    def write(self, s: str) -> None:
        self._fp.write(OTHER_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", s).encode(errors="surrogateescape"))


@attrs.frozen(kw_only=True)
class ParsedMail:
    """The fields of a mail.

    Attributes:
        message_id: The Message-ID, or a new one if the mail has none. It is the same in all inboxes.
        recipients: The addresses in To, Cc, Bcc and Delivered-To, without names, in lower case, and each only once.
        attachments: The descriptions of the attachments, each with a new id.
        contents: The content of each attachment, by its id.
        raw: The mail itself, without its Bcc headers.
    """

    message_id: str
    timestamp: datetime | None
    from_: str
    reply_to: tuple[str, ...]
    to: tuple[str, ...]
    cc: tuple[str, ...]
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
        """The ids of the mails to which it replies, the nearest first: In-Reply-To, then References."""
        return answered_ids(self.in_reply_to, self.references)

    def message(self, *, inbox_id: str, thread_id: str, labels: tuple[str, ...], now: datetime) -> Message:
        """Return the message in an inbox that receives the mail now."""
        return Message(
            inbox_id=inbox_id,
            message_id=self.message_id,
            thread_id=thread_id,
            labels=labels,
            timestamp=self.timestamp or now,
            from_=self.from_,
            reply_to=self.reply_to,
            to=self.to,
            cc=self.cc,
            subject=self.subject,
            **bodies(self.text, self.html),
            attachments=self.attachments,
            in_reply_to=self.in_reply_to,
            references=self.references,
            headers=self.headers,
            size=len(self.raw),
            created_at=now,
            updated_at=now,
        )


def parse_mail(mail: EmailMessage | bytes) -> ParsedMail:
    """Parse a mail. The addresses in its Bcc appear only in `recipients`, as with `sendmail -t`.

    Raises:
        TypeError: The mail is neither an `EmailMessage` nor bytes.
    """
    if isinstance(mail, EmailMessage):
        file = BytesIO()
        Writer(file, mangle_from_=False, policy=WIRE).flatten(mail)
        raw = file.getvalue()
    elif isinstance(mail, bytes):
        raw = without_mark(mail)
    else:
        raise TypeError(f"a mail is an email.message.EmailMessage or bytes, not {type(mail).__name__}")
    # An EmailMessage is written and parsed again, so that the result is the same as for its bytes.
    parsed = read_mail(raw)
    bodies = [part for part in parsed.leaves() if not part.is_attached]
    plain = next((part for part in bodies if part.content_type == "text/plain"), None)
    html = next((part for part in bodies if part.content_type == "text/html"), None)
    attachments, contents = attach([_file(part) for part in parsed.leaves() if part is not plain and part is not html])
    all_recipients = [bare for name in ("To", "Cc", "Bcc", "Delivered-To") for _, bare in _addresses(parsed, name)]
    return ParsedMail(
        message_id=next(iter(_ids(parsed, "Message-ID")), f"<{new_id()}@mail.example>"),
        timestamp=or_default(lambda: _date(parsed), None),
        from_=", ".join(_shown(parsed, "From")),
        reply_to=_shown(parsed, "Reply-To"),
        to=_shown(parsed, "To"),
        cc=_shown(parsed, "Cc"),
        recipients=tuple(dict.fromkeys(bare.lower() for bare in all_recipients)),
        subject=None if parsed["Subject"] is None else str(parsed["Subject"]),
        text=None if plain is None else plain.text(),
        html=None if html is None else html.text(),
        in_reply_to=next(iter(_ids(parsed, "In-Reply-To")), None),
        references=_ids(parsed, "References"),
        headers={name: str(value) for name, value in parsed.items() if name.lower() not in NOT_SHOWN},
        attachments=attachments,
        contents=contents,
        raw=without_header(raw, "Bcc"),
    )


def _file(part: Part) -> AttachedFile:
    return AttachedFile(
        content=part.content(),
        filename=part.filename,
        content_type=part.content_type,
        # An unknown disposition is treated as an attachment (RFC 2183, 2.8).
        content_disposition="inline" if part.get_content_disposition() == "inline" else "attachment",
        content_id=None if part["Content-ID"] is None else str(part["Content-ID"]),
    )


def _addresses(mail: Part, name: str) -> list[tuple[str, str]]:
    """Return the addresses in the headers with this name, each with and without the name of its owner."""
    headers = cast(list[AddressHeader], mail.get_all(name, []))
    found = [address for header in headers for address in header.addresses]
    return [(without_surrogates(str(one)), without_surrogates(one.addr_spec)) for one in found if one.addr_spec != "<>"]


def _shown(mail: Part, name: str) -> tuple[str, ...]:
    return tuple(shown for shown, _ in _addresses(mail, name))


def _ids(mail: Part, name: str) -> tuple[str, ...]:
    return tuple(str(mail.get(name, "")).split())


def _date(mail: Part) -> datetime:
    date = parsedate_to_datetime(str(mail["Date"]))
    if date.tzinfo is None:
        return date.replace(tzinfo=UTC)
    date.astimezone(UTC)  # raises for times at both ends of the calendar that have no equivalent in UTC
    return date
