"""What a test can make go wrong with the next connections: the faults, and the queue of them."""

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import attrs

from trio_agentmail.events import Event

from ._encode import encode_event

__all__ = [
    "CloseInsteadOfConfirming",
    "DropAfterConfirming",
    "Fault",
    "Faults",
    "HangHandshake",
    "PushBeforeConfirming",
    "RefuseConnection",
    "RefuseSubscription",
    "RejectHandshake",
    "WithholdConfirmation",
]


@attrs.frozen
class RefuseConnection:
    pass


@attrs.frozen
class HangHandshake:
    pass


@attrs.frozen
class RejectHandshake:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@attrs.frozen
class WithholdConfirmation:
    pass


@attrs.frozen
class RefuseSubscription:
    name: str
    message: str


@attrs.frozen
class CloseInsteadOfConfirming:
    code: int
    reason: str


@attrs.frozen
class PushBeforeConfirming:
    frames: tuple[str | bytes, ...]


@attrs.frozen
class DropAfterConfirming:
    pass


Fault: TypeAlias = (
    RefuseConnection
    | HangHandshake
    | RejectHandshake
    | WithholdConfirmation
    | RefuseSubscription
    | CloseInsteadOfConfirming
    | PushBeforeConfirming
    | DropAfterConfirming
)


class Faults:
    """Faults in the order in which the test asked for them. Every connection takes one, while there are some.

    `times` is how many connections a fault is for; `None`: all that follow, until `clear_faults()`.
    """

    def __init__(self) -> None:
        self._faults: deque[tuple[Fault, int | None]] = deque()

    def refuse_connections(self, times: int | None = 1) -> None:
        """There is nobody: `ConnectionRefusedError`. Behind `serve()`: accepted, and reset at once."""
        self._add(RefuseConnection(), times)

    def hang_handshakes(self, times: int | None = 1) -> None:
        """The request for a WebSocket is never answered."""
        self._add(HangHandshake(), times)

    def reject_handshakes(
        self,
        status: int,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        times: int | None = 1,
    ) -> None:
        """The request for a WebSocket is answered with an HTTP status, 200 to 999."""
        self._add(RejectHandshake(status, tuple(headers), body), times)

    def withhold_confirmations(self, times: int | None = 1) -> None:
        """Subscriptions are never answered, and nothing is pushed."""
        self._add(WithholdConfirmation(), times)

    def refuse_subscriptions(self, name: str, message: str, times: int | None = 1) -> None:
        """Subscriptions are answered with an `error` frame."""
        self._add(RefuseSubscription(name, message), times)

    def close_instead_of_confirming(self, code: int, reason: str = "", times: int | None = 1) -> None:
        """Subscriptions are answered with a close frame."""
        self._add(CloseInsteadOfConfirming(code, reason), times)

    def push_before_confirming(self, *events_or_frames: Event | str | bytes, times: int | None = 1) -> None:
        """Subscriptions are confirmed only after these events, or frames as they are, were pushed.

        Raises:
            TypeError: An event has no wire form.
        """
        frames = tuple(item if isinstance(item, str | bytes) else encode_event(item) for item in events_or_frames)
        self._add(PushBeforeConfirming(frames), times)

    def drop_after_confirming(self, times: int | None = 1) -> None:
        """Subscriptions are confirmed, and then the connection is cut."""
        self._add(DropAfterConfirming(), times)

    def clear_faults(self) -> None:
        """The connections to come behave well."""
        self._faults.clear()

    def _add(self, fault: Fault, times: int | None) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times is 1 or more, or None, not {times!r}")
        self._faults.append((fault, times))

    def _take_fault(self) -> Fault | None:
        """The fault of a new connection; `None`: all goes well."""
        if not self._faults:
            return None
        fault, times = self._faults.popleft()
        if times is None or times > 1:
            self._faults.appendleft((fault, times - 1 if times else None))
        return fault
