"""The faults that a test has asked for and that have not struck yet, and the hooks by which they strike.

A fault is data with hooks. The wire takes one for each connection, push or request, and calls its hooks in place of
what it would do otherwise; it knows no fault by name.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import attrs
import httpx2
import trio

from trio_agentmail.testing._checks import check_whole

from .connection import Connection
from .handshake import Rejection
from .http_server import NoAnswer

__all__ = ["ConnectionFault", "FaultQueue", "PendingFaults", "PushFault", "PushNow", "RequestFault"]


class PushNow(Protocol):
    def __call__(self, text: str, sent: str | None = None) -> None:
        """Push an event to the connections whose subscription it matches.

        Args:
            sent: The text that goes out; `None`: that of the event.
        """


@attrs.frozen(kw_only=True)
class ConnectionFault:
    """A fault of one connection for a WebSocket. Where a hook is `None`, nothing goes wrong.

    Attributes:
        on_connecting: Called before there is a connection. It may take its time. What it raises is what the client gets
            in memory; on a port the connection is reset.
        on_stream: Called with the server's end, in place of reading a request from it.
        on_handshake: Called when the request for a WebSocket has been read. Returns the rejection.
        on_subscription: Called for each valid subscription, in place of confirming it, with the connection and a
            function that does.
        asked_for: The call by which the test asked for it.
    """

    on_connecting: Callable[[], Awaitable[None]] | None = None
    on_stream: Callable[[trio.abc.Stream], Awaitable[None]] | None = None
    on_handshake: Callable[[], Awaitable[Rejection]] | None = None
    on_subscription: Callable[[Connection, Callable[[], None]], Awaitable[None]] | None = None
    asked_for: str = ""

    def __str__(self) -> str:
        return self.asked_for


@attrs.frozen(kw_only=True)
class PushFault:
    """A fault of one push.

    Attributes:
        on_push: Called with the event's text, and with a function that pushes it, in place of the push.
        on_clear: Called when the faults are cleared before it has struck as often as it was to.
        asked_for: The call by which the test asked for it.
    """

    on_push: Callable[[str, PushNow], None]
    on_clear: Callable[[PushNow], None] = lambda _: None
    asked_for: str = ""

    def __str__(self) -> str:
        return self.asked_for


@attrs.frozen(kw_only=True)
class RequestFault:
    """A fault of one request to the REST API.

    Attributes:
        on_request: Called with the request, read to its end. Returns the response, or how there comes none. What it
            raises is what the client gets in memory; on a port, an `httpx2.RequestError` resets the connection.
        path: A part of the path of the requests that it is for; `None`: any.
        asked_for: The call by which the test asked for it.
    """

    on_request: Callable[[httpx2.Request], Awaitable[httpx2.Response | NoAnswer]]
    path: str | None = None
    asked_for: str = ""

    def __str__(self) -> str:
        return self.asked_for


F = TypeVar("F", bound=ConnectionFault | PushFault | RequestFault)


class FaultQueue(Generic[F]):
    """Faults of one kind, in the order in which the test asked for them."""

    def __init__(self) -> None:
        self._faults: list[tuple[F, int | None]] = []
        self._overriding: list[F] = []

    def add(self, fault: F, times: int | None) -> None:
        """Append a fault.

        Args:
            times: How often it strikes; `None`: until `clear`.

        Raises:
            TypeError, ValueError: `times` is not a whole number, or less than 1.
        """
        if times is not None:
            check_whole("times", times, 1)
        self._faults.append((fault, times))

    def take(self, applies: Callable[[F], bool] = lambda _: True) -> F | None:
        """Return the next fault that applies, or `None` if there is none."""
        if self._overriding:
            return self._overriding[-1]
        for index, (fault, times) in enumerate(self._faults):
            if applies(fault):
                if times == 1:
                    del self._faults[index]
                elif times is not None:
                    self._faults[index] = fault, times - 1
                return fault
        return None

    @contextmanager
    def override(self, fault: F) -> Iterator[None]:
        """For the block, `take` returns this fault, and the queue stays as it is."""
        self._overriding.append(fault)
        try:
            yield
        finally:
            self._overriding.remove(fault)

    @property
    def is_overridden(self) -> bool:
        return bool(self._overriding)

    def left(self) -> list[str]:
        """Describe the faults that have not struck."""
        return [f"{fault}" if times == 1 else f"{fault}, times={times}" for fault, times in self._faults]

    def clear(self) -> list[F]:
        """Remove all faults, and return them."""
        cleared = [fault for fault, _ in self._faults]
        self._faults.clear()
        return cleared


@attrs.define
class PendingFaults:
    """The faults to come, of all kinds.

    Attributes:
        bytes_per_second: How fast the connections send; `None`: without a limit.
        pong_delay: Seconds between a ping and its pong.
    """

    connections: FaultQueue[ConnectionFault] = attrs.field(factory=FaultQueue)
    pushes: FaultQueue[PushFault] = attrs.field(factory=FaultQueue)
    requests: FaultQueue[RequestFault] = attrs.field(factory=FaultQueue)
    bytes_per_second: float | None = None
    pong_delay: float = 0.0

    def add(self, fault: ConnectionFault | PushFault | RequestFault, times: int | None) -> None:
        """Append a fault to the queue of its kind: see `FaultQueue.add`."""
        match fault:
            case ConnectionFault():
                self.connections.add(fault, times)
            case PushFault():
                self.pushes.add(fault, times)
            case _:
                self.requests.add(fault, times)

    def left(self) -> list[str]:
        """Describe the faults that have not struck."""
        return [*self.connections.left(), *self.pushes.left(), *self.requests.left()]
