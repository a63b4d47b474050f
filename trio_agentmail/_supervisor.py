"""The main task of a stream, which moves the events from the current connection to the outbox."""

import logging
import math
from datetime import UTC, datetime

import trio

from ._api_key import ApiKey
from ._backend import Backend
from ._channel import Abandoned
from ._clock import Moment, ServerClock
from ._codec import encode_subscribe
from ._connection import Connection
from ._connector import Connector
from ._decoders import generate_step_by_step
from ._delivered import Delivered
from ._journal.protocol import Journal
from ._journaled_outbox import JournaledOutbox
from ._network import NetworkBackend
from ._nursery import background_nursery
from ._outage import OutageTracker
from ._outbox import Outbox
from ._recovery.no_recovery import NoRecovery
from ._recovery.recoverer import Recoverer
from ._settings import AgentMailEnvironment, Recovery, Settings, Subscribe
from ._state import StreamState
from ._statistics import Statistics
from ._subscription import Subscription
from ._unwritten import Unwritten
from .errors import ConnectionLostError
from .events import Disconnected, MessageReceivedEvent, UnknownEvent

__all__ = ["Supervisor", "journal_scope"]

logger = logging.getLogger("trio_agentmail")


class Supervisor:
    """Runs a stream: the subscription, the outbox, recovery and the journal.

    `run` is its task. The tasks of the connections run in the same nursery and not in a nested one, so that leaving the
    stream can end `run` first, while the connections still send their close frames.

    References point in one direction: the supervisor refers to these parts, and none of them refers to the supervisor.

    Args:
        backend: The backend.
        settings: The settings of the stream.
        api_key: The API key.
        subscribe: The first subscription.
        recovery: The settings of recovery; None for no recovery.
        journal: The journal, which is open; None for no journal.
        clock: AgentMail's clock.
        delivered: The identities of delivered events.
        kept: The progress of recovery, as stored in the journal.

    Attributes:
        state: The state of the stream.
        outbox: The sending side of the channel.
        entered: Set when the subscription is in force or `run` has ended.
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
        self._clock = clock
        self._delivered = delivered
        self._journal = journal
        self._scope = trio.CancelScope()
        self._recovering = trio.CancelScope()
        self._outage = OutageTracker()
        self._error: BaseException | None = None
        self._received = 0
        self._unknown = 0
        self.entered = trio.Event()
        self.state = StreamState()
        max_size = 2 * settings.max_message_size
        unwritten = Unwritten()
        self.outbox: Outbox | JournaledOutbox
        if journal is None:
            self.outbox = Outbox(settings.buffer_size, max_size, delivered)
        else:
            self.outbox = JournaledOutbox(settings.buffer_size, max_size, delivered, journal, unwritten)
        self._connector = Connector(backend, settings, api_key, self.outbox.is_wanted, self.state, self._outage)
        self._subscription = Subscription(
            self._connector, settings.reconnect, subscribe, self.state, self._outage, backend.now
        )
        self._recoverer: Recoverer | NoRecovery
        if recovery is None:
            self._recoverer = NoRecovery(clock, delivered, journal, self._subscription.unread_for)
        else:
            self._recoverer = Recoverer(
                recovery,
                backend,
                settings,
                api_key,
                clock,
                delivered,
                self.outbox,
                self._subscription.renew,
                journal,
                kept,
                self._subscription.unread_for,
                unwritten,
            )

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the stream, or None. It is final when the tasks of the stream have ended."""
        return self._error or self._connector.bug

    async def run(self, nursery: trio.Nursery, body: trio.CancelScope) -> None:
        """Subscribe, and run until `leave` or until every receiver is closed. Exceptions are stored in `error`.

        Args:
            nursery: The nursery for the tasks of the connections.
            body: The cancel scope around the body of the stream's block. It is cancelled if there is an exception.
        """
        self._connector.nursery = nursery
        try:
            with self._scope:
                async with background_nursery() as own:
                    own.start_soon(self.outbox.run)
                    if isinstance(self._backend, NetworkBackend):
                        own.start_soon(generate_step_by_step)
                    own.start_soon(self._recover)
                    await self._forward_all(await self._enter())
                    await self.outbox.finish()
        except Abandoned:
            logger.info("every receiver is closed: ending the stream")
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
        """End `run`, and close the connections with a close frame. After that, the tasks in the nursery end."""
        self._scope.cancel()
        self.state.set("closed")
        self._connector.close()

    async def stop(self) -> None:
        """Stop reading from the network, and wait until the connections are closed. `run` ends after the last event."""
        if self.state.value != "closed":
            self.state.stop()
            self.outbox.stop()
            self._recovering.cancel()
            self._subscription.stop()
            self._recoverer.stop_fetching_bodies()
            self._connector.stop()
        await self._connector.closed()
        await trio.lowlevel.checkpoint()

    async def replace(self, subscribe: Subscribe) -> None:
        """Replace the subscription. If this raises or is cancelled, the present one stays in force."""
        asked_at = self._clock.moment()  # mail for added filters is wanted from here, however long this takes
        async with self._subscription.replacing(subscribe):
            if subscribe != self._subscription.subscribe:
                await self._store(subscribe, asked_at)
            self._recoverer.subscribed_to(subscribe, asked_at)

    async def _store(self, subscribe: Subscribe, asked_at: Moment) -> None:
        """Store in the journal that another subscription is in force from a moment on.

        The process may die before the caller knows about this, so the next process may also use the present one.
        """
        state = await self._recoverer.extended(subscribe, asked_at)
        if self._journal is not None:
            present = self._scope_of(self._subscription.subscribe)
            await self._journal.keep(state, scope=self._scope_of(subscribe), also=present)
        self.state.check_open()

    def _scope_of(self, subscribe: Subscribe) -> str:
        return journal_scope(self._settings.environment, subscribe)

    async def _recover(self) -> None:
        with self._recovering:
            await self._recoverer.run()

    async def _enter(self) -> Connection:
        subscribe = self._subscription.subscribe
        await self._recoverer.begin(subscribe)
        connection = await self._subscription.enter(self._settings.enter_timeout)
        if self._journal is not None:
            # From now on, the journal can be opened only with the arguments of this successful start.
            await self._journal.keep(scope=self._scope_of(subscribe))
        self._recoverer.subscribed_to(subscribe, connection.asked_at)
        return connection

    async def _forward_all(self, first: Connection) -> None:
        """Forward the events of one connection after the other, until the stream is being stopped."""
        connection: Connection | None = first
        while connection is not None:
            self._subscription.adopt(connection)
            self.outbox.notify(connection.subscribed)
            self._recoverer.resume(connection.confirmed_at)
            self.entered.set()
            loss = await self._forward(connection)
            if loss is not None and not self.state.is_stopping:
                await self._note_loss(connection, loss)
                await self._subscription.reconnect()
            connection = self._subscription.next()

    async def _forward(self, connection: Connection) -> ConnectionLostError | None:
        """Forward the events of a connection until it is lost or drained. Return how it was lost."""
        # These are looked up once and not for each event, to save time.
        put, note, fetches_bodies = self.outbox.put, self._recoverer.note, self._recoverer.fetches_bodies
        try:
            while (event := await connection.receive()) is not None:
                self._received += 1
                if isinstance(event, UnknownEvent):
                    self._unknown += 1
                else:
                    note(event)
                    if fetches_bodies and isinstance(event, MessageReceivedEvent) and not self.state.is_stopping:
                        event = await self._recoverer.with_body(event)
                await put(event)
        except ConnectionLostError as loss:
            return loss
        return None

    async def _note_loss(self, connection: Connection, loss: ConnectionLostError) -> None:
        connection.cut()
        await connection.ended.wait()
        if connection.bug is not None:
            raise connection.bug
        self._subscription.note_loss(loss)
        last_received = connection.last_received
        self._recoverer.pause(last_received)
        self.outbox.notify(Disconnected(reason=loss.reason, code=loss.code, last_received=_utc(last_received.wall)))

    def statistics(self) -> Statistics:
        now = trio.current_time()
        current, outage, recoverer = self._subscription.current, self._outage, self._recoverer
        last_error_at = outage.last_error_at
        if last_error_at is not None and self._is_stable(since=last_error_at):
            last_error_at = None
        next_attempt_at = self.state.next_attempt_at
        return Statistics(
            connections=self._connector.confirmed,
            received=self._received,
            delivered=self.outbox.delivered,
            duplicates=self.outbox.duplicates,
            unknown=self._unknown,
            recovered=recoverer.recovered,
            requests=recoverer.requests,
            remembered=len(self._delivered),
            missing_since=_utc(recoverer.missing_since) if recoverer.missing_since < math.inf else None,
            buffered=self.outbox.waiting + (current.early if current is not None else 0),
            last_received=_utc(current.last_received.wall) if current is not None else None,
            last_error=outage.last_error if last_error_at is not None else None,
            last_error_at=_utc(self._backend.now() - (now - last_error_at)) if last_error_at is not None else None,
            next_attempt_in=None if next_attempt_at is None else max(0.0, next_attempt_at - now),
        )

    def _is_stable(self, since: float) -> bool:
        """Return whether the subscription has been in force for `stable_after` seconds since a failure at `since`."""
        if self.state.value != "subscribed":
            return False
        return trio.current_time() - max(since, self._subscription.since) >= self._settings.reconnect.stable_after


def journal_scope(environment: AgentMailEnvironment, subscribe: Subscribe) -> str:
    """Return the text that identifies the environment and subscription to which a journal belongs."""
    return f"{environment.websockets} {encode_subscribe(subscribe)}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
