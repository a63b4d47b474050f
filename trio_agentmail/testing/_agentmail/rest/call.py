"""`Call`: one call of the REST API, with the permissions of its key and the objects that it names."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import attrs
import orjson

from trio_agentmail._codec import parse_object
from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.mail.directory import Inbox, Pod
from trio_agentmail.testing._agentmail.mail.mail import Mail
from trio_agentmail.testing._agentmail.mail.store import MailStore
from trio_agentmail.testing._agentmail.permissions import hidden_labels
from trio_agentmail.testing._agentmail.refusals import Refusal, forbidden, not_found

from .exchange import RestRequest
from .idempotency import SentOnce
from .listing import Query

__all__ = ["Answer", "Call", "listing"]

Answer: TypeAlias = dict[str, Any] | orjson.Fragment | None
"""The value that orjson encodes as the body, or `None` for a 204 without a body."""


@attrs.frozen(kw_only=True)
class Call:
    """A request, and the state that is needed to answer it.

    Attributes:
        sent: The answers to sends with an idempotency key.
        params: The parameters of the query.
        permissions: The permissions of the key; `None` means all.
        events: The events that the call has caused so far.
    """

    request: RestRequest
    store: MailStore
    sent: SentOnce
    permissions: Collection[str] | None
    now: datetime
    events: list[Event] = attrs.field(factory=list)
    params: dict[str, list[str]] = attrs.field(init=False)

    @params.default
    def _parse_query(self) -> dict[str, list[str]]:
        return parse_qs(self.request.query, keep_blank_values=True)

    def body(self, *, with_nulls: bool = False) -> dict[str, Any]:
        """Return the JSON object in the body. For an empty body, return an empty object.

        Args:
            with_nulls: Whether to include fields that are null.

        Raises:
            Refusal: The body is not a JSON object.
        """
        # The official SDK sends null when an optional body is not given.
        content = self.request.body.strip()
        body = {} if content in (b"", b"null") else parse_object(content)
        if body is None:
            raise Refusal(400, "validation_error", "the body is not a JSON object", errors=[])
        return {name: value for name, value in body.items() if with_nulls or value is not None}

    def require(self, permission: str) -> None:
        """Raise a `Refusal` unless the key has a permission."""
        if self.permissions is not None and permission not in self.permissions:
            raise forbidden(permission)

    def pod(self, pod_id: str) -> Pod:
        """Return a pod, or raise a `Refusal` if it does not exist."""
        pod = self.store.directory.pods.get(pod_id)
        if pod is None:
            raise not_found()
        return pod

    def inbox(self, inbox_id: str, pod: Pod | None = None) -> Inbox:
        """Return an inbox, or raise a `Refusal` if it does not exist or is not in the given pod."""
        inbox = self.store.directory.inbox(inbox_id)
        if inbox is None or (pod is not None and inbox.pod_id != pod.pod_id):
            raise not_found()
        return inbox

    def mail(self, inbox: Inbox, message_id: str) -> Mail:
        """Return a mail, or raise a `Refusal` if it does not exist or the key may not see it."""
        mail = self.store.mail(inbox.inbox_id, message_id)
        if mail is None or not self.may_see(mail):
            raise not_found()
        return mail

    def may_see(self, mail: Mail) -> bool:
        """Return whether the key may see a mail."""
        return hidden_labels(self.permissions).isdisjoint(mail.labels)


def listing(name: str, items: Sequence[Any], query: Query, token: str | None) -> dict[str, Any]:
    """Return the answer for a page of a listing.

    Args:
        name: The field that contains the items.
        token: The token of the next page, or `None`.
    """
    more = {} if token is None else {"next_page_token": token}
    return {"count": len(items), "limit": query.limit, **more, name: items}
