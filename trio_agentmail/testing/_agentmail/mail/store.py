"""The store of an AgentMail: its pods, inboxes, messages and threads, each kind in the order of its listing.

A test may deliver tens of thousands of mails and list them after each of hundreds of faults. Encoding every item of
every listing, or recomputing a thread from all of its mails, would take too long. So the JSON of an item is kept until
the item changes, and a thread is updated by what is added and removed.
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
from trio_agentmail.testing._agentmail.checks import has_lone_surrogate
from trio_agentmail.testing._agentmail.permissions import PERMISSION_TO_READ

from .events import ARRIVAL_LABELS, HELD, answered_ids
from .expiring import Expiring
from .mail import Mail, Thread
from .ordered import Key, Ordered, sort_key

__all__ = ["DEFAULT_POD", "NO_CONTENTS", "Download", "Inbox", "MailStore", "Pod"]

DEFAULT_POD = "default"
"""The pod of an inbox that is created without one."""

NO_CONTENTS: Mapping[str, bytes] = MappingProxyType({})


@attrs.define(eq=False, kw_only=True)
class Pod:
    """A group of inboxes in the organization.

    Attributes:
        client_id: The id that the client chose when it created the pod.
    """

    pod_id: str
    name: str
    created_at: datetime
    client_id: str | None = None


@attrs.define(eq=False, kw_only=True)
class Inbox:
    """An inbox. Its id is its address, so case does not matter.

    Attributes:
        inbox_id: The id in the case in which it was first written.
        client_id: The id that the client chose when it created the inbox.
        metadata: Strings, numbers and booleans by name.
        by_id: All mails in the inbox.
        kept: The same mails in the order of their timestamps.
        mails: The mails that are in the listings.
        threads: The threads that are in the listings.
        threads_by_message_id: The thread of each Message-ID that a mail in the inbox has, had or refers to.
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
    """A file that is offered for download.

    Attributes:
        attachment: The attachment of the mail; `None`: the mail itself.
    """

    mail: Mail
    attachment: Attachment | None = None


class MailStore:
    """The mail of an organization.

    A mail is found by its id at once. It appears in the listings and in its thread when it is indexed; see `index`.

    Args:
        now: The time at which the default pod is created.

    Attributes:
        inboxes: The inboxes by their ids in lower case. `inbox` finds one by its id in any case.
        pods: The id of each inbox's pod, by the inbox's id in lower case.
        pods_by_id: All pods, including empty ones.
        inboxes_in_order: The inboxes in the order of their creation.
        pods_in_order: The pods in the order of their creation.
        threads_in_order: The threads of all inboxes in the order of their newest mails.
        downloads: The offered files by the last segment of their addresses.
        index_delay: The time from the arrival of a mail until it is indexed.
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
        """Create an inbox unless it exists, and move it to a pod if one is given. The pod is created if needed.

        Raises:
            ValueError: An id has a lone surrogate.
        """
        _check_surrogates(inbox_id, pod_id or "")
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
        """Return an inbox, or `None` if it does not exist."""
        return self.inboxes.get(inbox_id.lower())

    def delete_inbox(self, inbox: Inbox, now: datetime) -> None:
        """Delete an inbox with its mail."""
        for mail in list(inbox.kept):
            self.delete(mail, now)
        name = inbox.inbox_id.lower()
        self.inboxes_in_order.remove(self._inbox_keys.pop(name))
        del self.inboxes[name], self.pods[name]

    def add_pod(self, pod_id: str, now: datetime, name: str | None = None, client_id: str | None = None) -> Pod:
        """Create a pod, unless it exists."""
        pod = self.pods_by_id.get(pod_id)
        if pod is None:
            pod = Pod(pod_id=pod_id, name=name or pod_id, client_id=client_id, created_at=now)
            self.pods_by_id[pod_id] = pod
            self._pod_keys[pod_id] = sort_key(now, next(self._numbers))
            self.pods_in_order.add(self._pod_keys[pod_id], pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        """Delete a pod that has no inbox."""
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
        contents: Mapping[str, bytes] = NO_CONTENTS,
        raw: bytes | None = None,
    ) -> Mail:
        """Add a mail that is not indexed yet. It replaces a mail of the same inbox with the same Message-ID.

        If the inbox has sent the mail that is replaced, both are one mail, sent and received, which has the labels of
        both. Only the labels of an earlier arrival are dropped.

        `Mail` describes the arguments.

        Raises:
            ValueError: The thread is in another inbox, or an id or a label has a lone surrogate.
        """
        _check_surrogates(message.inbox_id, message.message_id, message.thread_id or "", *message.labels)
        if (known := self.inbox(message.inbox_id)) is not None:
            message = attrs.evolve(message, inbox_id=known.inbox_id)
        assert message.thread_id is not None
        thread = self._threads.get(message.thread_id)
        if thread is None:
            thread = Thread(message.inbox_id, message.thread_id)
        elif thread.inbox_id != message.inbox_id:
            raise ValueError(f"the thread {thread.thread_id} is in the inbox {thread.inbox_id}, not {message.inbox_id}")
        self._threads[message.thread_id] = thread
        thread.kept += 1  # before the old mail is deleted, which would delete the thread if it was the last one
        if (old := self.mail(message.inbox_id, message.message_id)) is not None:
            self.delete(old, now)
            if "sent" in (*old.labels, *message.labels):
                # The mail arrives again; or the inbox has sent it itself, so that Agent Armor no longer holds it.
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
        """Put mail into the listings and into its thread if the index delay has passed."""
        while self._not_indexed and self._not_indexed[0].arrival <= now - self.index_delay:
            mail = self._not_indexed.popleft()
            self._inbox_of(mail).mails.add(mail.key, mail)
            with self._changing(mail) as thread:
                thread.add(mail, now)

    def replace(self, mail: Mail, message: Message, now: datetime) -> None:
        """Change a mail, but not its ids or its `timestamp`, so that it keeps its place in the listings.

        Raises:
            ValueError: A label has a lone surrogate.
        """
        _check_surrogates(*message.labels)
        if mail in self._not_indexed:
            mail.replace(message)
        else:
            self._thread_of(mail).replace(mail, message, now)

    def delete(self, mail: Mail, now: datetime) -> None:
        """Delete a mail, and its thread if that was its last mail."""
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
        """Return a mail, indexed or not, or `None` if it does not exist."""
        inbox = self.inbox(inbox_id)
        return None if inbox is None else inbox.by_id.get(message_id)

    def thread(self, thread_id: str) -> Thread | None:
        """Return the indexed part of a thread, or `None` if it has none."""
        thread = self._threads.get(thread_id)
        return thread if thread is not None and len(thread.mails) else None

    def thread_in_event(self, message: Message) -> ThreadItem | None:
        """Return the thread that the event of a received message describes.

        The event goes to clients with different permissions. So the thread leaves out mail that requires a permission,
        unless the message requires it as well.
        """
        assert message.thread_id is not None
        thread = self.thread(message.thread_id)
        view = None if thread is None else thread.view(frozenset(PERMISSION_TO_READ) - frozenset(message.labels))
        return view.state() if view is not None and len(view.mails) else None

    def mails(self, inbox_id: str) -> list[Mail]:
        """Return the mails of an inbox, indexed or not, in the order of their timestamps."""
        inbox = self.inbox(inbox_id)
        return [] if inbox is None else list(inbox.kept)

    def thread_with(self, inbox_id: str, message_ids: Iterable[str]) -> str | None:
        """Return the thread in an inbox to which a mail belongs, or `None` if it begins a new one.

        It is the thread of the first of these Message-IDs that the inbox knows. As in mail programs ("message
        threading" by Jamie Zawinski), the mail with that id need not be in the inbox: it may have been deleted, or a
        reply to it may have come first. Unlike there, two threads are never merged, because clients have their ids.

        Args:
            message_ids: The ids of the mails that the mail replies to, the nearest first.
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
        """Take the thread of a mail out of the listings for the block, and put it back in its new place."""
        thread = self._thread_of(mail)
        orders = self.threads_in_order, self._inbox_of(mail).threads
        if len(thread.mails):
            for order in orders:
                order.remove(thread.key)
        yield thread
        if len(thread.mails):
            for order in orders:
                order.add(thread.key, thread)


def _check_surrogates(*names: str) -> None:
    """Raise a `ValueError` for a lone surrogate. Texts may have one, but ids and labels may not."""
    for name in names:
        if has_lone_surrogate(name):
            raise ValueError(f"an id or label has a lone surrogate: {name!r}")


def _remember(inbox: Inbox, message: Message, thread: Thread) -> None:
    """Remember the thread for the Message-ID of a message and for those that it refers to."""
    message_ids = {message.message_id, *answered_ids(message.in_reply_to, message.references)}
    for message_id in message_ids:
        inbox.threads_by_message_id.setdefault(message_id, thread)
    inbox.threads_by_message_id[message.message_id] = thread
    thread.message_ids |= message_ids


def _forget(inbox: Inbox, thread: Thread) -> None:
    """Forget a thread that has been deleted."""
    for message_id in thread.message_ids:
        if inbox.threads_by_message_id.get(message_id) is thread:
            del inbox.threads_by_message_id[message_id]
