"""Chaos, live: mail flows through faults of every kind, and the server's own log says that none is lost or comes twice.

A run that fails prints its seed. `CHAOS_SEED=<seed> .venv/bin/pytest -m '' tests/test_chaos.py` plays it again.
"""

import os
import random
from unittest.mock import patch

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.chaos import RECOVERY, SUBSCRIPTIONS, Verdict, draw_schedule, reproducible, run
from trio_agentmail import Recovery
from trio_agentmail._delivered import Delivered

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))


def play(subscription: str, *, mails: int, faults: int, recovery: Recovery | None = RECOVERY) -> Verdict:
    schedule = draw_schedule(SEED, subscription, mails=mails, faults=faults)

    async def main() -> Verdict:
        return await run(schedule, recovery=recovery)

    # A run of its own, and not the test's: the seed decides the order of its tasks as well.
    with reproducible(SEED):
        return trio.run(main, clock=MockClock(autojump_threshold=0))


def check(verdict: Verdict) -> None:
    print(verdict)
    assert not verdict.lost, f"lost: {verdict.lost[:5]}\n{verdict}"
    assert not verdict.twice, f"twice: {verdict.twice[:5]}\n{verdict}"
    assert not verdict.unwanted, f"unwanted: {verdict.unwanted[:5]}\n{verdict}"
    # What had no effect shows nothing.
    assert verdict.recovered > 0, str(verdict)
    assert verdict.in_gaps > 0, str(verdict)


@pytest.mark.parametrize("subscription", SUBSCRIPTIONS)
def test_no_mail_is_lost_or_comes_twice_whatever_goes_wrong(subscription: str) -> None:
    check(play(subscription, mails=1_000, faults=25))


@pytest.mark.long
@pytest.mark.parametrize("subscription", SUBSCRIPTIONS)
def test_nor_is_any_of_20_000_mails_through_200_faults(subscription: str) -> None:
    verdict = play(subscription, mails=20_000, faults=200)
    check(verdict)
    assert (verdict.schedule.mails, verdict.schedule.faults) >= (20_000, 200)
    missing = {kind for kind in verdict.happened if not verdict.bit[kind]}
    assert not missing, f"without effect: {missing}\n{verdict}"


# A judge that finds nothing wrong shows nothing: these runs are wrong.


def test_without_recovery_mail_is_lost() -> None:
    assert play("inboxes", mails=1_000, faults=25, recovery=None).lost


def test_without_memory_mail_comes_twice() -> None:
    with patch.object(Delivered, "claim", lambda *_: True):
        assert play("inboxes", mails=1_000, faults=25).twice


def test_without_sweeps_mail_is_lost_that_was_not_pushed() -> None:
    never = attrs.evolve(RECOVERY, sweep_interval=1e9)
    with patch("trio_agentmail._recovery.recoverer.SECOND_LOOK_AFTER", 1e9):
        assert play("inboxes", mails=1_000, faults=25, recovery=never).lost
