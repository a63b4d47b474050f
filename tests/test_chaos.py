"""Chaos, live: mail flows through faults of every kind, and the server's own log says that none is lost or comes twice.

Each session draws a seed. A run that fails tells its own; to have it again:

    CHAOS_SEED=<seed> .venv/bin/pytest -m '' tests/test_chaos.py
"""

import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from tests.chaos import FAULTS, SUBSCRIPTIONS, Fault, Verdict, draw_schedule, run
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery import held, mails
from trio_agentmail._recovery.recoverer import Recoverer
from trio_agentmail._recovery.rest import Rest

SEED = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))

subscriptions = pytest.mark.parametrize("subscription", SUBSCRIPTIONS)


def check(verdict: Verdict) -> None:
    print(verdict)
    story = f"{verdict}\nCHAOS_SEED={verdict.schedule.seed} plays it again"
    assert not verdict.lost, f"lost: {verdict.lost[:5]}\n{story}"
    assert not verdict.twice, f"twice: {verdict.twice[:5]}\n{story}"
    assert not verdict.unwanted, f"unwanted: {verdict.unwanted[:5]}\n{story}"
    # A fault that had no effect shows nothing. Where two meet, one may take the effect of the other.
    faults = verdict.schedule.faults
    assert verdict.happened.total() == faults, story
    assert verdict.bit.total() >= 0.9 * faults, story
    assert verdict.in_gaps and verdict.recovered and verdict.statuses[429] and verdict.statuses[500], story


@subscriptions
def test_no_mail_is_lost_or_comes_twice_whatever_goes_wrong(subscription: str) -> None:
    verdict = run(draw_schedule(SEED, subscription, mails=1_000, faults=len(FAULTS)))
    check(verdict)
    assert set(verdict.happened) == set(FAULTS)


@pytest.mark.long
@pytest.mark.timeout(600)
@subscriptions
def test_nor_is_any_of_20_000_mails_through_200_faults(subscription: str) -> None:
    schedule = draw_schedule(SEED, subscription, mails=20_000, faults=200)
    assert (schedule.mails, schedule.faults) == (20_000, 200)
    verdict = run(schedule)
    check(verdict)
    seldom = {kind for kind, times in verdict.happened.items() if 2 * verdict.bit[kind] < times}
    assert not seldom, f"without effect: {seldom}\n{verdict}"


def test_a_seed_is_a_run() -> None:
    first, second = (run(draw_schedule(SEED, "key", mails=500, faults=len(FAULTS))) for _ in range(2))
    assert first.came == second.came
    assert str(first) == str(second)


# A judge that finds nothing wrong shows nothing: these runs are wrong.


def wrong_run(subscription: str = "key", **more: Any) -> Verdict:
    return run(draw_schedule(4, subscription, mails=1_000, faults=2 * len(FAULTS)), **more)


def test_without_recovery_mail_is_lost() -> None:
    verdict = wrong_run(recovery=None)
    assert len(verdict.lost) > 50
    assert not verdict.requests


def test_without_memory_mail_comes_twice() -> None:
    with patch.object(Delivered, "claim", lambda *_: True):
        verdict = wrong_run()
    assert len(verdict.twice) > 10
    assert not verdict.lost


def test_without_sweeps_mail_is_lost_that_was_swallowed_or_is_back_dated() -> None:
    async def no_sweep(recoverer: Recoverer) -> None:
        recoverer._next_sweep = float("inf")

    with patch.object(Recoverer, "_sweep", no_sweep):
        verdict = wrong_run()
    lost = set(verdict.lost)
    faults = [step for _, step in verdict.schedule.steps if isinstance(step, Fault)]
    assert {fault.kind for fault in faults if not lost.isdisjoint(fault.mails)} >= {"back_dated"}


def first_page_only(pages: Callable[..., Any]) -> Callable[..., Any]:
    async def first(rest: Rest, *args: Any) -> Any:
        async for page in pages(rest, *args):
            yield page
            return

    return first


def sweep_from_now(sweep: Callable[..., Any]) -> Callable[..., Any]:
    """As it was before a run like these lost one mail of 20,000."""

    async def shallow(recoverer: Recoverer) -> None:
        recoverer._swept_until = dict.fromkeys(recoverer._swept_until, recoverer._rest.now)
        await sweep(recoverer)

    return shallow


@pytest.mark.parametrize(
    ("mistake", "subscription", "what_is_wrong"),
    [
        (lambda: patch.object(Rest, "pages", first_page_only(Rest.pages)), "key", "lost"),
        (lambda: patch.object(Recoverer, "_sweep", sweep_from_now(Recoverer._sweep)), "inboxes", "lost"),
        (lambda: patch.object(Recoverer, "_look_at_held", lambda _: no_look()), "inboxes", "lost"),
        (lambda: patch.object(mails, "HELD", "another label"), "inboxes", "unwanted"),
        (lambda: patch.object(Delivered, "has_mail", lambda *_: True), "inboxes", "lost"),
        (lambda: patch.object(Delivered, "give_back", lambda *_: None), "inboxes", "lost"),
        (lambda: patch.object(held, "BATCH", 10**6), "inboxes", "lost"),
    ],
)
def test_mistakes_are_seen(
    mistake: Callable[[], AbstractContextManager[object]], subscription: str, what_is_wrong: str
) -> None:
    with mistake():
        verdict = wrong_run(subscription)
    print(verdict)
    assert getattr(verdict, what_is_wrong), str(verdict)


async def no_look() -> None:
    pass
