"""A connection to AgentMail, from opening the WebSocket and subscribing to closing it."""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ._api_key import ApiKey
from ._backend import Backend, WebSocket
from ._clock import Moment
from ._codec import as_unknown, decode_event, encode_subscribe
from ._heartbeat import keep_alive, wait_for_silence
from ._nursery import background_nursery
from ._reconnect import Verdict, verdict
from ._settings import Settings, Subscribe
from ._why import CANCELLED, awaited
from .errors import ConnectionLostError, SubscriptionRejectedError
from .events import ErrorEvent, Event, Subscribed

__all__ = ["Connection"]

MAX_EARLY_EVENTS = 1_000
MAX_EARLY_SIZE = 16 * 2**20
"""Maximum number of events, and bytes of their text, before the confirmation. If there are more, the attempt fails."""


class Connection:
    """One connection to AgentMail.

    `run` opens the WebSocket and keeps it open until `close` or `cut`. Another task calls `receive`, so that leaving a
    stream can cancel that task while `run` still sends the close frame.

    Args:
        backend: Opens the WebSocket.
        settings: The settings of the stream.
        api_key: The API key.
        subscribe: The subscription to send.
        is_wanted: Returns whether any receiver is left. It is called before each ping. If none is left, the connection
            is closed.

    Attributes:
        subscribed: The confirmation of the subscription.
        asked_at: When the subscription was sent.
        confirmed_at: When the confirmation arrived.
        accepted: Whether the handshake has been accepted.
        step: What `run` is waiting for until the confirmation, for error messages.
        ended: Set when `run` has ended.
        bug: The exception that ended `run` after the confirmation, if the network did not cause it.
    """

    subscribed: Subscribed
    asked_at: Moment
    confirmed_at: Moment

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        subscribe: Subscribe,
        is_wanted: Callable[[], bool],
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._subscribe = subscribe
        self._is_wanted = is_wanted
        self._websocket: WebSocket
        self._early: deque[Event] = deque()
        self._scope = trio.CancelScope()
        self._retired = trio.Event()
        self._closing = trio.Event()
        self._started = False
        self._draining = 0.0
        """Seconds that `receive` has waited since the connection was retired."""
        self._drained = False
        self._given_up: ConnectionLostError | None = None
        self.accepted = False
        self.step = "under way"
        self.ended = trio.Event()
        self.bug: BaseException | None = None

    @property
    def last_received(self) -> Moment:
        """When the last byte arrived."""
        return Moment(self._websocket.last_received, self._websocket.last_heard)

    @property
    def read_until(self) -> float:
        """See `WebSocket`."""
        return self._websocket.read_until

    @property
    def early(self) -> int:
        """The number of events that arrived before the confirmation and have not been received yet."""
        return len(self._early)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the WebSocket, subscribe, report the confirmation to `task_status`, and wait for `close` or `cut`.

        Raises, before the confirmation:
            ApiError, SubscriptionRejectedError, OSError: The attempt failed.
            ConnectionLostError: The connection ended before the confirmation, or the attempt took too long.
            trio.ClosedResourceError: `close` or `cut` was called.
        """
        settings = self._settings
        try:
            with self._scope, trio.move_on_after(settings.open_timeout) as opening:
                # The nursery outlives the WebSocket: closing that ends a ping that the server does not read.
                async with background_nursery() as pings:
                    async with self._open_websocket() as self._websocket:
                        self.accepted = True
                        self.asked_at = self._now()
                        await self._websocket.send(encode_subscribe(self._subscribe))
                        await self._receive_confirmation()
                        opening.deadline = math.inf
                        await trio.lowlevel.checkpoint_if_cancelled()  # the deadline may have passed just now
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

    async def _receive_confirmation(self) -> None:
        # This must not wait for the consumer, because the consumer may be waiting for this confirmation.
        size = 0
        while True:
            data = await self._websocket.receive()
            event = decode_event(data)
            if isinstance(event, Subscribed):
                self.subscribed = event
                return
            if isinstance(event, ErrorEvent):
                raise SubscriptionRejectedError(event.name, event.message)
            self._early.append(event)
            size += len(data)
            if len(self._early) > MAX_EARLY_EVENTS or size > MAX_EARLY_SIZE:
                raise ConnectionLostError(f"{len(self._early)} events arrived before the confirmation")

    async def receive(self) -> Event | None:
        """Return the next event, or `None` if the connection has been retired and is drained.

        Raises:
            ConnectionLostError: The connection has ended, and all events before its end have been returned.
        """
        if self._early:
            return self._early.popleft()
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
                raise self._given_up from None  # the reason for which we cut the connection
            raise
        if draining:
            self._draining += trio.current_time() - began
            if self._draining > self._settings.ping_timeout:
                self._finish_draining()  # the server sends messages but does not answer pings
        event = decode_event(data)
        if isinstance(event, Subscribed):
            return as_unknown(event, "a confirmation, though the subscription had been confirmed")
        return event

    def retire(self) -> None:
        """Drain this connection and then close it, because another connection replaces it."""
        self._retired.set()

    def close(self) -> None:
        """Close with a close frame. Events that have not been received may be discarded."""
        self._closing.set()
        if not self._started:
            self.cut()

    def stop(self) -> None:
        """Close with a close frame. Only events that have been read can still be received."""
        if self._started:
            self._websocket.stop_receiving()
        self.close()

    def cut(self) -> None:
        """Close at once, without a close frame."""
        self._scope.cancel()

    async def _stay_open(self, pings: trio.Nursery) -> None:
        async with background_nursery() as nursery:
            if self._settings.ping_interval is not None:
                nursery.start_soon(self._keep_alive, self._settings.ping_interval, pings)
            pings.start_soon(self._close_when_drained)
            await self._closing.wait()

    async def _keep_alive(self, interval: float, pings: trio.Nursery) -> None:
        try:
            await keep_alive(self._websocket, interval, self._settings.ping_timeout, self._is_wanted, pings)
        except ConnectionLostError as exc:
            self._give_up(exc)
        else:
            self.close()

    def _give_up(self, reason: ConnectionLostError) -> None:
        self._given_up = reason
        self.cut()

    async def _close_when_drained(self) -> None:
        # Frames arrive in order. So once the pong has arrived, everything that the server sent before it read the ping
        # has arrived as well, and by then the other connection had been confirmed.
        await self._retired.wait()
        async with background_nursery() as nursery:
            nursery.start_soon(self._give_up_when_silent)
            try:
                await self._websocket.ping()
            except ConnectionLostError:
                return  # receive() reports the loss
        self._finish_draining()

    async def _give_up_when_silent(self) -> None:
        timeout = self._settings.ping_timeout
        await wait_for_silence(self._websocket, timeout, after=trio.current_time())
        self._give_up(ConnectionLostError(f"no answer to a ping for {timeout} s"))

    def _finish_draining(self) -> None:
        self._drained = True
        self._closing.set()
