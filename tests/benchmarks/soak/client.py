"""The client of the soak: a session with a journal, and workers that acknowledge every event.

The client counts nothing, so that its memory is that of the stream. It writes what happens to a ledger, with times of
`time.perf_counter`:

    got AT NUMBER ORIGIN            a mail
    wrong AT NUMBER                 a mail whose text is not the one that was sent
    acked AT NUMBER                 the ack has returned
    subscribed AT
    disconnected AT CODE
    caught-up AT FAILED RECOVERED KNOWN
    recovery-failed AT REASON
    other AT NAME                   any other event
    sample AT MEMORY FILE CPU       resident bytes, bytes of the journal with its -wal, seconds of CPU time
"""

import cProfile
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.benchmarks.memory import resident
from tests.benchmarks.processes import run_client
from trio_agentmail import (
    AgentMailEnvironment,
    CaughtUp,
    Disconnected,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Recovery,
    RecoveryFailed,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    open_agentmail_session,
)

from .mails import INBOXES, KEY, number_of, text_of

WORKERS = 8

POLICIES = {"fast": ReconnectPolicy(initial_delay=0.1, max_delay=1.0), "default": ReconnectPolicy()}


class Ledger:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def note(self, what: str, *words: object) -> None:
        print(what, time.perf_counter(), *words, file=self._file)

    def note_event(self, event: Event) -> None:
        match event:
            case MessageReceivedEvent(message=message):
                number = number_of(message.message_id)
                self.note("got", number, event.origin)
                if message.text != text_of(number):
                    self.note("wrong", number)
            case Subscribed():
                self.note("subscribed")
            case Disconnected():
                self.note("disconnected", event.code)
            case CaughtUp():
                self.note("caught-up", event.failed, event.recovered, event.known)
            case RecoveryFailed():
                self.note("recovery-failed", event.reason)
            case _:
                self.note("other", type(event).__name__)


async def work(events: trio.MemoryReceiveChannel[Event], journal: SQLiteJournal, ledger: Ledger) -> None:
    async for event in events:
        ledger.note_event(event)
        await journal.ack(event)
        if isinstance(event, MessageReceivedEvent):
            ledger.note("acked", number_of(event.message.message_id))


async def sample(ledger: Ledger, journal: Path, interval: float) -> None:
    while True:
        size = 0
        for path in (journal, journal.with_name(f"{journal.name}-wal")):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        ledger.note("sample", resident(), size, time.process_time())
        await trio.sleep(interval)


async def main(
    http: str, websockets: str, directory: str, policy: str, recovery: dict[str, Any], interval: float
) -> dict[str, Any]:
    path = Path(directory) / "journal.db"
    ledger = Ledger(Path(directory) / "ledger")
    journal = SQLiteJournal(path)
    async with (
        open_agentmail_session(
            Subscribe(inbox_ids=INBOXES),
            api_key=KEY,
            environment=AgentMailEnvironment(http=http, websockets=websockets),
            reconnect=POLICIES[policy],
            recovery=Recovery(**recovery),
            journal=journal,
        ) as session,
        trio.open_nursery() as nursery,
    ):
        for _ in range(WORKERS):
            nursery.start_soon(work, session.events.clone(), journal, ledger)
        nursery.start_soon(sample, ledger, path, interval)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        statistics = session.statistics()
        nursery.cancel_scope.cancel()
    return attrs.asdict(statistics, filter=lambda _, value: not isinstance(value, datetime))


def client(profile: str | None, **arguments: Any) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        return await main(**arguments)

    if profile is None:
        return trio.run(run)
    profiler = cProfile.Profile()
    try:
        return profiler.runcall(trio.run, run)
    finally:
        profiler.dump_stats(profile)


if __name__ == "__main__":
    run_client(client)
