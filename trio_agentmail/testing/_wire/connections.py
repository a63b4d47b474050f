"""The current connections, and pushing to them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._checks import has_lone_surrogate
from trio_agentmail.testing._encode import encode_event
from trio_agentmail.testing._log import Log

from .connection import Connection, cut
from .hooks import PendingFaults
from .subscriptions import describe

__all__ = ["Connections"]


class Connections:
    """The current connections, oldest first.

    Args:
        agentmail: Decides which subscriptions an event matches.
        faults: The source of the faults of pushes.
    """

    def __init__(self, agentmail: AgentMail, faults: PendingFaults, log: Log) -> None:
        self._agentmail = agentmail
        self._faults = faults
        self._log = log
        self._connections: list[Connection] = []
        self._receivers: set[Connection] | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections)

    def __len__(self) -> int:
        return len(self._connections)

    def __str__(self) -> str:
        return _names(self._connections)

    def add(self, connection: Connection) -> None:
        self._connections.append(connection)

    def remove(self, connection: Connection) -> None:
        self._connections.remove(connection)

    @property
    def open(self) -> int:
        """The number of open WebSockets."""
        return sum(connection.is_open for connection in self._connections)

    @property
    def subscribed(self) -> int:
        """The number of open WebSockets with a confirmed subscription."""
        return sum(connection.is_subscribed for connection in self._connections)

    def push_event(self, event: Event) -> None:
        """Push an event to the connections whose subscription it matches, or let a fault do something else with it.

        Raises:
            TypeError: The event has no wire form.
        """
        text = encode_event(event)
        fault = self._faults.pushes.take()
        if fault is None:
            self.push(text)
        else:
            fault.on_push(text, self.push)
            self._log.note(f"{describe(json.loads(text))}: fault {fault}")

    def push(self, text: str, sent: str | None = None) -> None:
        """Push an event to the connections whose subscription it matches.

        Args:
            sent: The text to send instead of the event's own.
        """
        # orjson refuses lone surrogates, which an event may contain.
        frame = json.loads(text)
        receivers: list[Connection] = []
        others = []
        for connection in self._connections:
            if connection.is_open:
                reason = self._agentmail.mismatch(connection.subscription, frame, connection.permissions)
                if reason is None:
                    connection.push(text if sent is None else sent)
                    receivers.append(connection)
                else:
                    others.append(f"{connection} {reason}")
        if self._receivers is not None:
            self._receivers.update(receivers)
        self._log.note("; ".join([f"{describe(frame)}: pushed to {_names(receivers)}", *others]))

    @contextmanager
    def counting(self) -> Iterator[set[Connection]]:
        """Yield a set that collects the connections to which events are pushed within the block."""
        self._receivers = receivers = set[Connection]()
        try:
            yield receivers
        finally:
            self._receivers = None

    async def send_raw(self, frame: str | bytes) -> None:
        """Push a raw frame: see `FakeAgentMail.send_raw`."""
        if not isinstance(frame, str | bytes):
            raise TypeError(f"frame is str or bytes, not {type(frame).__name__}: json.dumps() makes a str")
        if isinstance(frame, str) and has_lone_surrogate(frame):
            raise ValueError("frame has a lone surrogate, which no WebSocket can carry as text")
        receivers = [connection for connection in self._connections if connection.is_subscribed]
        for connection in receivers:
            connection.push(frame)
        self._log.note(f"raw frame {frame[:60]!r}: pushed to {_names(receivers)}")
        await trio.lowlevel.checkpoint()

    async def cut(self) -> None:
        """End all connections without a close frame, and return when they have ended."""
        await cut(self._connections)
        self._log.notify()

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame on all connections."""
        for connection in self._connections:
            connection.close(code, reason)
        await trio.lowlevel.checkpoint()
        self._log.notify()


def _names(connections: list[Connection]) -> str:
    return ", ".join(f"{one} (silent)" if one.is_silent else f"{one}" for one in connections) or "no connection"
