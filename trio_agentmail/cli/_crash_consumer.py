"""The agent that `trio-agentmail demo --crash` kills: `python -m trio_agentmail.cli._crash_consumer WS HTTP JOURNAL`.

It says on standard output what it does, a line a step; what it has said is known to the demo, whatever becomes of it.
The end of standard input, which comes at the latest with the end of the demo, ends it in peace.
"""

import logging
import os
import sys
from functools import partial

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, ReconnectPolicy, Subscribe
from trio_agentmail._stream import open_agentmail_stream
from trio_agentmail.events import MessageReceivedEvent

from ._verdict import mail_number

__all__ = ["API_KEY", "INBOX", "MAX_ATTEMPTS", "POISON", "STUCK", "main"]

API_KEY = "am_demo"
INBOX = "agent@demo.example"
POISON = "Poison"
"""The subject of a mail that kills whoever handles it, as one does that drives a parser into a crash."""
STUCK = "Stuck"
"""The subject of a mail after which the process is stuck, when it has been handled and not yet acknowledged."""
MAX_ATTEMPTS = 3
DIED = 70
"""The exit status of a process that a mail has killed: at once, on any platform, and without any tidying up."""
HANDLING = 0.005
"""Seconds that it takes to handle a mail."""


def say(line: str) -> None:
    """One write for a line: it has been said, or it has not."""
    os.write(1, line.encode() + b"\n")


async def main(websockets: str, http: str, path: str, *, stdin: int = 0, backend: Backend | None = None) -> None:
    """Handle mail until `stdin` ends."""
    # What becomes of dead letters is said below, and a log on standard error would run into the demo's lines.
    logging.getLogger("trio_agentmail").addHandler(logging.NullHandler())
    async with trio.open_nursery() as nursery:

        async def obey() -> None:
            # In a thread, which may be left behind: it works with any kind of file, and on any platform.
            await trio.to_thread.run_sync(os.read, stdin, 1, abandon_on_cancel=True)
            handling.cancel()

        handling = trio.CancelScope()
        nursery.start_soon(obey)
        await _consume(AgentMailEnvironment(http=http, websockets=websockets), path, handling, backend)


async def _consume(
    environment: AgentMailEnvironment, path: str, handling: trio.CancelScope, backend: Backend | None
) -> None:
    say("starting")
    journal = SQLiteJournal(path, max_attempts=MAX_ATTEMPTS)
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]),
        api_key=API_KEY,
        environment=environment,
        reconnect=ReconnectPolicy(initial_delay=0.2, max_delay=0.5),
        journal=journal,
        backend=backend,
    ) as events:
        say("subscribed")
        for letter in await journal.dead_letters():
            assert isinstance(letter.event, MessageReceivedEvent)
            say(f"dead {mail_number(letter.event)}")
        with handling:
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    number = mail_number(event)
                    is_handled = False
                    async with journal.processing(event):
                        say(f"trying {number}")
                        await _handle(event)
                        say(f"handled {number} {event.origin}")
                        if event.message.subject == STUCK and event.attempt == 1:
                            await trio.sleep_forever()  # until the demo kills this process
                        is_handled = True
                    if is_handled:  # else it has raised something, and comes again
                        say(f"acked {number}")


async def _handle(event: MessageReceivedEvent) -> None:
    await trio.sleep(HANDLING)
    if event.message.subject == POISON:
        os._exit(DIED)


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
