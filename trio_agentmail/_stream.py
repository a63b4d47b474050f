"""`open_agentmail_stream` and `open_agentmail_session`: where the tasks live, and how the block is left."""

import functools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import trio

from ._api_key import ApiKey
from ._backend import Backend, default_backend
from ._clock import ServerClock
from ._delivered import Delivered
from ._first_use import import_in_thread
from ._journal.protocol import Journal, Kept, nothing_kept
from ._nursery import TaskNursery, add_context, raise_as_it_is, sole_exception
from ._proxy import proxies_for, proxy_from_url
from ._settings import AgentMailEnvironment, ReconnectPolicy, Recovery, Settings, Subscribe
from ._statistics import State, Statistics
from ._trio_run import TrioRun
from .events import Event

if TYPE_CHECKING:
    from ._supervisor import Supervisor

__all__ = ["AgentMailSession", "open_agentmail_session", "open_agentmail_stream"]

P = ParamSpec("P")
T = TypeVar("T")


def _explain_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Say what to do about arguments that the function does not have.

    No frame of the traceback holds the arguments: the API key may be one of them.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        name = function.__name__
        if filters := [each for each in ("inbox_ids", "pod_ids", "event_types") if each in kwargs]:
            problem = f"{filters[0]} belongs to the subscription: {name}(Subscribe({filters[0]}=…), …)"
        else:
            try:
                return function(*args, **kwargs)
            except TypeError as exc:  # the arguments do not fit: of the function itself, nothing has run yet
                problem = str(exc)
        del args, kwargs
        raise TypeError(problem)

    return wrapper


class _Opening(AbstractAsyncContextManager[T]):
    """What an opener returns, with words for those who forget the `async with`."""

    def __init__(self, name: str, manager: AbstractAsyncContextManager[T]) -> None:
        self._name = name
        self._manager = manager

    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(exc_type, exc, traceback)

    if not TYPE_CHECKING:  # pragma: no branch  a type checker has its own words for this

        def _must_be_entered(self, *_: object) -> NoReturn:
            raise TypeError(f"{self._name}(…) must be entered: async with {self._name}(…) as …:")

        __aiter__ = __iter__ = __enter__ = __exit__ = __await__ = _must_be_entered


def _opener(function: Callable[P, AsyncIterator[T]]) -> Callable[P, AbstractAsyncContextManager[T]]:
    """As `asynccontextmanager`."""
    manager = asynccontextmanager(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _Opening(function.__name__, manager(*args, **kwargs))

    return _explain_arguments(wrapper)


class AgentMailSession:
    """A stream together with what can be done with it. Made by `open_agentmail_session`."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._run = TrioRun()

    if not TYPE_CHECKING:  # pragma: no branch  a type checker has its own words for this

        def __aiter__(self) -> NoReturn:
            raise TypeError("a session is not iterated over, its channel is: async for event in session.events")

    @property
    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """The receive end of the channel. Give each worker task a clone of it."""
        return self._supervisor.outbox.events

    @property
    def state(self) -> State:
        """What the stream is doing.

        `"connecting"`, `"subscribed"`, `"waiting"` (for the next attempt), `"stopping"` (from `stop()` until all that
        still comes has been handed over) or `"closed"`.
        """
        return self._supervisor.state

    def statistics(self) -> Statistics:
        """What has happened on the stream so far.

        Raises:
            RuntimeError: It was called in another thread or another `trio.run`.
        """
        self._run.check("statistics()")
        return self._supervisor.statistics()

    async def stop(self) -> None:
        """Take no more mail, and let what has come be handled: the way to leave a block with work under way.

        The WebSocket is closed with code 1000 at once, and nothing more is taken from the network. What waits in the
        channel still comes, then the channel ends: `async for` loops over it end by themselves. Without a journal,
        all that had been read still comes. With a journal, what has not reached the channel stays in the journal for
        the next start, and so do attempts to be made again; the journal stays open until the block is left, so
        that `ack` and `processing` go on working.

        Returns when the WebSocket is closed, after `close_timeout` at most. Any task may call this, also one that
        consumes events. A second call waits for the same; when the stream has ended, nothing happens.

        Raises:
            RuntimeError: It was called in another thread or another `trio.run`.
        """
        self._run.check("stop()")
        await self._supervisor.stop()

    @_explain_arguments
    async def subscribe(self, subscribe: Subscribe) -> None:
        """Listen to something else from now on; on every later connection, too.

        Returns when AgentMail has confirmed the new subscription, on a second connection. What the first had
        received comes before its `Subscribed`, in the background: the only consumer may call this. There is no gap,
        no `Disconnected`, and nothing is delivered twice. During an outage it waits; use Trio's time-outs to bound
        that. Mail for what is added begins with the call, however long it takes: with recovery, what comes meanwhile
        is delivered afterwards.

        Raises:
            SubscriptionRejectedError, ApiError, ssl.SSLCertVerificationError: it was refused. What was in force before
                stays in force, as it does when this is cancelled.
            Exception: what the `api_key` callable raised.
            TypeError: not a `Subscribe`.
            trio.ClosedResourceError: the stream has ended, or is being stopped.
            RuntimeError: It was called in another thread or another `trio.run`.
        """
        self._run.check("subscribe()")
        if not isinstance(subscribe, Subscribe):
            raise TypeError(f"subscribe() takes a Subscribe, not {type(subscribe).__name__}")
        await self._supervisor.replace(subscribe)


@_opener
async def open_agentmail_session(
    subscribe: Subscribe = Subscribe(),  # noqa: B008  frozen
    *,
    api_key: str | Callable[[], str] | None = None,
    environment: AgentMailEnvironment = AgentMailEnvironment.PROD,
    reconnect: ReconnectPolicy = ReconnectPolicy(),  # noqa: B008  frozen
    ping_interval: float | None = 20.0,
    ping_timeout: float = 20.0,
    open_timeout: float = 10.0,
    enter_timeout: float = 30.0,
    close_timeout: float = 5.0,
    buffer_size: int = 64,
    max_message_size: int = 16 * 2**20,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    backend: Backend | None = None,
    recovery: Recovery | None = Recovery(),  # noqa: B008  frozen
    journal: Journal | None = None,
) -> AsyncIterator[AgentMailSession]:
    """Open a stream as `open_agentmail_stream` does, and yield an `AgentMailSession`.

    Beside the events, it can change the subscription, and tells state and statistics. Arguments and exceptions are
    those of `open_agentmail_stream`.
    """
    key = ApiKey(api_key)
    del api_key  # no frame of a traceback is to hold it
    try:
        given = None if proxy is None else proxy_from_url(proxy, "proxy")
    finally:
        del proxy  # no frame of a traceback is to hold its password
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError('this runs under Trio: in trio.run(…), or in anyio.run(…, backend="trio")')
    if not isinstance(subscribe, Subscribe):
        raise TypeError(f"the first argument is a Subscribe(…), not {type(subscribe).__name__}")
    settings = Settings(
        environment=environment,
        reconnect=reconnect,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        open_timeout=open_timeout,
        enter_timeout=enter_timeout,
        close_timeout=close_timeout,
        buffer_size=buffer_size,
        max_message_size=max_message_size,
        ssl_context=ssl_context,
    )
    if backend is None:
        backend = default_backend(lambda: proxies_for(environment, given))
    elif isinstance(backend, type) or not (hasattr(backend, "open_websocket") and hasattr(backend, "api_key")):
        raise TypeError("backend takes an object that opens WebSockets, like FakeAgentMail()")
    if recovery is not None and not isinstance(recovery, Recovery):
        raise TypeError(f"recovery takes a Recovery(…) or None, not {type(recovery).__name__}")
    if journal is not None and (isinstance(journal, type) or not hasattr(journal, "opened")):
        raise TypeError("journal takes an object that keeps events, like SQLiteJournal('agent.db')")
    key.check(default=backend.api_key)
    await import_in_thread(backend, settings, with_recovery=recovery is not None)
    from ._supervisor import KEEP_IDENTITIES_FOR, Supervisor, journal_scope

    clock = ServerClock(backend.now)
    keeping: AbstractAsyncContextManager[Kept] = nullcontext(nothing_kept())
    if journal is not None:
        keeping = journal.opened(journal_scope(environment, subscribe), backend.run_sync, clock.now)
    async with keeping as kept:
        keep = KEEP_IDENTITIES_FOR if recovery is None else recovery.sweep_depth
        delivered = Delivered(clock.now, keep, is_durable=journal is not None)
        delivered.floor = kept.forgotten_until
        async for identities in kept.identities:
            delivered.load(identities)
        supervisor = Supervisor(backend, settings, key, subscribe, recovery, journal, clock, delivered, kept.state)
        # The nursery of the stream. A nursery wraps what its block raises in a group, and adds what its tasks raise.
        # The caller must see neither: whose exception comes out is decided here.
        #
        # The supervisor keeps its own error and cancels the body, and the connections' tasks keep theirs. So what the
        # nursery itself raises is Cancelled from outside, or a KeyboardInterrupt that struck while it waited; and what
        # the body raised is caught inside the nursery and raised again outside, as the same object.
        raised: BaseException | None = None
        try:
            async with TaskNursery() as nursery:
                body = trio.CancelScope()
                try:
                    nursery.start_soon(supervisor.run, nursery, body)
                    await supervisor.entered.wait()
                    if supervisor.error is None:
                        with body:
                            yield AgentMailSession(supervisor)
                except trio.Cancelled:
                    raise
                except BaseException as exc:  # noqa: BLE001  raised again below
                    raised = exc
                finally:
                    # Left in peace, the nursery then waits for the goodbyes. Cancelled, it has cancelled those as well.
                    supervisor.leave()
        except BaseException as exc:  # noqa: BLE001  raised again below
            raised = sole_exception(exc, raised)
        finally:
            supervisor.outbox.events.close()
        error = supervisor.error
        if error is not None:
            if raised is None or isinstance(raised, trio.Cancelled):
                raise_as_it_is(error)
            add_context(raised, error)
        if raised is not None:
            raise_as_it_is(raised)


@_opener
async def open_agentmail_stream(
    subscribe: Subscribe = Subscribe(),  # noqa: B008  frozen
    *,
    api_key: str | Callable[[], str] | None = None,
    environment: AgentMailEnvironment = AgentMailEnvironment.PROD,
    reconnect: ReconnectPolicy = ReconnectPolicy(),  # noqa: B008  frozen
    ping_interval: float | None = 20.0,
    ping_timeout: float = 20.0,
    open_timeout: float = 10.0,
    enter_timeout: float = 30.0,
    close_timeout: float = 5.0,
    buffer_size: int = 64,
    max_message_size: int = 16 * 2**20,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    backend: Backend | None = None,
    recovery: Recovery | None = Recovery(),  # noqa: B008  frozen
    journal: Journal | None = None,
) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
    """Listen to AgentMail's events, for as long as the block lasts.

    ```python
    async with open_agentmail_stream(Subscribe(inbox_ids=["agent@agentmail.to"])) as events:
        async for event in events:
            ...
    ```

    The block is entered when AgentMail has confirmed the subscription. From then on the connection is supervised: when
    it is lost, it is made again and the subscription is sent and confirmed again. The consumer sees that as a
    `Disconnected` in the place where the stream broke, and a `Subscribed` where it goes on. Within one run no event is
    delivered twice. Mail that AgentMail pushes while there is no connection is not pushed again: it is found through
    the REST API and comes as well, with the `origin` "recovered", and a `CaughtUp` says when the gap is closed. Other
    events of that time are lost.

    Left by its end, by `break` or by an exception, the block closes the WebSocket with code 1000, and what the body
    raised comes out as it is. Cancelled, it closes at once, by force. Trouble that no attempt can mend cancels the
    body, and comes out of the block alone, not in a group.

    Args:
        subscribe: What to listen to. Nothing given: all that the key may see.
        api_key: The API key, or a callable that returns it, and is asked for every connection. By default the
            variable `$AGENTMAIL_API_KEY`.
        environment: Where AgentMail is.
        reconnect: How a lost connection is made again.
        ping_interval: Seconds of silence after which a ping is sent. Any byte that comes ends a silence; time in which
            reading waits for the consumer is none. None: no heartbeat.
        ping_timeout: Seconds that may pass after a ping without a byte, before the connection is given up.
        open_timeout: Seconds for one attempt: TCP, TLS, handshake and confirmation.
        enter_timeout: Seconds for all attempts until the block is entered.
        close_timeout: Seconds for a polite close.
        buffer_size: Events that may wait for the consumer; then reading stops.
        max_message_size: Characters of one message (bytes, of a binary one). A larger one costs the connection: a
            `Disconnected` with code 1009. Decoding one holds the event loop: 20 ms for 16 MiB of text, 2 to 3 s for
            the worst JSON of that size. An answer of the REST API may have as many bytes, and 1 MiB at least.
        ssl_context: For `wss://` and `https://` URLs, a proxy's as well. By default the standard library's, with the
            system's certificates.
        proxy: `"http://user:password@host:port"`, or `https://` for TLS to the proxy itself: an HTTP proxy, through
            which AgentMail is reached, for the WebSocket and for recovery. By default the environment's
            `HTTPS_PROXY`, else `ALL_PROXY`, but for hosts that `NO_PROXY` names. Loopback hosts are always reached
            directly. A backend other than the network ignores it.
        backend: The outside: by default the network; in tests `trio_agentmail.testing.FakeAgentMail()`, or one that is
            `installed()`.
        recovery: How mail that was pushed while there was no connection is found through the REST API. None: it is not.
        journal: Keeps events on disk until they are handled, for example `SQLiteJournal("agent.db")`. It is opened
            on entering, and closed on leaving.

    Yields:
        The receive end of a memory channel. To share it among worker tasks, give each of them a clone.

    Raises:
        AuthenticationError, PermissionDeniedError, ApiError: The handshake was refused with 401, with 403, or in
            another way that is not transient: on entering, or, once a subscription has been confirmed, for
            `reconnect.refusal_grace` seconds and at least three times.
        ssl.SSLCertVerificationError: The server's certificate cannot be verified; when it is raised, as for these.
        SubscriptionRejectedError: The subscription was refused.
        ConnectionFailedError: Transient trouble outlasted `enter_timeout` or `reconnect.give_up_after`; its cause is
            the last failure. What a proxy says is such trouble as well.
        JournalError: The journal cannot be opened, read or written; see its subclasses.
        TypeError, ValueError: A bad argument or no API key, or a proxy in the environment that cannot be used.
        Exception: What the `api_key` callable raised.
    """
    opening = open_agentmail_session(
        subscribe,
        api_key=api_key,
        environment=environment,
        reconnect=reconnect,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        open_timeout=open_timeout,
        enter_timeout=enter_timeout,
        close_timeout=close_timeout,
        buffer_size=buffer_size,
        max_message_size=max_message_size,
        ssl_context=ssl_context,
        proxy=proxy,
        backend=backend,
        recovery=recovery,
        journal=journal,
    )
    del api_key, proxy  # no frame of a traceback is to hold them
    async with opening as session:
        yield session.events
