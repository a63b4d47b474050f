"""The REST API of threads."""

from typing import Any

import attrs
import orjson

from trio_agentmail.testing._encode import encode_part
from trio_agentmail.testing._mail.mail import Mail, ThreadView

from .call import Answer, Call, listing
from .downloads import describe_attachment
from .errors import no_such_call, not_found, unprocessable
from .labels import read_label_change
from .listing import filtering, hidden_labels, read_paging, read_query, take_page

__all__ = ["answer_threads"]

MAX_CHANGED = 100
"""A thread of so many messages has its labels no more changed as a whole."""


def answer_threads(call: Call, segments: list[str], pod_id: str | None = None, inbox_id: str | None = None) -> Answer:
    """What `/threads` answers, of all threads or of those in a pod or an inbox.

    Args:
        segments: The method, and what follows `/threads`.
    """
    match segments:
        case ["GET"]:
            return _list(call, pod_id, inbox_id)
        case ["GET", thread_id]:
            call.require("message_read")
            return _get(call, _thread(call, thread_id, pod_id, inbox_id))
        case ["PATCH", thread_id]:
            call.require("message_update")
            return _update(call, thread_id, _thread(call, thread_id, pod_id, inbox_id))
        case ["DELETE", thread_id]:
            call.require("message_delete")
            for mail in _mails(_thread(call, thread_id, pod_id, inbox_id)):
                call.store.delete(mail, call.now)
            return None
        case ["GET", thread_id, "attachments", attachment_id]:
            call.require("message_read")
            return describe_attachment(call, _mails(_thread(call, thread_id, pod_id, inbox_id)), attachment_id)
    raise no_such_call(call.request)


def _list(call: Call, pod_id: str | None, inbox_id: str | None) -> Answer:
    call.require("message_read")
    query = read_query(call.params, call.permissions)
    matches = filtering(
        call.params,
        {
            "senders": lambda thread: thread.whole.senders,
            "recipients": lambda thread: thread.whole.recipients,
            "subject": lambda thread: [thread.whole.state().subject or ""],
        },
    )
    threads = call.store.threads_in_order if inbox_id is None else call.inbox(inbox_id).threads
    page, token = take_page(
        threads,
        query,
        lambda thread: query.wants(thread) and call.is_in(pod_id, thread.inbox_id) and matches(thread),
    )
    return listing("threads", [orjson.Fragment(thread.whole.item) for thread in page], query, token)


def _thread(call: Call, thread_id: str, pod_id: str | None, inbox_id: str | None) -> ThreadView:
    """The thread, as far as the key may see it."""
    thread = call.store.thread(thread_id)
    if inbox_id is not None:
        inbox_id = call.inbox(inbox_id).inbox_id
    if thread is None or inbox_id not in (None, thread.inbox_id) or not call.is_in(pod_id, thread.inbox_id):
        raise not_found()
    view = thread.view(hidden_labels(call.permissions))
    if not len(view.mails):
        raise not_found()
    return view


def _mails(thread: ThreadView) -> list[Mail]:
    return [mail for _, mail in thread.mails.walk()]


def _get(call: Call, thread: ThreadView) -> Answer:
    query = read_paging(call.params)
    newest_first, token = take_page(thread.mails, query, query.wants)
    messages = [orjson.Fragment(encode_part(mail.message)) for mail in reversed(newest_first)]
    page = orjson.dumps(listing("messages", messages, query, token)).decode()
    # Not parsed and written again, since orjson refuses lone surrogates, which may stand in it as escapes.
    return orjson.Fragment(f"{thread.item[:-1]},{page[1:]}")


def _update(call: Call, thread_id: str, thread: ThreadView) -> dict[str, Any]:
    change = read_label_change(call.body())
    mails = _mails(thread)
    if len(mails) >= MAX_CHANGED:
        raise unprocessable(f"the thread has {MAX_CHANGED} messages or more")
    for mail in mails:
        message = attrs.evolve(mail.message, labels=change.of(mail.labels), updated_at=call.now)
        call.store.replace(mail, message, call.now)
    # Of these mails, even if the change has put them out of the key's sight.
    return {"thread_id": thread_id, "labels": list(dict.fromkeys(label for mail in mails for label in mail.labels))}
