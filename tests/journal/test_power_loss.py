"""After a power failure a prefix of the commits is on disk, whatever part of the write-ahead log has reached it.

A child process commits through a journal. It is stopped, its files are copied, and it goes on. The copy of the log is
then cut at every kind of offset.
"""

import itertools
import logging
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest
import trio
import trio.lowlevel

from tests.helpers.journals import SCOPE, in_a_thread, inline, mail
from trio_agentmail import Event, MessageReceivedEvent, SQLiteJournal
from trio_agentmail._identity import identity
from trio_agentmail._journal.sqlite_store import SQLiteStore

HEADER, FRAME_HEADER, PAGE = 32, 24, 4096
FRAME = FRAME_HEADER + PAGE
WORKERS = 4
COPIES = 3
CUTS = 200
"""Random cuts of each copy."""


# In the child process


async def write(path: str) -> None:
    """Record and acknowledge without end, and print a line for each confirmed change."""

    kept = itertools.count(1)

    async def work(journal: SQLiteJournal) -> None:
        while True:
            event = await receive.receive()
            assert isinstance(event, MessageReceivedEvent)
            assert event.event_id is not None
            number = int(event.event_id.removeprefix("event "))
            print("given", number, flush=True)
            if number % 3 == 0:
                count = next(kept)
                await journal.keep(str(count).encode())
                print("kept", count, flush=True)
            if number % 7:
                await journal.ack(event)
                print("handled", number, flush=True)
            else:
                async with journal.processing(event):
                    raise ValueError  # a dead letter

    async def feed() -> None:
        while True:
            await send.send(await journal.next())

    send, receive = trio.open_memory_channel[Event](0)
    journal = SQLiteJournal(path, max_pending=50, max_attempts=1)
    async with journal.opened(SCOPE, in_a_thread, time.time), trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        for _ in range(WORKERS):
            nursery.start_soon(work, journal)
        number = 0
        while True:
            number += 1
            await journal.record(mail(number, text="x" * (number * 997 % 3000)))
            await trio.lowlevel.checkpoint()


# In the test


@attrs.define
class Confirmed:
    """The changes that the child has printed as confirmed."""

    given: set[int] = attrs.field(factory=set)
    handled: set[int] = attrs.field(factory=set)
    kept: set[int] = attrs.field(factory=set)


@attrs.define
class Found:
    """What a journal contains. Mail is stored in the order of its numbers, so a prefix of the commits has no hole."""

    numbers: list[int]
    handled: set[int]
    kept: int


def examine(path: Path) -> Found:
    """Open a copy as after a power failure, and check that it is consistent."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = SQLiteStore(path, SCOPE)
    try:
        known = {key for (key,) in store._connection.execute("SELECT key FROM identities")}
        numbers = [number for number in range(1, len(known) + 1) if identity(mail(number)) in known]
        assert len(numbers) == len(known)
        unhandled = store._connection.execute("SELECT id, key FROM events ORDER BY id").fetchall()
        assert all(key == identity(mail(id)) for id, key in unhandled)
        texts = store._connection.execute("SELECT id FROM texts ORDER BY id").fetchall()
        assert texts == [(id,) for id, _ in unhandled]  # both tables are changed in one transaction
        assert store.last_id() == len(known)
        return Found(numbers, set(numbers) - {id for id, _ in unhandled}, int(store.kept(inline).state or b"0"))
    finally:
        store.close()


def frames_of(index: bytes) -> tuple[int, int]:
    """The log's index: how many frames may have been copied to the database, and how many frames the log has.

    The disk had confirmed a frame before it was copied, so the log cannot end before it.
    """
    (frames,) = struct.unpack_from("=I", index, 16)  # mxFrame
    (copied,) = struct.unpack_from("=I", index, 128)  # nBackfillAttempted
    return copied, frames


def cuts(copied: int, frames: int, size: int, source: random.Random) -> list[int]:
    """Every kind of offset: none, inside each part of the log, at its boundaries, all, and random ones."""
    kinds = [0, 1, HEADER // 2, HEADER - 1, HEADER] if not copied else []
    some = {copied, copied + 1, copied + 2, frames - 2, frames - 1}
    some |= {source.randint(copied, frames) for _ in range(20)}
    inside = [0, 1, 8, FRAME_HEADER - 1, FRAME_HEADER, FRAME_HEADER + 1, FRAME_HEADER + PAGE // 2, FRAME - 1]
    kinds += [HEADER + frame * FRAME + offset for frame in some for offset in inside]
    first, last = HEADER + copied * FRAME, HEADER + frames * FRAME
    kinds += [source.randint(first, last) for _ in range(CUTS)]
    return sorted({cut for cut in kinds if first <= cut <= size or not copied} | {size})


def read_lines(output: BinaryIO, told: Confirmed) -> None:
    """Read what the child has printed since the last call. An incomplete last line is left for the next call."""
    lines, _, incomplete = output.read().rpartition(b"\n")
    output.seek(-len(incomplete), os.SEEK_CUR)
    for line in lines.decode().splitlines():
        what, number = line.split()
        getattr(told, what).add(int(number))


def commits(log: bytes, frames: int) -> int:
    """The number of transactions: only the last frame of each tells the size of the database."""
    return sum(struct.unpack_from(">I", log, HEADER + frame * FRAME + 4)[0] > 0 for frame in range(frames))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name == "nt", reason="needs SIGSTOP")
def test_wherever_a_power_failure_cuts_the_log_a_prefix_of_the_commits_remains(tmp_path: Path) -> None:
    seed = int(os.environ.get("POWER_SEED", random.randrange(2**32)))
    print(f"POWER_SEED={seed}")
    source = random.Random(seed)
    path, told_path, told = tmp_path / "agent.db", tmp_path / "told", Confirmed()
    with told_path.open("wb") as told_file, told_path.open("rb") as output:
        command = [sys.executable, "-m", __name__, str(path)]
        child = subprocess.Popen(command, stdout=told_file, cwd=Path(__file__).parents[2])
        try:
            while told_path.stat().st_size < 1000:
                assert child.poll() is None
                time.sleep(0.01)
            for number in range(COPIES):
                time.sleep(0.5 + source.random() / 2)  # a real process needs real time
                here = tmp_path / f"copy {number}"
                copied, frames = copy_while_stopped(child.pid, path, here)
                read_lines(output, told)
                cut_everywhere(here, copied, frames, told, source)
                os.kill(child.pid, signal.SIGCONT)
        finally:
            child.kill()
            child.wait()


def copy_while_stopped(pid: int, path: Path, here: Path) -> tuple[int, int]:
    """Stop the child, and copy database and log. Return what `frames_of` does."""
    here.mkdir()
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", here / f"agent.db{suffix}")
    return frames_of(Path(f"{path}-shm").read_bytes())


def cut_everywhere(here: Path, copied: int, frames: int, told: Confirmed, source: random.Random) -> None:
    """Cut the log at each offset, and check what a journal then contains. `told` must be true of the whole log."""
    path, log_path = here / "agent.db", here / "agent.db-wal"
    database, log = path.read_bytes(), log_path.read_bytes()
    before, where = Found([], set(), 0), cuts(copied, frames, len(log), source)
    for cut in where:
        path.write_bytes(database)
        log_path.write_bytes(log[:cut])
        found = examine(path)
        # A prefix of the commits: without a hole, and with all that a shorter log has.
        assert found.numbers == list(range(1, len(found.numbers) + 1)), f"cut at {cut}"
        assert len(before.numbers) <= len(found.numbers), f"cut at {cut}"
        assert before.handled <= found.handled, f"cut at {cut}"
        assert before.kept <= found.kept, f"cut at {cut}"
        before = found
    # The last was the whole log.
    assert told.given <= set(before.numbers)
    assert told.handled <= before.handled
    assert max(told.kept) <= before.kept
    print(
        f"{len(where)} cuts of a log of {frames} frames, {copied} of them copied, {commits(log, frames)} commits; "
        f"{len(told.handled)} events handled, {len(before.numbers)} recorded"
    )
    shutil.rmtree(here)


if __name__ == "__main__":
    logging.disable()
    trio.run(write, sys.argv[1])
