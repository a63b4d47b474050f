"""The mail that the fake has: inboxes, messages and threads, each kind in the order in which it is listed.

A test may deliver tens of thousands of mails and list them after each of hundreds of faults. So what a listing shows is
encoded once, and a thread counts instead of looking at all of its mails again.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from types import MappingProxyType
from typing import Any

import attrs

from trio_agentmail.events import Attachment, Message, ThreadItem
from trio_agentmail.testing._agentmail.permissions import PERMISSION_TO_READ
from trio_agentmail.testing._checks import has_half_a_character

from .events import ARRIVAL_LABELS, HELD, answered_ids
from .expiring import Expiring
from .mail import Mail, Thread
from .ordered import Key, Ordered, sort_key

__all__ = ["DEFAULT_POD", "NOTHING", "Download", "Inbox", "MailStore", "Pod"]

DEFAULT_POD = "default"
"""Where an inbox is that was put into no other pod."""

NOTHING: Mapping[str, bytes] = MappingProxyType({})


@attrs.define(eq=False, kw_only=True)
class Pod:
    """A part of an organization, to which inboxes belong.

    Attributes:
        client_id: The id that it was made with by whoever made it.
    """

    pod_id: str
    name: str
    created_at: datetime
    client_id: str | None = None


@attrs.define(eq=False, kw_only=True)
class Inbox:
    """An inbox: its id is its address, which is the same in upper and lower case.

    Attributes:
        inbox_id: As it was written first.
        client_id: The id that it was made with by whoever made it.
        metadata: Strings, numbers and booleans, by their names.
        by_id: All its mails.
        kept: These, in the order of their times.
        mails: Those that are in the listings.
        threads: Likewise.
        threads_by_message_id: Of all mails that were in one, or were named by one that was.
    """

    inbox_id: str
    created_at: datetime
    updated_at: datetime
    display_name: str | None = None
    client_id: str | None = None
    metadata: dict[str, Any] = attrs.field(factory=dict)
    by_id: dict[str, Mail] = attrs.field(factory=dict)
    kept: Ordered[Mail] = attrs.field(factory=Ordered)
    mails: Ordered[Mail] = attrs.field(factory=Ordered)
    threads: Ordered[Thread] = attrs.field(factory=Ordered)
    threads_by_message_id: dict[str, Thread] = attrs.field(factory=dict)


@attrs.frozen
class Download:
    """A file that can be fetched without a key, for an hour.

    Attributes:
        attachment: `None`: it is the mail itself.
    """

    mail: Mail
    attachment: Attachment | None = None


class MailStore:
    """All mail, by its ids; and that part of it which is in the listings: see `index`.

    Attributes:
        inboxes: By their ids in lower case: `inbox` finds one however its id is written.
        pods: The pod of each inbox, likewise.
        pods_by_id: All pods, also those in which no inbox is.
        inboxes_in_order: By their creation.
        pods_in_order: By their creation.
        threads_in_order: Of all inboxes, by their newest mails.
        downloads: By the last part of their addresses.
        index_delay: How long after its arrival a mail appears in the listings and in its thread.
    """

    def __init__(self, now: datetime) -> None:
        self.inboxes: dict[str, Inbox] = {}
        self.pods: dict[str, str] = {}
        self.pods_by_id: dict[str, Pod] = {}
        self.inboxes_in_order: Ordered[Inbox] = Ordered()
        self.pods_in_order: Ordered[Pod] = Ordered()
        self.threads_in_order: Ordered[Thread] = Ordered()
        self.downloads: Expiring[Download] = Expiring(timedelta(hours=1))
        self.index_delay = timedelta()
        self._threads: dict[str, Thread] = {}
        self._not_indexed: deque[Mail] = deque()
        self._inbox_keys: dict[str, Key] = {}
        self._pod_keys: dict[str, Key] = {}
        self._numbers = count()
        self.add_pod(DEFAULT_POD, now)

    def add_inbox(self, inbox_id: str, now: datetime, pod_id: str | None = None) -> Inbox:
        """Make the inbox, if there is none, and put it into the pod, if one is given.

        Raises:
            ValueError: an id has a lone surrogate.
        """
        _check_whole_characters(inbox_id, pod_id or "")
        name = inbox_id.lower()
        inbox = self.inboxes.get(name)
        if inbox is None:
            inbox = self.inboxes[name] = Inbox(inbox_id=inbox_id, created_at=now, updated_at=now)
            self._inbox_keys[name] = sort_key(now, next(self._numbers))
            self.inboxes_in_order.add(self._inbox_keys[name], inbox)
        self.pods[name] = pod_id or self.pods.get(name, DEFAULT_POD)
        self.add_pod(self.pods[name], now)
        return inbox

    def inbox(self, inbox_id: str) -> Inbox | None:
        return self.inboxes.get(inbox_id.lower())

    def delete_inbox(self, inbox: Inbox, now: datetime) -> None:
        """The inbox goes, with its mail."""
        for mail in list(inbox.kept):
            self.delete(mail, now)
        name = inbox.inbox_id.lower()
        self.inboxes_in_order.remove(self._inbox_keys.pop(name))
        del self.inboxes[name], self.pods[name]

    def add_pod(self, pod_id: str, now: datetime, name: str | None = None, client_id: str | None = None) -> Pod:
        """Make the pod, if there is none."""
        pod = self.pods_by_id.get(pod_id)
        if pod is None:
            pod = Pod(pod_id=pod_id, name=name or pod_id, client_id=client_id, created_at=now)
            self.pods_by_id[pod_id] = pod
            self._pod_keys[pod_id] = sort_key(now, next(self._numbers))
            self.pods_in_order.add(self._pod_keys[pod_id], pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        """The pod, in which no inbox is, goes."""
        del self.pods_by_id[pod.pod_id]
        self.pods_in_order.remove(self._pod_keys.pop(pod.pod_id))

    def add(
        self,
        message: Message,
        now: datetime,
        *,
        event_type: str = "",
        event_id: str = "",
        body_in_push: bool = True,
        contents: Mapping[str, bytes] = NOTHING,
        raw: bytes | None = None,
    ) -> Mail:
        """Keep a mail, in place of one of the same ids. It is not yet in the listings.

        One's own mail that comes back is one mail, sent and received: it has the labels of both, but not of how it came
        an earlier time.

        `Mail` says what the arguments mean.

        Raises:
            ValueError: its `thread_id` is that of a thread of another inbox, or an id or label has a lone surrogate.
        """
        _check_whole_characters(message.inbox_id, message.message_id, message.thread_id or "", *message.labels)
        if (known := self.inbox(message.inbox_id)) is not None:
            message = attrs.evolve(message, inbox_id=known.inbox_id)
        assert message.thread_id is not None
        thread = self._threads.get(message.thread_id)
        if thread is None:
            thread = Thread(message.inbox_id, message.thread_id)
        elif thread.inbox_id != message.inbox_id:
            raise ValueError(f"the thread {thread.thread_id} is in the inbox {thread.inbox_id}, not {message.inbox_id}")
        self._threads[message.thread_id] = thread
        thread.kept += 1  # before the old one goes: if that was the last one, the thread stays
        if (old := self.mail(message.inbox_id, message.message_id)) is not None:
            self.delete(old, now)
            if "sent" in (*old.labels, *message.labels):
                # It comes anew, or is out of Agent Armor's hands, since the inbox itself has sent it.
                past = ARRIVAL_LABELS if "received" in message.labels else {HELD}
                labels = (*(label for label in old.labels if label not in past), *message.labels)
                message = attrs.evolve(message, labels=tuple(dict.fromkeys(labels)))
        inbox = self.add_inbox(message.inbox_id, now)
        mail = Mail(
            message=message,
            number=next(self._numbers),
            event_type=event_type,
            event_id=event_id,
            body_in_push=body_in_push,
            contents=contents,
            raw=raw,
        )
        inbox.by_id[message.message_id] = mail
        inbox.kept.add(mail.key, mail)
        _remember(inbox, message, thread)
        self._not_indexed.append(mail)
        return mail

    def index(self, now: datetime) -> None:
        """Put mail into the listings and into its thread once the index delay has passed."""
        while self._not_indexed and self._not_indexed[0].arrival <= now - self.index_delay:
            mail = self._not_indexed.popleft()
            self._inbox_of(mail).mails.add(mail.key, mail)
            with self._changing(mail) as thread:
                thread.add(mail, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        """Change a mail, but neither its ids nor its `timestamp`: its place in the listings stays as it is.

        Raises:
            ValueError: a label has a lone surrogate.
        """
        _check_whole_characters(*message.labels)
        if mail in self._not_indexed:
            mail.replace(message)
        else:
            self._thread_of(mail).replace(mail, message, now)

    def delete(self, mail: Mail, now: datetime) -> None:
        """The mail goes, and with its last mail a thread."""
        inbox = self._inbox_of(mail)
        del inbox.by_id[mail.message.message_id]
        inbox.kept.remove(mail.key)
        if mail in self._not_indexed:
            self._not_indexed.remove(mail)
        else:
            inbox.mails.remove(mail.key)
            with self._changing(mail) as thread:
                thread.remove(mail, now)
        thread = self._thread_of(mail)
        thread.kept -= 1
        if not thread.kept:
            del self._threads[thread.thread_id]
            _forget(inbox, thread)

    def mail(self, inbox_id: str, message_id: str) -> Mail | None:
        inbox = self.inbox(inbox_id)
        return None if inbox is None else inbox.by_id.get(message_id)

    def thread(self, thread_id: str) -> Thread | None:
        """The thread, as far as it is in the listings."""
        thread = self._threads.get(thread_id)
        return thread if thread is not None and len(thread.mails) else None

    def told_thread(self, message: Message) -> ThreadItem | None:
        """The thread of a message that has come, as an event tells of it: whatever keys its receivers have.

        So of mail that takes a permission there is nothing in it, unless the message itself takes the same.
        """
        assert message.thread_id is not None
        thread = self.thread(message.thread_id)
        view = None if thread is None else thread.view(frozenset(PERMISSION_TO_READ) - frozenset(message.labels))
        return view.state() if view is not None and len(view.mails) else None

    def mails(self, inbox_id: str) -> list[Mail]:
        """The mails of an inbox, indexed or not, in the order of their times."""
        inbox = self.inbox(inbox_id)
        return [] if inbox is None else list(inbox.kept)

    def thread_with(self, inbox_id: str, message_ids: Iterable[str]) -> str | None:
        """The thread of the first of these mails that is known in an inbox: what answers them belongs to it.

        As mail programs do it ("message threading" by Jamie Zawinski), a mail need not be there to be known: it may
        have gone, or only be named by another one, which it may follow. But unlike there, two threads never become
        one: their ids are in the hands of clients.
        """
        inbox = self.inbox(inbox_id)
        known = {} if inbox is None else inbox.threads_by_message_id
        threads = (known.get(message_id) for message_id in message_ids)
        return next((thread.thread_id for thread in threads if thread is not None), None)

    def _inbox_of(self, mail: Mail) -> Inbox:
        return self.inboxes[mail.message.inbox_id.lower()]

    def _thread_of(self, mail: Mail) -> Thread:
        assert mail.message.thread_id is not None
        return self._threads[mail.message.thread_id]

    @contextmanager
    def _changing(self, mail: Mail) -> Iterator[Thread]:
        """Whatever is done to the mail's thread, it stands afterwards where it belongs, if it has mails."""
        thread = self._thread_of(mail)
        orders = self.threads_in_order, self._inbox_of(mail).threads
        if len(thread.mails):
            for order in orders:
                order.remove(thread.key)
        yield thread
        if len(thread.mails):
            for order in orders:
                order.add(thread.key, thread)


def _check_whole_characters(*names: str) -> None:
    """Texts may have half a character; what a client names a thing by may not."""
    for name in names:
        if has_half_a_character(name):
            raise ValueError(f"an id or label has half a character, a lone surrogate: {name!r}")


def _remember(inbox: Inbox, message: Message, thread: Thread) -> None:
    named = {message.message_id, *answered_ids(message.in_reply_to, message.references)}
    for message_id in named:
        inbox.threads_by_message_id.setdefault(message_id, thread)
    inbox.threads_by_message_id[message.message_id] = thread
    thread.message_ids |= named


def _forget(inbox: Inbox, thread: Thread) -> None:
    for message_id in thread.message_ids:
        if inbox.threads_by_message_id.get(message_id) is thread:
            del inbox.threads_by_message_id[message_id]
