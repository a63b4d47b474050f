"""The pods and inboxes of an organization, in the order of their creation."""

from collections.abc import Iterable
from datetime import datetime
from itertools import count
from typing import Any

import attrs

from trio_agentmail.events import Message
from trio_agentmail.testing._agentmail.checks import has_lone_surrogate

from .events import answered_ids
from .mail import Mail, Thread
from .ordered import Key, Ordered, sort_key

__all__ = ["DEFAULT_POD", "Directory", "Inbox", "Pod", "check_surrogates"]

DEFAULT_POD = "default"
"""The pod of an inbox that is created without a pod."""


@attrs.define(eq=False, kw_only=True)
class Pod:
    """A group of inboxes in the organization.

    Attributes:
        client_id: The id that the client chose when it created the pod.
        key: The position of the pod in the listing.
    """

    pod_id: str
    name: str
    created_at: datetime
    client_id: str | None = None
    key: Key


@attrs.define(eq=False, kw_only=True)
class Inbox:
    """An inbox. Its id is its address, so case does not matter.

    Attributes:
        inbox_id: The id, in the case in which the inbox was created.
        client_id: The id that the client chose when it created the inbox.
        metadata: Strings, numbers and booleans by name.
        key: The position of the inbox in the listing.
        by_id: All mails in the inbox, by their Message-IDs.
        kept: All mails in the inbox, in the order of their timestamps.
        mails: The mails that are in the listings.
        threads: The threads that are in the listings.
    """

    inbox_id: str
    pod_id: str
    created_at: datetime
    updated_at: datetime
    display_name: str | None = None
    client_id: str | None = None
    metadata: dict[str, Any] = attrs.field(factory=dict)
    key: Key
    by_id: dict[str, Mail] = attrs.field(factory=dict)
    kept: Ordered[Mail] = attrs.field(factory=Ordered)
    mails: Ordered[Mail] = attrs.field(factory=Ordered)
    threads: Ordered[Thread] = attrs.field(factory=Ordered)
    _threads_by_message_id: dict[str, Thread] = attrs.field(factory=dict)

    def thread_with(self, message_ids: Iterable[str]) -> str | None:
        """Return the id of the thread to which a mail belongs, or `None` if it begins a new one.

        It is the thread of the first of these Message-IDs that the inbox knows. As in mail programs ("message
        threading" by Jamie Zawinski), the mail with that id need not be in the inbox. It may have been deleted, or a
        reply to it may have come first. Unlike in mail programs, two threads are never merged, because clients use the
        ids of threads.

        Args:
            message_ids: The ids of the mails that the mail replies to, the nearest first.
        """
        threads = map(self._threads_by_message_id.get, message_ids)
        return next((thread.thread_id for thread in threads if thread is not None), None)

    def remember(self, message: Message, thread: Thread) -> None:
        """Remember the thread of a message, by its Message-ID and the Message-IDs to which it refers."""
        message_ids = {message.message_id, *answered_ids(message.in_reply_to, message.references)}
        for message_id in message_ids:
            self._threads_by_message_id.setdefault(message_id, thread)
        self._threads_by_message_id[message.message_id] = thread
        thread.message_ids |= message_ids

    def forget(self, thread: Thread) -> None:
        """Forget a thread that has been deleted."""
        for message_id in thread.message_ids:
            if self._threads_by_message_id.get(message_id) is thread:
                del self._threads_by_message_id[message_id]


class Directory:
    """The pods and inboxes of an organization.

    Args:
        now: The time at which the default pod is created.

    Attributes:
        inboxes: The inboxes by their ids in lower case. `inbox` finds one by its id in any case.
        pods: The pods by their ids.
        inboxes_in_order: The inboxes in the order of their creation.
        pods_in_order: The pods in the order of their creation.
    """

    def __init__(self, now: datetime) -> None:
        self.inboxes: dict[str, Inbox] = {}
        self.pods: dict[str, Pod] = {}
        self.inboxes_in_order: Ordered[Inbox] = Ordered()
        self.pods_in_order: Ordered[Pod] = Ordered()
        self._numbers = count()
        self.add_pod(DEFAULT_POD, now)

    def inbox(self, inbox_id: str) -> Inbox | None:
        """Return an inbox, or `None` if it does not exist."""
        return self.inboxes.get(inbox_id.lower())

    def add_inbox(self, inbox_id: str, now: datetime, pod_id: str | None = None) -> Inbox:
        """Create an inbox unless it exists, and move it to a pod if one is given. The pod is created if needed.

        Raises:
            ValueError: An id has a lone surrogate.
        """
        check_surrogates(inbox_id, pod_id or "")
        inbox = self.inbox(inbox_id)
        if inbox is None:
            key = sort_key(now, next(self._numbers))
            inbox = Inbox(inbox_id=inbox_id, pod_id=DEFAULT_POD, created_at=now, updated_at=now, key=key)
            self.inboxes[inbox_id.lower()] = inbox
            self.inboxes_in_order.add(key, inbox)
        inbox.pod_id = pod_id or inbox.pod_id
        self.add_pod(inbox.pod_id, now)
        return inbox

    def delete_inbox(self, inbox: Inbox) -> None:
        """Delete an inbox that has no mail."""
        self.inboxes_in_order.remove(inbox.key)
        del self.inboxes[inbox.inbox_id.lower()]

    def add_pod(self, pod_id: str, now: datetime, name: str | None = None, client_id: str | None = None) -> Pod:
        """Create a pod, unless it exists."""
        pod = self.pods.get(pod_id)
        if pod is None:
            key = sort_key(now, next(self._numbers))
            pod = Pod(pod_id=pod_id, name=name or pod_id, client_id=client_id, created_at=now, key=key)
            self.pods[pod_id] = pod
            self.pods_in_order.add(key, pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        """Delete a pod that has no inbox."""
        del self.pods[pod.pod_id]
        self.pods_in_order.remove(pod.key)


def check_surrogates(*names: str) -> None:
    """Raise a `ValueError` for a lone surrogate. Texts may have one, but ids and labels may not."""
    for name in names:
        if has_lone_surrogate(name):
            raise ValueError(f"an id or label has a lone surrogate: {name!r}")
