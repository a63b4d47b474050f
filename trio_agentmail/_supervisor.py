"""The task behind the stream: keeps one subscription in force, whatever becomes of its connections."""

import logging
import math
from collections import deque
from datetime import UTC, datetime

import trio

from ._api_key import ApiKey
from ._backend import Backend, NetworkBackend
from ._clock import Moment, ServerClock
from ._codec import encode_subscribe
from ._connection import Connection
from ._delivered import Delivered
from ._first_use import write_functions
from ._journal.protocol import Journal
from ._nursery import background_nursery
from ._outbox import Abandoned, JournaledOutbox, Outbox
from ._proxy import ProxyCredentialsError
from ._reconnect import Attempts, retry_after
from ._recovery.recoverer import Recoverer
from ._settings import AgentMailEnvironment, Recovery, Settings, Subscribe
from ._statistics import State, Statistics
from ._trouble import Trouble
from ._why import words_of
from .errors import ConnectionFailedError, ConnectionLostError
from .events import Disconnected, MessageReceivedEvent, UnknownEvent

__all__ = ["Supervisor", "journal_scope"]

logger = logging.getLogger("trio_agentmail")

KEEP_IDENTITIES_FOR = 86_400.0
"""Seconds for which identities are kept where there is no recovery, which knows better."""


class Supervisor:
    """Keeps `subscribe` in force.

    `run` is its task. The connections' tasks run beside it in the same nursery, so that leaving in peace can stop this
    one and let those say goodbye.

    Args:
        recovery: How missed mail is found; None: not at all.
        journal: Where events are kept until they are handled, if they are; opened already.
        clock: AgentMail's clock.
        delivered: What has been delivered, as far as the journal knows.
        kept: What the journal remembered for recovery.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        api_key: ApiKey,
        subscribe: Subscribe,
        recovery: Recovery | None,
        journal: Journal | None,
        clock: ServerClock,
        delivered: Delivered,
        kept: bytes,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._api_key = api_key
        self._subscribe = subscribe
        self._nursery: trio.Nursery
        self._scope = trio.CancelScope()
        self._attempts = Attempts(settings.reconnect, backend.now)
        self._live: set[Connection] = set()
        self._current: Connection | None = None
        self._successors: deque[Connection] = deque()
        self._reestablishing = trio.CancelScope()
        self._recovering = trio.CancelScope()
        self._is_stopping = False
        self._replacing = trio.Lock()
        self._state_changed = trio.Event()
        self._next_attempt_at: float | None = None
        self._trouble = Trouble()
        self._step = ""
        """What the attempt that was cut was doing, in words."""
        self._connections = 0
        self._received = 0
        self._unknown = 0
        self.state: State = "closed"
        self.entered = trio.Event()
        """Set when the subscription is in force, or cannot be: see `error`."""
        self._clock = clock
        self._delivered = delivered
        self.outbox: Outbox | JournaledOutbox
        max_size = 2 * settings.max_message_size
        if journal is None:
            self.outbox = Outbox(settings.buffer_size, max_size, delivered)
        else:
            self.outbox = JournaledOutbox(settings.buffer_size, max_size, delivered, journal)
        self._journal = journal
        self._recoverer: Recoverer | None = None
        if recovery is not None:
            self._recoverer = Recoverer(
                recovery,
                backend,
                settings,
                api_key,
                clock,
                delivered,
                self.outbox,
                self._renew,
                journal,
                kept,
                self._unread_for,
            )
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """What ended the stream, if anything did but leaving it; complete when its tasks have ended."""
        bugs = (connection.bug for connection in self._live)
        return self._error or next(filter(None, bugs), None)

    def statistics(self) -> Statistics:
        now = trio.current_time()
        current = self._current
        trouble = self._trouble
        last_error_at = trouble.last_error_at
        if last_error_at is not None and self._is_well(since=last_error_at):
            last_error_at = None
        missing_since = self._recoverer.missing_since if self._recoverer is not None else math.inf
        return Statistics(
            connections=self._connections,
            received=self._received,
            delivered=self.outbox.delivered,
            duplicates=self.outbox.duplicates,
            unknown=self._unknown,
            recovered=self._recoverer.recovered if self._recoverer is not None else 0,
            requests=self._recoverer.requests if self._recoverer is not None else 0,
            remembered=len(self._delivered),
            missing_since=_utc(missing_since) if missing_since < math.inf else None,
            buffered=self.outbox.waiting + (current.held if current is not None else 0),
            last_received=_utc(current.last_received.wall) if current is not None else None,
            last_error=trouble.last_error if last_error_at is not None else None,
            last_error_at=_utc(self._backend.now() - (now - last_error_at)) if last_error_at is not None else None,
            next_attempt_in=None if self._next_attempt_at is None else max(0.0, self._next_attempt_at - now),
        )

    def _is_well(self, since: float) -> bool:
        """Whether the subscription has been in force, and nothing has failed, for long enough to be stable."""
        if self.state != "subscribed":
            return False
        return trio.current_time() - max(since, self._subscribed_since) >= self._settings.reconnect.stable_after

    async def run(self, nursery: trio.Nursery, body: trio.CancelScope) -> None:
        """Enter, and go on until `leave`, or until nobody wants the events; keep what goes wrong in `error`.

        Args:
            nursery: Where the connections' tasks run.
            body: Cancelled when something has gone wrong.
        """
        self._nursery = nursery
        try:
            with self._scope:
                async with background_nursery() as own:
                    own.start_soon(self.outbox.run)
                    if isinstance(self._backend, NetworkBackend):
                        own.start_soon(write_functions)
                    if self._recoverer is not None:
                        own.start_soon(self._recover, self._recoverer)
                        await self._recoverer.begin(self._subscribe)
                    else:
                        own.start_soon(self._forget_in_time)
                    connection = await self._establish(self._settings.enter_timeout, "enter_timeout")
                    self._subscribed_since = trio.current_time()
                    if self._journal is not None:
                        # What is given at a start that succeeded is in force, and nothing else any more.
                        await self._journal.keep(scope=self._scope_of(self._subscribe))
                    if self._recoverer is not None:
                        self._recoverer.subscribed_to(self._subscribe, connection.asked_at)
                    self._adopt(connection)
                    self.entered.set()
                    while (following := await self._next(connection)) is not None:
                        connection = following
                        self._adopt(connection)
                    await self.outbox.finish()
        except Abandoned:
            logger.info("every receiver is closed: the stream ends")
        except trio.Cancelled:
            raise
        except BaseException as exc:  # noqa: BLE001  the session raises it again
            self._error = exc
            body.cancel()
        finally:
            self.leave()
            self.outbox.close()
            self.entered.set()

    def leave(self) -> None:
        """Stop, and say goodbye; the tasks in the nursery end when that is done."""
        self._scope.cancel()
        self._set_state("closed")
        for connection in self._live:
            connection.close()

    async def stop(self) -> None:
        """Take nothing more from the network; `run` ends when what had been read has been handed over."""
        if self.state != "closed":
            self._is_stopping = True
            self._set_state("stopping")
            self.outbox.stop()
            self._recovering.cancel()
            self._reestablishing.cancel()
            if self._recoverer is not None:
                self._recoverer.stop_fetching_bodies()
            for connection in self._live:
                connection.stop()
        for connection in self._live.copy():
            await connection.ended.wait()
        await trio.lowlevel.checkpoint()

    async def _recover(self, recoverer: Recoverer) -> None:
        with self._recovering:
            await recoverer.run()

    async def _renew(self) -> None:
        """Put a new connection in the place of this one, which no longer does what it should."""
        await self.replace(None)

    async def replace(self, subscribe: Subscribe | None) -> None:
        """Put another subscription in the place of this one; if that raises or is cancelled, nothing has changed.

        Args:
            subscribe: None: the same, on another connection.
        """
        asked_at = self._clock.moment()  # what is added begins now, however long it takes to be in force
        async with self._replacing:
            if subscribe is None:
                subscribe = self._subscribe
            attempts = Attempts(self._settings.reconnect, self._backend.now, subscribed=True)
            while True:
                await self._until_subscribed()
                connection = await self._attempt(subscribe, attempts)
                if isinstance(connection, Connection):
                    break
                self._trouble.mention(connection)
                with trio.move_on_after(attempts.delay_after(connection)):
                    while not self._has_ended:
                        await self._state_changed.wait()
            self._check_open()
            if subscribe != self._subscribe:
                try:
                    await self._keep(subscribe, asked_at)
                except BaseException:
                    connection.close()
                    raise
            # From here on to the end there is no checkpoint.
            if self._recoverer is not None:
                self._recoverer.subscribed_to(subscribe, asked_at)
            predecessor = self._successors[-1] if self._successors else self._current
            assert predecessor is not None  # the block has been entered
            predecessor.retire()
            self._successors.append(connection)
            self._subscribe = subscribe
            self._attempts.handshake_was_accepted()
            self._attempts.was_subscribed()
            self._reestablishing.cancel()

    async def _keep(self, subscribe: Subscribe, asked_at: Moment) -> None:
        """Find out when what a subscription adds began, and have it on disk that it is in force since then.

        Should the process die before the caller knows, the next one may still start with the present subscription.
        """
        state = None
        if self._recoverer is not None:
            state = await self._recoverer.extended(subscribe, asked_at)
        if self._journal is not None:
            await self._journal.keep(state, scope=self._scope_of(subscribe), also=self._scope_of(self._subscribe))
        self._check_open()

    @property
    def _has_ended(self) -> bool:
        """Whether the stream has ended, or is about to."""
        return self.state in ("stopping", "closed")

    def _check_open(self) -> None:
        if self._has_ended:
            raise trio.ClosedResourceError("the stream has ended")

    def _scope_of(self, subscribe: Subscribe) -> str:
        return journal_scope(self._settings.environment, subscribe)

    def _unread_for(self) -> float:
        """For how many seconds the oldest push that may have come has not been read: reading waits for the consumer."""
        now = trio.current_time()
        current = [self._current] if self._current is not None and self.state == "subscribed" else []
        return max((now - connection.read_until for connection in (*current, *self._successors)), default=0.0)

    async def _forget_in_time(self) -> None:
        """Forget identities. Where nothing is listed, only a push can bring an event again, and it does so soon."""
        while True:
            await trio.sleep(KEEP_IDENTITIES_FOR / 8)
            self._delivered.forget(self._clock.now() - KEEP_IDENTITIES_FOR - self._unread_for())
            if self._journal is not None:
                await self._journal.keep(forgotten_until=self._delivered.floor)

    async def _until_subscribed(self) -> None:
        while self.state != "subscribed":
            self._check_open()
            await self._state_changed.wait()

    def _adopt(self, connection: Connection) -> None:
        """Events come from this connection now."""
        self._current = connection
        self._set_state("subscribed")
        self.outbox.notify(connection.subscribed)
        if self._recoverer is not None:
            self._recoverer.resume(connection.confirmed_at)

    async def _next(self, connection: Connection) -> Connection | None:
        """Forward a connection's events until it ends or is drained; return the one that comes after it.

        None: the stream is being stopped, and nothing more comes.
        """
        lost = await self._forward(connection)
        if lost is not None and not self._is_stopping:
            await self._note_loss(connection, lost)
            if not self._successors:
                await self._reestablish()
            self._subscribed_since = trio.current_time()
        return self._successors.popleft() if self._successors else None

    async def _forward(self, connection: Connection) -> ConnectionLostError | None:
        """Forward a connection's events; return how it was lost, or None when it is drained."""
        # Looked up once, and not for each event.
        recoverer, put = self._recoverer, self.outbox.put
        fetches_bodies = recoverer is not None and recoverer.fetches_bodies
        try:
            while (event := await connection.receive()) is not None:
                self._received += 1
                if isinstance(event, UnknownEvent):
                    self._unknown += 1
                elif recoverer is not None:
                    recoverer.note(event)
                    if fetches_bodies and isinstance(event, MessageReceivedEvent) and not self._is_stopping:
                        event = await recoverer.with_body(event)
                await put(event)
        except ConnectionLostError as lost:
            return lost
        return None

    async def _note_loss(self, connection: Connection, lost: ConnectionLostError) -> None:
        connection.cut()
        await connection.ended.wait()
        if connection.bug is not None:
            raise connection.bug
        if trio.current_time() - self._subscribed_since >= self._settings.reconnect.stable_after:
            self._attempts.start_over()
            self._trouble.is_over()
        self._trouble.note(lost)
        if self._recoverer is not None:
            self._recoverer.pause(connection.last_received)
        self.outbox.notify(
            Disconnected(reason=lost.reason, code=lost.code, last_received=_utc(connection.last_received.wall))
        )

    async def _reestablish(self) -> None:
        """Have a connection in `_successors`, unless the stream is being stopped."""
        connection = None
        with trio.CancelScope() as self._reestablishing:
            connection = await self._establish(
                self._settings.reconnect.give_up_after, "give_up_after", self._attempts.delay()
            )
        if connection is None:
            return  # cancelled by replace(), which leaves a successor, or by stop()
        if self._successors or self._is_stopping:
            connection.close()
        else:
            self._successors.append(connection)

    async def _establish(self, limit: float | None, limit_name: str, delay: float | None = None) -> Connection:
        """Try until a connection is confirmed.

        Args:
            limit: Seconds for all attempts; None: no limit.
            limit_name: What the caller calls it.
            delay: Seconds before the first attempt; None: we are entering, and a server that asks for more patience
                than is left need not be waited for.
        """
        entering = delay is None
        deadline = trio.current_time() + (math.inf if limit is None else limit)
        failure: Exception | None = None
        self._step = "to come"
        with trio.move_on_at(deadline):
            while True:
                if delay is not None:
                    await self._wait(delay)
                self._set_state("connecting")
                connection = await self._attempt(self._subscribe, self._attempts)
                if isinstance(connection, Connection):
                    return connection
                failure = connection
                # leave() cuts an attempt: then it failed of nothing, and here it ends.
                await trio.lowlevel.checkpoint()
                self._trouble.note(failure)
                delay = self._attempts.delay_after(failure)
                if entering and isinstance(failure, ProxyCredentialsError):
                    # A mistyped password should be told soon. Later, it may be trouble of the proxy's that passes.
                    raise ConnectionFailedError(f"not subscribed: {failure}") from failure
                if entering and trio.current_time() + retry_after(failure, self._backend.now) > deadline:
                    break
        if failure is None:
            failure = ConnectionLostError(f"the first attempt was still {self._step}")
        raise ConnectionFailedError(f"not subscribed within {limit_name} ({limit} s): {words_of(failure)}") from failure

    async def _attempt(self, subscribe: Subscribe, attempts: Attempts) -> Connection | Exception:
        """One attempt to be subscribed: the connection, or what it failed of."""
        self._api_key.ask()  # here, since what it raises is nothing that a network does
        connection = self._new_connection(subscribe)
        failure = None
        try:
            await self._nursery.start(connection.run)
        except trio.Cancelled:
            self._step = connection.step
            raise
        except Exception as exc:  # noqa: BLE001  Attempts.delay_after() raises what is not transient
            failure = exc
        if connection.accepted:
            attempts.handshake_was_accepted()
        if failure is not None:
            return failure
        attempts.was_subscribed()
        self._connections += 1
        return connection

    async def _wait(self, delay: float) -> None:
        self._next_attempt_at = trio.current_time() + delay
        self._set_state("waiting")
        if self._trouble.warning_is_due_at <= self._next_attempt_at:
            await trio.sleep_until(self._trouble.warning_is_due_at)
            self._trouble.warn_if_it_lasts()
        await trio.sleep_until(self._next_attempt_at)
        if self.outbox.abandoned:
            raise Abandoned

    def _new_connection(self, subscribe: Subscribe) -> Connection:
        self._live = {old for old in self._live if old.bug is not None or not old.ended.is_set()}
        connection = Connection(
            self._backend, self._settings, self._api_key, subscribe, wanted=lambda: not self.outbox.abandoned
        )
        self._live.add(connection)
        return connection

    def _set_state(self, state: State) -> None:
        if state == self.state or (self._is_stopping and state not in ("stopping", "closed")):
            return
        self.state = state
        self._state_changed.set()
        self._state_changed = trio.Event()
        if state != "waiting":
            self._next_attempt_at = None
            logger.info("%s", state)
        else:
            assert self._next_attempt_at is not None
            seconds = self._next_attempt_at - trio.current_time()
            logger.info("waiting %.1f s for the next attempt: %s", seconds, self._trouble.last_error)


def journal_scope(environment: AgentMailEnvironment, subscribe: Subscribe) -> str:
    """What a journal belongs to, as text."""
    return f"{environment.websockets} {encode_subscribe(subscribe)}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
