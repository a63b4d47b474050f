"""The mail of an organization: messages and threads, in the order of their listings.

A test may deliver tens of thousands of mails and list them after each of hundreds of faults. Encoding every item of
every listing, or recomputing a thread from all of its mails, would take too long. So the JSON of an item is kept until
the item changes, and a thread is updated incrementally when a mail is added or removed.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from types import MappingProxyType

import attrs

from trio_agentmail.events import Attachment, Message, ThreadItem
from trio_agentmail.testing._agentmail.permissions import PERMISSION_TO_READ

from .directory import Directory, Inbox, check_surrogates
from .events import ARRIVAL_LABELS, HELD
from .expiring import Expiring
from .mail import Mail, Thread
from .ordered import Ordered

__all__ = ["NO_CONTENTS", "Download", "MailStore"]

NO_CONTENTS: Mapping[str, bytes] = MappingProxyType({})


@attrs.frozen
class Download:
    """A file that is offered for download.

    Attributes:
        attachment: The attachment of the mail, or `None` for the mail itself.
    """

    mail: Mail
    attachment: Attachment | None = None


class MailStore:
    """The mail of an organization.

    A mail can be found by its id immediately. It appears in the listings and in its thread when `index` indexes it.

    Args:
        now: The time at which the organization is created.

    Attributes:
        directory: The inboxes and pods.
        threads_in_order: The threads of all inboxes in the order of their newest mails.
        downloads: The files that are offered for download, by the last segment of their URLs.
        index_delay: The time from the arrival of a mail until it is indexed.
    """

    def __init__(self, now: datetime) -> None:
        self.directory = Directory(now)
        self.threads_in_order: Ordered[Thread] = Ordered()
        self.downloads: Expiring[Download] = Expiring(timedelta(hours=1))
        self.index_delay = timedelta()
        self._threads: dict[str, Thread] = {}
        self._not_indexed: deque[Mail] = deque()
        self._numbers = count()

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
        """Add a mail that is not indexed yet. It replaces a mail in the same inbox with the same Message-ID.

        If the inbox has sent the mail or the replaced one, both are one mail, sent and received, with the labels of
        both. Only the labels of an earlier arrival are dropped.

        See `Mail` for the arguments.

        Raises:
            ValueError: The thread is in another inbox, or an id or a label has a lone surrogate.
        """
        check_surrogates(message.inbox_id, message.message_id, message.thread_id or "", *message.labels)
        if (known := self.directory.inbox(message.inbox_id)) is not None:
            message = attrs.evolve(message, inbox_id=known.inbox_id)
        assert message.thread_id is not None
        thread = self._threads.get(message.thread_id)
        if thread is None:
            thread = Thread(message.inbox_id, message.thread_id)
        elif thread.inbox_id != message.inbox_id:
            raise ValueError(f"the thread {thread.thread_id} is in the inbox {thread.inbox_id}, not {message.inbox_id}")
        self._threads[message.thread_id] = thread
        thread.kept += 1  # before the old mail is deleted, since deleting the last mail would delete the thread
        if (old := self.mail(message.inbox_id, message.message_id)) is not None:
            self.delete(old, now)
            if "sent" in (*old.labels, *message.labels):
                # Either the mail arrives again, or the inbox has sent it, so that Agent Armor no longer holds it.
                past = ARRIVAL_LABELS if "received" in message.labels else {HELD}
                labels = (*(label for label in old.labels if label not in past), *message.labels)
                message = attrs.evolve(message, labels=tuple(dict.fromkeys(labels)))
        inbox = self.directory.add_inbox(message.inbox_id, now)
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
        inbox.remember(message, thread)
        self._not_indexed.append(mail)
        return mail

    def index(self, now: datetime) -> None:
        """Add mails to the listings and to their threads if the index delay has passed."""
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
        check_surrogates(*message.labels)
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
            inbox.forget(thread)

    def delete_inbox(self, inbox: Inbox, now: datetime) -> None:
        """Delete an inbox with its mail."""
        for mail in list(inbox.kept):
            self.delete(mail, now)
        self.directory.delete_inbox(inbox)

    def mail(self, inbox_id: str, message_id: str) -> Mail | None:
        """Return a mail, indexed or not, or `None` if it does not exist."""
        inbox = self.directory.inbox(inbox_id)
        return None if inbox is None else inbox.by_id.get(message_id)

    def thread(self, thread_id: str) -> Thread | None:
        """Return a thread, or `None` if it has no indexed mail."""
        thread = self._threads.get(thread_id)
        return thread if thread is not None and len(thread.mails) else None

    def thread_in_event(self, message: Message) -> ThreadItem | None:
        """Return the description of the thread in the event of a received message.

        The event goes to clients with different permissions. So the description leaves out mail that requires a
        permission, unless the message itself requires it.
        """
        assert message.thread_id is not None
        thread = self.thread(message.thread_id)
        view = None if thread is None else thread.view(frozenset(PERMISSION_TO_READ) - frozenset(message.labels))
        return view.state() if view is not None and len(view.mails) else None

    def mails(self, inbox_id: str) -> list[Mail]:
        """Return the mails of an inbox, indexed or not, in the order of their timestamps."""
        inbox = self.directory.inbox(inbox_id)
        return [] if inbox is None else list(inbox.kept)

    def thread_with(self, inbox_id: str, message_ids: Iterable[str]) -> str | None:
        """Return the id of the thread in an inbox to which a mail belongs; see `Inbox.thread_with`."""
        inbox = self.directory.inbox(inbox_id)
        return None if inbox is None else inbox.thread_with(message_ids)

    def _inbox_of(self, mail: Mail) -> Inbox:
        return self.directory.inboxes[mail.message.inbox_id.lower()]

    def _thread_of(self, mail: Mail) -> Thread:
        assert mail.message.thread_id is not None
        return self._threads[mail.message.thread_id]

    @contextmanager
    def _changing(self, mail: Mail) -> Iterator[Thread]:
        """Remove the thread of a mail from the listings for the block, and add it again at its new position."""
        thread = self._thread_of(mail)
        orders = self.threads_in_order, self._inbox_of(mail).threads
        if len(thread.mails):
            for order in orders:
                order.remove(thread.key)
        yield thread
        if len(thread.mails):
            for order in orders:
                order.add(thread.key, thread)
