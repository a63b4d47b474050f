"""The REST API of threads, for all threads or those in a pod or an inbox."""

import attrs
import orjson

from trio_agentmail.testing._agentmail.mail.directory import Pod
from trio_agentmail.testing._agentmail.mail.mail import Mail, Thread, ThreadView
from trio_agentmail.testing._agentmail.permissions import hidden_labels
from trio_agentmail.testing._agentmail.refusals import not_found, unprocessable
from trio_agentmail.testing._encode import encode_part

from .call import Answer, Call, listing
from .downloads import describe_attachment
from .labels import read_label_change
from .listing import filtering, read_paging, read_query, take_page
from .routes import RouteTable

__all__ = ["routes"]

MAX_CHANGED = 100
"""Number of messages from which on the labels of a thread cannot be changed in one request."""

routes = RouteTable()


@routes.get("/threads", permission="message_read")
@routes.get("/pods/{pod}/threads", permission="message_read")
@routes.get("/inboxes/{inbox_id}/threads", permission="message_read")
def list_threads(call: Call, *, pod: Pod | None = None, inbox_id: str | None = None) -> Answer:
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
        lambda thread: query.wants(thread) and _is_in(call, pod, thread) and matches(thread),
    )
    return listing("threads", [orjson.Fragment(thread.whole.item) for thread in page], query, token)


@routes.get("/threads/{thread_id}", permission="message_read")
@routes.get("/pods/{pod}/threads/{thread_id}", permission="message_read")
@routes.get("/inboxes/{inbox_id}/threads/{thread_id}", permission="message_read")
def get_thread(call: Call, thread_id: str, *, pod: Pod | None = None, inbox_id: str | None = None) -> Answer:
    thread = _thread(call, thread_id, pod, inbox_id)
    query = read_paging(call.params)
    newest_first, token = take_page(thread.mails, query, query.wants)
    messages = [orjson.Fragment(encode_part(mail.message)) for mail in reversed(newest_first)]
    page = orjson.dumps(listing("messages", messages, query, token)).decode()
    # The thread and the page are joined as text. To join them as objects, orjson would have to parse the thread, and it
    # rejects lone surrogates, which the thread may contain as escapes.
    return orjson.Fragment(f"{thread.item[:-1]},{page[1:]}")


@routes.patch("/threads/{thread_id}", permission="message_update")
@routes.patch("/pods/{pod}/threads/{thread_id}", permission="message_update")
@routes.patch("/inboxes/{inbox_id}/threads/{thread_id}", permission="message_update")
def update_thread(call: Call, thread_id: str, *, pod: Pod | None = None, inbox_id: str | None = None) -> Answer:
    mails = _mails(_thread(call, thread_id, pod, inbox_id))
    change = read_label_change(call.body())
    if len(mails) >= MAX_CHANGED:
        raise unprocessable(f"the thread has {MAX_CHANGED} messages or more")
    for mail in mails:
        message = attrs.evolve(mail.message, labels=change.of(mail.labels), updated_at=call.now)
        call.store.replace(mail, message, call.now)
    # The answer includes the labels of changed mails that the change has hidden from the key.
    return {"thread_id": thread_id, "labels": list(dict.fromkeys(label for mail in mails for label in mail.labels))}


@routes.delete("/threads/{thread_id}", permission="message_delete")
@routes.delete("/pods/{pod}/threads/{thread_id}", permission="message_delete")
@routes.delete("/inboxes/{inbox_id}/threads/{thread_id}", permission="message_delete")
def delete_thread(call: Call, thread_id: str, *, pod: Pod | None = None, inbox_id: str | None = None) -> Answer:
    for mail in _mails(_thread(call, thread_id, pod, inbox_id)):
        call.store.delete(mail, call.now)
    return None


@routes.get("/threads/{thread_id}/attachments/{attachment_id}", permission="message_read")
@routes.get("/pods/{pod}/threads/{thread_id}/attachments/{attachment_id}", permission="message_read")
@routes.get("/inboxes/{inbox_id}/threads/{thread_id}/attachments/{attachment_id}", permission="message_read")
def get_attachment(
    call: Call, thread_id: str, attachment_id: str, *, pod: Pod | None = None, inbox_id: str | None = None
) -> Answer:
    return describe_attachment(call, _mails(_thread(call, thread_id, pod, inbox_id)), attachment_id)


def _thread(call: Call, thread_id: str, pod: Pod | None, inbox_id: str | None) -> ThreadView:
    """Return the part of a thread that the key may see, or raise a `Refusal` if it is empty."""
    thread = call.store.thread(thread_id)
    if inbox_id is not None:
        inbox_id = call.inbox(inbox_id).inbox_id
    if thread is None or inbox_id not in (None, thread.inbox_id) or not _is_in(call, pod, thread):
        raise not_found()
    view = thread.view(hidden_labels(call.permissions))
    if not len(view.mails):
        raise not_found()
    return view


def _is_in(call: Call, pod: Pod | None, thread: Thread) -> bool:
    return pod is None or call.inbox(thread.inbox_id).pod_id == pod.pod_id


def _mails(thread: ThreadView) -> list[Mail]:
    return [mail for _, mail in thread.mails.walk()]
