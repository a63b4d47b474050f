"""Attachments: the files that a caller gives, and the descriptions that AgentMail shows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from trio_agentmail.events import Attachment
from trio_agentmail.testing._agentmail.checks import check_bytes, check_text

from .events import new_id

__all__ = ["CONTENT_TYPE", "AttachedFile", "attach", "check_files"]

CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+( *;( *[!-~])*)?", re.ASCII)
"""A content type that is valid in a header of a mail or of an HTTP response."""

DISPOSITIONS = ("attachment", "inline")

EXAMPLE = '{"filename": "a.txt", "content": b"..."}'


class AttachedFile(TypedDict):
    """A file to attach to a mail. The fields are those of the REST API, except that the content is bytes, not Base64.

    By default, `content_type` is `application/octet-stream` and `content_disposition` is `attachment`.
    """

    content: bytes
    filename: NotRequired[str | None]
    content_type: NotRequired[str | None]
    content_disposition: NotRequired[Literal["inline", "attachment"] | None]
    content_id: NotRequired[str | None]


def check_files(files: Iterable[AttachedFile]) -> list[AttachedFile]:
    """Check files and return them as a list.

    Raises:
        TypeError: `files` is not a list of files, or a field is unknown, missing or has the wrong type.
        ValueError: A content type or disposition is invalid.
    """
    if isinstance(files, Mapping | str | bytes) or not isinstance(files, Iterable):
        raise TypeError(f"attachments is a list of dicts like {EXAMPLE}, not {files!r:.80}")
    checked = list(files)
    for file in checked:
        if not isinstance(file, Mapping):
            raise TypeError(f"an attachment is a dict like {EXAMPLE}, not {file!r:.80}")
        _check_file(dict(file))
    return checked


def _check_file(fields: dict[str, Any]) -> None:
    if unknown := fields.keys() - AttachedFile.__annotations__.keys():
        known = ", ".join(AttachedFile.__annotations__)
        raise TypeError(f"an attachment has the fields {known}, not {', '.join(map(repr, unknown))}")
    if "content" not in fields:
        raise TypeError(f"an attachment needs a content, like {EXAMPLE}")
    check_bytes("the content of an attachment", fields.pop("content"))
    for name, value in fields.items():
        check_text(name, value)
    content_type, disposition = fields.get("content_type"), fields.get("content_disposition")
    if content_type is not None and not CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(f"content_type is a type like application/pdf, not {content_type!r}")
    if disposition is not None and disposition not in DISPOSITIONS:
        raise ValueError(f"content_disposition is attachment or inline, not {disposition!r}")


def attach(files: Sequence[AttachedFile]) -> tuple[tuple[Attachment, ...], dict[str, bytes]]:
    """Return descriptions of checked files, each with a new id, and a mapping from the ids to the contents."""
    described = [(_describe(file), file["content"]) for file in files]
    attachments = tuple(attachment for attachment, _ in described)
    return attachments, {str(attachment.attachment_id): content for attachment, content in described}


def _describe(file: AttachedFile) -> Attachment:
    return Attachment(
        attachment_id=new_id(),
        filename=file.get("filename"),
        size=len(file["content"]),
        content_type=file.get("content_type") or "application/octet-stream",
        content_disposition=file.get("content_disposition") or "attachment",
        content_id=file.get("content_id"),
    )
