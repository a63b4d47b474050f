"""Events that can be ordered of the emulator: which there are, and what each may be told."""

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
from trio_agentmail.testing._make_event import make_event

from .base import EmulatorBase
from .faults import BadOrder

__all__ = ["EVENT_TYPES", "FIELDS", "trigger"]

OF_A_NEW_ONE = ("from", "to", "subject", "text", "html", "message_id", "thread_id", "attachments", "eml")

OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(RECEIVED, OF_A_NEW_ONE),
    "message.sent": ("to", "subject", "text", "html", "message_id", "thread_id", "attachments"),
    "message.security.review": OF_A_NEW_ONE,
    "domain.verified": ("domain",),
}

OF_A_PAYLOAD = {
    "to": "recipients",
    "reason": "reason",
    "title": "title",
    "message_id": "message_id",
    "thread_id": "thread_id",
}
"""What may be told where the payload has the field."""


def _payload_fields(event_type: str) -> Mapping[str, Any]:
    payload: Any = payload_field(KNOWN_TYPES[event_type]).type
    return attrs.fields_dict(payload)


def _fields_of(event_type: str) -> tuple[str, ...]:
    has = _payload_fields(event_type)
    return OWN_FIELDS.get(event_type) or tuple(name for name, field in OF_A_PAYLOAD.items() if field in has)


FIELDS: Mapping[str, tuple[str, ...]] = {event_type: _fields_of(event_type) for event_type in KNOWN_TYPES}
"""What each event type may be told besides the inbox. `eml` is a whole mail, as RFC 5322 has it, in Base64: it comes to
the inboxes that it is addressed to, unless one is given, and there is nothing else to tell. `attachments` is what the
REST API takes by that name."""

EVENT_TYPES = tuple(FIELDS)

LABELS = {
    "message.delivered": "delivered",
    "message.bounced": "bounced",
    "message.complained": "complained",
    "message.rejected": "rejected",
    "message.opened": "opened",
}
"""What a mail is labelled with by what happens to it (source: AgentMail's documentation of labels)."""


async def trigger(emulator: EmulatorBase, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Have something happen.

    Args:
        fields: `event_type`, `inbox_id`, and what `FIELDS` says; what is not given has a sensible value.

    Returns:
        What came of it, with the number of connections that it was pushed to.

    Raises:
        BadOrder: there is no such event type, or a field is missing or makes no sense.
    """
    given = dict(fields)
    event_type = given.pop("event_type", None)
    if event_type not in EVENT_TYPES:
        raise BadOrder(400, f"event_type is one of {', '.join(EVENT_TYPES)}")
    for name, value in given.items():
        _check(event_type, name, value)
    if not given.get("inbox_id") and _is_in_an_inbox(event_type) and "eml" not in given:
        raise BadOrder(400, f"{event_type} needs an inbox_id")
    try:
        with emulator.counting() as receivers:
            come = await (_eml_comes if "eml" in given else _happen)(emulator, event_type, given)
    except KeyError as exc:
        raise BadOrder(404, str(exc.args[0])) from None
    except ValueError as exc:
        raise BadOrder(400, str(exc)) from None
    except Refusal as exc:
        raise BadOrder(exc.status, exc.answer["message"]) from None
    return {"event_type": event_type, **come, "receivers": len(receivers)}


def _is_in_an_inbox(event_type: str) -> bool:
    return "inbox_id" in attrs.fields_dict(KNOWN_TYPES[event_type]) or "inbox_id" in _payload_fields(event_type)


def _check(event_type: str, name: str, value: Any) -> None:
    known = ("inbox_id", *FIELDS[event_type])
    if name not in known:
        raise BadOrder(400, f"{event_type} takes {', '.join(known)}, and nothing else")
    if name == "attachments" or (
        name == "to" and isinstance(value, list) and all(isinstance(item, str) for item in value)
    ):
        return
    if not isinstance(value, str):
        raise BadOrder(400, f"{name} is a text" + (", or a list of texts" if name == "to" else ""))


async def _eml_comes(emulator: EmulatorBase, event_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.keys() - {"eml", "inbox_id"}:
        raise ValueError("a whole mail says everything itself: with eml, only inbox_id can be given")
    mail = base64.b64decode(given["eml"], validate=True)
    held = event_type == "message.security.review"
    events = await emulator.deliver(
        mail,
        inbox_id=given.get("inbox_id") or None,
        event_type="message.received" if held else event_type,
        held=held,
    )
    return {"message_id": events[0].message.message_id, "inbox_ids": [event.message.inbox_id for event in events]}


async def _happen(emulator: EmulatorBase, event_type: str, given: dict[str, Any]) -> dict[str, Any]:
    inbox_id = given.pop("inbox_id", "")
    if "from" in given:
        given["from_"] = given.pop("from")
    if "attachments" in given:
        given["attachments"] = read_files(given)
    match event_type:
        case "message.sent":
            sent = await emulator.send(inbox_id=inbox_id, **given)
            return {"event_id": sent.event_id, "message_id": sent.send.message_id}
        case "message.security.review":
            held = await emulator.deliver(inbox_id=inbox_id, held=True, **given)
            return {"message_id": held.message.message_id}
        case "message.security.override":
            if "message_id" not in given:
                raise ValueError("message.security.override needs the message_id of a mail that is held")
            released = await emulator.release(inbox_id, given["message_id"])
            return {"message_id": released.message.message_id}
        case _ if event_type.startswith("message.received"):
            received = await emulator.deliver(inbox_id=inbox_id, event_type=event_type, **given)
            return {"event_id": received.event_id, "message_id": received.message.message_id}
    if (label := LABELS.get(event_type)) is not None and emulator.message(inbox_id, given.get("message_id", "")):
        await emulator.label(inbox_id, given["message_id"], add=[label])
    event = _made(emulator, event_type, inbox_id, given)
    await emulator.emit(event)
    return {"event_id": getattr(event, "event_id", None), **_message_id(event)}


def _made(emulator: EmulatorBase, event_type: str, inbox_id: str, given: dict[str, Any]) -> Event:
    """An event about the mail that is named: if the emulator has it, with what it knows of it."""
    recipients = _addresses(given.pop("to", ()))
    message = emulator.message(inbox_id, given.get("message_id", ""))
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
