"""Decides which listed mails were missed, and fetches them in full."""

import logging
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

from trio_agentmail._channel import size_of
from trio_agentmail._codec import recovered_event
from trio_agentmail._delivered import Delivered
from trio_agentmail._identity import RECOVERED
from trio_agentmail._printable import printable
from trio_agentmail.errors import AnswerTooLargeError, ApiError, RequestFailedError, RequestTooLargeError
from trio_agentmail.events import Event, Message, MessageReceivedEvent, ThreadItem

from .in_order import Room
from .rest import Rest, segment
from .source import KINDS, Counts, Scan

logger = logging.getLogger("trio_agentmail")

__all__ = ["HELD", "TRASH", "Mails", "Put", "expected_size", "is_in_trash", "size_of_all"]

HELD = "agent-armor-held"
"""The label of mail that Agent Armor holds for a security review."""

TRASH = "trash"
"""The label of deleted mail that can still be restored."""

UNKNOWN_SIZE = 2**16
"""Estimated size, in bytes, of a mail whose size is not listed."""

REMEMBERED_HELD = 10_000
"""Maximum number of remembered held mails."""


class Put(Protocol):
    """A function that hands over a missed mail."""

    async def __call__(self, event: Event, counts: Counts, *, was_held: bool) -> None:
        """Hand over the mail.

        Args:
            was_held: Whether the mail was held before. If so, its times do not show when it could have been pushed.
        """


class Mails:
    """Reads listed mail, and remembers which mails are held.

    Labels are checked here and not by the server, since AgentMail's documentation and its SDK disagree on the
    parameters of such a filter.

    Attributes:
        held: The inbox_id and message_id of each mail to check again, which is held, or listed but not yet available.
        room: Limits the amount of text that is being fetched or waits to be handed over.
    """

    def __init__(self, rest: Rest, delivered: Delivered, put: Put) -> None:
        self.put = put
        self.room = Room(rest.largest_answer)
        self.delivered = delivered
        self.held: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._rest = rest

    def read(self, item: dict[str, Any], inbox_id: str) -> MessageReceivedEvent | None:
        """Return the event for a listed item, or `None` if it is not a received mail or is in the trash."""
        if not item.get("inbox_id"):
            item = item | {"inbox_id": inbox_id}
        event = recovered_event(item, "message.received", RECOVERED)
        if event is None or "received" not in event.message.labels or is_in_trash(item):
            return None
        for kind in KINDS:
            if kind in event.message.labels:
                return recovered_event(item, f"message.received.{kind}", RECOVERED)
        return event

    def missed(self, item: dict[str, Any], inbox_id: str, scan: Scan, counts: Counts) -> MessageReceivedEvent | None:
        """Return the event for a listed item, or `None` if it is not a missed mail; see `is_missed`."""
        # Most listed mail has been delivered, which its ids alone show. Making an event would be slower.
        if self._is_known(item, inbox_id):
            counts.known += 1
            return None
        event = self.read(item, inbox_id)
        return event if event is not None and self.is_missed(event, scan, counts) else None

    def _is_known(self, item: dict[str, Any], inbox_id: str) -> bool:
        inbox_id = item.get("inbox_id") or inbox_id
        message_id, labels = item.get("message_id"), item.get("labels")
        if not isinstance(inbox_id, str) or not isinstance(message_id, str) or not isinstance(labels, list):
            return False
        return HELD not in labels and self.delivered.has_mail(inbox_id, message_id)

    def is_wanted(self, event: MessageReceivedEvent, wanted: Container[str]) -> bool:
        """Return whether a mail has a wanted event_type and is not held. Held mail is remembered."""
        message = event.message
        if HELD in message.labels:
            self.hold(message.inbox_id, message.message_id)
            return False
        return event.event_type in wanted

    def is_missed(self, event: MessageReceivedEvent, scan: Scan, counts: Counts) -> bool:
        """Return whether a mail is wanted, new enough, and has not been delivered."""
        message = event.message
        if not self.is_wanted(event, scan.wanted):
            return False
        if self.delivered.has_mail(message.inbox_id, message.message_id):
            counts.known += 1
            return False
        created = message.created_at or message.timestamp
        if created is not None and created.timestamp() < scan.wanted[event.event_type]:
            return False
        return not self.delivered.may_be_forgotten(created)

    async def put_all(self, missed: Sequence[MessageReceivedEvent], counts: Counts) -> None:
        """Hand over missed mails."""
        for event in missed:
            # While it was being fetched, it may have been pushed and delivered, and its identity forgotten.
            if not self.delivered.may_be_forgotten(event.message.created_at or event.message.timestamp):
                await self.put(event, counts, was_held=False)
                # If it was held, it has been released. If it stayed in `held` until its identity is forgotten, it would
                # be delivered twice.
                self.held.pop((event.message.inbox_id, event.message.message_id), None)

    async def fetch(self, event: MessageReceivedEvent, wanted: Container[str]) -> list[MessageReceivedEvent]:
        """Fetch a listed mail in full.

        A mail that is not found has been deleted or is not available yet. Like held mail, it is checked again. A mail
        that is too large, or whose Message-ID is too long for a URL, is returned as listed, without its body.
        AgentMail pushes large mail in the same way.

        Returns:
            A list with the mail, or an empty list if the mail was not found, is held, or is not wanted.

        Raises:
            ApiError, RequestFailedError: The mail could not be fetched.
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
            raise RequestFailedError("the REST API returned another message than the requested one")
        return [whole] if self.is_wanted(whole, wanted) else []

    def hold(self, inbox_id: str, message_id: str) -> None:
        """Remember a mail as held, so that it is checked again. Do nothing if it has been delivered."""
        if self.delivered.has_mail(inbox_id, message_id):
            return
        self.held[inbox_id, message_id] = None
        if len(self.held) > REMEMBERED_HELD:
            self.held.popitem(last=False)


def _without_body(listed: MessageReceivedEvent, failure: Exception) -> list[MessageReceivedEvent]:
    logger.warning("a mail is delivered without its body, which cannot be fetched: %s", printable(str(failure), 500))
    return [listed]


def size_of_all(events: Sequence[MessageReceivedEvent]) -> int:
    """Return the size of the events' text."""
    return sum(map(size_of, events))


def expected_size(listed: Message | ThreadItem) -> int:
    """Estimate the size of the text of a listed mail or thread, in bytes: its listed size without its attachments.

    An attachment takes a third more in a mail than its own size.
    """
    if listed.size is None:
        return UNKNOWN_SIZE
    return max(0, listed.size - sum(attachment.size or 0 for attachment in listed.attachments) * 4 // 3)


def is_in_trash(item: Mapping[str, Any]) -> bool:
    """Return whether a listed mail is in the trash."""
    labels = item.get("labels")
    return isinstance(labels, list) and TRASH in labels
