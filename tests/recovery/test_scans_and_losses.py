"""Scans that are under way when the connection or the subscription changes."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.recovering import A, B, ControlledSource, inbox, later, recovering, time, with_gap
from tests.helpers.rest_api import EPOCH, mail
from trio_agentmail import CaughtUp
from trio_agentmail._recovery.source import Target
from trio_agentmail.errors import ApiError


async def test_a_scan_that_ends_in_the_moment_of_a_loss_does_not_close_the_new_gap(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        source.ends["a"].set()
        world.lost()
        source.ends.clear()
        await world.until(130)
        assert world.recoverer.missing_since == EPOCH + 120
        assert world.notices == []
        world.subscribed("a")
        await world.until(131)
        # The first gap is closed and not scanned again.
        assert source.begun[-1] == (130, "a", 120 - 300, 10)
        assert world.notices == [CaughtUp(since=time(100))]


@pytest.mark.parametrize("turns", range(4))
async def test_a_scan_that_ends_in_the_moment_of_a_loss_is_reported_with_the_next(
    turns: int, autojump_clock: MockClock
) -> None:
    for _ in range(10):  # Trio runs tasks in random order
        async with recovering() as world:
            begin = trio.current_time()
            source = ControlledSource()
            source.install(world)
            world.subscribed()
            await world.until(begin + 10)
            world.lost()
            source.ends["a"] = trio.Event()
            world.subscribed()
            await world.until(begin + 20)
            source.ends["a"].set()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            told = len(world.notices)
            world.lost()
            source.ends.clear()
            await world.until(begin + 30)
            assert len(world.notices) == told
            world.subscribed()
            await world.until(begin + 40)
            assert len(world.notices) == told + 1


@pytest.mark.parametrize("failure", [None, ApiError(403, {}, "")], ids=repr)
async def test_a_scan_that_ends_when_the_subscription_changes_says_nothing_of_the_old(
    failure: Exception | None, autojump_clock: MockClock
) -> None:
    inbox_ids = ["a", "b", "c", "d", "e", "f"]  # more than are scanned at once, so that some have not begun
    async with recovering() as world:
        source = await with_gap(world, *inbox_ids)
        assert [inbox_id for _, inbox_id, _, _ in source.begun] == inbox_ids[:4]
        source.failure = failure
        for end in source.ends.values():
            end.set()
        world.subscribed("new")
        source.ends.clear()
        await world.until(130)
        assert [inbox_id for _, inbox_id, _, _ in source.begun[4:]] == ["new"]
        assert source.kept == {Target(inbox_id="new")}
        assert world.notices == []


async def test_a_subscription_that_changes_before_its_scan_has_begun_is_scanned_as_it_is(
    autojump_clock: MockClock,
) -> None:
    async def change() -> None:
        # At one of these moments, the tasks of a scan have been started and have not run.
        for ticks in range(40):
            world.subscribed(f"new {ticks}")
            for _ in range(ticks % 5):
                await trio.lowlevel.checkpoint()

    async with recovering() as world:
        source = ControlledSource()
        source.install(world)
        world.subscribed("a")
        await world.until(10)
        await change()
        await world.until(20)
        assert source.begun[-1][1] == "new 39"


async def test_a_closed_gap_is_reported_even_if_another_scan_is_cancelled(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a", "b")
        source.ends["a"].set()
        await world.until(121)
        source.ends.clear()
        world.subscribed("a")
        await world.until(122)
        assert world.notices == [CaughtUp(since=time(100))]


async def test_four_inboxes_are_scanned_at_once_and_a_slow_one_delays_no_other(
    autojump_clock: MockClock,
) -> None:
    inbox_ids = [f"inbox {number}" for number in range(10)]
    async with recovering() as world:
        source = ControlledSource()
        source.ends = {inbox_id: trio.Event() for inbox_id in inbox_ids}
        source.install(world)
        world.subscribed(*inbox_ids)
        await wait_all_tasks_blocked()
        assert [inbox_id for _, inbox_id, _, _ in source.begun] == inbox_ids[:4]
        for inbox_id in inbox_ids[1:]:
            source.ends[inbox_id].set()
        await wait_all_tasks_blocked()
        assert [inbox_id for _, inbox_id, _, _ in source.begun] == inbox_ids


async def test_a_bug_in_a_source_ends_the_stream(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with recovering() as world:
            source = await with_gap(world, "a")
            source.failure = ZeroDivisionError()
            source.ends["a"].set()
            await world.until(130)


async def test_polling_stops_at_once_when_there_is_a_connection_again(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(101)
        world.api.answers[A] = later(1000, {"messages": []})
        await world.until(105)
        assert world.scans[1:] == [(102, A, 95)]
        world.api.answers |= inbox(mail("m", 103))
        world.subscribed()
        await world.until(105.5)
        assert world.scans[2:] == [(105, A, 100 - 300)]
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(100), recovered=1, requests=3)]


async def test_a_failed_poll_is_made_up_for_by_the_next_one_and_not_reported(autojump_clock: MockClock) -> None:
    async with recovering({B: 403}) as world:
        world.subscribed("a")
        await world.until(100)
        world.lost()
        world.api.answers[A] = 403
        await world.until(110)
        world.api.answers |= inbox()
        await world.until(120)
        assert world.scans[1:] == [(102, A, 95), (107, A, 95), (112, A, 95), (117, A, 107)]
        assert world.notices == []
