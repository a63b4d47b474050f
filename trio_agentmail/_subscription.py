"""One subscription over successive connections: reconnecting, and replacing a connection without a gap."""

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
    """Keeps one subscription in force, and says which connection the events come from.

    Replacing a connection, to change the subscription or because pushes have stopped, must not open a gap: whatever
    the server pushes meanwhile must arrive on one of the two connections.

    The obvious way is to send the new subscription on the open connection. But whether AgentMail then adds the new
    filters or replaces the old ones is unknown, and its documentation promises neither. The next idea is to close the
    old connection and open another one. That opens a gap, and if the new subscription is refused, the old one is gone.

    So a second connection is opened beside the first. When it is confirmed, the first one is retired: it sends a ping,
    and since frames arrive in order, everything the server sent before has arrived when the pong does. The supervisor
    receives from the retired connection until it is drained, and then goes on with its successor; de-duplication
    removes what arrived on both. If the new subscription is refused, or the caller is cancelled, only the second
    connection is closed, and nothing has changed.

    The consumer may be slow, so several successors can wait in line, each retired by the next one. The first connection
    may also be lost while a successor waits. Then the successor takes over without another attempt.

    Args:
        connector: Makes the connections.
        policy: The back-off.
        subscribe: What to subscribe to at first.
        state: The state of the stream.
        outage: Told of losses.
        now: The time of day, in seconds since the epoch.

    Attributes:
        subscribe: What is subscribed to.
        current: The connection that events come from now.
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
        """Receive from this connection from now on."""
        self.current = connection
        self._state.set("subscribed")

    def next(self) -> Connection | None:
        """Return the connection to adopt after the current one, or None if there is none."""
        return self._successors.popleft() if self._successors else None

    def note_loss(self, loss: ConnectionLostError) -> None:
        """Note that the current connection was lost."""
        if trio.current_time() - self.since >= self._policy.stable_after:
            self._attempts.start_over()
            self._outage.end()
        self._outage.begin(loss)

    async def reconnect(self) -> None:
        """Have a successor of the current connection, which was lost, unless the stream is being stopped."""
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
            # Without a connection, the scope was cancelled: by `replacing`, which leaves a successor, or by `stop`.
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
        """Replace the connection by another one with the same subscription."""
        async with self.replacing(None):
            pass

    @asynccontextmanager
    async def replacing(self, subscribe: Subscribe | None) -> AsyncIterator[None]:
        """Open a second connection, run the block, and then replace the present connection.

        If opening or the block raises, or is cancelled, nothing has changed.

        Args:
            subscribe: What to subscribe to; None for what is subscribed to now.

        There is no checkpoint after the end of the block.

        Raises:
            trio.ClosedResourceError: The stream has ended.
            Exception: The subscription was refused, or the key was.
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
        """Return for how many seconds the oldest push that may have arrived has been waiting to be read.

        Reading waits for the consumer.
        """
        now = trio.current_time()
        current = [self.current] if self.current is not None and self._state.value == "subscribed" else []
        return max((now - connection.read_until for connection in (*current, *self._successors)), default=0.0)
