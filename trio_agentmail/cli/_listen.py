"""`trio-agentmail listen`: a line an event, until it is told to stop."""

import ssl
from datetime import datetime

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail._stream import open_agentmail_stream
from trio_agentmail.errors import AuthenticationError, PermissionDeniedError, SubscriptionRejectedError, printable
from trio_agentmail.events import Event

from ._output import Output
from ._render import event_json, event_line
from ._signals import stop_signals

__all__ = ["explain", "listen"]

LARGE = 2**18
"""Bytes of an event that is rendered in a thread."""


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
                    await output.write(await _json_line(event))
                else:
                    await output.print(event_line(event, datetime.now()))
                if journal is not None:
                    # Told to stop right here, it is acknowledged all the same: cancelling that does not undo it.
                    await journal.ack(event)


async def _json_line(event: Event) -> str:
    # Parsing and writing a million small objects takes half a second, in which other tasks want to run.
    is_large = len(getattr(event, "_raw", b"")) > LARGE
    return (await trio.to_thread.run_sync(event_json, event) if is_large else event_json(event)) + "\n"


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
