"""The HTTP side of the fake: what becomes of a request to the REST API, in memory or on a port."""

import inspect
import ssl
from collections.abc import Collection, Mapping
from email.utils import formatdate

import attrs
import httpx2
import trio

from ._agentmail.rest.exchange import RestRequest
from ._checks import check_seconds
from ._fake_base import FakeBase
from ._fake_connection import Spawn
from ._fake_http_server import HttpConnection, accept_from
from ._fake_transport import FakeTransport
from ._faults.requests import AnswerRequest, BreakRequest, HangRequest, RequestFaults

__all__ = ["FakeHttp", "Request"]

SHOWN = 120
"""Bytes of a request's body that are told."""


@attrs.define(kw_only=True)
class Request:
    """A request to the REST API.

    Attributes:
        path: The path, without the query and without percent-encoding.
        query: The query; `""` if there was none.
        status: The status of the answer; `None`: there has been none so far.
        at: When it came, by Trio's clock.
        headers: The headers, whose names are found in any case. Not in the repr: the API key is in them.
        body: The body, for example for `json.loads`. Not in the repr.
    """

    method: str
    path: str
    query: str
    status: int | None
    at: float
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False, eq=False)
    body: bytes = attrs.field(default=b"", repr=False, eq=False)


class FakeHttp(FakeBase, RequestFaults):
    """The HTTP side of `FakeAgentMail`, which documents the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def http_transport(self, ssl_context: ssl.SSLContext | None = None) -> FakeTransport:
        """Return a transport to the REST API, in memory, whatever the host in the URL.

        It is for an `AsyncClient` of httpx2 or of httpx, under Trio.
        """
        return FakeTransport(self._respond)

    def index_after(self, seconds: float | None) -> None:
        """Mail appears in listings and in its thread so long after its arrival; by its id it can be had at once.

        Args:
            seconds: `None` or 0: at once, and so does all that has come before.
        """
        if seconds is not None:
            check_seconds("seconds", seconds)
        self._agentmail.index_after(seconds or 0.0)

    async def _respond(self, request: httpx2.Request) -> httpx2.Response | HangRequest | BreakRequest:
        """What becomes of a request that has been read. To a HEAD, whoever sends the answer leaves out its body."""
        await trio.lowlevel.checkpoint()
        recorded = self._record(request)
        fault = BreakRequest(None) if self._outages else self._take_request_fault(request.url.path)
        asked, by = _asked(request), f", by {fault}" if fault is not None and not self._outages else ""
        if isinstance(fault, HangRequest | BreakRequest):
            self._note(f"{asked}: no answer{by}")
            return fault
        if isinstance(fault, AnswerRequest):
            try:
                answer = fault.answer(request)
                response = await answer if inspect.isawaitable(answer) else answer
                fault.check(response)
            except httpx2.RequestError as exc:
                self._note(f"{asked}: {type(exc).__name__}{by}")
                raise
        else:
            response = self._answer_request(request)
        response.headers.setdefault("Date", formatdate(self.now(), usegmt=True))
        recorded.status = response.status_code
        # Not its `text`, which takes the answer's word for a charset, whatever it names.
        is_shown = response.is_error and response.is_stream_consumed
        complaint = f" {response.content[:200].decode('utf-8', 'backslashreplace')}" if is_shown else ""
        self._note(f"{asked}: {response.status_code}{complaint}{by}")
        return response

    async def _accept_http(
        self,
        listener: trio.SocketListener,
        ssl_context: ssl.SSLContext | None,
        allow_hosts: Collection[str],
        spawn: Spawn,
    ) -> None:
        while True:
            stream = await accept_from(listener)
            refuse = self._door(stream, allow_hosts)
            spawn(self._serve_http, HttpConnection(stream, ssl_context, refuse, self._respond))

    async def _serve_http(self, connection: HttpConnection) -> None:
        await connection.run()

    def _answer_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request, and push the events that it causes."""
        url = request.url
        answer = self._agentmail.answer(
            RestRequest(
                method=request.method,
                origin=f"{url.scheme}://{url.netloc.decode('ascii')}",
                raw_path=url.raw_path.partition(b"?")[0].decode("ascii"),
                query=url.query.decode("ascii"),
                headers={name.lower(): value for name, value in request.headers.items()},
                body=request.content,
            ),
            now=self._now(),
        )
        for event in answer.events:
            self._push_event(event)
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)

    def _record(self, request: httpx2.Request) -> Request:
        recorded = Request(
            method=request.method,
            path=request.url.path,
            query=request.url.query.decode("ascii"),
            status=None,
            at=trio.current_time(),
            headers=request.headers,
            body=request.content,
        )
        self.requests.append(recorded)
        self._notify()
        return recorded


def _asked(request: httpx2.Request) -> str:
    """A request in words: what is to change, and what something is to be, is a matter of its body."""
    body = request.content[:SHOWN].decode("utf-8", "backslashreplace")
    return f"{request.method} {request.url.path}{' ' if body else ''}{body}"
