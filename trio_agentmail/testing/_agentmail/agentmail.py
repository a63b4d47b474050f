"""`AgentMail`: an organization at AgentMail, with its mail and the REST API.

This module is longer than others because most of it is signatures and docstrings.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any

import attrs

from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Message, MessageReceivedEvent, MessageSentEvent

from .checks import check_name, check_text, check_texts
from .keys import KeyRing
from .mail.attachments import AttachedFile, attach, check_files
from .mail.events import (
    HELD,
    SENDER,
    SUBJECT,
    TEXT,
    hold,
    new_id,
    new_message,
    override_event,
    received_event,
    received_labels,
    released,
    review_event,
)
from .mail.mail import Mail
from .mail.rfc5322 import ParsedMail, parse_mail
from .mail.sending import send_message
from .mail.store import MailStore
from .outcome import Outcome
from .rest.api import RestApi
from .rest.exchange import RestRequest, RestResponse
from .subscriptions import mismatch

__all__ = ["AgentMail"]


class AgentMail:
    """An organization at AgentMail: its inboxes, pods, threads and mail, its API keys, and the REST API.

    Every operation takes the present time as `now`, an aware datetime in whole milliseconds. The public methods of the
    same names, like `FakeAgentMail.deliver`, document the arguments and the exceptions.

    Args:
        keys: The API keys. By default, every key is known and has all permissions.
        now: The time when the organization was created.

    Attributes:
        keys: The API keys.
        store: The mail.
    """

    def __init__(self, *, keys: KeyRing | None = None, now: datetime) -> None:
        self.keys = KeyRing() if keys is None else keys
        self.store = MailStore(now)
        self._rest = RestApi(self.store, self.keys)

    # Inboxes and pods

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None, now: datetime) -> None:
        """Create an inbox, or move an existing one to another pod.

        Args:
            pod_id: The pod. If it is `None`, a new inbox is in the pod `default`, and an existing one is not moved.
        """
        check_name("inbox_id", inbox_id)
        check_text("pod_id", pod_id)
        self.store.directory.add_inbox(inbox_id, now, pod_id)

    def add_pod(self, pod_id: str, *, now: datetime) -> None:
        """Create a pod, unless it exists."""
        self.store.directory.add_pod(pod_id, now)

    def know(self, subscribe: Subscribe, *, now: datetime) -> None:
        """Create the inboxes and pods that a subscription names, so that a test need not create them."""
        for inbox_id in subscribe.inbox_ids or ():
            self.store.directory.add_inbox(inbox_id, now)
        for pod_id in subscribe.pod_ids or ():
            self.store.directory.add_pod(pod_id, now)

    def inboxes(self) -> tuple[str, ...]:
        """Return the ids of all inboxes, in the order of their creation."""
        return tuple(inbox.inbox_id for inbox in self.store.directory.inboxes.values())

    # Mail

    def deliver(
        self,
        *,
        inbox_id: str,
        from_: str = SENDER,
        subject: str | None = SUBJECT,
        text: str | None = TEXT,
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        event_type: str = "message.received",
        message_id: str | None = None,
        thread_id: str | None = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        attachments: Sequence[AttachedFile] = (),
        held: bool = False,
        body_in_push: bool = True,
        now: datetime,
    ) -> Outcome[MessageReceivedEvent]:
        """Receive a mail.

        The value of the outcome is the event that announces the mail. The only event to push is the same one or, if the
        mail is held, a `message.security.review`.
        """
        check_name("inbox_id", inbox_id)
        attached, contents = attach(check_files(attachments))
        event = received_event(
            inbox_id=inbox_id,
            from_=from_,
            subject=subject,
            text=text,
            html=html,
            to=to,
            event_type=event_type,
            message_id=message_id,
            thread_id=thread_id or self.store.thread_with(inbox_id, _known(message_id)),
            event_id=event_id,
            timestamp=timestamp,
            attachments=attached,
            held=held,
            now=now,
        )
        mail = self.store.add(
            event.message,
            now,
            event_type=event_type,
            event_id=event.event_id or "",
            body_in_push=body_in_push,
            contents=contents,
        )
        return self._announce(mail, now)

    def deliver_raw(
        self,
        mail: EmailMessage | bytes,
        *,
        inbox_id: str | None = None,
        event_type: str = "message.received",
        held: bool = False,
        body_in_push: bool = True,
        now: datetime,
    ) -> Outcome[tuple[MessageReceivedEvent, ...]]:
        """Receive a mail in the format of RFC 5322, in one inbox or in all inboxes to which it is addressed.

        The value of the outcome is the event that announces the mail in each inbox. The events are as for `deliver`.
        """
        if inbox_id is not None:
            check_name("inbox_id", inbox_id)
        parsed = parse_mail(mail)
        inboxes = self._addressed(parsed) if inbox_id is None else [inbox_id]
        outcomes = [self._receive(inbox, parsed, event_type, held, body_in_push, now) for inbox in inboxes]
        return Outcome(
            tuple(outcome.value for outcome in outcomes),
            tuple(event for outcome in outcomes for event in outcome.events),
        )

    def send(
        self,
        *,
        inbox_id: str,
        to: str | Sequence[str] = SENDER,
        subject: str | None = "Re: Hello",
        text: str | None = "Hello, Jane!",
        html: str | None = None,
        message_id: str | None = None,
        thread_id: str | None = None,
        timestamp: datetime | None = None,
        attachments: Sequence[AttachedFile] = (),
        now: datetime,
    ) -> Outcome[MessageSentEvent]:
        """Send a message from an inbox. The value of the outcome is the `message.sent`, which is the first event."""
        attached, contents = attach(check_files(attachments))
        message = new_message(
            inbox_id=inbox_id,
            from_=inbox_id,
            to=to,
            subject=subject,
            text=text,
            html=html,
            labels=("sent",),
            message_id=message_id,
            thread_id=thread_id or self.store.thread_with(inbox_id, _known(message_id)),
            timestamp=timestamp,
            attachments=attached,
            now=now,
        )
        return send_message(self.store, message, now, contents=contents)

    def release(self, inbox_id: str, message_id: str, *, now: datetime) -> Outcome[MessageReceivedEvent]:
        """Release a held mail. The value of the outcome is the event that announces it. The override event follows."""
        mail = self._mail(inbox_id, message_id)
        if HELD not in mail.labels:
            raise ValueError(f"the mail {message_id} in the inbox {inbox_id} is not held")
        self.store.replace(mail, released(mail.message, now), now)
        announcement = self._announcement(mail)
        return Outcome(announcement, (announcement, override_event(mail.message)))

    def label(
        self, inbox_id: str, message_id: str, *, add: Collection[str] = (), remove: Collection[str] = (), now: datetime
    ) -> tuple[str, ...]:
        """Change the labels of a mail, and return its new labels, in lower case. This causes no event."""
        check_texts("add", add)
        check_texts("remove", remove)
        mail = self._mail(inbox_id, message_id)
        removed = {label.lower() for label in remove}
        # AgentMail converts labels to lower case.
        all_labels = dict.fromkeys((*mail.labels, *(label.lower() for label in add)))
        labels = tuple(label for label in all_labels if label not in removed)
        self.store.replace(mail, attrs.evolve(mail.message, labels=labels, updated_at=now), now)
        return labels

    def delete(self, inbox_id: str, message_id: str, *, now: datetime) -> None:
        """Delete a mail. This causes no event."""
        self.store.delete(self._mail(inbox_id, message_id), now)

    def messages(self, inbox_id: str, *labels: str) -> tuple[Message, ...]:
        """Return the mails of an inbox that have all of these labels, the newest last, indexed or not."""
        wanted = frozenset(labels)
        return tuple(mail.message for mail in self.store.mails(inbox_id) if wanted.issubset(mail.labels))

    def message(self, inbox_id: str, message_id: str) -> Message | None:
        """Return a mail, or `None` if it does not exist."""
        mail = self.store.mail(inbox_id, message_id)
        return None if mail is None else mail.message

    def index_after(self, seconds: float) -> None:
        """Set the time from the arrival of a mail until it appears in listings and in its thread."""
        self.store.index_delay = timedelta(seconds=seconds)

    # Pushes and requests

    def mismatch(self, subscribe: Subscribe | None, frame: Any, permissions: Collection[str] | None) -> str | None:
        """Return why an event is not pushed to a subscription, or `None` if it is.

        Args:
            subscribe: The subscription, or `None` if the connection has none yet.
            frame: The frame, parsed from JSON.
            permissions: The permissions that the key had when it subscribed; `None` means all.
        """
        return mismatch(subscribe, frame, self.store.directory.inboxes, permissions)

    def answer(self, request: RestRequest, *, now: datetime) -> RestResponse:
        """Answer a request to the REST API, or for a download."""
        self.store.index(now)
        return self._rest.answer(request, now)

    def _addressed(self, mail: ParsedMail) -> list[str]:
        inboxes = [inbox.inbox_id for name, inbox in self.store.directory.inboxes.items() if name in mail.recipients]
        if not inboxes:
            recipients = ", ".join(mail.recipients) or "nobody"
            raise ValueError(
                f"the mail is addressed to {recipients}, and the inboxes here are: "
                f"{', '.join(self.inboxes()) or 'none'}. Add the inbox first, or give the inbox_id"
            )
        return inboxes

    def _receive(
        self, inbox_id: str, mail: ParsedMail, event_type: str, held: bool, body_in_push: bool, now: datetime
    ) -> Outcome[MessageReceivedEvent]:
        message = mail.message(
            inbox_id=inbox_id,
            thread_id=self.store.thread_with(inbox_id, (*_known(mail.message_id), *mail.answers)) or new_id(),
            labels=received_labels(event_type),
            now=now,
        )
        stored = self.store.add(
            hold(message) if held else message,
            now,
            event_type=event_type,
            event_id=new_id(),
            body_in_push=body_in_push,
            raw=mail.raw,
            contents=mail.contents,
        )
        return self._announce(stored, now)

    def _announce(self, mail: Mail, now: datetime) -> Outcome[MessageReceivedEvent]:
        self.store.index(now)
        announcement = self._announcement(mail)
        return Outcome(announcement, (review_event(mail.message) if HELD in mail.labels else announcement,))

    def _announcement(self, mail: Mail) -> MessageReceivedEvent:
        message = mail.message
        if not mail.body_in_push:
            message = attrs.evolve(message, text=None, html=None, extracted_text=None, extracted_html=None)
        return MessageReceivedEvent(
            event_type=mail.event_type,
            event_id=mail.event_id,
            message=message,
            thread=self.store.thread_in_event(message),
        )

    def _mail(self, inbox_id: str, message_id: str) -> Mail:
        mail = self.store.mail(inbox_id, message_id)
        if mail is None:
            raise KeyError(f"there is no mail {message_id} in the inbox {inbox_id}")
        return mail


def _known(message_id: str | None) -> tuple[str, ...]:
    return () if message_id is None else (message_id,)
