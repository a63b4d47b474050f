"""A stored mail, and the thread that it is in.

A thread counts instead of looking at all of its mails again, and what a listing shows is encoded once: see `MailStore`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar

import attrs

from trio_agentmail.events import Attachment, Message, ThreadItem

from ._encode import encode_part
from ._ordered import Key, Ordered, sort_key

__all__ = ["BODIES", "Mail", "Thread"]

T = TypeVar("T")

BODIES = frozenset({"text", "html", "extracted_text", "extracted_html"})
NOT_IN_ITEMS = BODIES | {"reply_to"}
"""What a message has, and an item of a listing has not, by AgentMail's API definition."""


@attrs.define(eq=False, kw_only=True)
class Mail:
    """A stored mail.

    Attributes:
        event_type: The type of the event by which its arrival is announced; `""`: the inbox sent it.
        event_id: The `event_id` of that event.
        body_in_push: Whether that event has its text and HTML.
        contents: The content of each attachment, by its id.
        raw: The mail as it crossed the Internet; `None`: it never did, and is written when somebody first asks for it.
    """

    message: Message
    number: int
    event_type: str
    event_id: str
    body_in_push: bool
    contents: Mapping[str, bytes]
    raw: bytes | None
    _item: str | None = None

    @property
    def key(self) -> Key:
        assert self.message.timestamp is not None
        return sort_key(self.message.timestamp, self.number)

    @property
    def arrival(self) -> datetime:
        assert self.message.created_at is not None
        return self.message.created_at

    @property
    def labels(self) -> tuple[str, ...]:
        return self.message.labels

    @property
    def item(self) -> str:
        """Its JSON in a listing."""
        if self._item is None:
            self._item = encode_part(self.message, without=NOT_IN_ITEMS)
        return self._item

    def replace(self, message: Message) -> None:
        self.message = message
        self._item = None


class Thread:
    """The mails of one inbox that have the same `thread_id`."""

    def __init__(self, inbox_id: str, thread_id: str, number: int) -> None:
        self.inbox_id = inbox_id
        self.thread_id = thread_id
        self.number = number
        self.mails: Ordered[Mail] = Ordered()
        self._labels: Counter[str] = Counter()
        self._senders: Counter[str] = Counter()
        self._recipients: Counter[str] = Counter()
        self._attachments: Counter[Attachment] = Counter()
        self._size = 0
        self._created_at: datetime | None = None
        self._updated_at: datetime | None = None
        self._item: str | None = None

    @property
    def key(self) -> Key:
        """By its newest mail."""
        [(time, _), _] = next(self.mails.walk())
        return time, self.number

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of all its mails."""
        return tuple(self._labels)

    @property
    def senders(self) -> tuple[str, ...]:
        return tuple(self._senders)

    @property
    def recipients(self) -> tuple[str, ...]:
        return tuple(self._recipients)

    @property
    def item(self) -> str:
        """Its JSON in a listing."""
        if self._item is None:
            self._item = encode_part(self.state())
        return self._item

    def add(self, mail: Mail, now: datetime) -> None:
        self.mails.add(mail.key, mail)
        self._created_at = self._created_at or mail.message.created_at
        self._count(mail.message, 1, now)

    def remove(self, mail: Mail, now: datetime) -> None:
        self.mails.remove(mail.key)
        self._count(mail.message, -1, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        self._count(mail.message, -1, now)
        mail.replace(message)
        self._count(mail.message, 1, now)

    def state(self) -> ThreadItem:
        newest = self._newest()
        assert newest is not None
        received, sent = self._newest("received"), self._newest("sent")
        return ThreadItem(
            inbox_id=self.inbox_id,
            thread_id=self.thread_id,
            labels=self.labels,
            timestamp=newest.timestamp,
            received_timestamp=None if received is None else received.timestamp,
            sent_timestamp=None if sent is None else sent.timestamp,
            senders=self.senders,
            recipients=self.recipients,
            subject=newest.subject,
            preview=newest.preview,
            attachments=tuple(self._attachments),
            last_message_id=newest.message_id,
            message_count=len(self.mails),
            size=self._size,
            updated_at=self._updated_at,
            created_at=self._created_at,
        )

    def _newest(self, label: str | None = None) -> Message | None:
        if label is not None and label not in self._labels:
            return None
        messages = (mail.message for _, mail in self.mails.walk())
        return next((message for message in messages if label is None or label in message.labels), None)

    def _count(self, message: Message, by: int, now: datetime) -> None:
        _tally(self._labels, message.labels, by)
        _tally(self._senders, [message.from_], by)
        _tally(self._recipients, [*message.to, *message.cc, *message.bcc], by)
        _tally(self._attachments, message.attachments, by)
        self._size += by * (message.size or 0)
        self._updated_at = now
        self._item = None


def _tally(counter: Counter[T], things: Iterable[T], by: int) -> None:
    for thing in things:
        counter[thing] += by
        if not counter[thing]:
            del counter[thing]
