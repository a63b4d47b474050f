"""The REST service of the fake: records requests, applies faults and returns responses, in memory and on a port."""

from collections.abc import Callable
from email.utils import formatdate

import httpx2
import trio

from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._agentmail.rest.exchange import RestRequest
from trio_agentmail.testing._clock import FakeClock
from trio_agentmail.testing._log import Log
from trio_agentmail.testing._record import Record

from .hooks import PendingFaults
from .http_server import NoAnswer
from .request import Request

__all__ = ["RestService"]

SHOWN = 120
"""Maximum number of bytes of a request's body in the log."""


class RestService:
    """The REST service.

    Args:
        agentmail: Answers the requests to which no fault applies.
        faults: The source of the faults of requests.
        push: Called for each event that a request causes.
    """

    def __init__(
        self,
        agentmail: AgentMail,
        faults: PendingFaults,
        record: Record,
        log: Log,
        clock: FakeClock,
        push: Callable[[Event], None],
    ) -> None:
        self._agentmail = agentmail
        self._faults = faults
        self._record = record
        self._log = log
        self._clock = clock
        self._push = push

    async def respond(self, request: httpx2.Request) -> httpx2.Response | NoAnswer:
        """Return the response to a request whose body has been read, or a `NoAnswer`.

        The response to a HEAD request has a body, which the caller must not send.
        """
        await trio.lowlevel.checkpoint()
        recorded = self._add(request)
        fault = self._faults.requests.take(lambda fault: fault.path is None or fault.path in request.url.path)
        asked, by = _asked(request), "" if fault is None else f", by {fault}"
        if fault is None:
            response = self.answer(request)
        else:
            try:
                answer = await fault.on_request(request)
            except httpx2.RequestError as exc:
                self._log.note(f"{asked}: {type(exc).__name__}{by}")
                raise
            if isinstance(answer, NoAnswer):
                self._log.note(f"{asked}: no answer{by}")
                return answer
            response = answer
        response.headers.setdefault("Date", formatdate(self._clock.time(), usegmt=True))
        recorded.status = response.status_code
        # `response.text` would use the charset that the response names, which may be wrong.
        is_shown = response.is_error and response.is_stream_consumed
        complaint = f" {response.content[:200].decode('utf-8', 'backslashreplace')}" if is_shown else ""
        self._log.note(f"{asked}: {response.status_code}{complaint}{by}")
        return response

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        """Return AgentMail's response to a request, without faults."""
        raw_path, _, query = request.url.raw_path.decode("ascii").partition("?")
        answer = self._agentmail.answer(
            RestRequest(
                method=request.method,
                origin=f"{request.url.scheme}://{request.url.netloc.decode('ascii')}",
                raw_path=raw_path,
                query=query,
                headers=dict(request.headers),
                body=request.content,
            ),
            now=self._clock.now(),
        )
        for event in answer.events:
            self._push(event)
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)

    def _add(self, request: httpx2.Request) -> Request:
        recorded = Request(
            method=request.method,
            path=request.url.path,
            query=request.url.query.decode("ascii"),
            status=None,
            at=trio.current_time(),
            headers=request.headers,
            body=request.content,
        )
        self._record.requests.append(recorded)
        self._log.notify()
        return recorded


def _asked(request: httpx2.Request) -> str:
    """Describe a request, including the beginning of its body."""
    body = request.content[:SHOWN].decode("utf-8", "backslashreplace")
    return f"{request.method} {request.url.path}{' ' if body else ''}{body}"
