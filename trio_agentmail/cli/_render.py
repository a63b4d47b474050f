"""Rendering events as lines of text or JSON, safely for the terminal.

A mail may contain text that is meant to control the terminal. In lines for people, `printable` removes control
characters, invisible characters and those that change the writing direction from all text from outside, and rich gets
the result as `Text`, which has no markup. In JSON for programs, everything except printable ASCII is escaped.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
from rich.text import Text

from trio_agentmail._event_types import payload_field
from trio_agentmail._printable import printable
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageReceivedEvent,
    MessageRejectedEvent,
    MessageSecurityCompletedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Recipient,
    RecoveryFailed,
    Subscribed,
    UnknownEvent,
)

__all__ = ["dumps", "event_json", "event_line"]

LIMIT = 100
"""Maximum number of characters shown of a piece of text."""

SHOWN = ("title", "subject", "name", "reason", "start", "message_id")
"""The payload fields that are shown for event types without a case of their own, such as calendar events."""


def event_line(event: Event, at: datetime) -> Text:
    """Return a line for people, without a line end. An origin other than `"live"` follows the event type.

    Args:
        at: The time of arrival, which the line shows. A mail's own time is not shown, since its sender chooses it.
    """
    kind, style, pieces = _describe(event)
    line = Text.assemble((f"{at:%H:%M:%S}", "dim"), "  ", (printable(kind, LIMIT), style))
    origin = getattr(event, "origin", "live")
    if origin != "live":
        line.append(f" ({origin})", "yellow")
    for piece in pieces:
        if piece and (shown := printable(piece, LIMIT)):
            line.append("  ").append(shown)
    return line


def _describe(event: Event) -> tuple[str, str, Sequence[str | None]]:
    """Return the event's name, the style of that name, and the details to show."""
    match event:
        case Subscribed():
            filters = (event.inbox_ids, event.pod_ids, event.event_types)
            return "subscribed", "green", [", ".join(names[: LIMIT + 1]) for names in filters if names]
        case Disconnected():
            return "disconnected", "bold red", [event.reason, f"(code {event.code})"]
        case CaughtUp():
            counts = {"known": event.known, "held": event.held, "failed": event.failed}
            found = [f"{event.recovered} recovered", *(f"{number} {what}" for what, number in counts.items() if number)]
            return "caught up", "yellow" if event.failed else "green", [", ".join(found), _since(event.since)]
        case RecoveryFailed():
            return "recovery failed", "bold red", [event.inbox_id, event.pod_id, event.reason, _since(event.since)]
        case ErrorEvent():
            return "error", "bold red", [event.name, event.message]
        case UnknownEvent():
            return "unknown", "yellow", [event.reason]
        case MessageReceivedEvent(message=mail):
            return event.event_type, "bold cyan", [mail.inbox_id, mail.from_, mail.subject or mail.preview or mail.text]
        case MessageSentEvent(send=send):
            return event.event_type, "cyan", [send.inbox_id, _to(send.recipients), send.message_id]
        case MessageDeliveredEvent(delivery=delivery):
            return event.event_type, "cyan", [delivery.inbox_id, _to(delivery.recipients), delivery.message_id]
        case MessageBouncedEvent(bounce=bounce):
            kind = ", ".join(filter(None, (bounce.type, bounce.sub_type)))
            return event.event_type, "red", [bounce.inbox_id, _to(bounce.recipients), kind, bounce.message_id]
        case MessageComplainedEvent(complaint=complaint):
            kind = ", ".join(filter(None, (complaint.type, complaint.sub_type)))
            return event.event_type, "red", [complaint.inbox_id, _to(complaint.recipients), kind, complaint.message_id]
        case MessageRejectedEvent(reject=reject):
            return event.event_type, "red", [reject.inbox_id, reject.reason, reject.message_id]
        case MessageOpenedEvent(open=opened):
            return event.event_type, "cyan", [opened.inbox_id, opened.message_id]
        case MessageSecurityCompletedEvent(message=checked) | MessageSecurityReviewEvent(message=checked):
            armor = checked.agent_armor
            findings = [None, None] if armor is None else [armor.verdict, armor.reason]
            return event.event_type, "magenta", [checked.inbox_id, *findings, checked.message_id]
        case MessageSecurityOverrideEvent(message=released):
            why = None if released.manual_override is None else released.manual_override.reason
            return event.event_type, "magenta", [released.inbox_id, why, released.message_id]
        case DomainVerifiedEvent(domain=domain):
            return event.event_type, "green", [domain.domain, domain.status]
        case _:
            payload = getattr(event, payload_field(type(event)).name)
            inbox_id = getattr(event, "inbox_id", None) or getattr(payload, "inbox_id", None)
            return event.event_type, "blue", [inbox_id, *(getattr(payload, name, None) for name in SHOWN)]


def _to(recipients: Sequence[str | Recipient]) -> str | None:
    # There may be a million recipients, and a line shows only a few.
    shown = recipients[: LIMIT + 1]
    addresses = [item.address or "" if isinstance(item, Recipient) else item for item in shown]
    return f"to {', '.join(addresses)}" if addresses else None


def _since(time: datetime) -> str:
    # The start of a gap is not known to a fraction of a second.
    return f"(since {time.isoformat(' ', 'seconds')})"


def event_json(event: Event) -> str:
    """Return a JSON object on one line, without a line end, in printable ASCII.

    The field `type` determines the others. Objects with `"event"`, `"subscribed"` and `"error"` are AgentMail's own,
    complete, with the current names in `type` and `event_type`, and events have an additional `origin`. Objects with
    `"disconnected"`, `"caught_up"` and `"recovery_failed"` have the fields of the classes. An object with `"unknown"`
    has a `reason`, and AgentMail's object in `payload` or its text in `raw`.
    """
    try:
        return dumps(_json_object(event))
    except (ValueError, RecursionError) as exc:
        # Python's json cannot write some valid JSON, for example a thousand nested lists.
        return dumps(_unknown(event, type(exc).__name__) | {"raw": getattr(event, "raw", "")})


def _json_object(event: Event) -> dict[str, Any]:
    match event:
        case Disconnected():
            return {"type": "disconnected"} | _fields(event)
        case CaughtUp():
            return {"type": "caught_up"} | _fields(event)
        case RecoveryFailed():
            return {"type": "recovery_failed"} | _fields(event)
        case UnknownEvent(payload=None):
            return _unknown(event, event.reason) | {"raw": event.raw}
        case UnknownEvent():
            return _unknown(event, event.reason) | {"payload": event.payload}
        case Subscribed():
            names = {"type": "subscribed"}
        case ErrorEvent():
            names = {"type": "error"}
        case _:
            names = {"type": "event", "event_type": event.event_type, "origin": event.origin}
    frame: dict[str, Any] = json.loads(event.raw)
    return names | frame | names


def _fields(event: Disconnected | CaughtUp | RecoveryFailed) -> dict[str, Any]:
    return attrs.asdict(event, value_serializer=lambda _, __, v: v.isoformat() if isinstance(v, datetime) else v)


def _unknown(event: Event, reason: str) -> dict[str, Any]:
    return {
        "type": "unknown",
        "event_type": getattr(event, "event_type", None),
        "event_id": getattr(event, "event_id", None),
        "origin": getattr(event, "origin", "live"),
        "reason": reason,
    }


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def dumps(value: Any) -> str:
    """Return JSON in printable ASCII.

    Each step is one call into C. A callback per character would take seconds for a large mail.
    """
    text = _ascii(value)
    if r"\ud" in text and _LONE_SURROGATE.search(whole := json.dumps(value, ensure_ascii=False)):
        # Strict parsers refuse the escape of a lone surrogate.
        text = _ascii(json.loads(_LONE_SURROGATE.sub("\ufffd", whole)))
    return text.replace("\x7f", r"\u007f")  # DEL, which json does not escape


def _ascii(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
