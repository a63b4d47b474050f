"""Files that are attached to a mail: as they are given, and what AgentMail shows of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from trio_agentmail.events import Attachment
from trio_agentmail.testing._checks import check_bytes, check_text

from .events import new_id

__all__ = ["CONTENT_TYPE", "AttachedFile", "attach", "check_files"]

CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+( *;( *[!-~])*)?", re.ASCII)
"""As it may stand in a header, of a mail and of HTTP."""

DISPOSITIONS = ("attachment", "inline")

EXAMPLE = '{"filename": "a.txt", "content": b"..."}'


class AttachedFile(TypedDict):
    """A file that is attached to a mail: as it is sent by the REST API, but the content is bytes, and not Base64.

    `content_type` is `application/octet-stream` unless given, and `content_disposition` is `attachment`.
    """

    content: bytes
    filename: NotRequired[str | None]
    content_type: NotRequired[str | None]
    content_disposition: NotRequired[Literal["inline", "attachment"] | None]
    content_id: NotRequired[str | None]


def check_files(files: Iterable[AttachedFile]) -> list[AttachedFile]:
    """
    Returns:
        The files.

    Raises:
        TypeError: they are no list of files, or a field is unknown, missing or of another type.
        ValueError: there is no such content type or disposition.
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
        raise TypeError(f"an attachment has some of {known}, and not {', '.join(map(repr, unknown))}")
    if "content" not in fields:
        raise TypeError(f"an attachment has a content, like {EXAMPLE}")
    check_bytes("the content of an attachment", fields.pop("content"))
    for name, value in fields.items():
        check_text(name, value)
    content_type, disposition = fields.get("content_type"), fields.get("content_disposition")
    if content_type is not None and not CONTENT_TYPE.fullmatch(content_type):
        raise ValueError(f"content_type is one like application/pdf, not {content_type!r}")
    if disposition is not None and disposition not in DISPOSITIONS:
        raise ValueError(f"content_disposition is attachment or inline, not {disposition!r}")


def attach(files: Sequence[AttachedFile]) -> tuple[tuple[Attachment, ...], dict[str, bytes]]:
    """The descriptions of checked files, each with an id of its own, and the content of each by its id."""
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
