"""Any event, made of sensible defaults and of what matters to a test."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeVar, get_args, overload

import attrs

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
    Delivery,
    Disconnected,
    Domain,
    ErrorEvent,
    Event,
    Message,
    MessageReceivedEvent,
    MessageSecurity,
    MessageSecurityCompletedEvent,
    MessageSecurityOverride,
    Open,
    Recipient,
    RecoveryFailed,
    Reject,
    Send,
    UnknownEvent,
)

from ._agentmail.mail.events import (
    ORGANIZATION,
    RECEIVED,
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


def _event_types() -> Iterator[tuple[str, Any]]:
    for cls in get_args(Event):
        fields: dict[str, Any] = attrs.fields_dict(cls)
        if cls is not UnknownEvent and "event_type" in fields:
            for event_type in RECEIVED if cls is MessageReceivedEvent else (fields["event_type"].default,):
                yield event_type, cls


EVENT_TYPES: Mapping[str, Any] = MappingProxyType(dict(_event_types()))
"""The class of every event_type that AgentMail documents."""

NOTICES = (Disconnected, CaughtUp, RecoveryFailed)
"""What a stream says of itself."""


@overload
def make_event(kind: type[E], *, inbox_id: str = ..., **fields: Any) -> E: ...


@overload
def make_event(kind: str, *, inbox_id: str = ..., **fields: Any) -> Event: ...


def make_event(kind: Any, *, inbox_id: str = "agent@agentmail.to", **fields: Any) -> Event:
    """An event for `FakeAgentMail.emit`: `make_event(MessageBouncedEvent, inbox_id="agent@agentmail.to")`.

    Args:
        kind: A class of `trio_agentmail.events`, or an event_type like `"message.bounced"`.
        inbox_id: Where it happens, if it happens in an inbox.
        fields: What else is to be other than by default: of the event, or of its payload; for example
            `type="Transient"` of a bounce, or the whole `bounce=Bounce(…)`.

    Raises:
        ValueError: An event_type that there is not.
        TypeError: A field that there is not, or a class of which there are no events on the wire.
    """
    event: Event
    if isinstance(kind, str):
        if kind not in EVENT_TYPES:
            raise ValueError(f"there is no event_type {kind!r}; there are {', '.join(EVENT_TYPES)}")
        event = make_event(EVENT_TYPES[kind], inbox_id=inbox_id, **{"event_type": kind} | fields)
        return event
    if kind not in get_args(Event):
        raise TypeError(f"make_event takes a class of trio_agentmail.events, or an event_type, not {kind!r}")
    if kind in NOTICES:
        raise TypeError(f"a {kind.__name__} has no wire form: it is a stream that says so, and not AgentMail")
    event_fields: dict[str, Any] = attrs.fields_dict(kind)
    own = {name: value for name, value in fields.items() if name in event_fields}
    rest = {name: value for name, value in fields.items() if name not in event_fields}
    if kind in EVENT_TYPES.values():
        own.setdefault("event_id", new_id())
        if "inbox_id" in event_fields:
            own.setdefault("inbox_id", inbox_id)
        [payload] = [field for field in event_fields.values() if field.default is attrs.NOTHING]
        if payload.name not in own:
            payload_fields = attrs.fields_dict(payload.type)
            if unknown := [name for name in rest if name not in payload_fields]:
                raise TypeError(f"neither {kind.__name__} nor {payload.type.__name__} has a field {unknown[0]}")
            if payload.type is Message:
                made: Any = _message(inbox_id, own.get("event_type", "message.received"))
            else:
                made = payload.type(**PAYLOADS[payload.type](inbox_id, kind))
            made = own[payload.name] = attrs.evolve(made, **rest)
            if "scheduled_at" in event_fields:
                own.setdefault("scheduled_at", made.start_at if kind is CalendarEventStartingEvent else made.end_at)
            rest = {}
    elif kind is ErrorEvent:
        own = {"name": "internal_error", "message": "something went wrong"} | own
    event = kind(**own, **rest)
    encode_event(event)  # raises for what there is not on the wire
    return event


def _message(inbox_id: str, event_type: str) -> Message:
    event = received_event(
        inbox_id=inbox_id,
        from_=SENDER,
        to=None,
        subject=SUBJECT,
        text=TEXT,
        html=None,
        event_type=event_type,
        message_id=None,
        thread_id=None,
        event_id=None,
        timestamp=None,
        now=_now(),
    )
    return event.message


def _now() -> datetime:
    """By the clock of the fake that is installed, if one is."""
    return to_milliseconds(datetime.fromtimestamp(default_backend().now(), UTC))


def _of_sent_mail(inbox_id: str, _: object) -> dict[str, Any]:
    return {
        "inbox_id": inbox_id,
        "thread_id": new_id(),
        "message_id": f"<{new_id()}@mail.example>",
        "timestamp": _now(),
    }


def _with(**more: Any) -> Callable[[str, object], dict[str, Any]]:
    return lambda inbox_id, kind: _of_sent_mail(inbox_id, kind) | more


def _security(inbox_id: str, kind: object) -> dict[str, Any]:
    verdict = "clear" if kind is MessageSecurityCompletedEvent else "review"
    armor = AgentArmorResult(
        status="complete", verdict=verdict, reason="made for a test", model="fake", completed_at=_now()
    )
    return _of_mail_in_review(inbox_id) | {"agent_armor": armor}


def _override(inbox_id: str, _: object) -> dict[str, Any]:
    override = AgentArmorManualOverride(
        override_id=new_id(),
        actor=AgentArmorReleaseActor(kind="console"),
        reason="made for a test",
        original_verdict="review",
        released_at=_now(),
    )
    return _of_mail_in_review(inbox_id) | {"manual_override": override}


def _of_mail_in_review(inbox_id: str) -> dict[str, Any]:
    return {"organization_id": ORGANIZATION, "inbox_id": inbox_id, "message_id": f"<{new_id()}@mail.example>"}


def _domain(_: str, __: object) -> dict[str, Any]:
    now = _now()
    return {
        "domain_id": new_id(),
        "domain": "agent.example.com",
        "status": "VERIFIED",
        "feedback_enabled": True,
        "inbound_enabled": True,
        "subdomains_enabled": False,
        "tracking_enabled": False,
        "created_at": now,
        "updated_at": now,
    }


def _calendar_event(_: str, __: object) -> dict[str, Any]:
    now = _now()
    start = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
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
        "created_at": now,
        "updated_at": now,
    }


TO = ("jane@example.com",)

PAYLOADS: dict[Any, Callable[[str, object], dict[str, Any]]] = {
    Send: _with(recipients=TO),
    Delivery: _with(recipients=TO),
    Bounce: _with(type="Permanent", sub_type="General", recipients=(Recipient(address=TO[0], status="5.1.1"),)),
    Complaint: _with(type="abuse", sub_type="", recipients=TO),
    Reject: _with(reason="virus"),
    Open: _of_sent_mail,
    MessageSecurity: _security,
    MessageSecurityOverride: _override,
    Domain: _domain,
    CalendarEvent: _calendar_event,
}
