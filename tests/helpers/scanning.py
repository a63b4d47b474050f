"""Scans of a REST API that the test controls."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.helpers.rest_api import EPOCH, Api, at, mail, rest
from trio_agentmail import Message, MessageReceivedEvent, MessageSecurityReviewEvent
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery.listing import MailListing
from trio_agentmail._recovery.source import Counts, Scan, Target
from trio_agentmail.events import Event, MessageSecurity

KINDS = ("spam", "blocked", "unauthenticated")
RECEIVED = {"message.received": EPOCH}
EVERY_KIND = RECEIVED | {f"message.received.{kind}": EPOCH for kind in KINDS}
INBOX = Target(inbox_id="a@b")
POD = Target(pod_id="pod/1")
KEY = Target()
A = "/inboxes/a%40b/messages"
HELD = "agent-armor-held"
DAY = 86_400.0


def now() -> float:
    return EPOCH + trio.current_time()


def a_scan(target: Target = INBOX, after: float = 0.0, wanted: dict[str, float] = RECEIVED) -> Scan:
    return Scan(target, wanted, EPOCH + after, began=now())


def whole(message_id: str, at_: float | None = 0.0, *labels: str, **more: Any) -> dict[str, Any]:
    return mail(message_id, at_, *labels, text=f"text of {message_id}", **more)


def inbox(*mails: dict[str, Any], token: str | None = None, name: str = "a%40b") -> dict[str, Any]:
    """The answers of an API with these mails: their listing, without bodies, and each mail with its body."""
    listing = f"/inboxes/{name}/messages"
    answers: dict[str, Any] = {listing: {"messages": [{k: v for k, v in m.items() if k != "text"} for m in mails]}}
    for m in mails:
        answers[f"{listing}/{m['message_id']}"] = m
    return answers


def pushed(message_id: str, inbox_id: str = "a@b", event_type: str = "message.received") -> MessageReceivedEvent:
    return MessageReceivedEvent(event_type=event_type, message=Message(inbox_id=inbox_id, message_id=message_id))


def review(inbox_id: str | None, message_id: str | None) -> MessageSecurityReviewEvent:
    return MessageSecurityReviewEvent(message=MessageSecurity(inbox_id=inbox_id, message_id=message_id))


class Scanner:
    """A `MailListing`, and what it has handed over and counted."""

    def __init__(self, api: Api, listing: MailListing, delivered: Delivered) -> None:
        self.api = api
        self.listing = listing
        self.delivered = delivered
        self.put: list[MessageReceivedEvent] = []
        self.were_held: list[str] = []
        self.counts = Counts()

    async def scan(self, target: Target = INBOX, after: float = 0.0, wanted: dict[str, float] = RECEIVED) -> list[str]:
        """Run a scan, and return the Message-IDs that it has handed over."""
        self.counts = Counts()
        before = len(self.put)
        try:
            await self.listing.scan(a_scan(target, after, wanted), self.counts)
        finally:
            self.found = [event.message.message_id for event in self.put[before:]]
        return self.found

    async def check_held(self, wanted: dict[str, float] = RECEIVED) -> list[str]:
        self.counts = Counts()
        before = len(self.put)
        try:
            await self.listing.check_held(wanted, self.counts)
        finally:
            self.found = [event.message.message_id for event in self.put[before:]]
        return self.found


@asynccontextmanager
async def scanning(answers: dict[str, Any]) -> AsyncIterator[Scanner]:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        await trio.lowlevel.checkpoint()
        assert isinstance(event, MessageReceivedEvent)
        if delivered.claim(event):
            scanner.put.append(event)
            if was_held:
                scanner.were_held.append(event.message.message_id)

    api = Api(answers)
    delivered = Delivered(now, DAY)
    async with rest(api) as asks:
        scanner = Scanner(api, MailListing(asks, asks._clock, delivered, put), delivered)
        yield scanner


def thread(
    thread_id: str | None,
    last: str | None,
    count: int | None = 1,
    updated: float | None = 0.0,
    *labels: str,
    **more: Any,
) -> dict[str, Any]:
    item = {"inbox_id": "a@b", "thread_id": thread_id, "last_message_id": last, "message_count": count}
    return item | {"updated_at": None if updated is None else at(updated), "labels": [*labels]} | more


THREAD = "/inboxes/a%40b/threads/t"


def threads(*items: dict[str, Any], **conversations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {"/threads": {"threads": [*items]}}
    for name, mails in conversations.items():
        answers[f"/inboxes/a%40b/threads/{name}"] = {"thread_id": name, "messages": [*mails]}
    return answers


BATCH_GET = f"{A}/batch-get"


def batch(*mails: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*mails]}
