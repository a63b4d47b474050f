"""Writes a message of AgentMail as a mail in the format of RFC 5322 and MIME.

The obvious way is `EmailMessage`. But it writes some headers so that no parser reads back the same text, for example
names with brackets, long words, and spaces between encoded words. So headers are encoded here, always so that they read
back unchanged, and the older classes of the `email` package write them as they are.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from email import policy
from email.encoders import encode_base64
from email.message import Message as Part
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime, quote, unquote
from types import MappingProxyType

from trio_agentmail.events import Attachment, Message

__all__ = ["write_mail"]

WIRE = policy.compat32.clone(linesep="\r\n")

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

ENCODED_BYTES = 45
"""Maximum number of bytes of text in an encoded word, which may have 75 characters."""

MAX_LINE = 998
"""Maximum number of characters in a line of a mail."""

PLAIN_HEADER = re.compile(r"[!-~]{1,900}( [!-~]{1,900})*")
PLAIN_NAME = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+( [\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
PLAIN_FILENAME = re.compile(r"[\w.+-]+( [\w.+-]+)*", re.ASCII)
PLAIN_TEXT = re.compile(r"[\t\n -~]*")
ADDRESS_AT_END = re.compile(r"<?(?<![!-;=?-~])([!-;=?-~]+)>?\s*\Z")
"""An address at the end of a text. The look-behind lets it match only from its first character, since trying every
character of a long address would take quadratic time."""
CONTENT_TYPE = re.compile(r"[!-.0-~]+/[!-~]+( *;[ -~]*)?")


def write_mail(message: Message, contents: Mapping[str, bytes], headers: Mapping[str, str] = NO_HEADERS) -> bytes:
    """Return a message in the format of RFC 5322. As in any mail, the Bcc is left out.

    Args:
        contents: The content of each attachment, by its id. A missing content is written as empty.
        headers: Further headers.
    """
    mail: Part = _body(message)
    if message.attachments:
        parts = [_attached(one, contents.get(one.attachment_id or "", b"")) for one in message.attachments]
        mail = MIMEMultipart("mixed", _subparts=[mail, *parts])
    for name, value in _headers(message):
        if value:
            mail[name] = value
    for name, value in headers.items():
        mail[name] = _encoded(value)
    return mail.as_bytes(policy=WIRE)


def _headers(message: Message) -> Iterator[tuple[str, str]]:
    yield "From", _mailbox(message.from_)
    yield "Reply-To", ", ".join(map(_mailbox, message.reply_to))
    yield "To", ", ".join(map(_mailbox, message.to))
    yield "Cc", ", ".join(map(_mailbox, message.cc))
    yield "Subject", _encoded(message.subject or "")
    yield "Date", "" if message.timestamp is None else format_datetime(message.timestamp)
    yield "Message-ID", _encoded(message.message_id)
    yield "In-Reply-To", _encoded(message.in_reply_to or "")
    yield "References", " ".join(map(_encoded, message.references))


def _encoded(text: str) -> str:
    """Encode a text for a header as encoded words (RFC 2047), if it needs them."""
    text = re.sub("[\x00-\x1f\x7f]", " ", text)
    if not text or (PLAIN_HEADER.fullmatch(text) and "=?" not in text):
        return text
    words = [b""]
    for character in text:
        data = _utf8(character)
        if len(words[-1]) + len(data) > ENCODED_BYTES:
            words.append(b"")
        words[-1] += data
    return " ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _mailbox(address: str) -> str:
    """Encode `user@example.com` or `Name <user@example.com>`, with or without quotes around the name."""
    match = ADDRESS_AT_END.search(address)
    if match is None or "@" not in match[1][1:-1]:  # not an address
        return _encoded(address)
    name, bare = unquote(" ".join(address[: match.start()].split())), match[1]
    if not name:
        return bare
    if PLAIN_NAME.fullmatch(name) and "=?" not in name:
        return f"{name} <{bare}>"
    if PLAIN_HEADER.fullmatch(name) and "=?" not in name:
        return f'"{quote(name)}" <{bare}>'
    return f"{_encoded(name)} <{bare}>"


def _body(message: Message) -> Part:
    if message.html is None:
        return _text(message.text or "", "plain")
    if message.text is None:
        return _text(message.html, "html")
    return MIMEMultipart("alternative", _subparts=[_text(message.text, "plain"), _text(message.html, "html")])


def _text(text: str, subtype: str) -> Part:
    if PLAIN_TEXT.fullmatch(text) and all(len(line) <= MAX_LINE for line in text.split("\n")):
        return MIMEText(text, subtype, "us-ascii")
    # For UTF-8, the `email` package uses Base64, the only encoding that preserves every text.
    return MIMEText(re.sub("\r\n|\r|\n", "\r\n", _utf8(text).decode()), subtype, "utf-8")


def _attached(attachment: Attachment, content: bytes) -> Part:
    part = _file(attachment.content_type or "", content)
    disposition = attachment.content_disposition or "attachment"
    part.add_header("Content-Disposition", disposition, **_filename(attachment.filename))
    if attachment.content_id is not None:
        part["Content-ID"] = _encoded(f"<{attachment.content_id.strip('<>')}>")
    return part


def _filename(name: str | None) -> dict[str, str | tuple[str, str, str]]:
    """Return the parameter for a filename, encoded (RFC 2231) if needed."""
    if name is None:
        return {}
    return {"filename": name if PLAIN_FILENAME.fullmatch(name) else ("utf-8", "", _utf8(name).decode())}


class AttachedMail(Part):
    """An attached mail, which is written unchanged.

    RFC 2046 does not allow encoding it, and parsing it could fail or lose parts of it.
    """

    def get_content_maintype(self) -> str:
        return "text"  # so that the generator writes the payload unchanged


def _file(content_type: str, content: bytes) -> Part:
    kind = content_type.lower()
    if kind == "message/rfc822":
        mail = AttachedMail()
        mail["Content-Type"] = kind
        mail.set_payload(content.decode("ascii", errors="surrogateescape"))
        return mail
    if not CONTENT_TYPE.fullmatch(content_type) or kind.startswith(("message/", "multipart/")):
        content_type = "application/octet-stream"
    part = Part()
    part["Content-Type"] = content_type
    part.set_payload(content)
    encode_base64(part)
    return part


def _utf8(text: str) -> bytes:
    # An event may have a lone surrogate, which cannot be encoded.
    return text.encode(errors="backslashreplace")
