"""`AgentMailSession`: a stream and the operations on it."""

from typing import TYPE_CHECKING, NoReturn

import trio

from ._misuse import explain_arguments
from ._settings import Subscribe
from ._statistics import State, Statistics
from ._trio_run import TrioRun
from .events import Event

if TYPE_CHECKING:
    from ._supervisor import Supervisor  # imported on first use, with recovery

__all__ = ["AgentMailSession"]


class AgentMailSession:
    """A stream and the operations on it. `open_agentmail_session` yields a session."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._run = TrioRun()

    if not TYPE_CHECKING:  # pragma: no branch  a type checker reports this by itself

        def __aiter__(self) -> NoReturn:
            raise TypeError("a session is not iterable; iterate over its channel: async for event in session.events")

    @property
    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """The receiving side of the channel. Give each worker task a clone of it."""
        return self._supervisor.outbox.events

    @property
    def state(self) -> State:
        """What the stream is doing.

        - `"connecting"`: An attempt is under way.
        - `"subscribed"`: The subscription is in force.
        - `"waiting"`: The stream waits before the next attempt.
        - `"stopping"`: `stop()` was called, and events that had been read are still being delivered.
        - `"closed"`: The stream has ended.
        """
        return self._supervisor.state.value

    def statistics(self) -> Statistics:
        """Return statistics about the stream so far.

        Raises:
            RuntimeError: The call came from another thread or another `trio.run`.
        """
        self._run.check("statistics()")
        return self._supervisor.statistics()

    async def stop(self) -> None:
        """Stop receiving, and let the consumer finish the events that have arrived. Use this for a graceful shutdown.

        The WebSocket is closed with code 1000 at once, and nothing more is read from the network. The events in the
        channel are still delivered. Then the channel ends, and so do `async for` loops over it.

        Without a journal, all events that had been read are delivered. With a journal, events that have not reached
        the channel stay in the journal for the next start, and so do retries. The journal stays open until the block
        is left, so `ack` and `processing` continue to work.

        This returns when the WebSocket is closed, after `close_timeout` at most. Any task may call it, including one
        that consumes events. A second call waits for the first one. After the end of the stream, it does nothing.

        Raises:
            RuntimeError: The call came from another thread or another `trio.run`.
        """
        self._run.check("stop()")
        await self._supervisor.stop()

    @explain_arguments
    async def subscribe(self, subscribe: Subscribe) -> None:
        """Replace the subscription, on this connection and on all later ones.

        This returns when AgentMail has confirmed the new subscription, on a second connection. Events from the first
        connection are delivered before the new `Subscribed`, in the background, so even the only consumer may call
        this. There is no gap and no `Disconnected`, and nothing is delivered twice. During an outage, the call waits;
        use Trio's timeouts to limit the time. Mail for added filters is delivered from the start of the call: with
        recovery, mail that arrives during the call is delivered afterwards.

        If the call raises or is cancelled, the previous subscription stays in force.

        Raises:
            SubscriptionRejectedError, ApiError, ssl.SSLCertVerificationError: The new subscription was refused.
            Exception: An exception of the `api_key` callable.
            TypeError: The argument is not a `Subscribe`.
            trio.ClosedResourceError: The stream has ended or is being stopped.
            RuntimeError: The call came from another thread or another `trio.run`.
        """
        self._run.check("subscribe()")
        if not isinstance(subscribe, Subscribe):
            raise TypeError(f"subscribe() takes a Subscribe, not {type(subscribe).__name__}")
        await self._supervisor.replace(subscribe)
