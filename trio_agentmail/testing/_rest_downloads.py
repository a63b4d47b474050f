"""Attachments and whole mails, which are fetched from an address that needs no key, for an hour."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import orjson

from ._encode import encode_part
from ._fake_events import new_id
from ._mail import Mail
from ._mail_store import Download, MailStore
from ._mail_writing import write_mail
from ._rest_call import Answer, Call
from ._rest_errors import Refusal, not_found

__all__ = ["DOWNLOADS", "describe_attachment", "describe_raw", "download"]

DOWNLOADS = "/downloads/"
LIFETIME = timedelta(hours=1)


def describe_attachment(call: Call, mails: Sequence[Mail], attachment_id: str) -> Answer:
    """Where the attachment is found that one of these mails has.

    Raises:
        Refusal: none has it.
    """
    for mail in mails:
        for attachment in mail.message.attachments:
            if attachment.attachment_id == attachment_id:
                content = mail.contents.get(attachment_id, b"")
                where = _offer(call, content, attachment.content_type or "application/octet-stream")
                described: dict[str, Any] = orjson.loads(encode_part(attachment))
                return described | where
    raise not_found()


def describe_raw(call: Call, mail: Mail) -> Answer:
    """Where the mail is found as it crossed the Internet."""
    raw = raw_mail(mail)
    return {"message_id": mail.message.message_id, "size": len(raw), **_offer(call, raw, "message/rfc822")}


def download(request: httpx.Request, store: MailStore, now: datetime) -> httpx.Response:
    """The file itself.

    Raises:
        Refusal: there is none, or its time is over.
    """
    offered = store.downloads.get(request.url.path.removeprefix(DOWNLOADS))
    if request.method != "GET" or offered is None:
        raise not_found()
    if offered.expires_at <= now:
        raise Refusal(403, "forbidden", "the address has expired: ask for another one")
    return httpx.Response(200, headers={"Content-Type": offered.content_type}, content=offered.content)


def raw_mail(mail: Mail) -> bytes:
    """The mail as it crossed the Internet, or would have."""
    return write_mail(mail.message, mail.contents) if mail.raw is None else mail.raw


def _offer(call: Call, content: bytes, content_type: str) -> dict[str, Any]:
    token = new_id()
    expires_at = call.now + LIFETIME
    call.store.downloads[token] = Download(content=content, content_type=content_type, expires_at=expires_at)
    url = call.request.url.copy_with(raw_path=f"{DOWNLOADS}{token}".encode("ascii"))
    return {"download_url": str(url), "expires_at": expires_at}
