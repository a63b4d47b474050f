"""A stored mail, and the thread to which it belongs. `store.py` explains why both keep their JSON for listings."""

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
"""The fields of a message that are missing in the items of a listing. (Source: AgentMail's API definition.)"""


@attrs.define(eq=False, kw_only=True)
class Mail:
    """A stored mail.

    Attributes:
        number: The number of the mail in the order of arrival.
        event_type: The type of the event that announces the mail; `""` if the inbox has sent it.
        event_id: The id of that event.
        body_in_push: Whether that event has the text and the HTML.
        contents: The content of each attachment, by its id.
        raw: The mail in the format of RFC 5322. If it is `None`, the mail is written when it is first requested.
        key: The position of the mail in the listings, which never changes.
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
        """The time when the mail was added."""
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
        """The JSON object that describes the mail in a listing."""
        if self._item is None:
            self._item = encode_part(self.message, without=NOT_IN_ITEMS)
        return self._item

    def replace(self, message: Message) -> None:
        """Change the message, but not its ids or its `timestamp`."""
        self.message = message
        self._item = None


class Thread:
    """The mails of one inbox with the same `thread_id`.

    Attributes:
        whole: The view of the thread with all of its indexed mails.
        kept: The number of its mails, indexed or not.
        message_ids: The Message-IDs of its mails, including deleted ones, and the Message-IDs to which they refer.
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
        """The indexed mails."""
        return self.whole.mails

    @property
    def key(self) -> Key:
        """The position of the thread in the listings, which is the position of its newest mail."""
        return next(self.mails.walk())[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all its indexed mails."""
        return self.whole.labels

    def view(self, hidden: frozenset[str]) -> "ThreadView":
        """Return the thread without the mails that have one of these labels, which a key may not read."""
        if hidden.isdisjoint(self.labels):
            return self.whole
        if hidden not in self._views:
            view = self._views[hidden] = ThreadView(self.inbox_id, self.thread_id, hidden)
            for _, mail in self.mails.walk():
                view.add(mail, mail.updated_at)
        return self._views[hidden]

    def add(self, mail: Mail, now: datetime) -> None:
        """Add a mail that has been indexed."""
        for view in self._all_views():
            view.add(mail, now)

    def remove(self, mail: Mail, now: datetime) -> None:
        """Remove an indexed mail."""
        for view in self._all_views():
            view.remove(mail, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        """Change an indexed mail."""
        self.remove(mail, now)
        mail.replace(message)
        self.add(mail, now)

    def _all_views(self) -> list["ThreadView"]:
        return [self.whole, *self._views.values()]


class ThreadView:
    """A thread, or the part of it that a key may see.

    Args:
        hidden: The labels of mails that are left out.

    Attributes:
        mails: The mails that are not left out.
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
        """The JSON object that describes the thread in a listing."""
        if self._item is None:
            self._item = encode_part(self.state())
        return self._item

    def add(self, mail: Mail, now: datetime) -> None:
        """Add a mail, unless it is to be left out."""
        if self._shows(mail):
            for mails in self._lists_for(mail):
                mails.add(mail.key, mail)
            self._created_at = min(self._created_at or mail.arrival, mail.arrival)
            self._count(mail.message, 1, now)

    def remove(self, mail: Mail, now: datetime) -> None:
        """Remove a mail, unless it was left out."""
        if self._shows(mail):
            for mails in self._lists_for(mail):
                mails.remove(mail.key)
            self._count(mail.message, -1, now)

    def state(self) -> ThreadItem:
        """Return the thread as events and listings describe it."""
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

    def _lists_for(self, mail: Mail) -> Iterator[Ordered[Mail]]:
        """Yield the lists that a mail belongs to: all mails, received mails, sent mails."""
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
