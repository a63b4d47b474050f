"""One connection's life: opened, subscribed, confirmed, kept alive, read in order, closed."""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio

from ._api_key import ApiKey
from ._backend import Backend
from ._clock import Moment
from ._codec import as_unknown, decode_event, encode_subscribe
from ._nursery import background_nursery
from ._reconnect import Verdict, verdict
from ._settings import Settings, Subscribe
from ._websocket import WebSocket
from ._why import CANCELLED, awaited
from .errors import ConnectionLostError, SubscriptionRejectedError
from .events import ErrorEvent, Event, Subscribed

__all__ = ["Connection"]

MAX_HELD_EVENTS = 1_000
MAX_HELD_SIZE = 16 * 2**20
"""How much may come before the confirmation: events, and characters of text. More fails the attempt."""


class Connection:
    """One connection to AgentMail.

    `run` is its task: it opens the WebSocket, and holds it open until `close` or `cut`. Whoever started it takes the
    events with `receive`, from a task of its own, so that leaving in peace can cancel that task while this one still
    says goodbye.

    Args:
        wanted: Asked before each ping, whether anybody still wants the events; if not, the connection is closed.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        subscribe: Subscribe,
        wanted: Callable[[], bool],
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self.subscribe = subscribe
        self._wanted = wanted
        self._websocket: WebSocket
        self._held: deque[Event] = deque()
        self._scope = trio.CancelScope()
        self._retired = trio.Event()
        self._closing = trio.Event()
        self._started = False
        self._draining = 0.0
        """Seconds that were spent waiting for frames since the connection was retired."""
        self._drained = False
        self._given_up: ConnectionLostError | None = None
        self.subscribed: Subscribed
        self.asked_at: Moment
        """When the subscription was asked for."""
        self.confirmed_at: Moment
        """When `subscribed` came."""
        self.accepted = False
        """Whether the handshake has been accepted."""
        self.step = "under way"
        """What `run` is doing before it has started, in words: told when it is cut."""
        self.ended = trio.Event()
        self.bug: BaseException | None = None
        """What ended `run` after it had started, which nothing in a network can do."""

    @property
    def last_received(self) -> Moment:
        """When the last sign of life came."""
        watched = self._websocket.watched
        return Moment(watched.last_received, watched.last_heard)

    @property
    def read_until(self) -> float:
        """All that the server sent before this time, on Trio's clock, has been handed over; see `WatchedStream`."""
        return self._websocket.watched.read_until()

    @property
    def held(self) -> int:
        """Events that came before the confirmation and have not been received yet."""
        return len(self._held)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, subscribe, report the confirmation as `started`, and stay open until told otherwise.

        Raises, until it has started:
            ApiError, SubscriptionRejectedError, OSError: as they happen.
            ConnectionLostError: the connection ended before the confirmation, or the confirmation did not come in time.
            trio.ClosedResourceError: `close` or `cut` was called.
        """
        settings = self._settings
        try:
            with self._scope, trio.move_on_after(settings.open_timeout) as opening:
                # It ends after the WebSocket, whose end cuts off a ping that the server does not take.
                async with background_nursery() as pings:
                    async with self._open_websocket() as self._websocket:
                        self.accepted = True
                        self.asked_at = self._now()
                        await self._websocket.send(encode_subscribe(self.subscribe))
                        await self._receive_confirmation()
                        opening.deadline = math.inf
                        await trio.lowlevel.checkpoint_if_cancelled()  # the deadline may have come in the same moment
                        self.confirmed_at = self._now()
                        task_status.started()
                        self._started = True
                        await self._stay_open(pings)
                        with trio.move_on_after(settings.close_timeout):
                            await self._websocket.close()
            if opening.cancelled_caught:
                within = f"within open_timeout ({settings.open_timeout} s)"
                if self.accepted:
                    raise ConnectionLostError(f"the confirmation did not come {within}")
                raise ConnectionLostError(f"the WebSocket did not open {within}: it was still {self.step}")
            if not self._started:
                raise trio.ClosedResourceError("the stream was left")
        except trio.Cancelled:
            raise
        except BaseException as exc:
            self._api_key.redact(exc)
            if not self._started:
                raise
            if not isinstance(exc, Exception) or verdict(exc) is Verdict.FATAL:
                self.bug = exc
        finally:
            self.ended.set()

    @asynccontextmanager
    async def _open_websocket(self) -> AsyncIterator[WebSocket]:
        settings = self._settings
        try:
            async with self._backend.open_websocket(
                settings.environment.websockets + "/v0",
                headers=[("Authorization", self._api_key.authorization)],
                max_message_size=settings.max_message_size,
                ssl_context=settings.ssl_context,
            ) as websocket:
                self.step = "waiting for the confirmation"
                yield websocket
        except CANCELLED as exc:
            if not self.accepted:
                self.step = awaited(exc) or self.step
            raise

    def _now(self) -> Moment:
        return Moment(self._backend.now(), trio.current_time())

    async def receive(self) -> Event | None:
        """The next event; None when the connection has been retired, and all that it had has been received.

        Raises:
            ConnectionLostError: the connection has ended, and all that came before that has been received.
        """
        if self._held:
            return self._held.popleft()
        if self._drained:
            return None
        draining = self._retired.is_set()
        began = trio.current_time() if draining else 0.0
        try:
            data = await self._websocket.receive()
        except ConnectionLostError as exc:
            if self._drained:
                return None
            self._api_key.redact(exc)
            if self._given_up is not None and exc.code == 1006:
                raise self._given_up from None  # it was cut by us, and this is why
            raise
        if draining:
            self._draining += trio.current_time() - began
            if self._draining > self._settings.ping_timeout:
                self._finish()  # it talks, and does not answer pings: what has come until now must do
        event = decode_event(data)
        if isinstance(event, Subscribed):
            return as_unknown(event, "a confirmation, though the subscription had been confirmed")
        return event

    def retire(self) -> None:
        """Another connection has taken over: close this one when what the server has sent on it is received."""
        self._retired.set()

    def close(self) -> None:
        """Close politely, whatever the server may still send."""
        self._closing.set()
        if not self._started:
            self.cut()

    def stop(self) -> None:
        """Close politely; what has been read can still be received, and nothing else."""
        if self._started:
            self._websocket.stop_receiving()
        self.close()

    def cut(self) -> None:
        """Close at once, by force."""
        self._scope.cancel()

    async def _receive_confirmation(self) -> None:
        # The consumer is not waited for here: it may be the one who waits for this confirmation.
        size = 0
        while True:
            data = await self._websocket.receive()
            event = decode_event(data)
            if isinstance(event, Subscribed):
                self.subscribed = event
                return
            if isinstance(event, ErrorEvent):
                raise SubscriptionRejectedError(event.name, event.message)
            self._held.append(event)
            size += len(data)
            if len(self._held) > MAX_HELD_EVENTS or size > MAX_HELD_SIZE:
                raise ConnectionLostError(f"{len(self._held)} events came, and no confirmation")

    async def _stay_open(self, pings: trio.Nursery) -> None:
        async with background_nursery() as nursery:
            if self._settings.ping_interval is not None:
                nursery.start_soon(self._heartbeat, self._settings.ping_interval, pings)
            pings.start_soon(self._close_when_drained)
            await self._closing.wait()

    async def _heartbeat(self, interval: float, nursery: trio.Nursery) -> None:
        timeout = self._settings.ping_timeout
        while True:
            since = await self._silence(interval)
            if not self._wanted():
                self.close()
                return
            nursery.start_soon(self._ping)
            with trio.move_on_after(timeout) as scope:
                # Any byte is a sign of life: the pong may have to queue behind a large message.
                while self._websocket.watched.quiet_since == since:
                    await self._websocket.watched.changed()
            if scope.cancelled_caught and await self._still_silent(since):
                self._give_up(f"silent for {interval} s (ping_interval), then no answer to a ping for {timeout} s")

    async def _silence(self, seconds: float, begin: float = -math.inf) -> float:
        """Wait until nothing has come for so long, counted from `begin` at the earliest; return since when.

        Time in which nobody reads, since the consumer has no room, is not the server's silence.
        """
        while True:
            since = self._websocket.watched.quiet_since
            if since is None:
                await self._websocket.watched.changed()
                continue
            await trio.sleep_until(max(since, begin) + seconds)
            if await self._still_silent(since):
                return since

    async def _still_silent(self, since: float) -> bool:
        # When somebody has blocked the event loop, bytes that came meanwhile and the deadline wake their tasks in the
        # same moment. The bytes must be seen first.
        await trio.lowlevel.checkpoint()
        return self._websocket.watched.quiet_since == since

    async def _ping(self) -> None:
        with trio.move_on_after(self._settings.ping_timeout), suppress(ConnectionLostError):  # receive() tells
            await self._websocket.ping()

    def _give_up(self, reason: str) -> None:
        self._given_up = ConnectionLostError(reason)
        self.cut()

    async def _close_when_drained(self) -> None:
        # Frames come in order: when the pong is there, everything is there that the server sent before it saw the
        # ping, and by then the other connection had been confirmed.
        await self._retired.wait()
        async with background_nursery() as nursery:
            nursery.start_soon(self._give_up_when_silent)
            try:
                await self._websocket.ping()
            except ConnectionLostError:
                return  # receive() tells
        self._finish()

    def _finish(self) -> None:
        """All that this connection is to bring has been received."""
        self._drained = True
        self._closing.set()

    async def _give_up_when_silent(self) -> None:
        timeout = self._settings.ping_timeout
        await self._silence(timeout, begin=trio.current_time())
        self._give_up(f"no answer to a ping for {timeout} s")
