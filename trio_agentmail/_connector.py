"""Makes connections: one attempt, or attempts with back-off until a subscription is confirmed."""

import math
from collections.abc import Callable

import trio

from ._api_key import ApiKey
from ._backend import Backend
from ._channel import Abandoned
from ._connection import Connection
from ._outage import OutageTracker
from ._proxy import ProxyCredentialsError
from ._reconnect import Attempts, retry_after
from ._settings import Settings, Subscribe
from ._state import StreamState
from ._why import describe
from .errors import ConnectionFailedError, ConnectionLostError

__all__ = ["Connector"]


class Connector:
    """Makes the connections of a stream, and keeps track of those that are still open.

    Args:
        backend: Opens the WebSockets.
        settings: The settings of the stream.
        api_key: The API key, fetched before each attempt.
        is_wanted: Returns whether any receiver of the channel is left.
        state: The state of the stream. `connect` sets it to "connecting" and "waiting".
        outage: Records each failed attempt of `connect`.

    Attributes:
        nursery: The nursery for the connections' tasks. It is set before the first attempt.
        confirmed: The number of connections whose subscription was confirmed.
    """

    nursery: trio.Nursery

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        is_wanted: Callable[[], bool],
        state: StreamState,
        outage: OutageTracker,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._is_wanted = is_wanted
        self._state = state
        self._outage = outage
        self._live: set[Connection] = set()
        self._step = ""
        """What the attempt was waiting for when it was cancelled, in words."""
        self.confirmed = 0

    @property
    def bug(self) -> BaseException | None:
        """The `bug` of the first connection that has one."""
        bugs = (connection.bug for connection in self._live)
        return next(filter(None, bugs), None)

    async def connect(
        self,
        subscribe: Subscribe,
        attempts: Attempts,
        limit: float | None,
        limit_name: str,
        delay: float | None = None,
    ) -> Connection:
        """Make attempts until a subscription is confirmed, and return its connection.

        Args:
            subscribe: The subscription.
            attempts: The back-off.
            limit: Seconds for all attempts; None for no limit.
            limit_name: The name of the limit in errors.
            delay: Seconds before the first attempt. `None` while the stream is being entered; in that case, a
                `Retry-After` beyond the limit or rejected proxy credentials end the attempts at once.

        Raises:
            ConnectionFailedError: The limit was reached, or the attempts ended before it (see `delay`).
            Exception: A failure that is not transient; see `Attempts.delay_after`.
        """
        entering = delay is None
        deadline = trio.current_time() + (math.inf if limit is None else limit)
        failure: Exception | None = None
        self._step = "to come"
        with trio.move_on_at(deadline):
            while True:
                if delay is not None:
                    await self._wait(delay)
                self._state.set("connecting")
                connection = await self.attempt(subscribe, attempts)
                if isinstance(connection, Connection):
                    return connection
                failure = connection
                # If the attempt failed because the stream is being closed, this raises Cancelled.
                await trio.lowlevel.checkpoint()
                self._outage.begin(failure)
                delay = attempts.delay_after(failure)
                if entering and isinstance(failure, ProxyCredentialsError):
                    # A mistyped password should be reported at once. Later, the proxy may have a temporary problem.
                    raise ConnectionFailedError(f"not subscribed: {failure}") from failure
                if entering and trio.current_time() + retry_after(failure, self._backend.now) > deadline:
                    break
        if failure is None:
            failure = ConnectionLostError(f"the first attempt was still {self._step}")
        raise ConnectionFailedError(f"not subscribed within {limit_name} ({limit} s): {describe(failure)}") from failure

    async def attempt(self, subscribe: Subscribe, attempts: Attempts) -> Connection | Exception:
        """Make one attempt, and return the confirmed connection or the failure."""
        self._api_key.ask()  # outside of the try block: an exception of the callable is not a failed attempt
        self._live = {old for old in self._live if old.bug is not None or not old.ended.is_set()}
        connection = Connection(self._backend, self._settings, self._api_key, subscribe, self._is_wanted)
        self._live.add(connection)
        failure = None
        try:
            await self.nursery.start(connection.run)
        except trio.Cancelled:
            self._step = connection.step
            raise
        except Exception as exc:  # noqa: BLE001  Attempts.delay_after() raises it if it is not transient
            failure = exc
        if connection.accepted:
            attempts.handshake_was_accepted()
        if failure is not None:
            return failure
        attempts.was_subscribed()
        self.confirmed += 1
        return connection

    async def _wait(self, delay: float) -> None:
        next_attempt_at = trio.current_time() + delay
        self._state.set_waiting(next_attempt_at, self._outage.last_error)
        if self._outage.warning_is_due_at <= next_attempt_at:
            await trio.sleep_until(self._outage.warning_is_due_at)
            self._outage.warn_if_it_lasts()
        await trio.sleep_until(next_attempt_at)
        if not self._is_wanted():
            raise Abandoned

    def close(self) -> None:
        """Close all connections with a close frame."""
        for connection in self._live:
            connection.close()

    def stop(self) -> None:
        """Close all connections with a close frame. Events that they have read can still be received."""
        for connection in self._live:
            connection.stop()

    async def closed(self) -> None:
        """Wait until all connections have ended."""
        for connection in self._live.copy():
            await connection.ended.wait()
