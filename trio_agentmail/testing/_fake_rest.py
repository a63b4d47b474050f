"""The REST API of the fake: a request and the store in, an answer out."""

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias
from urllib.parse import unquote

import attrs
import httpx
import orjson

from ._encode import encode_part
from ._fake_listing import Query, Refusal, hidden_labels, read_paging, read_query, take_page
from ._mail_store import Inbox, Mail, MailStore, Thread
from ._ordered import Ordered

__all__ = ["RestApi"]

MAX_BATCH = 500

Answer: TypeAlias = dict[str, Any] | orjson.Fragment
"""What orjson makes the JSON of."""


@attrs.frozen
class RestApi:
    """One request's view of the REST API.

    Attributes:
        permissions: What the key may do; `None`: everything.
    """

    store: MailStore
    permissions: Collection[str] | None

    def answer(self, request: httpx.Request) -> Answer:
        """The JSON object with which AgentMail answers.

        Raises:
            Refusal: the answer is an error.
        """
        # Split before it is decoded: a message id may hold anything, a slash too.
        raw_path = request.url.raw_path.partition(b"?")[0].decode("ascii")
        segments = [unquote(segment) for segment in raw_path.split("/")]
        params = request.url.params
        match [request.method, *segments]:
            case ["GET", "", "v0", "inboxes"]:
                return self._list_inboxes(params)
            case ["GET", "", "v0", "pods", pod_id, "inboxes"]:
                return self._list_inboxes(params, self._pod(pod_id))
            case ["GET", "", "v0", "inboxes", inbox_id, "messages"]:
                return self._list_messages(params, self._inbox(inbox_id))
            case ["POST", "", "v0", "inboxes", inbox_id, "messages", "batch-get"]:
                return self._batch_get(request.content, self._inbox(inbox_id))
            case ["GET", "", "v0", "inboxes", inbox_id, "messages", message_id]:
                return self._get_message(inbox_id, message_id)
            case ["GET", "", "v0", "threads"]:
                return self._list_threads(params, self.store.threads_in_order)
            case ["GET", "", "v0", "pods", pod_id, "threads"]:
                return self._list_threads(params, self.store.threads_in_order, self._pod(pod_id))
            case ["GET", "", "v0", "inboxes", inbox_id, "threads"]:
                return self._list_threads(params, self._inbox(inbox_id).threads)
            case ["GET", "", "v0", "threads", thread_id]:
                return self._get_thread(params, thread_id)
            case ["GET", "", "v0", "inboxes", inbox_id, "threads", thread_id]:
                return self._get_thread(params, thread_id, inbox_id)
        raise _not_found()

    # Inboxes

    def _pod(self, pod_id: str) -> str:
        if pod_id not in self.store.pods.values() and pod_id not in self.store.empty_pods:
            raise _not_found()
        return pod_id

    def _inbox(self, inbox_id: str) -> Inbox:
        try:
            return self.store.inboxes[inbox_id]
        except KeyError:
            raise _not_found() from None

    def _list_inboxes(self, params: httpx.QueryParams, pod_id: str | None = None) -> Answer:
        self._require("inbox_read")
        query = read_query(params, self.permissions)
        inboxes, token = take_page(
            self.store.inboxes_in_order, query, lambda inbox: self._is_in(pod_id, inbox.inbox_id)
        )
        return _listing("inboxes", [self._inbox_item(inbox) for inbox in inboxes], query, token)

    def _inbox_item(self, inbox: Inbox) -> Answer:
        return {
            "inbox_id": inbox.inbox_id,
            "pod_id": self.store.pods[inbox.inbox_id],
            "email": inbox.inbox_id,
            "created_at": inbox.created_at,
            "updated_at": inbox.created_at,
        }

    def _is_in(self, pod_id: str | None, inbox_id: str) -> bool:
        return pod_id is None or self.store.pods[inbox_id] == pod_id

    # Messages

    def _list_messages(self, params: httpx.QueryParams, inbox: Inbox) -> Answer:
        self._require("message_read")
        query = read_query(params, self.permissions)
        mails, token = take_page(inbox.mails, query, query.wants)
        return _listing("messages", [orjson.Fragment(mail.item) for mail in mails], query, token)

    def _get_message(self, inbox_id: str, message_id: str) -> Answer:
        self._require("message_read")
        mail = self.store.mail(inbox_id, message_id)
        if mail is None or not self._may_see(mail):
            raise _not_found()
        return orjson.Fragment(encode_part(mail.message))

    def _batch_get(self, body: bytes, inbox: Inbox) -> Answer:
        self._require("message_read")
        match _json(body):
            case {"message_ids": [*ids]} if len(ids) <= MAX_BATCH:
                pass
            case _:
                raise Refusal(400, "ValidationError", f"message_ids must be a list of at most {MAX_BATCH} ids")
        found = [self.store.mail(inbox.inbox_id, message_id) for message_id in ids if isinstance(message_id, str)]
        items = [orjson.Fragment(mail.item) for mail in found if mail is not None and self._may_see(mail)]
        return {"count": len(items), "limit": len(ids), "messages": items}

    def _may_see(self, mail: Mail) -> bool:
        return hidden_labels(self.permissions).isdisjoint(mail.labels)

    # Threads

    def _list_threads(self, params: httpx.QueryParams, threads: Ordered[Thread], pod_id: str | None = None) -> Answer:
        self._require("message_read")
        query = read_query(params, self.permissions)
        page, token = take_page(
            threads, query, lambda thread: query.wants(thread) and self._is_in(pod_id, thread.inbox_id)
        )
        return _listing("threads", [orjson.Fragment(thread.item) for thread in page], query, token)

    def _get_thread(self, params: httpx.QueryParams, thread_id: str, inbox_id: str | None = None) -> Answer:
        self._require("message_read")
        thread = self.store.thread(thread_id)
        if thread is None or inbox_id not in (None, thread.inbox_id):
            raise _not_found()
        query = read_paging(params, self.permissions)
        newest_first, token = take_page(thread.mails, query, query.wants)
        if not newest_first and query.beyond is None:
            raise _not_found()
        messages = [orjson.Fragment(encode_part(mail.message)) for mail in reversed(newest_first)]
        page = orjson.dumps(_listing("messages", messages, query, token)).decode()
        # Not parsed and written again, since orjson refuses lone surrogates, which may stand in it as escapes.
        return orjson.Fragment(f"{thread.item[:-1]},{page[1:]}")

    def _require(self, permission: str) -> None:
        if self.permissions is not None and permission not in self.permissions:
            raise Refusal(403, "missing_permission", f"{permission} is forbidden")


def _listing(name: str, items: Sequence[Any], query: Query, token: str | None) -> Answer:
    more = {} if token is None else {"next_page_token": token}
    return {"count": len(items), "limit": query.limit, **more, name: items}


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refusal(400, "ValidationError", "the body is not JSON") from None


def _not_found() -> Refusal:
    return Refusal(404, "not_found", "there is nothing here")
