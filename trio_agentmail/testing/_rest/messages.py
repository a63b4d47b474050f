"""The REST API of messages, but for sending."""

from typing import Any

import attrs
import orjson

from trio_agentmail.testing._encode import encode_part
from trio_agentmail.testing._mail.events import recipients_of
from trio_agentmail.testing._mail.mail import BODIES, Mail
from trio_agentmail.testing._mail.store import Inbox

from .body import ids
from .call import Answer, Call, listing
from .downloads import describe_attachment, describe_raw
from .errors import no_such_call
from .labels import LabelChange, read_label_change
from .listing import filtering, read_query, take_page
from .sending import answer_send

__all__ = ["answer_messages"]

MAX_BATCH_GET = 500
MAX_BATCH_UPDATE = 50


def answer_messages(call: Call, segments: list[str], inbox_id: str) -> Answer:
    """What `/inboxes/{inbox_id}/messages` answers.

    Args:
        segments: The method, and what follows `/messages`.
    """
    inbox = call.inbox(inbox_id)
    match segments:
        case ["GET"]:
            return _list(call, inbox)
        case ["POST", "batch-get"]:
            return _batch_get(call, inbox)
        case ["POST", "batch-update"]:
            return _batch_update(call, inbox)
        case ["POST", "send"] | ["POST", _, "reply" | "reply-all" | "forward"]:
            return answer_send(call, segments[1:], inbox)
        case ["GET", message_id]:
            call.require("message_read")
            return orjson.Fragment(encode_part(call.mail(inbox_id, message_id).message))
        case ["PATCH", message_id]:
            call.require("message_update")
            return _changed(call, call.mail(inbox_id, message_id), read_label_change(call.body()))
        case ["DELETE", message_id]:
            call.require("message_delete")
            call.store.delete(call.mail(inbox_id, message_id), call.now)
            return None
        case ["GET", message_id, "raw"]:
            call.require("message_read")
            return describe_raw(call, call.mail(inbox_id, message_id))
        case ["GET", message_id, "attachments", attachment_id]:
            call.require("message_read")
            return describe_attachment(call, [call.mail(inbox_id, message_id)], attachment_id)
    raise no_such_call(call.request)


def _list(call: Call, inbox: Inbox) -> Answer:
    call.require("message_read")
    query = read_query(call.params, call.permissions)
    matches = filtering(
        call.params,
        {
            "from": lambda mail: [mail.message.from_],
            "to": lambda mail: recipients_of(mail.message),
            "subject": lambda mail: [mail.message.subject or ""],
        },
    )
    mails, token = take_page(inbox.mails, query, lambda mail: query.wants(mail) and matches(mail))
    return listing("messages", [orjson.Fragment(mail.item) for mail in mails], query, token)


def _batch_get(call: Call, inbox: Inbox) -> Answer:
    call.require("message_read")
    message_ids = ids(call.body(), "message_ids", MAX_BATCH_GET)
    found = _those_of(call, inbox, message_ids)
    messages = [orjson.Fragment(encode_part(mail.message, without=BODIES)) for mail in found]
    return {"count": len(messages), "limit": len(message_ids), "messages": messages}


def _batch_update(call: Call, inbox: Inbox) -> Answer:
    call.require("message_update")
    body = call.body()
    message_ids = ids(body, "message_ids", MAX_BATCH_UPDATE)
    change = read_label_change(body)
    updates = [_changed(call, mail, change) for mail in _those_of(call, inbox, message_ids)]
    return {"count": len(updates), "limit": len(message_ids), "updates": updates}


def _those_of(call: Call, inbox: Inbox, message_ids: tuple[str, ...]) -> list[Mail]:
    """Those that are there for this key."""
    found = (call.store.mail(inbox.inbox_id, message_id) for message_id in message_ids)
    return [mail for mail in found if mail is not None and call.may_see(mail)]


def _changed(call: Call, mail: Mail, change: LabelChange) -> dict[str, Any]:
    labels = change.of(mail.labels)
    call.store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=call.now), call.now)
    return {"message_id": mail.message.message_id, "labels": labels}
