"""The REST API of sending: new mail, replies, and what is forwarded."""

from typing import Any

from trio_agentmail.testing._mail.store import Inbox

from .body import flag, key
from .call import Call
from .errors import invalid, too_large, unprocessable
from .outgoing import Outgoing, read_outgoing
from .replies import forward_of, reply_to

__all__ = ["answer_send"]

MAX_RECIPIENTS = 50
MAX_REQUEST = 6 * 2**20
"""Bytes. AgentMail documents the limit (6 MB for a request with all of its attachments), but not the error."""

RECIPIENTS = ("to", "cc", "bcc")


def answer_send(call: Call, segments: list[str], inbox: Inbox) -> dict[str, Any]:
    """Send, once for each `Idempotency-Key`, and answer with the message's id and its thread's.

    Args:
        segments: `["send"]`; or the id of a message, and what is done with it.
    """
    call.require("message_send")
    idempotency_key = key(call.request.headers.get("Idempotency-Key"), "Idempotency-Key")
    if len(call.request.content) > MAX_REQUEST:
        raise too_large("the request has more than 6 MB")
    request = call.request.url.path, call.request.content
    return call.post_office.once(idempotency_key, request, call.now, lambda: _send(call, segments, inbox))


def _send(call: Call, segments: list[str], inbox: Inbox) -> dict[str, Any]:
    body = call.body()
    outgoing = read_outgoing(body)
    flag(body, "track_opens")  # which nobody is told of here
    thread: dict[str, Any] = {}
    if segments != ["send"]:
        message_id, action = segments
        mail = call.mail(inbox.inbox_id, message_id)
        thread = {
            "thread_id": mail.message.thread_id,
            "references": (*mail.message.references, mail.message.message_id),
        }
        if action == "forward":
            outgoing = forward_of(mail.message, mail.contents, outgoing)
        else:
            to_all = action == "reply-all" or flag(body, "reply_all")
            if to_all and not body.keys().isdisjoint(RECIPIENTS):
                raise invalid("to", "left out of a reply to all, as cc and bcc")
            outgoing = reply_to(mail.message, outgoing, to_all=to_all)
            thread["in_reply_to"] = mail.message.message_id
    _check_recipients(outgoing)
    message = call.post_office.send(inbox, outgoing, call.now, **thread)
    return {"message_id": message.message_id, "thread_id": message.thread_id}


def _check_recipients(outgoing: Outgoing) -> None:
    if not outgoing.recipients:
        raise unprocessable("there is no recipient in to, cc or bcc")
    if len(outgoing.recipients) > MAX_RECIPIENTS:
        raise invalid("to", f"at most {MAX_RECIPIENTS} recipients, with cc and bcc")
