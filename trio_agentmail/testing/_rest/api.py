"""The REST API of the fake: which part of it answers a request."""

from urllib.parse import unquote

import httpx

from .call import Answer, Call
from .errors import no_such_call
from .inboxes import answer_inboxes, answer_pods
from .messages import answer_messages
from .threads import answer_threads

__all__ = ["answer_call"]


def answer_call(call: Call) -> Answer:
    """The JSON object with which AgentMail answers.

    Raises:
        Refusal: the answer is an error.
    """
    method = call.request.method
    match _segments(call.request):
        case [*_, "search"]:
            raise no_such_call(call.request)  # and no inbox, message or thread of that name
        case ["", "v0", "inboxes", inbox_id, "messages", *rest]:
            return answer_messages(call, [method, *rest], inbox_id)
        case ["", "v0", "inboxes", inbox_id, "threads", *rest]:
            return answer_threads(call, [method, *rest], inbox_id=inbox_id)
        case ["", "v0", "inboxes", *rest]:
            return answer_inboxes(call, [method, *rest])
        case ["", "v0", "threads", *rest]:
            return answer_threads(call, [method, *rest])
        case ["", "v0", "pods", pod_id, "inboxes", *rest]:
            return answer_inboxes(call, [method, *rest], call.pod(pod_id).pod_id)
        case ["", "v0", "pods", pod_id, "threads", *rest]:
            return answer_threads(call, [method, *rest], pod_id=call.pod(pod_id).pod_id)
        case ["", "v0", "pods", *rest]:
            return answer_pods(call, [method, *rest])
    raise no_such_call(call.request)


def _segments(request: httpx.Request) -> list[str]:
    # Split before it is decoded: a message id may hold anything, a slash too.
    raw_path = request.url.raw_path.partition(b"?")[0].decode("ascii")
    return [unquote(segment) for segment in raw_path.split("/")]
