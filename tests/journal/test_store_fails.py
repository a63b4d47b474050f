"""A journal may fail at any of its transactions, while many tasks wait for it. Its error then comes out alone.

    STEPS_SEED=<seed> .venv/bin/pytest -m '' tests/journal/test_store_fails.py

repeats a run that failed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trio

from tests.helpers.steps import QUICK, SEED, new_folder, shape, simulated
from trio_agentmail import AgentMailSession, JournalError, SQLiteJournal, Subscribe, open_agentmail_session
from trio_agentmail._journal.sqlite_store import SQLiteStore
from trio_agentmail._journal.store import Change
from trio_agentmail.testing import FakeAgentMail

INBOXES = [f"i{number}@agentmail.to" for number in range(5)]
TRANSACTIONS = {False: 6, True: 25}
"""A run has more transactions than this: with a body that sleeps (False), and with one that reads (True)."""

FEWEST_FAILURES = 10
"""The least number of runs of a test in which a transaction must have failed."""


class FailingDisk:
    """Makes all writes fail from a transaction on."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._write = SQLiteStore.apply
        self.transactions = 0

    @property
    def failed(self) -> bool:
        return self.transactions >= self._first

    def apply(self, store: SQLiteStore, changes: Sequence[Change]) -> list[Any]:
        self.transactions += 1
        if self.failed:
            raise JournalError("the disk is full")
        return self._write(store, changes)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with patch.object(SQLiteStore, "apply", lambda store, changes: self.apply(store, changes)):
            yield


async def stream_with_a_failing_journal(path: Path, reads: bool, max_pending: int) -> None:
    """Run a stream in which the reader, the recoverer and `next` wait for the journal, and the body if it reads."""
    fake = FakeAgentMail()
    journal = SQLiteJournal(path, max_pending=max_pending, retry_delay=1.0)

    async def send() -> None:
        await trio.sleep(2)
        for _ in range(3):
            async with fake.faults.outage():
                for inbox_id in INBOXES:
                    await fake.deliver(inbox_id=inbox_id)
                await trio.sleep(1)
            for inbox_id in INBOXES:
                await fake.deliver(inbox_id=inbox_id)
            await trio.sleep(3)

    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            async with open_agentmail_session(
                Subscribe(inbox_ids=INBOXES),
                backend=fake,
                journal=journal,
                reconnect=QUICK,
                buffer_size=1,
            ) as session:
                with trio.move_on_after(20):
                    if reads:
                        await handle_all(session, journal)
                    else:
                        await trio.sleep_forever()
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001  the nursery would wrap it in a group
            raised = exc
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def handle_all(session: AgentMailSession, journal: SQLiteJournal) -> None:
    async for event in session.events:
        async with journal.processing(event):
            await trio.sleep(0.1)


def outcome(tmp_path: Path, disk: FailingDisk, seed: int, reads: bool, max_pending: int) -> str:
    """The shape of the exception that the block raises; "" for none."""
    with disk():
        try:
            simulated(
                partial(stream_with_a_failing_journal, new_folder(tmp_path) / "agent.db", reads, max_pending), seed
            )
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001  its type is what is tested
            return shape(exc)
    return ""


def check_failing_journals(reads: bool, tmp_path: Path, seeds: Iterable[int], transactions: Iterable[int]) -> None:
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for seed in seeds:
        for first in transactions:
            max_pending = 1 + (first + seed) % 7
            disk = FailingDisk(first)
            came = outcome(tmp_path, disk, seed, reads, max_pending)
            if not disk.failed:
                assert came == ""
                continue
            found[came] += 1
            examples.setdefault(came, f"transaction {first}, seed {seed}, max_pending {max_pending}")
    assert found.total() >= FEWEST_FAILURES
    if found.keys() != {"JournalError"}:
        pytest.fail(f"{dict(found)}, for example {examples}\nSTEPS_SEED={SEED}", pytrace=False)


bodies = pytest.mark.parametrize("reads", [False, True], ids=["body sleeps", "body reads"])


@bodies
def test_a_journal_that_does_not_fail_ends_nothing(reads: bool, tmp_path: Path) -> None:
    disk = FailingDisk(10**9)
    assert outcome(tmp_path, disk, SEED, reads, 3) == ""
    assert disk.transactions > TRANSACTIONS[reads]


@bodies
def test_whichever_transaction_fails_the_error_comes_out_alone(reads: bool, tmp_path: Path) -> None:
    check_failing_journals(reads, tmp_path, range(SEED, SEED + 3), range(1, TRANSACTIONS[True], 2))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(8))
@bodies
def test_the_error_comes_out_alone_in_any_scheduling(reads: bool, seed: int, tmp_path: Path) -> None:
    check_failing_journals(reads, tmp_path, [SEED + seed], range(1, 2 * TRANSACTIONS[True]))


def test_shapes_tell_a_group_from_its_contents() -> None:
    assert shape(JournalError()) == "JournalError"
    group = BaseExceptionGroup("", [JournalError(), ExceptionGroup("", [JournalError()])])
    assert shape(group) == "ExceptionGroup[ExceptionGroup[JournalError], JournalError]"
