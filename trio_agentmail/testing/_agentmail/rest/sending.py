"""The REST API of sending: new messages, replies, and forwarded messages."""

from collections.abc import Callable
from typing import Any

from trio_agentmail.events import Message
from trio_agentmail.testing._agentmail.mail.directory import Inbox
from trio_agentmail.testing._agentmail.mail.events import bodies, new_id
from trio_agentmail.testing._agentmail.mail.sending import send_message
from trio_agentmail.testing._agentmail.refusals import invalid, too_large, unprocessable

from .body import flag, key
from .call import Answer, Call
from .outgoing import Outgoing, read_outgoing
from .replies import forward_of, reply_to
from .routes import RouteTable

__all__ = ["routes"]

MAX_RECIPIENTS = 50
MAX_REQUEST = 6 * 2**20
"""Maximum size of a request with its attachments, in bytes. AgentMail documents the limit (6 MB), but not the error."""

RECIPIENTS = ("to", "cc", "bcc")

routes = RouteTable()


@routes.post("/inboxes/{inbox}/messages/send", permission="message_send")
def send(call: Call, inbox: Inbox) -> Answer:
    return _send_once(call, inbox, lambda _body, outgoing: outgoing)


@routes.post("/inboxes/{inbox}/messages/{message_id}/reply", permission="message_send")
def reply(call: Call, inbox: Inbox, message_id: str) -> Answer:
    return _reply(call, inbox, message_id, to_all=False)


@routes.post("/inboxes/{inbox}/messages/{message_id}/reply-all", permission="message_send")
def reply_all(call: Call, inbox: Inbox, message_id: str) -> Answer:
    return _reply(call, inbox, message_id, to_all=True)


@routes.post("/inboxes/{inbox}/messages/{message_id}/forward", permission="message_send")
def forward(call: Call, inbox: Inbox, message_id: str) -> Answer:
    def prepare(_body: dict[str, Any], outgoing: Outgoing) -> Outgoing:
        mail = call.mail(inbox, message_id)
        return forward_of(mail.message, mail.contents, outgoing)

    return _send_once(call, inbox, prepare)


def _reply(call: Call, inbox: Inbox, message_id: str, *, to_all: bool) -> Answer:
    def prepare(body: dict[str, Any], outgoing: Outgoing) -> Outgoing:
        message = call.mail(inbox, message_id).message
        all_recipients = to_all or flag(body, "reply_all")
        if all_recipients and not body.keys().isdisjoint(RECIPIENTS):
            raise invalid("to", "absent from a reply to all, like cc and bcc")
        return reply_to(message, outgoing, to_all=all_recipients)

    return _send_once(call, inbox, prepare)


def _send_once(call: Call, inbox: Inbox, prepare: Callable[[dict[str, Any], Outgoing], Outgoing]) -> Answer:
    """Send a message, once for each `Idempotency-Key`. Return the ids of the message and of its thread.

    Args:
        prepare: A function that takes the body of the request and the message read from it, and returns the complete
            message.
    """
    idempotency_key = key(call.request.headers.get("idempotency-key"), "Idempotency-Key")
    if len(call.request.body) > MAX_REQUEST:
        raise too_large("the request has more than 6 MB")

    def send() -> dict[str, Any]:
        body = call.body()
        outgoing = read_outgoing(body)
        flag(body, "track_opens")  # only checked, since the fake opens no mail by itself
        outgoing = prepare(body, outgoing)
        _check_recipients(outgoing)
        message = _compose(call, inbox, outgoing)
        call.events.extend(send_message(call.store, message, call.now, contents=outgoing.contents).events)
        return {"message_id": message.message_id, "thread_id": message.thread_id}

    return call.sent.once(idempotency_key, (call.request.path, call.request.body), call.now, send)


def _check_recipients(outgoing: Outgoing) -> None:
    if not outgoing.recipients:
        raise unprocessable("to, cc and bcc have no recipient")
    if len(outgoing.recipients) > MAX_RECIPIENTS:
        raise invalid("to", f"at most {MAX_RECIPIENTS} recipients, with cc and bcc")


def _compose(call: Call, inbox: Inbox, outgoing: Outgoing) -> Message:
    domain = inbox.inbox_id.rpartition("@")[2]
    name = inbox.display_name
    return Message(
        inbox_id=inbox.inbox_id,
        message_id=f"<{new_id()}@{domain}>",
        thread_id=outgoing.thread_id or new_id(),
        labels=tuple(dict.fromkeys(("sent", *outgoing.labels))),
        timestamp=call.now,
        from_=inbox.inbox_id if name is None else f"{name} <{inbox.inbox_id}>",
        reply_to=outgoing.reply_to,
        to=outgoing.to,
        cc=outgoing.cc,
        bcc=outgoing.bcc,
        subject=outgoing.subject,
        **bodies(outgoing.text, outgoing.html),
        attachments=outgoing.attachments,
        in_reply_to=outgoing.in_reply_to,
        references=outgoing.references,
        headers=outgoing.headers,
        created_at=call.now,
        updated_at=call.now,
    )
