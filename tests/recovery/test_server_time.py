"""Recovery counts in the server's time, whatever our clock says."""

import json
import math
from itertools import pairwise

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import DAY, PATH, A, B, World, inbox, large, later, polls, recovering, time
from tests.helpers.rest_api import EPOCH, mail
from trio_agentmail import CaughtUp, Recovery, RecoveryFailed, Subscribe
from trio_agentmail._recovery.progress import Progress, encode_progress
from trio_agentmail._recovery.source import Target


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_wrong_clock_of_ours_makes_no_difference(skew: float, autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", 9), mail("m", 11))) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = skew
        await world.until(10)
        world.subscribed()
        await world.until(100)
        assert world.scans == [(10, A, 10 - DAY)]
        assert world.mails == ["m"]
        assert world.notices == []
        world.lost(silent_for=5)
        await world.until(110)
        world.subscribed()
        await world.until(141)
        polled = polls(100, 110, since=95)
        assert world.scans[1:] == [*polled, (110, A, 95 - 300), (140, A, 10 - DAY)]
        assert world.notices == [CaughtUp(since=time(95), known=3, requests=len(polled) + 1)]


async def test_a_loss_while_the_time_is_requested_is_timed_by_their_clock_as_well(
    autojump_clock: MockClock,
) -> None:
    async with recovering({"/inboxes": later(10, {})}) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = 600.0
        world.subscribed()
        await world.until(5)
        world.lost()
        await world.until(20)
        world.subscribed()
        await world.until(21)
        polled = polls(10, 20, since=5)
        assert world.scans == [*polled, (20, A, 5 - 300)]
        assert world.notices == [CaughtUp(since=time(5), requests=len(polled) + 1)]


async def test_our_clock_may_be_set_right_while_we_run(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = -600.0
        world.subscribed()
        await world.until(100)
        world.backend.wrong_by = 0.0
        await world.until(400)
        world.lost()
        await world.until(410)
        world.subscribed()
        await world.until(411)
        assert world.scans[-1] == (410, A, 400 - 300)


async def test_without_an_answer_the_failure_is_reported_and_the_time_requested_again(
    autojump_clock: MockClock, no_jitter: None
) -> None:
    def unreachable(request: httpx2.Request) -> None:
        raise httpx2.ConnectError("refused")

    async with recovering({"/inboxes": unreachable}) as world:
        world.subscribed("a", "b")
        await world.until(100)
        assert {notice.inbox_id for notice in world.notices if isinstance(notice, RecoveryFailed)} == {"a", "b"}
        assert len(world.notices) == 2
        assert [after - before for before, after in pairwise(world.api.times)][:6] == [1, 2, 4, 8, 2, 1]
        assert world.scans == []
        world.api.answers["/inboxes"] = {}
        await world.until(150)
        assert {scan[1:] for scan in world.scans[:2]} == {(A, -300), (B, -300)}
        [caught_up] = world.notices[2:]
        assert isinstance(caught_up, CaughtUp)
        assert (caught_up.since, caught_up.failed) == (time(0), 0)


async def test_a_loss_right_after_the_first_answer_is_not_shifted_twice(
    autojump_clock: MockClock,
) -> None:
    def unreachable(request: httpx2.Request) -> None:
        raise httpx2.ConnectError("refused")

    # The answer to another request tells the time while recovery waits to request it again.
    async with recovering({"/inboxes": unreachable, PATH: {"message_id": "<m/1>", "text": "text"}}) as world:
        world.api.ahead = 600.0
        world.subscribed()
        await world.until(0.1)
        await world.recoverer.with_body(large())
        world.lost()
        await world.until(30)
        assert world.recoverer.missing_since == pytest.approx(EPOCH + 600, abs=1.5)


@pytest.mark.parametrize("stepped", [-600.0, 600.0])
async def test_the_time_is_requested_before_a_subscription_if_our_clock_was_stepped(
    stepped: float, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.api.ahead = 0.0
        world.subscribed()
        await world.until(10)
        await world.recoverer.extended(Subscribe(inbox_ids=["a", "b"]), world.clock.moment())
        assert world.api.asked.count("/inboxes") == 1
        world.backend.wrong_by = stepped
        state = await world.recoverer.extended(Subscribe(inbox_ids=["a", "b"]), world.clock.moment())
        assert world.api.asked.count("/inboxes") == 2
        _, b = json.loads(state)["targets"]
        assert b["inbox_id"] == "b"
        assert b["wanted"]["message.received"] == pytest.approx(EPOCH + 10, abs=1.5)


async def test_a_subscription_does_not_wait_long_for_the_time(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(10)
        world.backend.wrong_by = 600.0
        world.api.answers["/inboxes"] = later(100, {})
        await world.recoverer.extended(Subscribe(), world.clock.moment())
        assert trio.current_time() == 12


@pytest.mark.parametrize("wrong_by", [0.0, 86_400.0], ids=["right", "a day ahead"])
async def test_progress_kept_before_the_first_answer_is_converted_to_their_clock(
    wrong_by: float, autojump_clock: MockClock
) -> None:
    world = World({}, Recovery(), b"")
    world.backend.wrong_by = wrong_by
    await world.recoverer.begin(Subscribe(inbox_ids=["a"]))
    async with recovering(inbox(mail("old", -1), mail("m", 1)), kept=world.journal.state) as world:
        world.backend.wrong_by = wrong_by
        world.api.ahead = 0.0001
        await world.until(100)
        world.subscribed()
        await world.until(101)
        assert world.mails == ["m"]
        [(_, _, after)] = world.scans
        assert after == pytest.approx(0 - 300, abs=1.5)


async def test_a_failure_reported_before_the_first_answer_is_not_reported_again(
    autojump_clock: MockClock, no_jitter: None
) -> None:
    def unreachable(request: httpx2.Request) -> None:
        raise httpx2.ConnectError("refused")

    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        kept = world.journal.state
    async with recovering({"/inboxes": unreachable, A: 403}, kept=kept) as world:
        world.subscribed()
        await world.until(150)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        world.api.answers["/inboxes"] = {}
        await world.until(1000)
        assert {path for _, path, _ in world.scans} == {A}
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]


async def test_a_floor_that_lies_in_the_future_is_repaired(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.delivered.floor = EPOCH + 9e9
        world.subscribed()
        await world.until(10)
        world.api.answers |= inbox(mail("m", 5))
        await world.until(301)
        assert world.mails == ["m"]


async def test_kept_times_that_lie_in_the_future_are_repaired(autojump_clock: MockClock) -> None:
    progress = {Target("a"): Progress({"message.received": EPOCH + 9e9}, EPOCH + 9e9, EPOCH + 9e9)}
    kept = encode_progress(progress, unwritten_since=math.inf, clock_is_known=True, source=[])
    async with recovering(kept=kept) as world:
        await world.until(100)
        world.subscribed()
        await world.until(1000)
        assert world.scans[:2] == [(100, A, 100 - 300), (130, A, 100 - DAY)]
        world.lost()
        world.api.answers |= inbox(mail("m", 999))
        world.subscribed()
        await world.until(1001)
        assert world.mails == ["m"]
