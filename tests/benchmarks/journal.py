"""The cost of a journal without a network: its throughput, and how long it blocks the event loop."""

import gc
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from trio_agentmail import Event, SQLiteJournal, decode_event
from trio_agentmail._journal.protocol import RunSync

from .frames import CASES, numbered
from .processes import run_client, running
from .report import Results

COUNT, COUNT_OF_SLOW = 10_000, 2_000
"""Number of events. The second is for a way that waits for the disk with each event."""

WORKERS = {"ack, 1 worker": 1, "ack, 16 workers": 16, "processing, 1 worker": 1, "processing, 16 workers": 16}
NAIVE = "a commit for each event and each ack, in the event loop"
WAYS = (NAIVE, "recorded, nothing else", *WORKERS)
CASE = "2.6 KB"
HEARTBEAT = 0.001


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for way in WAYS:
            with results.run(CASE, way), running("journal", {"way": way}, {}) as process:
                answer = process.answer()
                results.note(CASE, way, "events/s", answer["events_per_second"])
                results.note(f"{CASE}, longest pause", way, "ms", answer["longest_pause"] * 1e3)
                results.note(f"{CASE}, of that the loop's own CPU time", way, "ms", answer["longest_turn"] * 1e3)


def client(way: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:  # /tmp may be in memory
        return trio.run(run, way, Path(directory) / "agent.db")


async def run(way: str, path: Path) -> dict[str, float]:
    text = CASES[CASE]()[0]
    count = COUNT_OF_SLOW if way == NAIVE or way.endswith(" 1 worker") else COUNT
    events = [decode_event(numbered(text, number)) for number in range(count)]
    gc.collect()
    gc.freeze()  # the long list of events belongs to the benchmark and must not add to the pauses
    async with trio.open_nursery() as nursery:
        pauses: list[float] = []
        turns: list[float] = []
        nursery.start_soon(heartbeat, pauses, turns)
        await trio.sleep(0.1)
        pauses.clear()
        turns.clear()
        began = time.perf_counter()
        if way == NAIVE:
            await naive(path, events)
        else:
            await journaled(way, path, events)
        elapsed = time.perf_counter() - began
        nursery.cancel_scope.cancel()
    return {"events_per_second": count / elapsed, "longest_pause": max(pauses), "longest_turn": max(turns)}


async def heartbeat(pauses: list[float], turns: list[float]) -> None:
    """Record the delay of each wake-up, and how long the event loop worked in between.

    A task experiences the delay. If other processes use the machine as well, the second figure shows the part of this
    process.
    """
    while True:
        before, used = time.perf_counter(), time.thread_time()
        await trio.sleep(HEARTBEAT)
        pauses.append(time.perf_counter() - before - HEARTBEAT)
        turns.append(time.thread_time() - used)


async def naive(path: Path, events: list[Event]) -> None:
    """The naive journal: one transaction for each event."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE events (id TEXT PRIMARY KEY, text TEXT, handled INTEGER)")
        for event in events:
            connection.execute("INSERT INTO events VALUES (?, ?, 0)", (event.event_id, event.raw))  # type: ignore[union-attr]
            await trio.lowlevel.checkpoint()
            connection.execute("UPDATE events SET handled = 1, text = NULL WHERE id = ?", (event.event_id,))  # type: ignore[union-attr]
            await trio.lowlevel.checkpoint()


async def in_a_thread(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function)


async def journaled(way: str, path: Path, events: list[Event]) -> None:
    journal = SQLiteJournal(path, max_pending=len(events))
    run_sync: RunSync = in_a_thread
    async with journal.opened("benchmark", run_sync, time.time), trio.open_nursery() as nursery:
        if workers := WORKERS.get(way):
            send, receive = trio.open_memory_channel[Event](64)
            nursery.start_soon(feed, journal, send, len(events))
            for _ in range(workers):
                nursery.start_soon(work, journal, receive.clone(), way.startswith("processing"))
            receive.close()
        for number, event in enumerate(events):
            await journal.record(event)
            if number % 64 == 0:  # as many as one read from the network has
                await trio.lowlevel.checkpoint()
        await journal.keep(None)


async def feed(journal: SQLiteJournal, send: trio.MemorySendChannel[Event], count: int) -> None:
    async with send:
        for _ in range(count):
            await send.send(await journal.next())


async def work(journal: SQLiteJournal, receive: trio.MemoryReceiveChannel[Event], processing: bool) -> None:
    async with receive:
        async for event in receive:
            if processing:
                async with journal.processing(event):
                    pass
            else:
                await journal.ack(event)


if __name__ == "__main__":
    run_client(client)
