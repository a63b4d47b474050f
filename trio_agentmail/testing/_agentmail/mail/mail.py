"""A stored mail, and the thread that it is in.

A thread counts instead of looking at all of its mails again, and what a listing shows is encoded once: see `MailStore`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

import attrs

from trio_agentmail.events import Attachment, Message, ThreadItem
from trio_agentmail.testing._encode import encode_part

from .events import recipients_of
from .ordered import Key, Ordered, sort_key

__all__ = ["BODIES", "Mail", "Thread", "ThreadView"]

T = TypeVar("T")

BODIES = frozenset({"text", "html", "extracted_text", "extracted_html"})
NOT_IN_ITEMS = BODIES | {"reply_to"}
"""What a message has, and an item of a listing has not, by AgentMail's API definition."""


@attrs.define(eq=False, kw_only=True)
class Mail:
    """A stored mail.

    Attributes:
        key: Its place in the listings, which stays the same.
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
    key: Key = attrs.field(init=False)
    _item: str | None = None

    def __attrs_post_init__(self) -> None:
        assert self.message.timestamp is not None
        self.key = sort_key(self.message.timestamp, self.number)

    @property
    def arrival(self) -> datetime:
        assert self.message.created_at is not None
        return self.message.created_at

    @property
    def updated_at(self) -> datetime:
        assert self.message.updated_at is not None
        return self.message.updated_at

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
    """The mails of one inbox that have the same `thread_id`.

    Attributes:
        whole: What all of them are together, as far as they are in the listings.
        kept: How many there are, in the listings or not.
        message_ids: Of all mails that were in it, or were named by one that was.
    """

    def __init__(self, inbox_id: str, thread_id: str) -> None:
        self.inbox_id = inbox_id
        self.thread_id = thread_id
        self.whole = ThreadView(inbox_id, thread_id)
        self.kept = 0
        self.message_ids: set[str] = set()
        self._views: dict[frozenset[str], ThreadView] = {}

    @property
    def mails(self) -> Ordered[Mail]:
        return self.whole.mails

    @property
    def key(self) -> Key:
        """That of its newest mail."""
        return next(self.mails.walk())[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of all its mails."""
        return self.whole.labels

    def view(self, hidden: frozenset[str]) -> "ThreadView":
        """The thread for those who may not see mails with these labels: it tells of the others only."""
        if hidden.isdisjoint(self.labels):
            return self.whole
        if hidden not in self._views:
            view = self._views[hidden] = ThreadView(self.inbox_id, self.thread_id, hidden)
            for _, mail in self.mails.walk():
                view.add(mail, mail.updated_at)
        return self._views[hidden]

    def add(self, mail: Mail, now: datetime) -> None:
        for view in self._all_views():
            view.add(mail, now)

    def remove(self, mail: Mail, now: datetime) -> None:
        for view in self._all_views():
            view.remove(mail, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        self.remove(mail, now)
        mail.replace(message)
        self.add(mail, now)

    def _all_views(self) -> list["ThreadView"]:
        return [self.whole, *self._views.values()]


class ThreadView:
    """A thread as somebody sees it.

    Args:
        hidden: Mails with one of these labels are not in it.
    """

    def __init__(self, inbox_id: str, thread_id: str, hidden: frozenset[str] = frozenset()) -> None:
        self.mails: Ordered[Mail] = Ordered()
        self._inbox_id = inbox_id
        self._thread_id = thread_id
        self._hidden = hidden
        self._received: Ordered[Mail] = Ordered()
        self._sent: Ordered[Mail] = Ordered()
        self._labels: Counter[str] = Counter()
        self._senders: Counter[str] = Counter()
        self._recipients: Counter[str] = Counter()
        self._attachments: Counter[Attachment] = Counter()
        self._size = 0
        self._created_at: datetime | None = None
        self._updated_at: datetime | None = None
        self._item: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
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
        if self._shows(mail):
            for mails in self._those_with(mail):
                mails.add(mail.key, mail)
            self._created_at = min(self._created_at or mail.arrival, mail.arrival)
            self._count(mail.message, 1, now)

    def remove(self, mail: Mail, now: datetime) -> None:
        if self._shows(mail):
            for mails in self._those_with(mail):
                mails.remove(mail.key)
            self._count(mail.message, -1, now)

    def state(self) -> ThreadItem:
        newest = next(self.mails.walk())[1].message
        return ThreadItem(
            inbox_id=self._inbox_id,
            thread_id=self._thread_id,
            labels=self.labels,
            timestamp=newest.timestamp,
            received_timestamp=_newest_timestamp(self._received),
            sent_timestamp=_newest_timestamp(self._sent),
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

    def _shows(self, mail: Mail) -> bool:
        return self._hidden.isdisjoint(mail.labels)

    def _those_with(self, mail: Mail) -> Iterator[Ordered[Mail]]:
        """The mails, the received ones, the sent ones: where this one belongs."""
        yield self.mails
        if "received" in mail.labels:
            yield self._received
        if "sent" in mail.labels:
            yield self._sent

    def _count(self, message: Message, by: int, now: datetime) -> None:
        _tally(self._labels, message.labels, by)
        _tally(self._senders, [message.from_], by)
        _tally(self._recipients, recipients_of(message), by)
        _tally(self._attachments, message.attachments, by)
        self._size += by * (message.size or 0)
        self._updated_at = max(self._updated_at or now, now)
        self._item = None


def _newest_timestamp(mails: Ordered[Mail]) -> datetime | None:
    return next((mail.message.timestamp for _, mail in mails.walk()), None)


def _tally(counter: Counter[T], things: Iterable[T], by: int) -> None:
    for thing in things:
        counter[thing] += by
        if not counter[thing]:
            del counter[thing]
