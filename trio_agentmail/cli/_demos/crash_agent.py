"""The agent that `trio-agentmail demo --crash` kills.

Run as `python -m trio_agentmail.cli._demos.crash_agent WEBSOCKETS HTTP JOURNAL`. It reports each step as a line on
standard output. The demo reads every line that was written, even if the process is killed right after it. The agent
exits when its standard input is closed, so it does not outlive the demo.
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

from .mail_numbers import mail_number

__all__ = ["API_KEY", "INBOX", "MAX_ATTEMPTS", "POISON", "STUCK", "main"]

API_KEY = "am_demo"
INBOX = "agent@demo.example"
POISON = "Poison"
"""The subject of a mail that kills the process that handles it, like a mail that crashes a parser."""
STUCK = "Stuck"
"""The subject of a mail that the agent handles and does not acknowledge: it waits for ever instead."""
MAX_ATTEMPTS = 3
DIED = 70
"""The exit status of a process that the poisonous mail kills."""
HANDLING = 0.005
"""The time to handle a mail, in seconds."""


def report(line: str) -> None:
    """Write a line with a single system call, so that a kill cannot leave half of it."""
    os.write(1, line.encode() + b"\n")


async def main(websockets: str, http: str, path: str, *, stdin: int = 0, backend: Backend | None = None) -> None:
    """Handle mail until `stdin` ends."""
    # The agent reports dead letters itself, and log lines on standard error would mix with the demo's lines.
    logging.getLogger("trio_agentmail").addHandler(logging.NullHandler())
    async with trio.open_nursery() as nursery:

        async def wait_for_eof() -> None:
            # Reading in a thread works for any kind of file and on any platform.
            await trio.to_thread.run_sync(os.read, stdin, 1, abandon_on_cancel=True)
            handling.cancel()

        handling = trio.CancelScope()
        nursery.start_soon(wait_for_eof)
        await _consume(AgentMailEnvironment(http=http, websockets=websockets), path, handling, backend)


async def _consume(
    environment: AgentMailEnvironment, path: str, handling: trio.CancelScope, backend: Backend | None
) -> None:
    report("starting")
    journal = SQLiteJournal(path, max_attempts=MAX_ATTEMPTS)
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]),
        api_key=API_KEY,
        environment=environment,
        reconnect=ReconnectPolicy(initial_delay=0.2, max_delay=0.5),
        journal=journal,
        backend=backend,
    ) as events:
        report("subscribed")
        for letter in await journal.dead_letters():
            assert isinstance(letter.event, MessageReceivedEvent)
            report(f"dead {mail_number(letter.event)}")
        with handling:
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    number = mail_number(event)
                    is_handled = False
                    async with journal.processing(event):
                        report(f"trying {number}")
                        await _handle(event)
                        report(f"handled {number} {event.origin}")
                        if event.message.subject == STUCK and event.attempt == 1:
                            await trio.sleep_forever()  # until the demo kills this process
                        is_handled = True
                    if is_handled:  # otherwise `processing` has logged an exception, and the mail will be redelivered
                        report(f"acked {number}")


async def _handle(event: MessageReceivedEvent) -> None:
    await trio.sleep(HANDLING)
    if event.message.subject == POISON:
        os._exit(DIED)


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
