"""`trio-agentmail listen`: a line an event, until it is told to stop."""

import ssl
from datetime import datetime

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail._stream import open_agentmail_stream
from trio_agentmail.errors import AuthenticationError, PermissionDeniedError, SubscriptionRejectedError, printable

from ._output import Output
from ._render import event_json, event_line
from ._signals import stop_signals

__all__ = ["explain", "listen"]


async def listen(
    output: Output,
    subscribe: Subscribe,
    environment: AgentMailEnvironment,
    *,
    as_json: bool = False,
    recovery: Recovery | None = Recovery(),  # noqa: B008  frozen
    journal: SQLiteJournal | None = None,
    enter_timeout: float = 30.0,
    backend: Backend | None = None,
) -> None:
    """Print events until SIGINT or SIGTERM comes. A second one does not wait for the goodbye.

    Args:
        journal: Each event is acknowledged when its line has been written.

    Raises:
        OutputClosed: Nobody reads any more.
        Exception: What `open_agentmail_stream` raises.
    """
    async with (
        stop_signals() as scopes,
        open_agentmail_stream(
            subscribe,
            environment=environment,
            recovery=recovery,
            journal=journal,
            enter_timeout=enter_timeout,
            backend=backend,
        ) as events,
    ):
        # Told to stop, only the loop is cancelled, and the stream is left in peace: with a close frame.
        with trio.CancelScope() as reading:
            scopes.append(reading)
            async for event in events:
                if as_json:
                    await output.write(event_json(event) + "\n")
                else:
                    await output.print(event_line(event, datetime.now()))
                if journal is not None:
                    # Told to stop right here, it is acknowledged all the same: cancelling that does not undo it.
                    await journal.ack(event)


def explain(failure: Exception) -> str:
    """What an exception of `open_agentmail_stream` means to somebody at a terminal, in one line."""
    advice = ""
    match failure:
        case AuthenticationError():
            advice = "AgentMail does not know this API key; check $AGENTMAIL_API_KEY and --environment"
        case PermissionDeniedError():
            advice = "AgentMail knows this API key, and does not let it listen; check the key's permissions"
        case SubscriptionRejectedError():
            advice = "check --inbox, --pod, --event-type and the permissions of the API key"
        case ssl.SSLCertVerificationError():
            advice = "the server's certificate cannot be verified; check the clock, and what stands in between"
    return printable(f"{advice}: {failure}" if advice else str(failure), 1000)
