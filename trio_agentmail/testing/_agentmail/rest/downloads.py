"""Downloads of attachments and raw messages. The API returns a URL that needs no key and is valid for an hour."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trio_agentmail._codec import parse_object
from trio_agentmail.testing._agentmail.mail.events import new_id
from trio_agentmail.testing._agentmail.mail.mail import Mail
from trio_agentmail.testing._agentmail.mail.store import Download, MailStore
from trio_agentmail.testing._agentmail.mail.writing import write_mail
from trio_agentmail.testing._agentmail.refusals import Refusal, not_found
from trio_agentmail.testing._encode import encode_part

from .call import Answer, Call
from .exchange import RestRequest, RestResponse

__all__ = ["DOWNLOADS", "describe_attachment", "describe_raw", "download"]

DOWNLOADS = "/downloads/"
"""The beginning of the path of a download URL."""


def describe_attachment(call: Call, mails: Sequence[Mail], attachment_id: str) -> Answer:
    """Return the description and the download URL of an attachment of one of these mails.

    Raises:
        Refusal: None of the mails has this attachment.
    """
    for mail in mails:
        for attachment in mail.message.attachments:
            if attachment.attachment_id == attachment_id:
                described = parse_object(encode_part(attachment).encode()) or {}
                return described | _offer(call, Download(mail, attachment))
    raise not_found()


def describe_raw(call: Call, mail: Mail) -> Answer:
    """Return the download URL of a mail in the format of RFC 5322."""
    return {"message_id": mail.message.message_id, "size": len(_raw(mail)), **_offer(call, Download(mail))}


def download(request: RestRequest, store: MailStore, now: datetime) -> RestResponse:
    """Return the file at a download URL.

    Raises:
        Refusal: The URL is unknown or has expired, or the method is not GET.
    """
    if request.method != "GET":
        raise not_found()
    offered = store.downloads.get(request.path.removeprefix(DOWNLOADS), now)
    if offered is None:
        # An expired URL is forgotten, so it cannot be distinguished from an unknown one.
        raise Refusal(403, "forbidden", "the download URL is unknown or has expired: request a new one")
    if offered.attachment is None:
        content, content_type = _raw(offered.mail), "message/rfc822"
    else:
        content = offered.mail.contents.get(str(offered.attachment.attachment_id), b"")
        content_type = offered.attachment.content_type or "application/octet-stream"
    return RestResponse(status=200, headers={"Content-Type": content_type}, body=content)


def _raw(mail: Mail) -> bytes:
    """Return the mail in the format of RFC 5322. It is written only once, because each result would be different."""
    if mail.raw is None:
        mail.raw = write_mail(mail.message, mail.contents)
    return mail.raw


def _offer(call: Call, what: Download) -> dict[str, Any]:
    token = new_id()
    expires_at = call.store.downloads.put(token, what, call.now)
    return {"download_url": f"{call.request.origin}{DOWNLOADS}{token}", "expires_at": expires_at}
