"""What a test can make go wrong with the next connections; and the queue in which faults of any kind wait."""

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import attrs

from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.refusals import error_body
from trio_agentmail.testing._checks import (
    check_bytes,
    check_close,
    check_response,
    check_seconds,
    check_text,
    check_whole,
)
from trio_agentmail.testing._encode import encode_event

__all__ = [
    "AnswerConnection",
    "CloseInsteadOfConfirming",
    "ConnectionFaults",
    "DelayConnection",
    "DropAfterConfirming",
    "FailConnection",
    "Fault",
    "FaultQueue",
    "HangHandshake",
    "PushBeforeConfirming",
    "RefuseSubscription",
    "RejectHandshake",
    "WithholdConfirmation",
    "refused",
]

F = TypeVar("F")


class FaultQueue(Generic[F]):
    """Faults in the order in which the test asked for them."""

    def __init__(self) -> None:
        self._faults: list[tuple[F, int | None]] = []

    def add(self, fault: F, times: int | None) -> None:
        """Ask for a fault.

        Args:
            times: How often; `None`: until `clear`.

        Raises:
            TypeError, ValueError: `times` is no whole number, or 0 or less.
        """
        if times is not None:
            check_whole("times", times, 1)
        self._faults.append((fault, times))

    def take(self, applies: Callable[[F], bool] = lambda _: True) -> F | None:
        """The first fault that applies; `None`: all goes well."""
        for index, (fault, times) in enumerate(self._faults):
            if applies(fault):
                if times == 1:
                    del self._faults[index]
                elif times is not None:
                    self._faults[index] = fault, times - 1
                return fault
        return None

    def left(self) -> list[str]:
        """What has not struck, in words."""
        return [str(fault) if times == 1 else f"{fault}, times={times}" for fault, times in self._faults]

    def clear(self) -> None:
        self._faults.clear()


@attrs.frozen
class FailConnection:
    error: Exception

    def __str__(self) -> str:
        return f"fail_connections({self.error!r})"


@attrs.frozen
class DelayConnection:
    seconds: float

    def __str__(self) -> str:
        return f"delay_connections({self.seconds:g})"


@attrs.frozen
class AnswerConnection:
    data: bytes

    def __str__(self) -> str:
        return f"answer_connections({self.data[:20]!r})"


@attrs.frozen
class HangHandshake:
    def __str__(self) -> str:
        return "hang_handshakes()"


@attrs.frozen
class RejectHandshake:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __str__(self) -> str:
        return f"reject_handshakes({self.status})"


@attrs.frozen
class WithholdConfirmation:
    def __str__(self) -> str:
        return "withhold_confirmations()"


@attrs.frozen
class RefuseSubscription:
    name: str
    message: str

    def __str__(self) -> str:
        return f"refuse_subscriptions({self.name!r}, {self.message!r})"


@attrs.frozen
class CloseInsteadOfConfirming:
    code: int
    reason: str

    def __str__(self) -> str:
        return f"close_instead_of_confirming({self.code})"


@attrs.frozen
class PushBeforeConfirming:
    frames: tuple[str | bytes, ...]

    def __str__(self) -> str:
        return "push_before_confirming(…)"


@attrs.frozen
class DropAfterConfirming:
    def __str__(self) -> str:
        return "drop_after_confirming()"


Fault: TypeAlias = (
    FailConnection
    | DelayConnection
    | AnswerConnection
    | HangHandshake
    | RejectHandshake
    | WithholdConfirmation
    | RefuseSubscription
    | CloseInsteadOfConfirming
    | PushBeforeConfirming
    | DropAfterConfirming
)


def refused() -> FailConnection:
    return FailConnection(ConnectionRefusedError(errno.ECONNREFUSED, "refused by FakeAgentMail"))


class ConnectionFaults:
    """Faults of WebSockets to come. Each takes one, while there are some.

    `times` is how many connections a fault is for; `None`: all that follow, until `clear_faults()`. An argument that
    makes no sense is a TypeError or a ValueError at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._connection_faults: FaultQueue[Fault] = FaultQueue()

    def refuse_connections(self, times: int | None = 1) -> None:
        """There is nobody: `ConnectionRefusedError`. Behind `serve()`: accepted, and reset at once."""
        self._connection_faults.add(refused(), times)

    def fail_connections(self, error: Exception, times: int | None = 1) -> None:
        """There is no connection, and this is why: for example `socket.gaierror(-2, "unknown name")`. Behind `serve()`:
        accepted, and reset at once."""
        if not isinstance(error, Exception):
            raise TypeError(f"error is an exception, not {error!r}")
        self._connection_faults.add(FailConnection(error), times)

    def delay_connections(self, seconds: float, times: int | None = 1) -> None:
        """The network takes so long until there is a connection; `math.inf`: there never is."""
        check_seconds("seconds", seconds, or_forever=True)
        self._connection_faults.add(DelayConnection(seconds), times)

    def answer_connections(self, data: bytes, times: int | None = 1) -> None:
        """There is no AgentMail, but something that says this, whatever it is asked, and hangs up."""
        check_bytes("data", data)
        self._connection_faults.add(AnswerConnection(data), times)

    def hang_handshakes(self, times: int | None = 1) -> None:
        """The request for a WebSocket is never answered."""
        self._connection_faults.add(HangHandshake(), times)

    def reject_handshakes(
        self,
        status: int,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        times: int | None = 1,
    ) -> None:
        """The request for a WebSocket is answered with an HTTP status, 200 to 999.

        Args:
            body: `None`: the JSON of AgentMail's errors, from 400 on.
        """
        pairs = check_response(status, headers, body or b"")
        content = error_body(status) if body is None else body
        self._connection_faults.add(RejectHandshake(status, pairs, content), times)

    def withhold_confirmations(self, times: int | None = 1) -> None:
        """Subscriptions are never answered, and nothing is pushed."""
        self._connection_faults.add(WithholdConfirmation(), times)

    def refuse_subscriptions(self, name: str, message: str, times: int | None = 1) -> None:
        """Subscriptions are answered with an `error` frame."""
        check_text("name", name, or_none=False)
        check_text("message", message, or_none=False)
        self._connection_faults.add(RefuseSubscription(name, message), times)

    def close_instead_of_confirming(self, code: int, reason: str = "", times: int | None = 1) -> None:
        """Subscriptions are answered with a close frame."""
        check_close(code, reason)
        self._connection_faults.add(CloseInsteadOfConfirming(code, reason), times)

    def push_before_confirming(self, *events_or_frames: Event | str | bytes, times: int | None = 1) -> None:
        """Subscriptions are confirmed only after these events, or frames as they are, were pushed.

        Raises:
            TypeError: An event has no wire form.
        """
        frames = tuple(item if isinstance(item, str | bytes) else encode_event(item) for item in events_or_frames)
        self._connection_faults.add(PushBeforeConfirming(frames), times)

    def drop_after_confirming(self, times: int | None = 1) -> None:
        """Subscriptions are confirmed, and then the connection is cut."""
        self._connection_faults.add(DropAfterConfirming(), times)
