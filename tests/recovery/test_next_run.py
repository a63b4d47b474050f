"""Recovery keeps its progress in the journal, and the next run goes on from there."""

import json

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import DAY, HELD, A, B, ControlledSource, World, inbox, later, pages_of, recovering, time
from tests.helpers.rest_api import EPOCH, mail
from trio_agentmail import CaughtUp, Message, MessageReceivedEvent, MessageSecurityReviewEvent, Recovery, Subscribe
from trio_agentmail._recovery.sweeps import PAUSE
from trio_agentmail.errors import JournalError
from trio_agentmail.events import MessageSecurity


async def test_the_next_run_goes_on_where_this_one_ended(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="h")))
        world.api.answers[f"{A}/batch-get"] = {"messages": [mail("h", -5, HELD)]}
        world.subscribed()
        await world.until(1000)
        kept = world.journal.state
    answers = inbox(mail("h", -5), mail("before all", -1), mail("m", 1), mail("n", 999), mail("o", 2000))
    answers[A]["messages"].pop(0)
    answers[f"{A}/batch-get"] = {"messages": [mail("h", -5)]}
    async with recovering(answers, kept=kept) as world:
        await world.until(5000)
        world.subscribed()
        await world.until(5001)
        # The last sweep was at 900.
        assert world.scans == [(5000, A, 900 - 300)]
        assert world.mails == ["m", "n", "o", "h"]
        assert world.notices == [CaughtUp(since=time(900), recovered=4, requests=7)]


async def test_a_gap_that_was_not_closed_is_remembered(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        world.api.answers[A] = 403
        await world.until(110)
        world.subscribed()
        await world.until(1000)
        kept = world.journal.state
    async with recovering(kept=kept) as world:
        await world.until(5000)
        world.subscribed()
        await world.until(5001)
        # The failed scan resumes, and another one covers what came since it began.
        assert world.scans == [(5000, A, 100 - 300), (5000, A, 110 - 300)]


async def test_a_journal_knows_better_than_since_where_to_begin(autojump_clock: MockClock) -> None:
    since = Recovery(since=time(-5 * DAY))
    async with recovering(recovery=since) as world:
        world.subscribed()
        await world.until(1000)
        assert world.scans[0] == (0, A, -5 * DAY - 300)
        kept = world.journal.state
    answers = inbox(mail("old", -4 * DAY), mail("too old", -6 * DAY))
    async with recovering(answers, since, kept) as world:
        await world.until(5000)
        world.subscribed()
        await world.until(5001)
        # From the last sweep on, with all of sweep_depth, since mail may be back-dated or late.
        assert world.scans == [(5000, A, 930 - 300)]
        assert world.mails == ["old"]


async def test_kept_progress_of_inboxes_not_subscribed_to_is_ignored(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed("a", "b")
        await world.until(1000)
        kept = world.journal.state
    async with recovering(kept=kept) as world:
        await world.until(5000)
        world.subscribed("b")
        await world.until(5001)
        assert [path for _, path, _ in world.scans] == [B]
        assert [target["inbox_id"] for target in json.loads(world.journal.state)["targets"]] == ["b"]


@pytest.mark.parametrize("kept", [b"", b"garbage", b"[]"])
async def test_without_kept_progress_it_is_a_first_start(kept: bytes, autojump_clock: MockClock) -> None:
    async with recovering(kept=kept) as world:
        world.subscribed()
        await world.until(1)
        assert world.scans == [(0, A, -DAY)]


async def test_without_a_journal_nothing_is_kept(autojump_clock: MockClock) -> None:
    world = World({A: {"messages": []}}, Recovery(), b"")
    world.recoverer._journal = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.recoverer.run)
        world.subscribed()
        await world.until(1)
        nursery.cancel_scope.cancel()
    assert world.journal.state == b""


@pytest.mark.parametrize("since", [None, -1000.0, 9999.0])
async def test_a_crash_before_the_first_subscription_leaves_a_known_gap(
    since: float | None, autojump_clock: MockClock
) -> None:
    recovery = Recovery(since=None if since is None else time(since))
    world = World({}, recovery, b"")
    await world.until(10)
    await world.recoverer.begin(Subscribe(inbox_ids=["a"]))
    assert world.api.asked == []
    answers = inbox(mail("m", -999), mail("n", 11))
    async with recovering(answers, recovery, world.journal.state) as world:
        await world.recoverer.begin(Subscribe(inbox_ids=["a"]))
        assert world.journal.state == b""  # what was kept is not replaced
        await world.until(100)
        world.subscribed()
        await world.until(101)
        assert world.scans == [(100, A, (10 if since is None else min(since, 10)) - 300)]
        assert world.mails == (["m", "n"] if since == -1000 else ["n"])


async def test_what_a_subscription_adds_is_kept_before_recovery_has_begun(autojump_clock: MockClock) -> None:
    world = World({}, Recovery(), b"")
    await world.recoverer.begin(Subscribe(inbox_ids=["a"]))
    for recoverer in (world.recoverer, World({}, Recovery(), world.journal.state).recoverer):
        await trio.sleep(10)
        recoverer.subscribed_to(Subscribe(inbox_ids=["a"]), world.clock.moment())
        state = await recoverer.extended(Subscribe(inbox_ids=["a", "b"]), world.clock.moment())
        a, b = json.loads(state)["targets"]
        assert a["wanted"]["message.received"] == pytest.approx(EPOCH + (10 if recoverer is world.recoverer else 0))
        assert b["wanted"]["message.received"] == pytest.approx(trio.current_time() + EPOCH)


async def test_held_mail_is_kept_when_the_subscription_changes_before_recovery_has_begun(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="h")))
        world.subscribed()
        await world.until(100)
        kept = world.journal.state
    recoverer = World({}, Recovery(), kept).recoverer
    recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="i")))
    state = await recoverer.extended(Subscribe(inbox_ids=["a", "b"]), world.clock.moment())
    assert json.loads(state)["source"] == [["a", "h"], ["a", "i"]]


async def test_a_sweep_resumes_at_its_position_in_the_next_run(autojump_clock: MockClock) -> None:
    mails = [mail(f"{date}", date) for date in range(-100, 0)]
    recovery = Recovery(sweep_rate=60)  # 15 at once, and one a second
    async with recovering(pages_of(mails), recovery) as world:
        world.subscribed()
        await world.until(31)
        kept = world.journal.state
    async with recovering(pages_of(mails), recovery, kept) as world:
        await world.until(5000)
        world.subscribed()
        await world.until(5400)
        sweep, skipped, following = world.scans[2:]
        assert world.scans[:2] == [(5000, A, 0 - 300), (5000, A, 0 - 5)]  # of the gap
        assert skipped == (5030 + PAUSE, A, -91)  # 10 pages had been listed
        assert sweep[0] == 5030
        assert -100 + 15 + 20 < sweep[2] < -100 + 15 + 31
        assert following == (5330, A, -DAY)  # the part of the gap that it has not scanned


async def test_the_scan_of_a_gap_resumes_at_its_position_in_the_next_run(autojump_clock: MockClock) -> None:
    mails = [mail(f"{date}", date) for date in range(1, 9)]
    slow = {path: later(3, answer) for path, answer in pages_of(mails).items() if path.count("/") == 4}
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        world.subscribed()
        world.api.answers |= pages_of(mails) | slow
        for number in range(3, 9):
            world.api.answers[f"{A}/{number}"] = later(1000, 404)
        await world.until(110)
        assert world.mails == ["1", "2"]
        kept = world.journal.state
    async with recovering(pages_of(mails), kept=kept) as world:
        for number in (1, 2):
            message = Message(inbox_id="a", message_id=str(number))
            world.delivered.claim(MessageReceivedEvent(message=message))
        await world.until(5000)
        world.subscribed()
        await world.until(5001)
        assert sorted(world.scans) == [(5000, A, 100 - 300), (5000, A, 2)]
        assert world.mails == [str(number) for number in range(3, 9)]
        [caught_up] = world.notices
        assert isinstance(caught_up, CaughtUp)
        assert caught_up.since == time(100)


async def test_changes_are_kept_within_a_second_and_positions_every_five(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = ControlledSource()
        source.install(world)
        world.subscribed()
        await world.until(200)
        kept = len(world.journal.times)
        assert world.journal.times[-1] <= 2
        world.lost()
        await world.until(200.5)
        assert world.journal.times[kept:] == [200]
        assert json.loads(world.journal.state)["targets"][0]["missing_since"] <= EPOCH + 200
        world.subscribed()
        await world.until(299)
        kept = len(world.journal.times)
        source.ends["a"] = trio.Event()
        await world.until(598)  # swept at 230 and 530
        assert [when for when in world.journal.times[kept:] if when > 520] == [
            530.5 + 6 * number for number in range(12)
        ]
        source.ends["a"].set()
        await world.until(605)
        kept = len(world.journal.times)
        await world.until(820)
        assert world.journal.times[kept:] == []


async def test_the_floor_is_kept_together_with_the_progress(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100, sweep_depth=300)) as world:
        for when in range(0, 1000, 10):
            message = Message(inbox_id="a", message_id=str(when), created_at=time(when))
            world.delivered.claim(MessageReceivedEvent(message=message))
        world.subscribed()
        await world.until(1050)
        assert EPOCH + 600 < world.delivered.floor <= EPOCH + 1000 - 300
        assert world.journal.forgotten_until == world.delivered.floor


async def test_an_error_of_the_journal_ends_recovery_and_comes_out_unwrapped(autojump_clock: MockClock) -> None:
    world = World({A: {"messages": []}}, Recovery(), b"")
    world.journal.failure = JournalError("the disk is full")
    with pytest.raises(JournalError, match="the disk is full"):
        world.subscribed()
        await world.recoverer.run()
