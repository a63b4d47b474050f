"""What all looks at mail have in common: which of what is listed was missed, and the whole of it."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from trio_agentmail._codec import recovered_event
from trio_agentmail._delivered import RECOVERED, Delivered
from trio_agentmail.errors import ApiError, RequestFailedError
from trio_agentmail.events import Event, MessageReceivedEvent

from .rest import Rest, segment
from .source import KINDS, Counts, Floors

__all__ = ["HELD", "Mails"]

HELD = "agent-armor-held"
"""The label of mail that Agent Armor holds."""

REMEMBERED_HELD = 10_000
"""How many held mails are remembered."""


class Mails:
    """Reads listed mail, and knows which is held.

    Labels are looked at here, since how AgentMail wants to be asked for them differs between its documentation and its
    SDK.

    Args:
        put: Takes what was missed, in order, and whether it is a mail that was held before.

    Attributes:
        held: The inbox_id and message_id of each mail that was seen to be held.
    """

    def __init__(self, rest: Rest, delivered: Delivered, put: Callable[[Event, bool], Awaitable[None]]) -> None:
        self.put = put
        self.delivered = delivered
        self.held: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._rest = rest

    def read(self, item: dict[str, Any], inbox_id: str) -> MessageReceivedEvent | None:
        """A received mail as the event that it would have been; None if it is none, or was thrown away."""
        if not item.get("inbox_id"):
            item = item | {"inbox_id": inbox_id}
        event = recovered_event(item, "message.received", RECOVERED)
        if event is None or "received" not in event.message.labels or "trash" in event.message.labels:
            return None
        for kind in KINDS:
            if kind in event.message.labels:
                return recovered_event(item, f"message.received.{kind}", RECOVERED)
        return event

    def is_wanted(self, event: MessageReceivedEvent, floors: Floors) -> bool:
        """Whether it is of a type that is asked for, and not held."""
        message = event.message
        if HELD in message.labels:
            self.hold(message.inbox_id, message.message_id)
            return False
        return event.event_type in floors

    def is_missed(self, event: MessageReceivedEvent, floors: Floors, counts: Counts) -> bool:
        """Whether it is wanted, new enough, and has not been delivered."""
        message = event.message
        if not self.is_wanted(event, floors):
            return False
        created = message.created_at or message.timestamp
        if self.delivered.has_mail(message.inbox_id, message.message_id):
            counts.known += 1
            return False
        return created is None or created.timestamp() >= floors[event.event_type]

    async def put_all(self, missed: Sequence[MessageReceivedEvent]) -> None:
        """Hand over mails that were missed."""
        for event in missed:
            await self.put(event, False)

    async def fetch(self, event: MessageReceivedEvent, floors: Floors) -> list[MessageReceivedEvent]:
        """The whole mail of one that was listed, in a list; an empty one if it has gone or is held by now."""
        inbox_id, message_id = event.message.inbox_id, event.message.message_id
        try:
            item = await self._rest.get(f"/inboxes/{segment(inbox_id)}/messages/{segment(message_id)}")
        except ApiError as exc:
            if exc.status_code == 404:
                return []
            raise
        whole = self.read(item, inbox_id)
        if whole is None or whole.message.message_id != message_id:
            raise RequestFailedError("the REST API answered with another message than it was asked for")
        return [whole] if self.is_wanted(whole, floors) else []

    def hold(self, inbox_id: str, message_id: str) -> None:
        """It is held: it is looked at again until it is not."""
        self.held[inbox_id, message_id] = None
        if len(self.held) > REMEMBERED_HELD:
            self.held.popitem(last=False)
