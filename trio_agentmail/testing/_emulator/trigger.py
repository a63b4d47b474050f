"""The command that triggers an event: the event types that it knows, and the fields that each takes."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from trio_agentmail._event_types import CLASSES as KNOWN_TYPES
from trio_agentmail._event_types import payload_field
from trio_agentmail.events import Event, Recipient
from trio_agentmail.testing._agentmail.mail.events import RECEIVED, recipients_of
from trio_agentmail.testing._agentmail.refusals import Refusal
from trio_agentmail.testing._agentmail.rest.outgoing import read_files
from trio_agentmail.testing._fake import FakeAgentMail
from trio_agentmail.testing._make_event import make_event

from .invalid import InvalidCommand

__all__ = ["EVENT_TYPES", "FIELDS", "trigger"]

NEW_MAIL = ("from", "to", "subject", "text", "html", "message_id", "thread_id", "attachments", "eml")

OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(RECEIVED, NEW_MAIL),
    "message.sent": ("to", "subject", "text", "html", "message_id", "thread_id", "attachments"),
    "message.security.review": NEW_MAIL,
    "domain.verified": ("domain",),
}

PAYLOAD_FIELDS = {
    "to": "recipients",
    "reason": "reason",
    "title": "title",
    "message_id": "message_id",
    "thread_id": "thread_id",
}
"""Fields of the command, with the payload field that each sets. An event type takes those that its payload has."""


def _payload_fields(event_type: str) -> Mapping[str, Any]:
    payload: Any = payload_field(KNOWN_TYPES[event_type]).type
    return attrs.fields_dict(payload)


def _fields_of(event_type: str) -> tuple[str, ...]:
    has = _payload_fields(event_type)
    return OWN_FIELDS.get(event_type) or tuple(name for name, field in PAYLOAD_FIELDS.items() if field in has)


FIELDS: Mapping[str, tuple[str, ...]] = {event_type: _fields_of(event_type) for event_type in KNOWN_TYPES}
"""The fields that each event type takes besides the inbox.

`eml` is a complete mail in the format of RFC 5322, in Base64. It goes to the inboxes that it is addressed to, or to
`inbox_id` if that is given. No other field can be combined with it. `attachments` has the format of the REST API.
"""

EVENT_TYPES = tuple(FIELDS)

LABELS = {
    "message.delivered": "delivered",
    "message.bounced": "bounced",
    "message.complained": "complained",
    "message.rejected": "rejected",
    "message.opened": "opened",
}
"""The label that a mail gets when an event happens to it. (Source: AgentMail's documentation of labels.)"""


async def trigger(fake: FakeAgentMail, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Trigger an event.

    Args:
        fields: `event_type`, `inbox_id`, and the fields in `FIELDS`, which have defaults.

    Returns:
        The ids of the event and the mail, and as `receivers` the number of connections to which something was pushed.

    Raises:
        InvalidCommand: There is no such event type, or a field is missing or invalid.
    """
    given = dict(fields)
    event_type = given.pop("event_type", None)
    if event_type not in EVENT_TYPES:
        raise InvalidCommand(400, f"event_type is one of {', '.join(EVENT_TYPES)}")
    for name, value in given.items():
        _check(event_type, name, value)
    if not given.get("inbox_id") and _is_in_an_inbox(event_type) and "eml" not in given:
        raise InvalidCommand(400, f"{event_type} needs an inbox_id")
    try:
        with fake._connections.counting() as receivers:
            ids = await (_deliver_eml if "eml" in given else _happen)(fake, event_type, given)
    except KeyError as exc:
        raise InvalidCommand(404, str(exc.args[0])) from None
    except ValueError as exc:
        raise InvalidCommand(400, str(exc)) from None
    except Refusal as exc:
        raise InvalidCommand(exc.status, exc.answer["message"]) from None
    return {"event_type": event_type, **ids, "receivers": len(receivers)}


def _is_in_an_inbox(event_type: str) -> bool:
    return "inbox_id" in attrs.fields_dict(KNOWN_TYPES[event_type]) or "inbox_id" in _payload_fields(event_type)


def _check(event_type: str, name: str, value: Any) -> None:
    known = ("inbox_id", *FIELDS[event_type])
    if name not in known:
        raise InvalidCommand(400, f"{event_type} takes {', '.join(known)}, and nothing else")
    if name == "attachments" or (
        name == "to" and isinstance(value, list) and all(isinstance(item, str) for item in value)
    ):
        return
    if not isinstance(value, str):
        raise InvalidCommand(400, f"{name} is a string" + (", or a list of strings" if name == "to" else ""))


async def _deliver_eml(fake: FakeAgentMail, event_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.keys() - {"eml", "inbox_id"}:
        raise ValueError("eml is a complete mail: only inbox_id can be given with it")
    mail = base64.b64decode(given["eml"], validate=True)
    held = event_type == "message.security.review"
    events = await fake.deliver(
        mail,
        inbox_id=given.get("inbox_id") or None,
        event_type="message.received" if held else event_type,
        held=held,
    )
    return {"message_id": events[0].message.message_id, "inbox_ids": [event.message.inbox_id for event in events]}


async def _happen(fake: FakeAgentMail, event_type: str, given: dict[str, Any]) -> dict[str, Any]:
    inbox_id = given.pop("inbox_id", "")
    if "from" in given:
        given["from_"] = given.pop("from")
    if "attachments" in given:
        given["attachments"] = read_files(given)
    match event_type:
        case "message.sent":
            sent = await fake.mail.send(inbox_id=inbox_id, **given)
            return {"event_id": sent.event_id, "message_id": sent.send.message_id}
        case "message.security.review":
            held = await fake.deliver(inbox_id=inbox_id, held=True, **given)
            return {"message_id": held.message.message_id}
        case "message.security.override":
            if "message_id" not in given:
                raise ValueError("message.security.override needs the message_id of a held mail")
            released = await fake.mail.release(inbox_id, given["message_id"])
            return {"message_id": released.message.message_id}
        case _ if event_type.startswith("message.received"):
            received = await fake.deliver(inbox_id=inbox_id, event_type=event_type, **given)
            return {"event_id": received.event_id, "message_id": received.message.message_id}
    if (label := LABELS.get(event_type)) is not None and fake._agentmail.message(inbox_id, given.get("message_id", "")):
        await fake.mail.label(inbox_id, given["message_id"], add=[label])
    event = _make(fake, event_type, inbox_id, given)
    await fake.emit(event)
    return {"event_id": getattr(event, "event_id", None), **_message_id(event)}


def _make(fake: FakeAgentMail, event_type: str, inbox_id: str, given: dict[str, Any]) -> Event:
    """Make an event about a mail. If the mail exists, its thread and recipients are the defaults."""
    recipients = _addresses(given.pop("to", ()))
    message = fake._agentmail.message(inbox_id, given.get("message_id", ""))
    if message is not None:
        recipients = recipients or recipients_of(message)
        if "thread_id" in FIELDS[event_type]:
            given.setdefault("thread_id", message.thread_id)
    if recipients and "to" in FIELDS[event_type]:
        bounced = event_type == "message.bounced"
        given["recipients"] = tuple(Recipient(address=to, status="5.1.1") if bounced else to for to in recipients)
    return make_event(event_type, inbox_id=inbox_id, **given)


def _addresses(to: str | Sequence[str]) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else tuple(to)


def _message_id(event: Event) -> dict[str, str]:
    payload = getattr(event, payload_field(type(event)).name)
    return {"message_id": payload.message_id} if hasattr(payload, "message_id") else {}
