"""`trio-agentmail listen`: print a line for each event until a signal comes."""

import ssl
from datetime import datetime

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._printable import printable
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail._stream import open_agentmail_stream
from trio_agentmail.errors import AuthenticationError, PermissionDeniedError, SubscriptionRejectedError
from trio_agentmail.events import Event

from ._output import Output
from ._render import event_json, event_line
from ._signals import stop_signals

__all__ = ["explain", "listen"]

LARGE = 2**18
"""Bytes of text above which an event is rendered in a thread."""


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
    """Print events until SIGINT or SIGTERM. A second signal skips the closing handshake.

    Args:
        journal: Each event is acknowledged after its line has been written.

    Raises:
        OutputClosed: The reader of the output has gone.
        Exception: Anything that `open_agentmail_stream` raises.
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
        # The first signal cancels only the loop. The block of the stream then ends normally, with a close frame.
        with trio.CancelScope() as reading:
            scopes.append(reading)
            async for event in events:
                if as_json:
                    await output.write(await _json_line(event))
                else:
                    await output.print(event_line(event, datetime.now()))
                if journal is not None:
                    # A signal at this point does not undo the acknowledgement.
                    await journal.ack(event)


async def _json_line(event: Event) -> str:
    # A million small objects take half a second to parse and write, which would block all other tasks.
    is_large = len(getattr(event, "_raw", b"")) > LARGE
    return (await trio.to_thread.run_sync(event_json, event) if is_large else event_json(event)) + "\n"


def explain(failure: Exception) -> str:
    """Return one line for a person at a terminal that says what failed, and what to check."""
    advice = ""
    match failure:
        case AuthenticationError():
            advice = "AgentMail does not know this API key; check $AGENTMAIL_API_KEY and --environment"
        case PermissionDeniedError():
            advice = "this API key may not listen; check its permissions"
        case SubscriptionRejectedError():
            advice = "check --inbox, --pod, --event-type and the permissions of the API key"
        case ssl.SSLCertVerificationError():
            advice = "the server's certificate cannot be verified; check the clock, and whether a proxy intercepts TLS"
    return printable(f"{advice}: {failure}" if advice else str(failure), 1000)
