"""`python -m tests.helpers.crash_consumer SOCKETS HTTP JOURNAL LEDGER SEED MUTATION`: an agent that may be killed.

It writes a line to LEDGER for each step: `handled 7` is on disk before mail 7 is acknowledged, and `acked 7` is written
after that. SEED decides how it handles mail: with `ack` or `processing`, with one worker or three, in no time or in a
few milliseconds. On SIGTERM it leaves its stream and ends.

A MUTATION is a bug that the judge must find: `ack-first` acknowledges before it handles, `no-journal` has no journal,
`no-ack` never acknowledges. `correct` is none of these.
"""

import os
import random
import signal
import sys
import threading
from functools import partial

import trio

from trio_agentmail import (
    AgentMailEnvironment,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Recovery,
    SQLiteJournal,
    Subscribe,
    open_agentmail_stream,
)

INBOX = "agent@crash.example"
KEY = "am_crash"


class Ledger:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: str, *, sync: bool = False) -> None:
        os.write(self._fd, line.encode() + b"\n")
        if sync:
            os.fsync(self._fd)


class Agent:
    def __init__(self, journal: SQLiteJournal, ledger: Ledger, seed: int, mutation: str) -> None:
        rng = random.Random(seed)
        self._journal = journal
        self._ledger = ledger
        self._mutation = mutation
        self._seconds = rng.choice([0.0, 0.0, 0.002, 0.01])
        self._in_processing = rng.random() < 0.5
        self.workers = rng.choice([1, 1, 3])

    async def work(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            match event:
                case MessageReceivedEvent():
                    await self._take(event)
                case _ if self._mutation != "no-journal":
                    await self._journal.ack(event)  # an event about mail that is held or was released
                    self._ledger.write("passed")

    async def _take(self, event: MessageReceivedEvent) -> None:
        number = event.message.message_id.strip("<>").partition("@")[0]
        if self._mutation == "no-journal":
            await self._handle(event, number)
        elif self._mutation == "ack-first":
            await self._journal.ack(event)
            self._ledger.write(f"acked {number}")
            await self._handle(event, number)
        elif self._mutation == "no-ack":
            await self._handle(event, number)
            self._ledger.write(f"acked {number}")
        elif self._in_processing:
            async with self._journal.processing(event):
                await self._handle(event, number)
            self._ledger.write(f"acked {number}")
        else:
            await self._handle(event, number)
            await self._journal.ack(event)
            self._ledger.write(f"acked {number}")

    async def _handle(self, event: MessageReceivedEvent, number: str) -> None:
        await trio.sleep(self._seconds)
        self._ledger.write(f"handled {number} {event.origin}", sync=True)


def end_with_the_judge() -> None:
    """End this process when the judge ends, which has the other end of its standard input."""
    os.read(0, 1)
    os._exit(1)


async def main(websockets: str, http: str, path: str, ledger_path: str, seed: str, mutation: str) -> None:
    threading.Thread(target=end_with_the_judge, daemon=True).start()
    ledger = Ledger(ledger_path)
    ledger.write("started")
    journal = SQLiteJournal(path, max_attempts=50)
    agent = Agent(journal, ledger, int(seed), mutation)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_agentmail_stream(
            Subscribe(inbox_ids=[INBOX]),
            api_key=KEY,
            environment=AgentMailEnvironment(websockets=websockets, http=http),
            reconnect=ReconnectPolicy(initial_delay=0.1, max_delay=0.5),
            recovery=Recovery(sweep_interval=1.0),
            journal=None if mutation == "no-journal" else journal,
        ) as events:
            ledger.write("subscribed")
            async with trio.open_nursery() as nursery:
                for _ in range(agent.workers):
                    nursery.start_soon(agent.work, events)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break
    ledger.write("left")


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
