"""Throughput with and without a journal, and the longest time for which the event loop was blocked."""

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from .contenders import KEY
from .frames import number_of
from .processes import RunFailed, run_client, serve
from .report import Results
from .throughput import PAUSE

SIZES = {"2.6 KB": 8_000, "23 KB": 4_000}
"""The events that are sent and their number, which is below the number that a journal takes before one is handled."""

ONE_BY_ONE_SHARE = 8
"""A way that waits for the disk with each event gets only this fraction of the events."""

WAYS = {
    "no journal": 1,
    "journal, not acked": 1,
    "journal, acked one after the other": ONE_BY_ONE_SHARE,
    "journal, acked by 64 workers": 1,
    "journal, processing, one after the other": ONE_BY_ONE_SHARE,
    "journal, processing, 64 workers": 1,
    "a commit an event, not acked": ONE_BY_ONE_SHARE,
    "a commit an event, acked by 64 workers": ONE_BY_ONE_SHARE,
}
"""How the events are consumed, and which fraction of them."""

REFERENCE = next(iter(WAYS))
WORKERS = 64
TICK = 0.001
"""Time for which the task sleeps that records how late it wakes, in seconds."""


def measure(results: Results) -> None:
    for size, count in SIZES.items():
        for way, share in WAYS.items():
            with (
                results.run(size, way),
                serve(size, count // share, pause=PAUSE, stays_open=True) as server,
                server.client("journaled", way=way, count=count // share) as client,
            ):
                for (what, unit), value in zip(FIGURES, client.answer(), strict=True):
                    results.note(f"{size}, {what}", way, unit, value)
    results.note("fdatasync of 4 KB", "this disk", "ms", sync_time() * 1e3)


FIGURES = (("throughput", "events/s"), ("CPU time", "µs an event"), ("longest pause", "ms"))


class Story:
    """The results of one run so far."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._handled: set[int] = set()
        self._taken = 0
        self.longest_pause = 0.0
        self._began = self._cpu_began = 0.0
        self.figures: list[float] = []

    def take(self, event: Any) -> None:
        if not self._taken:
            self._began, self._cpu_began = time.perf_counter(), time.process_time()
            self.longest_pause = 0.0
        self._taken += 1

    def handle(self, event: Any) -> bool:
        """Count a handled event. Returns whether all have been handled."""
        self._handled.add(number_of(event))
        if len(self._handled) < self._count:
            return False
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        if self._taken != self._count:
            raise RunFailed(f"{self._taken} events came, of {self._count}")
        self.figures = [self._count / seconds, cpu / self._count * 1e6, self.longest_pause * 1e3]
        return True

    async def note_pauses(self) -> None:
        while True:
            due = trio.current_time() + TICK
            await trio.sleep_until(due)
            self.longest_pause = max(self.longest_pause, trio.current_time() - due)


async def main(url: str, way: str, count: int) -> list[float]:
    from trio_agentmail import AgentMailEnvironment, open_agentmail_stream

    story = Story(count)
    environment = AgentMailEnvironment(http=url.replace("ws", "http", 1), websockets=url)
    async with opened(way) as journal:
        async with (
            open_agentmail_stream(api_key=KEY, environment=environment, journal=journal) as events,
            trio.open_nursery() as nursery,
        ):
            await events.receive()  # Subscribed
            nursery.start_soon(story.note_pauses)
            consume = consumer(way, journal)

            async def work() -> None:
                async for event in events.clone():
                    story.take(event)
                    await consume(event)
                    if story.handle(event):
                        nursery.cancel_scope.cancel()

            for _ in range(WORKERS if "workers" in way else 1):
                nursery.start_soon(work)
    if not story.figures:
        raise RunFailed("not all events were handled")
    return story.figures


@asynccontextmanager
async def opened(way: str) -> AsyncIterator[Any]:
    """Make the journal in a temporary directory. `None` if the way has no journal."""
    if way == REFERENCE:
        yield None
        return
    from trio_agentmail import SQLiteJournal

    if way.startswith("a commit an event"):
        commit_each_change_by_itself()
    with tempfile.TemporaryDirectory() as directory:
        yield SQLiteJournal(f"{directory}/agent.db")


def consumer(way: str, journal: Any) -> Callable[[Any], Any]:
    async def nothing(event: Any) -> None:
        pass

    async def process(event: Any) -> None:
        async with journal.processing(event):
            pass

    if "processing" in way:
        return process
    return journal.ack if ", acked" in way else nothing


def commit_each_change_by_itself() -> None:
    """The naive way: the same journal, but each change is a transaction of its own and waits for the disk."""
    from trio_agentmail._journal.sqlite_store import SQLiteStore
    from trio_agentmail._journal.store import Change

    apply = SQLiteStore.apply

    def apply_one_by_one(self: SQLiteStore, changes: Sequence[Change]) -> list[Any]:
        return [result for change in changes for result in apply(self, [change])]

    SQLiteStore.apply = apply_one_by_one  # type: ignore[method-assign]


def sync_time(samples: int = 50) -> float:
    """Return the seconds that the disk takes to confirm a page, which a commit waits for."""
    with tempfile.TemporaryFile() as file:
        taken = []
        for _ in range(samples):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return median(taken)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def client(url: str, way: str, count: int) -> list[float]:
    return trio.run(main, url, way, count)


if __name__ == "__main__":
    run_client(client)
