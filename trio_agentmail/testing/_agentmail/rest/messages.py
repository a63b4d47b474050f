"""The REST API of messages, except sending, which is in `sending.py`."""

from typing import Any

import attrs
import orjson

from trio_agentmail.testing._agentmail.mail.directory import Inbox
from trio_agentmail.testing._agentmail.mail.events import recipients_of
from trio_agentmail.testing._agentmail.mail.mail import BODIES, Mail
from trio_agentmail.testing._encode import encode_part

from .body import ids
from .call import Answer, Call, listing
from .downloads import describe_attachment, describe_raw
from .labels import LabelChange, read_label_change
from .listing import filtering, read_query, take_page
from .routes import RouteTable

__all__ = ["routes"]

MAX_BATCH_GET = 500
MAX_BATCH_UPDATE = 50

routes = RouteTable()


@routes.get("/inboxes/{inbox}/messages", permission="message_read")
def list_messages(call: Call, inbox: Inbox) -> Answer:
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


@routes.post("/inboxes/{inbox}/messages/batch-get", permission="message_read")
def get_messages(call: Call, inbox: Inbox) -> Answer:
    message_ids = ids(call.body(), "message_ids", MAX_BATCH_GET)
    mails = _visible_mails(call, inbox, message_ids)
    messages = [orjson.Fragment(encode_part(mail.message, without=BODIES)) for mail in mails]
    return {"count": len(messages), "limit": len(message_ids), "messages": messages}


@routes.post("/inboxes/{inbox}/messages/batch-update", permission="message_update")
def update_messages(call: Call, inbox: Inbox) -> Answer:
    body = call.body()
    message_ids = ids(body, "message_ids", MAX_BATCH_UPDATE)
    change = read_label_change(body)
    updates = [_update(call, mail, change) for mail in _visible_mails(call, inbox, message_ids)]
    return {"count": len(updates), "limit": len(message_ids), "updates": updates}


@routes.get("/inboxes/{inbox}/messages/{message_id}", permission="message_read")
def get_message(call: Call, inbox: Inbox, message_id: str) -> Answer:
    return orjson.Fragment(encode_part(call.mail(inbox, message_id).message))


@routes.patch("/inboxes/{inbox}/messages/{message_id}", permission="message_update")
def update_message(call: Call, inbox: Inbox, message_id: str) -> Answer:
    return _update(call, call.mail(inbox, message_id), read_label_change(call.body()))


@routes.delete("/inboxes/{inbox}/messages/{message_id}", permission="message_delete")
def delete_message(call: Call, inbox: Inbox, message_id: str) -> Answer:
    call.store.delete(call.mail(inbox, message_id), call.now)
    return None


@routes.get("/inboxes/{inbox}/messages/{message_id}/raw", permission="message_read")
def get_raw_message(call: Call, inbox: Inbox, message_id: str) -> Answer:
    return describe_raw(call, call.mail(inbox, message_id))


@routes.get("/inboxes/{inbox}/messages/{message_id}/attachments/{attachment_id}", permission="message_read")
def get_attachment(call: Call, inbox: Inbox, message_id: str, attachment_id: str) -> Answer:
    return describe_attachment(call, [call.mail(inbox, message_id)], attachment_id)


def _visible_mails(call: Call, inbox: Inbox, message_ids: tuple[str, ...]) -> list[Mail]:
    """Return the mails that exist and that the key may see."""
    found = (call.store.mail(inbox.inbox_id, message_id) for message_id in message_ids)
    return [mail for mail in found if mail is not None and call.may_see(mail)]


def _update(call: Call, mail: Mail, change: LabelChange) -> dict[str, Any]:
    labels = change.of(mail.labels)
    call.store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=call.now), call.now)
    return {"message_id": mail.message.message_id, "labels": labels}
