"""A program is cancelled, killed or stopped at any of its scheduling steps, and starts again on the same journal.

Each session draws a seed. A failed test prints it. To repeat the run:

    STEPS_SEED=<seed> .venv/bin/pytest -m '' tests/core/test_every_step.py
"""

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.helpers import steps
from tests.helpers.steps import BEHIND, PROMPT, SEED, End, Life, Plot, Verdict, tell
from trio_agentmail._journal.sqlite_store import SQLiteStore

STRIDE = 71
"""The quick tests take one of this many steps."""
PARTS = 6
"""The number of tests among which the steps of a story are divided."""
FEWEST_STEPS = 700
"""A story with fewer has ended early."""

plots = pytest.mark.parametrize("plot", [PROMPT, BEHIND], ids=str)
ends = pytest.mark.parametrize("end", ["cancelled", "killed", "stopped"])


@pytest.fixture(autouse=True)
def seed_of_any_failure() -> None:
    print(f"STEPS_SEED={SEED}")


# The story


def check_steps(plot: Plot, end: End, tmp_path: Path, offset: int, stride: int) -> None:
    total = tell(plot, tmp_path).steps
    assert total > FEWEST_STEPS
    verdicts = [tell(plot, tmp_path, end, step) for step in range(offset, total, stride)]
    assert all(verdict.place is not None for verdict in verdicts), "not every run was interrupted"
    wrong = [verdict for verdict in verdicts if verdict.kinds]
    kinds = Counter(kind for verdict in wrong for kind in verdict.kinds)
    told = "\n".join(map(str, wrong[:3] + wrong[3:][-3:]))
    if wrong:
        # The first line is in pytest's summary.
        story = f"STEPS_SEED={SEED}: {len(wrong)} of {len(verdicts)} steps went wrong, {dict(kinds)}:\n{told}"
        pytest.fail(story, pytrace=False)


@plots
def test_the_story_is_whole_when_nothing_interrupts_it(plot: Plot, tmp_path: Path) -> None:
    verdict = tell(plot, tmp_path)
    assert not verdict.kinds, str(verdict)
    assert verdict.steps > FEWEST_STEPS
    first, second = verdict.first, verdict.second
    assert first.origins == {"live", "recovered", "redelivered"}
    assert first.handled == first.acked >= {"a1", "a19", "a21", "b20", "b28"}
    difficult = [name for name in first.given if "difficult" in name]
    assert len(difficult) == 2 * len(set(difficult)) >= 2 * 4
    assert second.acked == {"a29", "b30", "a31", "b32"}


@plots
def test_the_same_seed_is_the_same_story(plot: Plot, tmp_path: Path) -> None:
    first, second = (tell(plot, tmp_path, "killed", 500) for _ in range(2))
    assert (first.place, first.steps, first.first.given) == (second.place, second.steps, second.first.given)
    assert str(first) == str(second)


@plots
@ends
def test_no_mail_is_lost_or_redelivered_after_its_ack_at_any_step_of_ending(
    plot: Plot, end: End, tmp_path: Path
) -> None:
    check_steps(plot, end, tmp_path, SEED % STRIDE, STRIDE)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
@plots
@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_no_mail_is_lost_or_redelivered_after_its_ack_at_every_step(
    plot: Plot, end: End, part: int, tmp_path: Path
) -> None:
    check_steps(plot, end, tmp_path, part, PARTS)


# The judge must be able to find errors: these runs are wrong.


def wrong_runs(plot: Plot, end: End, tmp_path: Path) -> list[Verdict]:
    return [tell(plot, tmp_path, end, step) for step in range(100, FEWEST_STEPS, 60)]


def nothing(*_: Any) -> None:
    """Write nothing."""


@ends
def test_acks_that_are_not_written_down_are_noticed(end: End, tmp_path: Path) -> None:
    with patch.object(SQLiteStore, "_ack", nothing):
        assert any(verdict.again for verdict in wrong_runs(PROMPT, end, tmp_path))


@ends
def test_progress_of_recovery_that_is_not_written_down_is_noticed(end: End, tmp_path: Path) -> None:
    with patch.object(SQLiteStore, "_keep", nothing):
        assert any(verdict.lost for verdict in wrong_runs(PROMPT, end, tmp_path))


def test_a_kill_that_takes_the_journal_with_it_is_noticed(tmp_path: Path) -> None:
    with patch.object(steps, "copy_journal", nothing):
        verdicts = wrong_runs(PROMPT, "killed", tmp_path)
    assert any(verdict.lost for verdict in verdicts)


def test_a_second_life_that_is_refused_is_noticed(tmp_path: Path) -> None:
    def damage(_: Path, copied: Path) -> None:
        copied.write_bytes(b"no journal" * 1000)

    with patch.object(steps, "copy_journal", damage):
        verdict = tell(PROMPT, tmp_path, "killed", 300)
    assert verdict.raised == ["second life: JournalError"]
    assert verdict.place is not None
    assert f"killed before step 300 of {verdict.place}" in str(verdict)


def test_mail_that_comes_twice_in_a_life_is_noticed() -> None:
    life = Life()
    life.give("1", "live")
    life.fail("1")
    life.give("1", "redelivered")
    assert not life.twice
    life.give("1", "redelivered")
    assert life.twice == ["1"]


def test_what_a_program_does_after_its_death_does_not_count() -> None:
    life = Life(dead=True)
    life.give("1", "live")
    life.handle("1")
    life.fail("1")
    life.ack("1")
    life.subscribe()
    assert life == Life(dead=True, ready=life.ready)


@pytest.mark.long
@pytest.mark.timeout(600)
@plots
def test_no_mail_is_lost_at_every_fifth_step_of_stopping(plot: Plot, tmp_path: Path) -> None:
    check_steps(plot, "stopped", tmp_path, SEED % 5, 5)
