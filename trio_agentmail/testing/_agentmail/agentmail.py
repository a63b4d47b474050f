"""`AgentMail`: everything that happens to mail, and the REST API."""

from collections.abc import Collection, Sequence
from datetime import datetime
from email.message import EmailMessage
from typing import Any

import attrs

from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Message, MessageReceivedEvent, MessageSentEvent
from trio_agentmail.testing._mail.attachments import AttachedFile
from trio_agentmail.testing._mail.events import SENDER, SUBJECT, TEXT
from trio_agentmail.testing._permissions import ApiKeys
from trio_agentmail.testing._rest.errors import Refusal

from .outcome import Outcome

__all__ = ["AgentMail", "KeyRing", "RestRequest", "RestResponse"]


@attrs.define
class KeyRing:  # in keys.py
    """The API keys that AgentMail knows, and the permissions of each. Both attributes are checked when they are set.

    Attributes:
        api_keys: The known keys; `None`: any key is accepted. A mapping gives the permissions of each key.
        permissions: The permissions of keys that have none of their own; `None`: all permissions.
    """

    api_keys: ApiKeys = None
    permissions: Collection[str] | None = None

    def permissions_of(self, key: str) -> Collection[str] | None:
        """Return the permissions of a key, or `None` if it has all of them."""
        raise NotImplementedError

    def refusal(self, key: str) -> Refusal | None:
        """Return the 401 for a missing (`""`) or unknown key, or `None` if the key is known."""
        raise NotImplementedError

    def websocket_refusal(self, key: str) -> Refusal | None:
        """Return the 401 or 403 with which a handshake is rejected, or `None` if the key may open a WebSocket.

        A key without any permission gets a 403.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class RestRequest:  # in rest/messages_of_http.py or the like
    """A request to the REST API.

    Attributes:
        origin: Scheme, host and port that the client used, like `https://api.agentmail.to`. Download addresses begin
            with it.
        raw_path: The path as it was sent, with its percent-encoding and without the query.
        query: The query as it was sent; `""` if there was none.
        headers: The headers by their names in lower case. Not in the repr: the API key is in them.
        body: The body. Not in the repr.
    """

    method: str
    origin: str
    raw_path: str
    query: str = ""
    headers: dict[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(kw_only=True)
class RestResponse:
    """The response to a request. The response to a HEAD has the body of the GET; the wire leaves it out.

    Attributes:
        events: The events that the request has caused, in the order in which AgentMail pushes them.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    events: tuple[Any, ...] = ()


class AgentMail:
    """Mail, inboxes, pods, threads, permissions, and the REST API.

    `now` is the present time: aware, with milliseconds at most.

    Args:
        now: The time at which the organization was created.

    Attributes:
        keys: The API keys and their permissions.
        index_delay: Seconds from the arrival of a mail until it appears in listings and in its thread.
    """

    def __init__(self, *, now: datetime) -> None:
        self.keys = KeyRing()
        self.index_delay = 0.0

    # Inboxes and pods

    def add_inbox(self, inbox_id: str, *, pod_id: str | None = None, now: datetime) -> None:
        """Create an inbox, or move one to another pod. `pod_id=None`: a new inbox is in the pod `default`."""
        raise NotImplementedError

    def add_pod(self, pod_id: str, *, now: datetime) -> None:
        """Create a pod, unless it exists."""
        raise NotImplementedError

    def know(self, subscribe: Subscribe, *, now: datetime) -> None:
        """Create the inboxes and pods that a subscription names, so that a test need not."""
        raise NotImplementedError

    def inboxes(self) -> tuple[str, ...]:
        """Return the ids of all inboxes, in the order of their creation."""
        raise NotImplementedError

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
        """Receive a mail. `FakeAgentMail.deliver` describes the arguments.

        The value is the announcement; the events are this one or, if the mail is held, a `message.security.review`.
        """
        raise NotImplementedError

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
        """Receive a mail as RFC 5322 has it, in one inbox or in all that it is addressed to."""
        raise NotImplementedError

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
        """Send a mail from an inbox. The value is the `message.sent`, which is the first of the events."""
        raise NotImplementedError

    def release(self, inbox_id: str, message_id: str, *, now: datetime) -> Outcome[MessageReceivedEvent]:
        """Release a held mail. The events are the announcement, which is the value, and the override."""
        raise NotImplementedError

    def label(
        self,
        inbox_id: str,
        message_id: str,
        *,
        add: Collection[str] = (),
        remove: Collection[str] = (),
        now: datetime,
    ) -> tuple[str, ...]:
        """Change the labels of a mail and return them. This causes no event."""
        raise NotImplementedError

    def delete(self, inbox_id: str, message_id: str, *, now: datetime) -> None:
        """Delete a mail. This causes no event."""
        raise NotImplementedError

    def messages(self, inbox_id: str, *labels: str) -> tuple[Message, ...]:
        """Return the mails of an inbox that have all of these labels, the newest last, whether indexed or hidden."""
        raise NotImplementedError

    def message(self, inbox_id: str, message_id: str) -> Message | None:
        """Return a mail, or `None` if it does not exist."""
        raise NotImplementedError

    # Pushes

    def mismatch(self, subscribe: Subscribe | None, frame: Any, permissions: Collection[str] | None) -> str | None:
        """Return why an event is not pushed to a connection, or `None` if it is.

        Today's `_fake_subscriptions.mismatch`, without `pods`. Whether a subscription may be made is a function in
        `subscriptions.py`: `missing_permission(subscribe, permissions) -> str | None`.
        """
        raise NotImplementedError

    # REST

    def answer(self, request: RestRequest, *, now: datetime) -> RestResponse:
        """Answer a request to the REST API, including downloads, keys and HEAD."""
        raise NotImplementedError
