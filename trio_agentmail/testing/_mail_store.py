"""The mail that the fake has: inboxes, messages and threads, each kind in the order in which it is listed.

A test may deliver tens of thousands of mails and list them after each of hundreds of faults. So what a listing shows is
encoded once, and a thread counts instead of looking at all of its mails again.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from types import MappingProxyType

import attrs

from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Message, ThreadItem

from ._encode import encode_part
from ._ordered import Key, Ordered, sort_key

__all__ = ["Inbox", "Mail", "MailStore", "Thread"]

DEFAULT_POD = "default"
"""Where an inbox is that was put into no other pod."""

BODIES = frozenset({"text", "html", "extracted_text", "extracted_html"})


@attrs.define(eq=False, kw_only=True)
class Mail:
    """A stored mail.

    Attributes:
        event_type: The type of the event by which its arrival is announced; `""`: the inbox sent it.
        event_id: The `event_id` of that event.
        body_in_push: Whether that event has its text and HTML.
        raw: The mail itself, if it came as one.
        contents: The content of its attachments, by their ids.
    """

    message: Message
    number: int
    event_type: str
    event_id: str
    body_in_push: bool
    raw: bytes | None
    contents: Mapping[str, bytes]
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
            self._item = encode_part(self.message, without=BODIES)
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
            senders=tuple(self._senders),
            recipients=tuple(self._recipients),
            subject=newest.subject,
            preview=newest.preview,
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
        for counter, strings in (
            (self._labels, message.labels),
            (self._senders, [message.from_]),
            (self._recipients, [*message.to, *message.cc, *message.bcc]),
        ):
            for string in strings:
                counter[string] += by
                if not counter[string]:
                    del counter[string]
        self._size += by * (message.size or 0)
        self._updated_at = now
        self._item = None


@attrs.define(eq=False, kw_only=True)
class Inbox:
    inbox_id: str
    created_at: datetime
    mails: Ordered[Mail] = attrs.field(factory=Ordered)
    threads: Ordered[Thread] = attrs.field(factory=Ordered)


class MailStore:
    """All mail, by its ids; and that part of it which is in the listings: see `index`.

    Attributes:
        inboxes: By their ids.
        pods: The pod of each inbox.
        empty_pods: Pods that exist whether or not an inbox is in them.
        inboxes_in_order: By their creation.
        threads_in_order: Of all inboxes, by their newest mails.
    """

    def __init__(self) -> None:
        self.inboxes: dict[str, Inbox] = {}
        self.pods: dict[str, str] = {}
        self.empty_pods: set[str] = set()
        self.inboxes_in_order: Ordered[Inbox] = Ordered()
        self.threads_in_order: Ordered[Thread] = Ordered()
        self._mails: dict[tuple[str, str], Mail] = {}
        self._threads: dict[str, Thread] = {}
        self._not_indexed: deque[Mail] = deque()
        self._numbers = count()

    def add_inbox(self, inbox_id: str, now: datetime, pod_id: str | None = None) -> None:
        """Make the inbox, if there is none, and put it into the pod, if one is given."""
        if inbox_id not in self.inboxes:
            inbox = self.inboxes[inbox_id] = Inbox(inbox_id=inbox_id, created_at=now)
            self.inboxes_in_order.add(sort_key(now, next(self._numbers)), inbox)
        self.pods[inbox_id] = pod_id or self.pods.get(inbox_id, DEFAULT_POD)

    def know(self, subscribe: Subscribe, now: datetime) -> None:
        """What somebody listens to exists, so that a test need not say so."""
        for inbox_id in subscribe.inbox_ids or ():
            self.add_inbox(inbox_id, now)
        self.empty_pods.update(subscribe.pod_ids or ())

    def add(
        self,
        message: Message,
        now: datetime,
        *,
        event_type: str = "",
        event_id: str = "",
        body_in_push: bool = True,
        raw: bytes | None = None,
        contents: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Mail:
        """Keep a mail, in place of one of the same ids. It is not yet in the listings. `Mail` tells of the arguments.

        Raises:
            ValueError: its `thread_id` is that of a thread of another inbox.
        """
        assert message.thread_id is not None
        thread = self._threads.get(message.thread_id)
        if thread is None:
            thread = Thread(message.inbox_id, message.thread_id, next(self._numbers))
        elif thread.inbox_id != message.inbox_id:
            raise ValueError(f"the thread {thread.thread_id} is in the inbox {thread.inbox_id}, not {message.inbox_id}")
        if (old := self.mail(message.inbox_id, message.message_id)) is not None:
            self.delete(old, now)
        self._threads[message.thread_id] = thread
        self.add_inbox(message.inbox_id, now)
        mail = Mail(
            message=message,
            number=next(self._numbers),
            event_type=event_type,
            event_id=event_id,
            body_in_push=body_in_push,
            raw=raw,
            contents=contents,
        )
        self._mails[message.inbox_id, message.message_id] = mail
        self._not_indexed.append(mail)
        return mail

    def index(self, until: datetime, now: datetime) -> None:
        """Put into the listings what arrived until then."""
        while self._not_indexed and self._not_indexed[0].arrival <= until:
            mail = self._not_indexed.popleft()
            self.inboxes[mail.message.inbox_id].mails.add(mail.key, mail)
            with self._changing(mail) as thread:
                thread.add(mail, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        """Change a mail, but neither its ids nor its `timestamp`: its place in the listings stays as it is."""
        if mail in self._not_indexed:
            mail.replace(message)
        else:
            self._thread_of(mail).replace(mail, message, now)

    def delete(self, mail: Mail, now: datetime) -> None:
        del self._mails[mail.message.inbox_id, mail.message.message_id]
        if mail in self._not_indexed:
            self._not_indexed.remove(mail)
        else:
            self.inboxes[mail.message.inbox_id].mails.remove(mail.key)
            with self._changing(mail) as thread:
                thread.remove(mail, now)

    def mail(self, inbox_id: str, message_id: str) -> Mail | None:
        return self._mails.get((inbox_id, message_id))

    def mails(self, inbox_id: str) -> list[Mail]:
        """The mails of an inbox, indexed or not, in the order of their times."""
        mails = (mail for (inbox, _), mail in self._mails.items() if inbox == inbox_id)
        return sorted(mails, key=lambda mail: mail.key)

    def thread_of_answer(self, inbox_id: str, answers: Iterable[str]) -> str | None:
        """The id of the thread of the first of these mails that is there: of the mails that another one answers."""
        mails = (self.mail(inbox_id, message_id) for message_id in answers)
        return next((mail.message.thread_id for mail in mails if mail is not None), None)

    def thread(self, thread_id: str) -> Thread | None:
        """The thread, as far as it is in the listings."""
        thread = self._threads.get(thread_id)
        return thread if thread is not None and len(thread.mails) else None

    def _thread_of(self, mail: Mail) -> Thread:
        assert mail.message.thread_id is not None
        return self._threads[mail.message.thread_id]

    @contextmanager
    def _changing(self, mail: Mail) -> Iterator[Thread]:
        """Whatever is done to the mail's thread, it stands afterwards where it belongs, if it has mails."""
        thread = self._thread_of(mail)
        orders = self.threads_in_order, self.inboxes[thread.inbox_id].threads
        if len(thread.mails):
            for order in orders:
                order.remove(thread.key)
        yield thread
        if len(thread.mails):
            for order in orders:
                order.add(thread.key, thread)
