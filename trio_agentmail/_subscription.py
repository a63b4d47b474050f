"""A subscription over successive connections: reconnecting, and replacing a connection without a gap."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ._connection import Connection
from ._connector import Connector
from ._outage import OutageTracker
from ._reconnect import Attempts
from ._settings import ReconnectPolicy, Subscribe
from ._state import StreamState
from .errors import ConnectionLostError

__all__ = ["Subscription"]


class Subscription:
    """Keeps a subscription in force, and provides the connection from which to receive events.

    A connection is replaced to change the subscription, or because pushes have stopped. This must not open a gap: each
    event that the server pushes meanwhile must arrive on one of the two connections.

    The obvious solution is to send the new subscription on the open connection. But AgentMail does not document whether
    this adds the new filters or replaces the old ones. The next idea is to close the old connection and open another
    one. That opens a gap, and if the new subscription is refused, the old one is gone.

    Instead, a second connection is opened beside the first. When it is confirmed, the first one is retired: it sends a
    ping, and since frames arrive in order, everything that the server sent before has arrived when the pong arrives.
    The supervisor receives from the retired connection until it is drained, and then from its successor.
    De-duplication removes events that arrived on both. If the new subscription is refused, or the caller is cancelled,
    only the second connection is closed, and the first one remains in use.

    If the consumer is slow, several successors can wait in line, each retired by the next one. If the first connection
    is lost while a successor waits, the successor takes over without another attempt.

    Args:
        connector: Makes the connections.
        policy: The back-off.
        subscribe: The first subscription.
        state: The state of the stream.
        outage: Records losses.
        now: Returns the time of day, in seconds since the epoch.

    Attributes:
        subscribe: The present subscription.
        current: The connection from which events are being received.
        since: Since when the subscription has been in force, on Trio's clock.
    """

    def __init__(
        self,
        connector: Connector,
        policy: ReconnectPolicy,
        subscribe: Subscribe,
        state: StreamState,
        outage: OutageTracker,
        now: Callable[[], float],
    ) -> None:
        self._connector = connector
        self._policy = policy
        self._state = state
        self._outage = outage
        self._now = now
        self._attempts = Attempts(policy, now)
        self._successors: deque[Connection] = deque()
        self._replacing = trio.Lock()
        self._reconnecting = trio.CancelScope()
        self.subscribe = subscribe
        self.current: Connection | None = None
        self.since = 0.0

    async def enter(self, enter_timeout: float) -> Connection:
        """Make the first connection.

        Args:
            enter_timeout: Seconds for all attempts.
        """
        connection = await self._connector.connect(self.subscribe, self._attempts, enter_timeout, "enter_timeout")
        self.since = trio.current_time()
        return connection

    def adopt(self, connection: Connection) -> None:
        """Make this connection the current one."""
        self.current = connection
        self._state.set("subscribed")

    def next(self) -> Connection | None:
        """Return the connection to adopt after the current one, or None if there is none."""
        return self._successors.popleft() if self._successors else None

    def note_loss(self, loss: ConnectionLostError) -> None:
        """Record that the current connection was lost."""
        if trio.current_time() - self.since >= self._policy.stable_after:
            self._attempts.start_over()
            self._outage.end()
        self._outage.begin(loss)

    async def reconnect(self) -> None:
        """Make a successor of the lost connection, unless one is waiting or the stream is being stopped."""
        if not self._successors and not self._state.is_stopping:
            connection = None
            with trio.CancelScope() as self._reconnecting:
                connection = await self._connector.connect(
                    self.subscribe,
                    self._attempts,
                    self._policy.give_up_after,
                    "give_up_after",
                    self._attempts.delay(),
                )
            # If there is no connection, the scope was cancelled: by `replacing`, which adds a successor, or by `stop`.
            if connection is not None:
                if self._successors or self._state.is_stopping:
                    connection.close()
                else:
                    self._successors.append(connection)
        self.since = trio.current_time()

    def stop(self) -> None:
        """Make no more attempts to reconnect."""
        self._reconnecting.cancel()

    async def renew(self) -> None:
        """Replace the connection by a new one with the same subscription."""
        async with self.replacing(None):
            pass

    @asynccontextmanager
    async def replacing(self, subscribe: Subscribe | None) -> AsyncIterator[None]:
        """Open a second connection, run the block, and then replace the present connection.

        If opening it or the block raises or is cancelled, the present connection and subscription are kept. There is no
        checkpoint after the block.

        Args:
            subscribe: The new subscription; None for the present one.

        Raises:
            trio.ClosedResourceError: The stream has ended.
            Exception: The subscription or the key was refused, or the `api_key` callable raised an exception.
        """
        async with self._replacing:
            if subscribe is None:
                subscribe = self.subscribe
            connection = await self._connect_beside(subscribe)
            try:
                self._state.check_open()
                yield
            except BaseException:
                connection.close()
                raise
            predecessor = self._successors[-1] if self._successors else self.current
            assert predecessor is not None  # the block has been entered
            predecessor.retire()
            self._successors.append(connection)
            self.subscribe = subscribe
            self._attempts.handshake_was_accepted()
            self._attempts.was_subscribed()
            self._reconnecting.cancel()

    async def _connect_beside(self, subscribe: Subscribe) -> Connection:
        """Make a second connection. During an outage, wait for its end first."""
        attempts = Attempts(self._policy, self._now, subscribed=True)
        while True:
            while self._state.value != "subscribed":
                self._state.check_open()
                await self._state.changed()
            connection = await self._connector.attempt(subscribe, attempts)
            if isinstance(connection, Connection):
                return connection
            self._outage.note(connection)
            with trio.move_on_after(attempts.delay_after(connection)):
                while not self._state.has_ended:
                    await self._state.changed()

    def unread_for(self) -> float:
        """Return the maximum time, in seconds, for which a push may have been waiting to be read.

        Pushes wait because reading waits for the consumer.
        """
        now = trio.current_time()
        current = [self.current] if self.current is not None and self._state.value == "subscribed" else []
        return max((now - connection.read_until for connection in (*current, *self._successors)), default=0.0)
