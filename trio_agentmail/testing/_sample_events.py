"""An event of each type that comes without a mail that comes: what happens to mail that was sent, and the rest."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from trio_agentmail.events import (
    AgentArmorResult,
    Attendee,
    Bounce,
    CalendarEvent,
    CalendarEventCreatedEvent,
    CalendarEventDeletedEvent,
    CalendarEventEndingEvent,
    CalendarEventPrevious,
    CalendarEventRespondedEvent,
    CalendarEventStartingEvent,
    CalendarEventUpdatedEvent,
    Complaint,
    Delivery,
    Domain,
    DomainVerifiedEvent,
    Event,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageRejectedEvent,
    MessageSecurity,
    MessageSecurityCompletedEvent,
    Open,
    Recipient,
    Reject,
)

from ._fake_events import ORGANIZATION, new_id

__all__ = ["SAMPLE_TYPES", "About", "sample_event"]


@attrs.frozen(kw_only=True)
class About:
    """What an event is about.

    Attributes:
        inbox_id: The inbox; of a domain, nothing.
        message_id: The mail.
        thread_id: Its thread.
        recipients: To whom the mail went.
        reason: Why it was rejected, or what Agent Armor has to say of it.
        title: That of the calendar event.
        domain: The domain.
        now: When it happens.
    """

    inbox_id: str
    message_id: str
    thread_id: str
    recipients: Sequence[str]
    reason: str
    title: str
    domain: str
    now: datetime

    @property
    def mail(self) -> dict[str, Any]:
        return {
            "inbox_id": self.inbox_id,
            "thread_id": self.thread_id,
            "message_id": self.message_id,
            "timestamp": self.now,
        }

    def appointment(self, **changes: Any) -> CalendarEvent:
        """An hour that begins now."""
        end = self.now + timedelta(hours=1)
        return CalendarEvent(
            **{
                "event_id": new_id(),
                "kind": "single",
                "title": self.title,
                "status": "confirmed",
                "all_day": False,
                "start": self.now.isoformat(),
                "end": end.isoformat(),
                "timezone": "UTC",
                "duration_mode": "exact",
                "duration_value": 3600,
                "start_at": self.now,
                "end_at": end,
                "attendee_count": 0,
                "uid": f"{new_id()}@calendar.example",
                "sequence": 0,
                "source": "api",
                "resource_revision": 1,
                "created_at": self.now,
                "updated_at": self.now,
                "etag": new_id(),
                **changes,
            }
        )


def sample_event(event_type: str, about: About) -> Event:
    """An event of one of `SAMPLE_TYPES`, with a value in every field that AgentMail's schema does not call optional."""
    return SAMPLES[event_type](about)


def _delivered(about: About) -> Event:
    return MessageDeliveredEvent(event_id=new_id(), delivery=Delivery(**about.mail, recipients=tuple(about.recipients)))


def _bounced(about: About) -> Event:
    recipients = tuple(Recipient(address=address, status="5.1.1") for address in about.recipients)
    bounce = Bounce(**about.mail, type="Permanent", sub_type="General", recipients=recipients)
    return MessageBouncedEvent(event_id=new_id(), bounce=bounce)


def _complained(about: About) -> Event:
    complaint = Complaint(**about.mail, type="abuse", sub_type="", recipients=tuple(about.recipients))
    return MessageComplainedEvent(event_id=new_id(), complaint=complaint)


def _rejected(about: About) -> Event:
    return MessageRejectedEvent(event_id=new_id(), reject=Reject(**about.mail, reason=about.reason))


def _opened(about: About) -> Event:
    return MessageOpenedEvent(event_id=new_id(), open=Open(**about.mail))


def _security_completed(about: About) -> Event:
    verdict = AgentArmorResult(
        status="complete", verdict="clear", reason=about.reason, model="emulated", completed_at=about.now
    )
    message = MessageSecurity(
        organization_id=ORGANIZATION, inbox_id=about.inbox_id, message_id=about.message_id, agent_armor=verdict
    )
    return MessageSecurityCompletedEvent(event_id=new_id(), message=message)


def _domain_verified(about: About) -> Event:
    domain = Domain(
        domain_id=about.domain,
        domain=about.domain,
        status="VERIFIED",
        feedback_enabled=True,
        inbound_enabled=True,
        subdomains_enabled=False,
        tracking_enabled=False,
        records=(),
        created_at=about.now,
        updated_at=about.now,
    )
    return DomainVerifiedEvent(event_id=new_id(), domain=domain)


def _calendar(cls: Callable[..., Event], changes: Mapping[str, Any], **more: Any) -> Callable[[About], Event]:
    def make(about: About) -> Event:
        event = about.appointment(**changes)
        # What is scheduled is a time of the calendar event; it is named here by its field.
        fields = {name: getattr(event, value) if name == "scheduled_at" else value for name, value in more.items()}
        return cls(event_id=new_id(), inbox_id=about.inbox_id, calendar_event=event, **fields)

    return make


SAMPLES: Mapping[str, Callable[[About], Event]] = {
    "message.delivered": _delivered,
    "message.bounced": _bounced,
    "message.complained": _complained,
    "message.rejected": _rejected,
    "message.opened": _opened,
    "message.security.completed": _security_completed,
    "domain.verified": _domain_verified,
    "calendar.event.created": _calendar(CalendarEventCreatedEvent, {}),
    "calendar.event.updated": _calendar(
        CalendarEventUpdatedEvent, {"sequence": 1}, previous=CalendarEventPrevious(title="As it was")
    ),
    "calendar.event.deleted": _calendar(CalendarEventDeletedEvent, {"status": "cancelled", "sequence": 1}),
    "calendar.event.responded": _calendar(
        CalendarEventRespondedEvent,
        {"attendees": (Attendee(email="jane@example.com", status="accepted"),), "attendee_count": 1},
    ),
    "calendar.event.starting": _calendar(CalendarEventStartingEvent, {}, scheduled_at="start_at"),
    "calendar.event.ending": _calendar(CalendarEventEndingEvent, {}, scheduled_at="end_at"),
}

SAMPLE_TYPES = tuple(SAMPLES)
