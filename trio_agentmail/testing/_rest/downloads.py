"""Attachments and whole mails, which are fetched from an address that needs no key, for an hour."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from trio_agentmail._codec import parse_object
from trio_agentmail.testing._encode import encode_part
from trio_agentmail.testing._mail.events import new_id
from trio_agentmail.testing._mail.mail import Mail
from trio_agentmail.testing._mail.store import Download, MailStore
from trio_agentmail.testing._mail.writing import write_mail

from .call import Answer, Call
from .errors import Refusal, not_found

__all__ = ["DOWNLOADS", "describe_attachment", "describe_raw", "download"]

DOWNLOADS = "/downloads/"


def describe_attachment(call: Call, mails: Sequence[Mail], attachment_id: str) -> Answer:
    """Where the attachment is found that one of these mails has.

    Raises:
        Refusal: none has it.
    """
    for mail in mails:
        for attachment in mail.message.attachments:
            if attachment.attachment_id == attachment_id:
                described = parse_object(encode_part(attachment).encode()) or {}
                return described | _offer(call, Download(mail, attachment))
    raise not_found()


def describe_raw(call: Call, mail: Mail) -> Answer:
    """Where the mail is found as it crossed the Internet."""
    return {"message_id": mail.message.message_id, "size": len(_raw(mail)), **_offer(call, Download(mail))}


def download(request: httpx.Request, store: MailStore, now: datetime) -> httpx.Response:
    """The file itself.

    Raises:
        Refusal: there is none, or its time is over.
    """
    if request.method != "GET":
        raise not_found()
    offered = store.downloads.get(request.url.path.removeprefix(DOWNLOADS), now)
    if offered is None:
        # Of those whose time is over none is known any more.
        raise Refusal(403, "forbidden", "the address has expired, or never was one: ask for another one")
    if offered.attachment is None:
        content, content_type = _raw(offered.mail), "message/rfc822"
    else:
        content = offered.mail.contents.get(str(offered.attachment.attachment_id), b"")
        content_type = offered.attachment.content_type or "application/octet-stream"
    return httpx.Response(200, headers={"Content-Type": content_type}, content=content)


def _raw(mail: Mail) -> bytes:
    """The mail as it crossed the Internet, or would have: written once, since no two writings are the same."""
    if mail.raw is None:
        mail.raw = write_mail(mail.message, mail.contents)
    return mail.raw


def _offer(call: Call, what: Download) -> dict[str, Any]:
    token = new_id()
    expires_at = call.store.downloads.put(token, what, call.now)
    url = call.request.url.copy_with(raw_path=f"{DOWNLOADS}{token}".encode("ascii"))
    return {"download_url": str(url), "expires_at": expires_at}
