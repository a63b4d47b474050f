"""What a test can make go wrong with the next requests to the REST API."""

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from ._fake_faults import FaultQueue

__all__ = ["BreakRequest", "FailRequest", "HangRequest", "RequestFault", "RequestFaults"]


@attrs.frozen
class FailRequest:
    path: str | None
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@attrs.frozen
class HangRequest:
    path: str | None


@attrs.frozen
class BreakRequest:
    path: str | None


RequestFault: TypeAlias = FailRequest | HangRequest | BreakRequest


class RequestFaults:
    """Faults of requests to come. Each takes the first one that is for its path, while there are some.

    `times` is how many requests a fault is for; `None`: all that follow, until `clear_faults()`. `path` is what must
    occur in the request's path, without its percent-encoding: for example an inbox id; `None`: any path.
    """

    def __init__(self) -> None:
        super().__init__()
        self._request_faults: FaultQueue[RequestFault] = FaultQueue()

    def fail_requests(
        self,
        status: int,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """The request is answered with an HTTP status, 200 to 999."""
        self._request_faults.add(FailRequest(path, status, tuple(headers), body), times)

    def hang_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is never answered."""
        self._request_faults.add(HangRequest(path), times)

    def break_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is read, and the connection reset: `httpx.ReadError`."""
        self._request_faults.add(BreakRequest(path), times)

    def _take_request_fault(self, path: str) -> RequestFault | None:
        return self._request_faults.take(lambda fault: fault.path is None or fault.path in path)
