"""Queues of pending faults, and the hooks that faults consist of.

For each connection, push or request, the modules of this package take a fault from its queue and call its hooks instead
of their normal behaviour. They know the hooks only, and no fault by name.
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
            sent: The text to send instead of the event's own.
        """


@attrs.frozen(kw_only=True)
class ConnectionFault:
    """A fault of one WebSocket connection. Where a hook is `None`, the connection behaves normally.

    Attributes:
        on_connecting: Called before the connection is made. It may block. If it raises, an in-memory client gets the
            exception; on a port, the connection is reset.
        on_stream: Called with the server's end of the stream, instead of reading a request from it.
        on_handshake: Called when the handshake has been read. Returns the rejection.
        on_subscription: Called for each valid subscription, instead of confirming it, with the connection and a
            function that confirms it.
        asked_for: The call with which the test caused it, as text.
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
        on_push: Called instead of the push, with the event's text and a function that pushes it.
        on_clear: Called with that function when the faults are cleared and this one is still in the queue.
        asked_for: The call with which the test caused it, as text.
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
        on_request: Called with the request, whose body has been read. Returns the response, or a `NoAnswer`. If it
            raises, an in-memory client gets the exception; on a port, an `httpx2.RequestError` resets the connection.
        path: A string that the path of a request must contain. `None` means that the fault applies to all requests.
        asked_for: The call with which the test caused it, as text.
    """

    on_request: Callable[[httpx2.Request], Awaitable[httpx2.Response | NoAnswer]]
    path: str | None = None
    asked_for: str = ""

    def __str__(self) -> str:
        return self.asked_for


F = TypeVar("F", bound=ConnectionFault | PushFault | RequestFault)


class FaultQueue(Generic[F]):
    """The pending faults of one kind, in the order in which the test added them."""

    def __init__(self) -> None:
        self._faults: list[tuple[F, int | None]] = []
        self._overriding: list[F] = []

    def add(self, fault: F, times: int | None) -> None:
        """Append a fault.

        Args:
            times: The number of times that `take` returns it. `None` means every time until `clear`.

        Raises:
            TypeError: `times` is not a whole number.
            ValueError: `times` is less than 1.
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
        """Have `take` return this fault within the block. The queue does not change."""
        self._overriding.append(fault)
        try:
            yield
        finally:
            self._overriding.remove(fault)

    @property
    def is_overridden(self) -> bool:
        return bool(self._overriding)

    def left(self) -> list[str]:
        """Return a description of each fault in the queue."""
        return [f"{fault}" if times == 1 else f"{fault}, times={times}" for fault, times in self._faults]

    def clear(self) -> list[F]:
        """Remove all faults, and return them."""
        cleared = [fault for fault, _ in self._faults]
        self._faults.clear()
        return cleared


@attrs.define
class PendingFaults:
    """The pending faults of all kinds, and the faults that are states.

    Attributes:
        bytes_per_second: The rate at which each WebSocket sends. `None` means no limit.
        pong_delay: The delay of pongs, in seconds.
        retired: Set when the fake has been replaced by another one. Delayed pushes end then.
    """

    connections: FaultQueue[ConnectionFault] = attrs.field(factory=FaultQueue)
    pushes: FaultQueue[PushFault] = attrs.field(factory=FaultQueue)
    requests: FaultQueue[RequestFault] = attrs.field(factory=FaultQueue)
    bytes_per_second: float | None = None
    pong_delay: float = 0.0
    retired: trio.Event = attrs.field(factory=trio.Event)

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
        """Return a description of each pending fault."""
        return [*self.connections.left(), *self.pushes.left(), *self.requests.left()]
