"""Chaos: mail flows through faults of every kind, and no mail is lost or comes twice, by the server's own log.

Each session draws a seed. A run that fails prints it; to repeat that run:

    CHAOS_SEED=<seed> .venv/bin/pytest -m '' tests/reliability/test_chaos.py
"""

import math
import os
import random
from typing import Any
from unittest.mock import patch

import pytest

from tests.benchmarks import scale
from tests.reliability.chaos import FAULTS, RECOVERY, SUBSCRIPTIONS, Fault, Verdict, draw_schedule, run
from trio_agentmail import Recovery
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery import mails
from trio_agentmail._recovery.source import Scan, Target
from trio_agentmail._recovery.state import RecoveryState
from trio_agentmail._recovery.sweeps import Sweeps

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))

subscriptions = pytest.mark.parametrize("subscription", SUBSCRIPTIONS)


def check(verdict: Verdict) -> None:
    print(verdict)
    story = f"{verdict}\nCHAOS_SEED={verdict.schedule.seed} repeats it"
    assert not verdict.lost, f"lost: {verdict.lost[:5]}\n{story}"
    assert not verdict.twice, f"twice: {verdict.twice[:5]}\n{story}"
    assert not verdict.unwanted, f"unwanted: {verdict.unwanted[:5]}\n{story}"
    # A fault without an effect tests nothing. If two overlap, one may prevent the effect of the other.
    faults = verdict.schedule.faults
    assert verdict.happened.total() == faults, story
    assert verdict.bit.total() >= 0.9 * faults, story
    assert verdict.in_gaps > 0, story
    assert verdict.recovered > 0, story
    assert verdict.statuses.keys() >= {200, 429, 500, None}, story


@subscriptions
def test_no_mail_is_lost_or_comes_twice_whatever_goes_wrong(subscription: str) -> None:
    verdict = run(draw_schedule(SEED, subscription, mails=1_000, faults=len(FAULTS)))
    check(verdict)
    assert set(verdict.happened) == set(FAULTS)


@pytest.mark.long
@pytest.mark.timeout(600)
@subscriptions
def test_none_of_20_000_mails_is_lost_or_comes_twice_in_200_faults(subscription: str) -> None:
    schedule = draw_schedule(SEED, subscription, mails=20_000, faults=200)
    assert (schedule.mails, schedule.faults) == (20_000, 200)
    verdict = run(schedule)
    check(verdict)
    seldom = {kind for kind, times in verdict.happened.items() if 2 * verdict.bit[kind] < times}
    assert not seldom, f"without effect: {seldom}\n{verdict}"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_none_of_100_000_mails_is_lost_or_comes_twice_in_a_few_hours() -> None:
    """A tenth of what `python -m tests.benchmarks.scale` does: 12 mails a second, and a fault every 86 s."""
    schedule = draw_schedule(SEED, "key", mails=100_000, faults=100, hours=2.4, furthest_ahead=scale.FURTHEST_AHEAD)
    assert (schedule.mails, schedule.faults) == (100_000, 100)
    check(run(schedule, patience=3 * 3600.0))


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (run(draw_schedule(SEED, "key", mails=500, faults=len(FAULTS))) for _ in range(2))
    assert first.came == second.came
    assert str(first) == str(second)


# The judge must find what is wrong with these runs.


def wrong_run(subscription: str, seed: int = 1, recovery: Recovery | None = RECOVERY) -> Verdict:
    return run(draw_schedule(seed, subscription, mails=1_000, faults=2 * len(FAULTS)), recovery=recovery)


def test_without_recovery_mail_is_lost() -> None:
    verdict = wrong_run("key", recovery=None)
    assert len(verdict.lost) > 50
    assert not verdict.requests


def test_without_de_duplication_mail_comes_twice() -> None:
    with patch.object(Delivered, "claim", lambda *_: True):
        verdict = wrong_run("key")
    assert len(verdict.twice) > 10
    assert not verdict.lost


async def do_nothing(*_: object) -> None:
    pass


def test_without_sweeps_back_dated_mail_is_lost() -> None:
    with patch.object(Sweeps, "run", do_nothing):
        verdict = wrong_run("inboxes")
    lost = set(verdict.lost)
    faults = [step for _, step in verdict.schedule.steps if isinstance(step, Fault)]
    assert "back_dated" in {fault.kind for fault in faults if not lost.isdisjoint(fault.mails)}


right_sweep = Sweeps._next_sweep


def shallow_sweep(sweeps: Sweeps, target: Target) -> Scan:
    """A bug that this package had, until a run like these lost one mail of 20,000."""
    sweeps._state.progress[target].swept_until = sweeps._clock.now()
    sweeps._recent_from[target] = math.inf
    return right_sweep(sweeps, target)


BUGS: dict[str, tuple[Any, str, Any, str]] = {
    "sweeps reach back from now": (Sweeps, "_next_sweep", shallow_sweep, "lost"),
    "held mail is not checked again": (RecoveryState, "_check_held", do_nothing, "lost"),
    "held mail is not told apart": (mails, "HELD", "another label", "unwanted"),
    "a mail whose delivery was interrupted counts as delivered": (Delivered, "give_back", lambda *_: None, "lost"),
}


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS)
def test_a_few_seeds_find_each_of_these_bugs(bug: str) -> None:
    where, name, wrong, what_is_wrong = BUGS[bug]
    with patch.object(where, name, wrong):
        assert any(getattr(wrong_run("inboxes", seed), what_is_wrong) for seed in range(4, 12))
