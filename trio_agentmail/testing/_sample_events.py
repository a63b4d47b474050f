"""An event of each type that comes without a mail that comes: what happens to mail that was sent, and the rest."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from trio_agentmail.events import (
    AgentArmorResult,
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
