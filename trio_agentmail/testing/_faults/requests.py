"""What a test can make go wrong with the next requests to the REST API."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import attrs
import httpx
import trio

from trio_agentmail.testing._checks import check_bytes, check_headers, check_status

from .connections import FaultQueue

__all__ = ["AnswerRequest", "BreakRequest", "HangRequest", "RequestFault", "RequestFaults"]


@attrs.frozen
class AnswerRequest:
    path: str | None
    answer: Callable[[httpx.Request], Awaitable[httpx.Response]]


@attrs.frozen
class HangRequest:
    path: str | None


@attrs.frozen
class BreakRequest:
    path: str | None


RequestFault: TypeAlias = AnswerRequest | HangRequest | BreakRequest


class RequestFaults:
    """Faults of requests to come. Each takes the first one that is for its path, while there are some.

    `times` is how many requests a fault is for; `None`: all that follow, until `clear_faults()`. `path` is what must
    occur in the request's path, without its percent-encoding: for example an inbox id; `None`: any path.
    An argument that makes no sense is a TypeError or a ValueError at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._request_faults: FaultQueue[RequestFault] = FaultQueue()

    def fail_requests(
        self,
        status: int,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """The request is answered with an HTTP status, 200 to 999."""
        check_status(status)
        check_bytes("body", body)
        pairs = check_headers(headers)

        async def answer(_: httpx.Request) -> httpx.Response:
            await trio.lowlevel.checkpoint()
            return httpx.Response(status, headers=pairs, content=body)

        self._request_faults.add(AnswerRequest(path, answer), times)

    def answer_requests(
        self,
        answer: Callable[[httpx.Request], Awaitable[httpx.Response]],
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """The request is answered as an async function says. It gets the request, read to its end, and may take its
        time, or raise an `httpx.TransportError`, with which in memory the request ends; on a port the connection is
        reset. A `Date` that it does not give is given by the fake."""
        self._request_faults.add(AnswerRequest(path, answer), times)

    def hang_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is never answered."""
        self._request_faults.add(HangRequest(path), times)

    def break_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is read, and the connection reset: `httpx.ReadError`."""
        self._request_faults.add(BreakRequest(path), times)

    def _take_request_fault(self, path: str) -> RequestFault | None:
        return self._request_faults.take(lambda fault: fault.path is None or fault.path in path)
