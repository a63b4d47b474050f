"""Making any event from defaults and the fields that a test cares about."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args, overload

import attrs

from trio_agentmail._event_types import CLASSES, payload_field
from trio_agentmail._network import default_backend
from trio_agentmail.events import (
    AgentArmorManualOverride,
    AgentArmorReleaseActor,
    AgentArmorResult,
    Bounce,
    CalendarEvent,
    CalendarEventStartingEvent,
    CaughtUp,
    Complaint,
    Disconnected,
    Domain,
    ErrorEvent,
    Event,
    Message,
    MessageReceivedEvent,
    MessageSecurity,
    MessageSecurityCompletedEvent,
    MessageSecurityOverride,
    Recipient,
    RecoveryFailed,
    Reject,
)

from ._agentmail.mail.events import (
    ORGANIZATION,
    SENDER,
    SUBJECT,
    TEXT,
    new_id,
    received_event,
    to_milliseconds,
)
from ._encode import encode_event

__all__ = ["EVENT_TYPES", "make_event"]

E = TypeVar("E", bound=Event)

EVENT_TYPES: Mapping[str, Any] = CLASSES
"""The class of each event type that AgentMail documents."""

NOTICES = (Disconnected, CaughtUp, RecoveryFailed)
"""Events that a stream makes about itself."""


@overload
def make_event(kind: type[E], *, inbox_id: str = ..., **fields: Any) -> E: ...


@overload
def make_event(kind: str, *, inbox_id: str = ..., **fields: Any) -> Event: ...


def make_event(kind: Any, *, inbox_id: str = "agent@agentmail.to", **fields: Any) -> Event:
    """Make an event for `FakeAgentMail.emit`: `make_event(MessageBouncedEvent, inbox_id="agent@agentmail.to")`.

    Args:
        kind: A class of `trio_agentmail.events`, or an event type such as `"message.bounced"`.
        inbox_id: The inbox of the event, for events that happen in an inbox.
        fields: Fields of the event or of its payload that replace the defaults: for example `type="Transient"` for a
            bounce, or the whole `bounce=Bounce(…)`.

    Raises:
        ValueError: The event type does not exist.
        TypeError: A field does not exist, or AgentMail does not send events of this class.
    """
    event: Event
    if isinstance(kind, str):
        if kind not in EVENT_TYPES:
            raise ValueError(f"there is no event type {kind!r}; choose one of {', '.join(EVENT_TYPES)}")
        event = make_event(EVENT_TYPES[kind], inbox_id=inbox_id, **{"event_type": kind} | fields)
        return event
    if kind not in get_args(Event):
        raise TypeError(f"make_event takes a class of trio_agentmail.events or an event type, not {kind!r}")
    if kind in NOTICES:
        raise TypeError(f"a {kind.__name__} has no wire form: the client makes it, AgentMail does not send it")
    event_fields: dict[str, Any] = attrs.fields_dict(kind)
    own = {name: value for name, value in fields.items() if name in event_fields}
    rest = {name: value for name, value in fields.items() if name not in event_fields}
    if kind in EVENT_TYPES.values():
        own.setdefault("event_id", new_id())
        if "inbox_id" in event_fields:
            own.setdefault("inbox_id", inbox_id)
        payload = payload_field(kind)
        if payload.name not in own:
            payload_type: Any = payload.type
            if unknown := [name for name in rest if name not in attrs.fields_dict(payload_type)]:
                raise TypeError(f"neither {kind.__name__} nor {payload_type.__name__} has a field {unknown[0]}")
            made = own[payload.name] = attrs.evolve(_payload(payload_type, inbox_id, kind, own), **rest)
            if "scheduled_at" in event_fields:
                own.setdefault("scheduled_at", made.start_at if kind is CalendarEventStartingEvent else made.end_at)
            rest = {}
    elif kind is ErrorEvent:
        own = {"name": "internal_error", "message": "something went wrong"} | own
    event = kind(**own, **rest)
    encode_event(event)  # raises TypeError if the event has no wire form
    return event


def _payload(cls: Any, inbox_id: str, kind: Any, event_fields: Mapping[str, Any]) -> Any:
    if cls is Message:
        is_received = kind is MessageReceivedEvent
        return _message(inbox_id, event_fields.get("event_type", "message.received") if is_received else None)
    fields = _common_fields(cls, inbox_id)
    if cls in SAMPLES:
        fields |= SAMPLES[cls](kind)
    return cls(**fields)


def _common_fields(cls: Any, inbox_id: str) -> dict[str, Any]:
    """Return values for the fields that payloads have in common, so that a new payload needs no entry in `SAMPLES`."""
    now = _now()
    common = {
        "organization_id": ORGANIZATION,
        "inbox_id": inbox_id,
        "thread_id": new_id(),
        "message_id": f"<{new_id()}@mail.example>",
        "timestamp": now,
        "recipients": TO,
        "created_at": now,
        "updated_at": now,
    }
    own_id = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower() + "_id"  # the draft_id of a Draft
    fields = {}
    for field in attrs.fields(cls):
        if field.name in common:
            fields[field.name] = common[field.name]
        elif field.name == own_id or field.default is attrs.NOTHING:
            fields[field.name] = new_id()
    return fields


def _message(inbox_id: str, event_type: str | None) -> Message:
    event = received_event(
        inbox_id=inbox_id,
        from_=SENDER,
        to=None,
        subject=SUBJECT,
        text=TEXT,
        html=None,
        event_type=event_type or "message.received",
        message_id=None,
        thread_id=None,
        event_id=None,
        timestamp=None,
        now=_now(),
    )
    return event.message


def _now() -> datetime:
    """Return the time by the clock of the installed fake, if one is installed."""
    return to_milliseconds(datetime.fromtimestamp(default_backend().now(), UTC))


def _security(kind: object) -> dict[str, Any]:
    verdict = "clear" if kind is MessageSecurityCompletedEvent else "review"
    armor = AgentArmorResult(
        status="complete", verdict=verdict, reason="made for a test", model="fake", completed_at=_now()
    )
    return {"agent_armor": armor}


def _override(_: object) -> dict[str, Any]:
    override = AgentArmorManualOverride(
        override_id=new_id(),
        actor=AgentArmorReleaseActor(kind="console"),
        reason="made for a test",
        original_verdict="review",
        released_at=_now(),
    )
    return {"manual_override": override}


def _domain(_: object) -> dict[str, Any]:
    return {
        "domain": "agent.example.com",
        "status": "VERIFIED",
        "feedback_enabled": True,
        "inbound_enabled": True,
        "subdomains_enabled": False,
        "tracking_enabled": False,
    }


def _calendar_event(_: object) -> dict[str, Any]:
    start = _now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    end = start + timedelta(minutes=30)
    return {
        "event_id": new_id(),
        "kind": "single",
        "title": "Meeting",
        "status": "confirmed",
        "all_day": False,
        "start": start.strftime("%Y-%m-%dT%H:%M:%S"),
        "end": end.strftime("%Y-%m-%dT%H:%M:%S"),
        "timezone": "UTC",
        "duration_mode": "exact",
        "duration_value": 1800,
        "start_at": start,
        "end_at": end,
        "attendee_count": 0,
        "uid": f"{new_id()}@calendar.example",
        "sequence": 0,
        "source": "api",
    }


def _with(**fields: Any) -> Callable[[object], dict[str, Any]]:
    return lambda _: fields


TO = ("jane@example.com",)

SAMPLES: dict[Any, Callable[[object], dict[str, Any]]] = {
    Bounce: _with(type="Permanent", sub_type="General", recipients=(Recipient(address=TO[0], status="5.1.1"),)),
    Complaint: _with(type="abuse", sub_type=""),
    Reject: _with(reason="virus"),
    MessageSecurity: _security,
    MessageSecurityOverride: _override,
    Domain: _domain,
    CalendarEvent: _calendar_event,
}
"""Functions that return further fields of a payload, so that it looks real. Each takes the class of the event."""
