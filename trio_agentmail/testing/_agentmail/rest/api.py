"""`RestApi`: answers requests to the REST API."""

from collections.abc import Callable, Mapping
from datetime import datetime

import attrs
import orjson

from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.keys import KeyRing, bearer
from trio_agentmail.testing._agentmail.mail.directory import Inbox, Pod
from trio_agentmail.testing._agentmail.mail.store import MailStore
from trio_agentmail.testing._agentmail.refusals import Refusal, no_such_call

from . import inboxes, messages, pods, sending, threads
from .call import Answer, Call
from .downloads import DOWNLOADS, download
from .exchange import RestRequest, RestResponse
from .idempotency import SentOnce
from .routes import RouteTable

__all__ = ["ROUTES", "RestApi"]

ROUTES = RouteTable(inboxes.routes, messages.routes, sending.routes, threads.routes, pods.routes)
"""All calls that the fake has, except downloads, which have no API path and require no key."""

RESOURCES: Mapping[str, Callable[[Call, str], Inbox | Pod]] = {"inbox": Call.inbox, "pod": Call.pod}
"""The path parameters that are looked up before the permission is checked."""

WITHOUT_KEY = frozenset({("POST", "/v0/agent/sign-up")})
"""Calls that require no key at AgentMail, because their caller does not have one yet. (Source: the official SDKs.)

The fake does not have these calls, and answers 404 instead of 401.
"""


class RestApi:
    """The REST API of the mail in a store."""

    def __init__(self, store: MailStore, keys: KeyRing) -> None:
        self._store = store
        self._keys = keys
        self._sent = SentOnce()

    def answer(self, request: RestRequest, now: datetime) -> RestResponse:
        """Answer a request."""
        if request.method == "HEAD":
            request = attrs.evolve(request, method="GET", body=b"")
        try:
            if request.path.startswith(DOWNLOADS):
                return download(request, self._store, now)
            call = self._authorized(request, now)
            answer = answer_call(call)
        except Refusal as refusal:
            return _json(refusal.status, refusal.answer)
        events = tuple(call.events)
        return RestResponse(status=204, events=events) if answer is None else _json(200, answer, events)

    def _authorized(self, request: RestRequest, now: datetime) -> Call:
        if (request.method, request.path) in WITHOUT_KEY:
            raise no_such_call(request.method, request.path)
        key = bearer(request.headers.get("authorization", ""))
        if (refusal := self._keys.refusal(key)) is not None:
            raise refusal
        return Call(
            request=request,
            store=self._store,
            sent=self._sent,
            permissions=self._keys.permissions_of(key),
            now=now,
        )


def answer_call(call: Call) -> Answer:
    """Call the function in the route table, and return its answer.

    Raises:
        Refusal: The answer is an error. The checks are made in this order: the call exists, the inbox or pod in the
            path exists, the key has the permission, and then the checks of the function.
    """
    request = call.request
    found = ROUTES.find(request.method, request.segments)
    if found is None:
        raise no_such_call(request.method, request.path)
    route, parameters = found
    for name, look_up in RESOURCES.items():
        if name in parameters:
            parameters[name] = look_up(call, parameters[name])
    call.require(route.permission)
    return route.function(call, **parameters)


def _json(status: int, answer: Answer, events: tuple[Event, ...] = ()) -> RestResponse:
    return RestResponse(
        status=status,
        headers={"Content-Type": "application/json"},
        body=orjson.dumps(answer, option=orjson.OPT_UTC_Z),
        events=events,
    )
