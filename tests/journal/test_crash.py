"""A process with a journal is killed again and again while mail flows. Nothing is lost, and redeliveries are counted.

The judge is in this process, the server in another, and the consumer, which is killed, in a third: `crash_server.py`
and `crash_consumer.py`. The server's log tells which mail there was. The consumer's ledger tells what was handled how
often; it is on disk before anything is acknowledged.

A run is drawn from a seed, which is printed; `CRASH_SEED=… pytest -m long tests/journal/test_crash.py` draws the same
run again. (The kills come after the same steps of the consumer, but not at the same microsecond.)
"""

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import pytest
import trio

from trio_agentmail._journal.sqlite_store import read_journal

ROOT = Path(__file__).parents[2]
PATIENCE = 15.0
"""Seconds without a new line in the ledger, after which the judge goes on."""

MOMENT = 1.0
"""Seconds for which the judge waits at the most for the moment of a kill."""


@attrs.frozen
class Verdict:
    """What the log and the ledger say.

    Attributes:
        lost: Sent and never handled.
        invented: Handled and never sent.
        twice: Handled more than once.
        twice_after_ack: Handled again after it had been acknowledged.
        twice_in_a_process: Handled more than once by one process.
        origins: The number of deliveries by `origin`.
    """

    sent: int
    handled: int
    lost: set[int]
    invented: set[int]
    twice: set[int]
    twice_after_ack: set[int]
    twice_in_a_process: set[int]
    origins: Counter[str]

    @property
    def holds(self) -> bool:
        return not (self.lost or self.invented or self.twice_after_ack or self.twice_in_a_process)


def judge(log: Path, ledger: Path) -> Verdict:
    sent = set(map(int, log.read_text().split()))
    handled: Counter[int] = Counter()
    origins: Counter[str] = Counter()
    acked: set[int] = set()
    in_this_process: set[int] = set()
    after_ack: set[int] = set()
    in_a_process: set[int] = set()
    for line in ledger.read_text().splitlines():
        match line.split():
            case ["started"]:
                in_this_process = set()
            case ["handled", text, origin]:
                number = int(text)
                handled[number] += 1
                origins[origin] += 1
                if number in acked and handled[number] > 1:
                    after_ack.add(number)
                if number in in_this_process:
                    in_a_process.add(number)
                in_this_process.add(number)
            case ["acked", text]:
                acked.add(int(text))
    return Verdict(
        sent=len(sent),
        handled=len(handled),
        lost=sent - handled.keys(),
        invented=handled.keys() - sent,
        twice={number for number, times in handled.items() if times > 1},
        twice_after_ack=after_ack,
        twice_in_a_process=in_a_process,
        origins=origins,
    )


class Reader:
    """Reads the lines that one process adds to the ledger."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self.lines: list[str] = []
        self.news_at = trio.current_time()

    async def until(self, condition: Callable[[], bool], patience: float = PATIENCE, at_most: float = math.inf) -> None:
        """Wait for a condition, but only while there are new lines every `patience` seconds, and `at_most` seconds."""
        end = trio.current_time() + at_most
        while trio.current_time() < end:
            while line := self._file.readline():
                self.lines.append(line.decode().strip())
                self.news_at = trio.current_time()
            if condition() or trio.current_time() > self.news_at + patience:
                return
            await trio.sleep(0.002)

    def count(self, beginning: str) -> int:
        return sum(line.startswith(beginning) for line in self.lines)

    def close(self) -> None:
        self._file.close()


@attrs.define
class KillingSpree:
    """Starts a server, and a consumer that it kills again and again."""

    directory: Path
    rng: random.Random
    mutation: str
    urls: list[str] = attrs.field(factory=list)
    kills: Counter[str] = attrs.field(factory=Counter)
    start_up: float = 0.5
    """Seconds from the start of a process to its subscription, as last measured."""

    @property
    def log(self) -> Path:
        return self.directory / "sent"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"

    @property
    def journal(self) -> Path:
        return self.directory / "agent.db"

    @asynccontextmanager
    async def consumer(self) -> AsyncIterator[tuple[trio.Process, Reader]]:
        """Run a consumer for the block."""
        seed = self.rng.randrange(2**32)
        arguments = [*self.urls, str(self.journal), str(self.ledger), str(seed), self.mutation]
        reader = Reader(self.ledger)
        try:
            async with running("tests.helpers.crash_consumer", *arguments) as process:
                yield process, reader
        finally:
            reader.close()

    async def kill_once(self) -> None:
        """Run a consumer, and kill it at a moment that is drawn."""
        rng = self.rng
        when = rng.choice(["in start-up", "in recovery", "in recovery", "in a commit", "in a commit", "when idle"])
        began = trio.current_time()
        async with self.consumer() as (process, reader):
            if when == "in start-up":
                await trio.sleep(rng.uniform(0.0, 1.2 * self.start_up))
            else:
                await reader.until(lambda: "subscribed" in reader.lines)
                self.start_up = trio.current_time() - began
            match when:
                case "in recovery":
                    found = rng.randrange(4)
                    await reader.until(lambda: reader.count("handled") >= found, 0.5, MOMENT)
                    await trio.sleep(rng.uniform(0, 0.03))
                case "in a commit":
                    handled = rng.randrange(1, 20)
                    await reader.until(lambda: reader.count("handled") >= handled, 0.5, MOMENT)
                    await trio.sleep(rng.uniform(0, 0.002))
                case "when idle":
                    await reader.until(lambda: False, rng.uniform(0.05, 0.15), MOMENT)
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        self.kills[when] += 1

    async def finish(self, server: trio.Process) -> None:
        """Stop the mail, and run a last consumer, which handles what is left and ends on SIGTERM."""
        assert server.stdin is not None
        await server.stdin.send_all(b"stop\n")
        await read_line(server)
        async with self.consumer() as (process, reader):
            await reader.until(lambda: "subscribed" in reader.lines)  # there may be nothing left to handle
            await reader.until(self._all_is_handled)
            await reader.until(lambda: False, 0.3)  # events that are not mail, too
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0

    def _all_is_handled(self) -> bool:
        return not judge(self.log, self.ledger).lost

    def report(self, verdict: Verdict) -> str:
        moments = ", ".join(f"{number} {when}" for when, number in sorted(self.kills.items()))
        origins = ", ".join(f"{number} {origin}" for origin, number in sorted(verdict.origins.items()))
        return (
            f"{self.kills.total()} kills ({moments}): sent {verdict.sent}, handled {verdict.handled} ({origins}), "
            f"handled twice {len(verdict.twice)}, of these after the ack {len(verdict.twice_after_ack)}, "
            f"lost {len(verdict.lost)}"
        )


@asynccontextmanager
async def running(module: str, *arguments: str) -> AsyncIterator[trio.Process]:
    """Run a module as a process for the block, and kill it at the end if it is still running."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()


async def read_line(process: trio.Process) -> str:
    assert process.stdout is not None
    data = b""
    while not data.endswith(b"\n"):
        received = await process.stdout.receive_some()
        assert received, data
        data += received
    return data.decode()


async def kill_often(directory: Path, kills: int, mutation: str = "correct") -> Verdict:
    """Kill the consumer `kills` times, then run one that is not killed, and judge."""
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(2**32))
    began = trio.current_time()
    it = KillingSpree(directory, random.Random(seed), mutation)
    async with running("tests.helpers.crash_server", str(it.log), str(seed)) as server:
        it.urls = (await read_line(server)).split()
        while it.kills.total() < kills:
            await it.kill_once()
        await it.finish(server)
    verdict = judge(it.log, it.ledger)
    seconds = trio.current_time() - began
    print(f"\nCRASH_SEED={seed} {mutation}: {it.report(verdict)}; {seconds:.0f} s")
    return verdict


async def check(directory: Path, kills: int) -> None:
    verdict = await kill_often(directory, kills)
    assert verdict.holds, verdict
    assert read_journal(directory / "agent.db") == (0, [])
    with closing(sqlite3.connect(directory / "agent.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    # At each kill at most three workers are between handling and ack.
    assert len(verdict.twice) <= 3 * kills


async def test_a_process_that_is_killed_five_times_loses_nothing(tmp_path: Path) -> None:
    await check(tmp_path, 5)


@pytest.mark.long
@pytest.mark.timeout(1500)
async def test_a_process_that_is_killed_200_times_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    await check(tmp_path, 200)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mutation", "what"),
    [
        ("ack-first", "lost"),  # acknowledged, then killed before it was handled
        ("no-journal", "lost"),  # mail that came during the downtime, and mail that had been received
        ("no-ack", "twice_after_ack"),  # every process handles everything again
    ],
)
async def test_the_judge_convicts_an_agent_with_a_bug(tmp_path: Path, mutation: str, what: str) -> None:
    verdict = await kill_often(tmp_path, 20, mutation)
    assert not verdict.holds
    assert getattr(verdict, what)
