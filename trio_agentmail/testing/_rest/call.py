"""One request to the REST API: what it asks for, by whom, and what the answers have in common."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import attrs
import httpx
import orjson

from trio_agentmail._codec import parse_object
from trio_agentmail.testing._mail.mail import Mail
from trio_agentmail.testing._mail.store import Inbox, MailStore, Pod

from .errors import Refusal, forbidden, not_found
from .listing import Query, hidden_labels
from .post_office import PostOffice

__all__ = ["Answer", "Call", "listing"]

Answer: TypeAlias = dict[str, Any] | orjson.Fragment | None
"""What orjson makes the JSON of. `None`: there is nothing to say, and the status is 204."""


@attrs.frozen(kw_only=True)
class Call:
    """A request, and what is needed to answer it.

    Attributes:
        permissions: What the key may do; `None`: everything.
        now: When it came.
    """

    request: httpx.Request
    store: MailStore
    post_office: PostOffice
    permissions: Collection[str] | None
    now: datetime

    @property
    def params(self) -> httpx.QueryParams:
        return self.request.url.params

    def body(self, *, with_nulls: bool = False) -> dict[str, Any]:
        """The JSON object in the body; no body is an empty one.

        Args:
            with_nulls: Whether fields that are null are in it.

        Raises:
            Refusal: it is none.
        """
        # The official SDK sends null for an optional body that is not given.
        content = self.request.content.strip()
        body = {} if content in (b"", b"null") else parse_object(content)
        if body is None:
            raise Refusal(400, "validation_error", "the body is not a JSON object", errors=[])
        return {name: value for name, value in body.items() if with_nulls or value is not None}

    def require(self, permission: str) -> None:
        """
        Raises:
            Refusal: the key does not have it.
        """
        if self.permissions is not None and permission not in self.permissions:
            raise forbidden(permission)

    def pod(self, pod_id: str) -> Pod:
        """
        Raises:
            Refusal: there is none.
        """
        pod = self.store.pods_by_id.get(pod_id)
        if pod is None:
            raise not_found()
        return pod

    def inbox(self, inbox_id: str, pod_id: str | None = None) -> Inbox:
        """
        Raises:
            Refusal: there is none, or not in this pod.
        """
        inbox = self.store.inbox(inbox_id)
        if inbox is None or not self.is_in(pod_id, inbox_id):
            raise not_found()
        return inbox

    def is_in(self, pod_id: str | None, inbox_id: str) -> bool:
        return pod_id is None or self.store.pods[inbox_id.lower()] == pod_id

    def mail(self, inbox_id: str, message_id: str) -> Mail:
        """
        Raises:
            Refusal: there is none, or the key may not see it.
        """
        mail = self.store.mail(inbox_id, message_id)
        if mail is None or not self.may_see(mail):
            raise not_found()
        return mail

    def may_see(self, mail: Mail) -> bool:
        return hidden_labels(self.permissions).isdisjoint(mail.labels)


def listing(name: str, items: Sequence[Any], query: Query, token: str | None) -> dict[str, Any]:
    """The answer that has a page of things."""
    more = {} if token is None else {"next_page_token": token}
    return {"count": len(items), "limit": query.limit, **more, name: items}
