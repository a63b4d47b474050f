"""Reading and changing the mail of a fake."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TypeVar

import trio

from trio_agentmail.events import Message, MessageReceivedEvent, MessageSentEvent

from ._agentmail.agentmail import AgentMail
from ._agentmail.mail.attachments import AttachedFile
from ._agentmail.mail.events import SENDER
from ._agentmail.outcome import Outcome
from ._checks import check_seconds
from ._clock import FakeClock
from ._log import Log
from ._wire.connections import Connections

__all__ = ["Mailboxes", "push"]

T = TypeVar("T")


async def push(outcome: Outcome[T], connections: Connections) -> T:
    """Push the events of an operation, and return its result."""
    for event in outcome.events:
        connections.push_event(event)
        await trio.lowlevel.checkpoint()
    return outcome.value


class Mailboxes:
    """The inboxes of a `FakeAgentMail` and the mail in them."""

    def __init__(self, agentmail: AgentMail, connections: Connections, log: Log, clock: FakeClock) -> None:
        self._agentmail = agentmail
        self._connections = connections
        self._log = log
        self._clock = clock

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None) -> None:
        """Create an inbox, or move one to another pod.

        `deliver(inbox_id=…)` creates the inbox as well, and so does a subscription that names it.

        Args:
            pod_id: The pod. If it is `None`, a new inbox is in the pod `default`, and an existing one is not moved.
        """
        self._agentmail.add_inbox(inbox_id, pod_id=pod_id, now=self._clock.now())

    def messages(self, inbox_id: str, *labels: str) -> tuple[Message, ...]:
        """Return the messages in an inbox, newest last: complete, and including those that listings leave out.

        Args:
            labels: Only messages with all of these labels, for example `"sent"`.
        """
        return self._agentmail.messages(inbox_id, *labels)

    async def send(
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
    ) -> MessageSentEvent:
        """Send a mail from an inbox, as the REST API does.

        The fake keeps the mail, and pushes `message.sent`. Recipients that are inboxes of the fake receive the mail.
        For other recipients, it counts as delivered, except that it bounces from nonexistent addresses at AgentMail.

        The arguments are those of `FakeAgentMail.deliver`.

        Returns:
            The `message.sent`.
        """
        outcome = self._agentmail.send(
            inbox_id=inbox_id,
            to=to,
            subject=subject,
            text=text,
            html=html,
            message_id=message_id,
            thread_id=thread_id,
            timestamp=timestamp,
            attachments=attachments,
            now=self._clock.now(),
        )
        return await push(outcome, self._connections)

    async def release(self, inbox_id: str, message_id: str) -> MessageReceivedEvent:
        """Release a held mail, as a reviewer does.

        A `message.received` is pushed, with the original times of the mail, and then a `message.security.override`.

        Returns:
            The `message.received` as it was pushed.

        Raises:
            KeyError: There is no such mail.
            ValueError: The mail is not held.
        """
        return await push(self._agentmail.release(inbox_id, message_id, now=self._clock.now()), self._connections)

    async def label(
        self, inbox_id: str, message_id: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> None:
        """Change the labels of a mail. They are kept in lower case. AgentMail has no event for this change.

        Raises:
            KeyError: There is no such mail.
        """
        labels = self._agentmail.label(inbox_id, message_id, add=add, remove=remove, now=self._clock.now())
        self._log.note(f"the mail {message_id} in {inbox_id}: labels {', '.join(labels)}")
        await trio.lowlevel.checkpoint()

    async def delete(self, inbox_id: str, message_id: str) -> None:
        """Delete a mail. AgentMail has no event for this change.

        Raises:
            KeyError: There is no such mail.
        """
        self._agentmail.delete(inbox_id, message_id, now=self._clock.now())
        self._log.note(f"the mail {message_id} in {inbox_id}: deleted")
        await trio.lowlevel.checkpoint()

    def index_after(self, seconds: float | None) -> None:
        """Delay the appearance of mail in listings and in its thread. A request by its id finds it at once.

        Args:
            seconds: The delay after the arrival of a mail, including mail that has already arrived. `None` and 0 mean
                no delay.
        """
        if seconds is not None:
            check_seconds("seconds", seconds)
        self._agentmail.index_after(seconds or 0.0)
