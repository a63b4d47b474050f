"""What a test can make go wrong with the next requests to the REST API."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import attrs
import httpx2

from trio_agentmail.testing._agentmail.refusals import error_body
from trio_agentmail.testing._checks import check_response, check_text

from .connections import FaultQueue

__all__ = ["AnswerRequest", "BreakRequest", "HangRequest", "RequestFault", "RequestFaults"]


Answer: TypeAlias = Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]


@attrs.frozen
class AnswerRequest:
    """
    Attributes:
        asked_for: As the test has written it.
    """

    path: str | None
    answer: Answer
    asked_for: str

    def __str__(self) -> str:
        return f"{self.asked_for}{_of(self.path)}"

    def check(self, response: object) -> None:
        """
        Raises:
            TypeError: The function has not returned a response of httpx2.
        """
        if not isinstance(response, httpx2.Response):
            kind = type(response)
            returned = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
            raise TypeError(f"{self.asked_for}: the function must return an httpx2.Response, not {returned}")


@attrs.frozen
class HangRequest:
    path: str | None

    def __str__(self) -> str:
        return f"hang_requests(){_of(self.path)}"


@attrs.frozen
class BreakRequest:
    path: str | None

    def __str__(self) -> str:
        return f"break_requests(){_of(self.path)}"


def _of(path: str | None) -> str:
    return "" if path is None else f" of {path}"


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
        body: bytes | None = None,
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """The request is answered with an HTTP status, 200 to 999.

        Args:
            body: `None`: the JSON of AgentMail's errors, from 400 on.
        """
        all_headers = httpx2.Headers(check_response(status, headers, body or b""))
        content = error_body(status) if body is None else body
        if body is None and content:
            all_headers.setdefault("Content-Type", "application/json")

        def answer(_: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(status, headers=all_headers, content=content)

        self._add(AnswerRequest(path, answer, f"fail_requests({status})"), times)

    def answer_requests(
        self,
        answer: Answer,
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """The request is answered as a function says.

        Args:
            answer: A function, async or not, that takes the `httpx2.Request`, read to its end, and returns an
                `httpx2.Response`. An async one may take its time. What it raises is what the client gets in memory; an
                `httpx2.RequestError` becomes that of httpx for a client of httpx, and resets the connection on a port.
                A `Date` that it does not give is given by the fake.

        Raises:
            TypeError: `answer` is no function. What it returns is checked when it is called: if that is no
                `httpx2.Response`, the request ends with a TypeError.
        """
        if not callable(answer):
            raise TypeError(f"answer is a function of an httpx2.Request, not {answer!r}")
        name = getattr(answer, "__name__", type(answer).__name__)
        self._add(AnswerRequest(path, answer, f"answer_requests({name})"), times)

    def hang_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is never answered."""
        self._add(HangRequest(path), times)

    def break_requests(self, times: int | None = 1, path: str | None = None) -> None:
        """The request is read, and the connection reset: a `ReadError` of the client's library."""
        self._add(BreakRequest(path), times)

    def _add(self, fault: RequestFault, times: int | None) -> None:
        check_text("path", fault.path)
        self._request_faults.add(fault, times)

    def _take_request_fault(self, path: str) -> RequestFault | None:
        return self._request_faults.take(lambda fault: fault.path is None or fault.path in path)
