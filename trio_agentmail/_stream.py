"""`open_agentmail_session` and `open_agentmail_stream`: the nursery of a stream and the exceptions of its block."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

import trio

from ._api_key import ApiKey
from ._backend import Backend
from ._clock import ServerClock
from ._delivered import Delivered
from ._first_use import import_in_thread
from ._journal.protocol import Journal, Kept, nothing_kept
from ._misuse import opener, opener_over
from ._network import default_backend
from ._nursery import TaskNursery, add_context, raise_as_it_is, sole_exception
from ._proxy import proxies_for, proxy_from_url
from ._session import AgentMailSession
from ._settings import AgentMailEnvironment, ReconnectPolicy, Recovery, Settings, Subscribe
from .events import Event

__all__ = ["open_agentmail_session", "open_agentmail_stream"]


@opener
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
    """Open a stream and yield an `AgentMailSession`.

    The session has the channel of events, can change the subscription and stop the stream, and reports its state and
    statistics. The arguments and exceptions are those of `open_agentmail_stream`.
    """
    key = ApiKey(api_key)
    del api_key  # no frame of a traceback may hold it
    try:
        given = None if proxy is None else proxy_from_url(proxy, "proxy")
    finally:
        del proxy  # no frame of a traceback may hold its password
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError('a stream must be opened under Trio: in trio.run(…), or in anyio.run(…, backend="trio")')
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
    from ._recovery.no_recovery import KEEP_IDENTITIES_FOR
    from ._supervisor import Supervisor, journal_scope

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
        # This is the nursery of the stream. Its block must raise one exception: the exception of the body, as the same
        # object, or else the exception that ended the stream.
        #
        # A plain nursery does not do that. It wraps the exceptions of its block and its tasks in a group, and an
        # `except ValueError` around the stream would never match. Unwrapping the group afterwards is not enough: a
        # group that the body itself raised must pass unchanged, and the group does not tell which of several
        # exceptions matters.
        #
        # So these exceptions do not pass through the nursery. The supervisor and the connections store theirs, and the
        # supervisor cancels the body. The exception of the body is caught inside of the nursery, and raised again
        # outside as the same object. The nursery itself raises only a Cancelled from outside, or a KeyboardInterrupt
        # that arrived while it waited; `sole_exception` takes these out of their group.
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
                    # Unless the block was cancelled, the nursery now waits until the connections have exchanged close
                    # frames.
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


@opener_over(open_agentmail_session)
async def open_agentmail_stream(
    opening: AbstractAsyncContextManager[AgentMailSession],
) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
    """Open a stream of AgentMail's events, and yield the channel that receives them.

    ```python
    async with open_agentmail_stream(Subscribe(inbox_ids=["agent@agentmail.to"])) as events:
        async for event in events:
            ...
    ```

    The block is entered when AgentMail has confirmed the subscription. From then on, the connection is supervised: if
    it is lost, the stream reconnects and subscribes again. The consumer receives a `Disconnected` where the stream was
    interrupted, and a `Subscribed` where it continues. Within one run, no event is delivered twice.

    AgentMail does not repeat pushes from the time without a connection. Recovery finds missed mail through the REST API
    and delivers it with the `origin` "recovered", and then a `CaughtUp` reports that the gap is closed. Other events
    from that time are lost.

    If the block ends normally or with an exception, the WebSocket is closed with code 1000, and the exception is not
    changed. If the block is cancelled, the WebSocket is closed at once, without a close frame. A non-retryable error
    cancels the body, and is raised by the block as it is, not in a group.

    Args:
        subscribe: The events to listen to. By default, all events that the key may see.
        api_key: The API key, or a callable that returns it and is called for every connection. By default, the
            environment variable `$AGENTMAIL_API_KEY`.
        environment: The URLs of AgentMail.
        reconnect: The back-off, and the conditions for giving up.
        ping_interval: Seconds of silence after which a ping is sent; None for no heartbeat. Any byte that arrives ends
            a silence. Time in which reading waits for the consumer does not count.
        ping_timeout: Seconds after a ping without any byte, after which the connection is considered lost.
        open_timeout: Seconds for one attempt: TCP, TLS, handshake and confirmation.
        enter_timeout: Seconds for all attempts until the block is entered.
        close_timeout: Seconds to wait for the server's close frame.
        buffer_size: The number of events that may wait for the consumer before reading stops.
        max_message_size: Characters of one text message, bytes of a binary one. A larger message ends the connection,
            with a `Disconnected` of code 1009. Decoding blocks the event loop: 20 ms for 16 MiB of text, 2 to 3 s for
            the worst JSON of that size. A REST response may have as many bytes, or 1 MiB if that is more.
        ssl_context: The TLS context for `wss://` and `https://` URLs, including a proxy's. By default, the standard
            library's, with the certificates of the system.
        proxy: The HTTP proxy for the WebSocket and for recovery, as `"http://user:password@host:port"`, or `https://`
            for TLS to the proxy itself. By default, the environment's `HTTPS_PROXY`, else `ALL_PROXY`, except for
            hosts that `NO_PROXY` names. Loopback hosts are always reached directly. Other backends than the network
            ignore it.
        backend: The connection to AgentMail. By default, the network, or a `FakeAgentMail` that is `installed()`. In
            tests, `trio_agentmail.testing.FakeAgentMail()`.
        recovery: The settings for recovering missed mail through the REST API; None for no recovery.
        journal: The journal, which keeps events on disk until they are acknowledged, for example
            `SQLiteJournal("agent.db")`. It is opened on entering, and closed on leaving.

    Yields:
        The receiving side of a memory channel. To share it among worker tasks, give each of them a clone.

    Raises:
        AuthenticationError, PermissionDeniedError, ApiError: The handshake was refused with 401, with 403, or with
            another status that is not transient. After a subscription has been confirmed, this is raised only if
            refusals have lasted for `reconnect.refusal_grace` seconds and there were at least three.
        ssl.SSLCertVerificationError: The server's certificate cannot be verified, under the same conditions.
        SubscriptionRejectedError: The subscription was refused.
        ConnectionFailedError: Transient failures, including those of a proxy, outlasted `enter_timeout` or
            `reconnect.give_up_after`. On entering, also if a proxy does not accept the credentials, or if a
            `Retry-After` ends after `enter_timeout`. `__cause__` is the last failure.
        JournalError: The journal cannot be opened, read or written; see its subclasses.
        TypeError, ValueError: An argument is not valid, the API key is missing, or a proxy in the environment cannot
            be used.
        Exception: An exception of the `api_key` callable.
    """
    async with opening as session:
        yield session.events
