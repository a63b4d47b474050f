"""What all looks at mail have in common: which of what is listed was missed, and the whole of it."""

import logging
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

from trio_agentmail._channel import size_of
from trio_agentmail._codec import recovered_event
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import RECOVERED
from trio_agentmail.errors import AnswerTooLargeError, ApiError, RequestFailedError, RequestTooLargeError, printable
from trio_agentmail.events import Event, Message, MessageReceivedEvent, ThreadItem

from .in_order import Room
from .rest import Rest, segment
from .source import KINDS, Counts, Look

logger = logging.getLogger("trio_agentmail")

__all__ = ["HELD", "TRASH", "Mails", "Put", "expected_size", "is_in_trash", "size_of_all"]

HELD = "agent-armor-held"
"""The label of mail that Agent Armor holds."""

TRASH = "trash"
"""The label of mail that was thrown away."""

UNKNOWN_SIZE = 2**16
"""Bytes."""

REMEMBERED_HELD = 10_000
"""How many held mails are remembered."""


class Put(Protocol):
    """Takes a mail that was missed, in order."""

    async def __call__(self, event: Event, counts: Counts, *, was_held: bool) -> None:
        """Hand it over.

        Args:
            was_held: Whether it was held before: then its times say nothing of when it could be delivered.
        """


class Mails:
    """Reads listed mail, and knows which is held.

    Labels are looked at here, since how AgentMail wants to be asked for them differs between its documentation and its
    SDK.

    Attributes:
        held: The inbox_id and message_id of each mail that was seen to be held.
        room: For the text of what is fetched, and has not been handed over.
    """

    def __init__(self, rest: Rest, delivered: Delivered, put: Put) -> None:
        self.put = put
        self.room = Room(rest.largest_answer)
        self.delivered = delivered
        self.held: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._rest = rest

    def read(self, item: dict[str, Any], inbox_id: str) -> MessageReceivedEvent | None:
        """A received mail as the event that it would have been; None if it is none, or was thrown away."""
        if not item.get("inbox_id"):
            item = item | {"inbox_id": inbox_id}
        event = recovered_event(item, "message.received", RECOVERED)
        if event is None or "received" not in event.message.labels or is_in_trash(item):
            return None
        for kind in KINDS:
            if kind in event.message.labels:
                return recovered_event(item, f"message.received.{kind}", RECOVERED)
        return event

    def missed(self, item: dict[str, Any], inbox_id: str, look: Look, counts: Counts) -> MessageReceivedEvent | None:
        """A listed item as an event, if it is a mail that is wanted, new enough, and was not delivered."""
        # Nearly all that is listed was delivered. It is told from its ids, without making an event of it.
        if self._is_known(item, inbox_id):
            counts.known += 1
            return None
        event = self.read(item, inbox_id)
        return event if event is not None and self.is_missed(event, look, counts) else None

    def _is_known(self, item: dict[str, Any], inbox_id: str) -> bool:
        inbox_id = item.get("inbox_id") or inbox_id
        message_id, labels = item.get("message_id"), item.get("labels")
        if not isinstance(inbox_id, str) or not isinstance(message_id, str) or not isinstance(labels, list):
            return False
        return HELD not in labels and self.delivered.has_mail(inbox_id, message_id)

    def is_wanted(self, event: MessageReceivedEvent, wanted: Container[str]) -> bool:
        """Whether it is of a type that is asked for, and not held."""
        message = event.message
        if HELD in message.labels:
            self.hold(message.inbox_id, message.message_id)
            return False
        return event.event_type in wanted

    def is_missed(self, event: MessageReceivedEvent, look: Look, counts: Counts) -> bool:
        """Whether it is wanted, new enough, and was not delivered."""
        message = event.message
        if not self.is_wanted(event, look.wanted):
            return False
        if self.delivered.has_mail(message.inbox_id, message.message_id):
            counts.known += 1
            return False
        created = message.created_at or message.timestamp
        if created is not None and created.timestamp() < look.wanted[event.event_type]:
            return False
        return not self.delivered.may_be_forgotten(created)

    async def put_all(self, missed: Sequence[MessageReceivedEvent], counts: Counts) -> None:
        """Hand over mails that were missed."""
        for event in missed:
            # It may have been pushed, delivered and forgotten while it was fetched.
            if not self.delivered.may_be_forgotten(event.message.created_at or event.message.timestamp):
                await self.put(event, counts, was_held=False)
                # If it was held, it is not any more. Looked at as held mail when its identity is forgotten, it would
                # come twice.
                self.held.pop((event.message.inbox_id, event.message.message_id), None)

    async def fetch(self, event: MessageReceivedEvent, wanted: Container[str]) -> list[MessageReceivedEvent]:
        """The whole mail of one that was listed, in a list; an empty one if it cannot be found or is held by now.

        One that cannot be found has gone, or is not there yet. Like held mail, it is looked at again until that is
        known. One that is too large, or whose Message-ID is too long for a URL, comes as it was listed, without its
        body: AgentMail pushes large mail so too.
        """
        inbox_id, message_id = event.message.inbox_id, event.message.message_id
        try:
            item = await self._rest.get(f"/inboxes/{segment(inbox_id)}/messages/{segment(message_id)}")
        except ApiError as exc:
            if exc.status_code == 404:
                self.hold(inbox_id, message_id)
                return []
            if exc.status_code != 414:  # the URL is too long
                raise
            return _without_body(event, exc)
        except (AnswerTooLargeError, RequestTooLargeError) as exc:
            return _without_body(event, exc)
        whole = self.read(item, inbox_id)
        if whole is None or whole.message.message_id != message_id:
            raise RequestFailedError("the REST API answered with another message than it was asked for")
        return [whole] if self.is_wanted(whole, wanted) else []

    def hold(self, inbox_id: str, message_id: str) -> None:
        """Remember a mail as held, so that it is looked at again; but not if it has been delivered."""
        if self.delivered.has_mail(inbox_id, message_id):
            return
        self.held[inbox_id, message_id] = None
        if len(self.held) > REMEMBERED_HELD:
            self.held.popitem(last=False)


def _without_body(listed: MessageReceivedEvent, failure: Exception) -> list[MessageReceivedEvent]:
    logger.warning("a mail comes without its body, which cannot be fetched: %s", printable(str(failure), 500))
    return [listed]


def size_of_all(events: Sequence[MessageReceivedEvent]) -> int:
    """How much text they have."""
    return sum(map(size_of, events))


def expected_size(listed: Message | ThreadItem) -> int:
    """How much text a mail or a thread will have, in bytes, when it is fetched: its size without its attachments.

    Attachments are a third larger in a mail than by themselves. Where nothing is said, it is taken to be middling.
    """
    if listed.size is None:
        return UNKNOWN_SIZE
    return max(0, listed.size - sum(attachment.size or 0 for attachment in listed.attachments) * 4 // 3)


def is_in_trash(item: Mapping[str, Any]) -> bool:
    """Whether a listed mail was thrown away."""
    labels = item.get("labels")
    return isinstance(labels, list) and TRASH in labels
