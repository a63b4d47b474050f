"""`Outgoing`: a message that a client requests to send, read from the body of its request."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, cast

import attrs

from trio_agentmail.events import Attachment
from trio_agentmail.testing._agentmail.mail.attachments import CONTENT_TYPE, AttachedFile, attach
from trio_agentmail.testing._agentmail.refusals import invalid

from .body import line, objects, text, texts
from .labels import read_labels

__all__ = ["Outgoing", "read_files", "read_outgoing"]

ADDRESS = re.compile(
    r"(?:[^<>\x00-\x1f\x7f]*<([^<>@\s,;\x00-\x1f\x7f]+@[^<>@\s,;]+)>|([^<>@\s,;\"]+@[^<>@\s,;\"]+))\s*"
)
"""`user@example.com` or `Name <user@example.com>`."""

HEADER_NAME = re.compile("[!-9;-~]+")

OWN_HEADERS = frozenset(
    {
        *(
            "from",
            "sender",
            "to",
            "cc",
            "bcc",
            "reply-to",
            "subject",
            "date",
            "message-id",
            "in-reply-to",
            "references",
        ),
        *("mime-version", "content-type", "content-transfer-encoding", "content-disposition"),
    }
)
"""Headers that are set from other fields, in lower case. `headers` must not contain them."""


@attrs.frozen(kw_only=True)
class Outgoing:
    """A message to send.

    Attributes:
        attachments: The attachments, each with an id.
        contents: The content of each attachment, by its id.
        thread_id: The thread of the message that this one replies to or forwards; `None` for a new thread.
    """

    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    reply_to: tuple[str, ...]
    subject: str | None
    text: str | None
    html: str | None
    labels: tuple[str, ...]
    headers: Mapping[str, str]
    attachments: tuple[Attachment, ...]
    contents: Mapping[str, bytes]
    thread_id: str | None = None
    in_reply_to: str | None = None
    references: tuple[str, ...] = ()

    @property
    def recipients(self) -> tuple[str, ...]:
        """The addresses in `to`, `cc` and `bcc`."""
        return (*self.to, *self.cc, *self.bcc)


def read_outgoing(body: dict[str, Any]) -> Outgoing:
    """Read the message to send from the body of a request.

    Raises:
        Refusal: A field is invalid.
    """
    attachments, contents = attach(read_files(body))
    return Outgoing(
        to=_addresses(body, "to"),
        cc=_addresses(body, "cc"),
        bcc=_addresses(body, "bcc"),
        reply_to=_addresses(body, "reply_to"),
        subject=line(body, "subject"),
        text=text(body, "text"),
        html=text(body, "html"),
        labels=read_labels(body, "labels"),
        headers=_headers(body),
        attachments=attachments,
        contents=contents,
    )


def _addresses(body: dict[str, Any], name: str) -> tuple[str, ...]:
    addresses = texts(body, name)
    if not all(ADDRESS.fullmatch(address) for address in addresses):
        raise invalid(name, "addresses like user@example.com or Name <user@example.com>")
    return addresses


def _headers(body: dict[str, Any]) -> dict[str, str]:
    headers = body.get("headers", {})
    if not isinstance(headers, dict):
        raise invalid("headers", "an object")
    for name in headers:
        if not HEADER_NAME.fullmatch(name) or name.lower() in OWN_HEADERS:
            raise invalid("headers", "an object without headers that the message itself sets")
    return {name: line(headers, name) or "" for name in headers}


def read_files(body: dict[str, Any]) -> list[AttachedFile]:
    """Read the files in `attachments`, whose contents are in Base64.

    Raises:
        Refusal: A field is invalid.
    """
    return [_file(fields) for fields in objects(body, "attachments")]


def _file(fields: dict[str, Any]) -> AttachedFile:
    if "url" in fields:
        raise invalid("attachments", "given by their content: FakeAgentMail does not fetch a url")
    if "content" not in fields:
        raise invalid("attachments", "given by their content or url")
    try:
        content = base64.b64decode(text(fields, "content") or "", validate=True)
    except (binascii.Error, ValueError):
        raise invalid("attachments", "given by their content, in Base64") from None
    content_type = text(fields, "content_type")
    if content_type is not None and not CONTENT_TYPE.fullmatch(content_type):
        raise invalid("attachments", "of a content type like application/pdf")
    disposition = text(fields, "content_disposition")
    if disposition not in (None, "inline", "attachment"):
        raise invalid("attachments", "inline or attachment by their content_disposition")
    return AttachedFile(
        content=content,
        filename=line(fields, "filename"),
        content_type=content_type,
        content_disposition=cast(Any, disposition),
        content_id=line(fields, "content_id"),
    )
