"""In a busy inbox, a scan skips what was delivered, and a later one lists it."""

import math
from datetime import datetime
from typing import Any

import httpx2
from trio.testing import MockClock

from tests.helpers.recovering import A, World, pages_of, recovering, time
from tests.helpers.rest_api import EPOCH, at, mail
from trio_agentmail import CaughtUp, Message, MessageReceivedEvent, Recovery, RecoveryFailed
from trio_agentmail._recovery.source import Target
from trio_agentmail._recovery.sweeps import PAUSE


async def with_a_gap_after(world: World, delivered: list[dict[str, Any]]) -> None:
    """Have mail delivered, and a gap from 100 to 101 s."""
    world.subscribed()
    await world.until(100)
    for m in delivered:
        world.delivered.claim(MessageReceivedEvent(message=Message(inbox_id="a", message_id=m["message_id"])))
    world.lost()
    await world.until(101)
    world.subscribed()


async def test_in_a_busy_inbox_a_scan_jumps_to_the_gap_and_a_sweep_lists_the_rest(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        known = [mail(f"known {date}", date) for date in range(-100, 96)]
        missed = [mail("missed", 105), mail("back-dated", 106) | {"timestamp": at(50)}]
        await with_a_gap_after(world, known)
        world.api.answers |= pages_of(sorted(known + missed, key=lambda m: str(m["timestamp"])))
        await world.until(102)
        assert world.scans[1:] == [(101, A, 100 - 300), (101, A, 100 - 5)]
        assert world.mails == ["missed"]
        assert world.notices == [CaughtUp(since=time(100), recovered=1, known=11, requests=10 + 2 + 1)]
        await world.until(400)
        assert world.mails == ["missed", "back-dated"]


async def test_what_was_skipped_in_a_busy_inbox_is_listed_until_that_succeeds(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        mails = [mail(f"{date}", date) for date in range(-100, 96)]
        await with_a_gap_after(world, mails)
        listing = pages_of(mails)
        world.api.answers |= listing
        await world.until(102)
        assert world.notices == [CaughtUp(since=time(100), recovered=0, known=11, requests=10 + 1)]
        world.api.answers |= dict.fromkeys(listing, 400) | {A: 400}  # the second scan fails
        await world.until(132)
        assert [type(notice) for notice in world.notices[1:]] == [RecoveryFailed]
        late = mail("late", 100) | {"timestamp": at(50)}
        world.api.answers |= pages_of(sorted([*mails, late], key=lambda m: str(m["timestamp"])))
        await world.until(433)
        assert world.mails == ["late"]
        assert isinstance(world.notices[-1], CaughtUp)


async def test_a_scan_of_skipped_mail_counts_as_a_sweep_if_it_reaches_about_as_far(
    autojump_clock: MockClock,
) -> None:
    # At this rate, a sweep would take hours.
    async with recovering(recovery=Recovery(overlap=60, sweep_depth=60, sweep_rate=1)) as world:
        mails = [mail(f"{date}", date) for date in range(-50, 96)]
        await with_a_gap_after(world, mails)
        world.api.answers |= pages_of(mails)
        await world.until(140)
        assert (131, A, 0 - 60) in world.scans
        # Live events come in between its pages.
        pages = zip(world.api.times, world.api.asked, strict=True)
        last_page = max(when for when, path in pages if path.startswith(A))
        assert last_page >= 131 + 146 * PAUSE
        assert world.recoverer.progress[Target(inbox_id="a")].swept_until == EPOCH + 131
        assert world.delivered.floor == EPOCH + 131 - 60


async def test_in_an_inbox_that_is_not_too_busy_nothing_is_skipped(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(101)
        world.subscribed()
        # The tenth page is dated after the beginning of the gap, and there are more.
        world.api.answers |= pages_of([mail(f"{date}", 100 + date / 100) for date in range(15)])
        await world.until(102)
        assert len(world.mails) == 15
        scans = len(world.scans)
        assert world.recoverer.progress[Target(inbox_id="a")].skipped_from == math.inf
        await world.until(140)
        assert len(world.scans) == scans + 1  # the second scan, and none of skipped mail


async def test_what_was_polled_in_an_outage_is_not_listed_again_in_a_busy_inbox(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        world.api.answers |= pages_of([mail(f"{date}", date) for date in range(-50, 108)])
        await world.until(110)
        world.subscribed()
        await world.until(111)
        # It was polled at 102 and 107.
        assert world.scans[-2:] == [(110, A, 100 - 300), (110, A, 107 - 5)]


async def test_a_long_scan_keeps_its_position_when_its_inbox_fails(autojump_clock: MockClock, no_jitter: None) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(300)
        world.lost()
        mails = [mail(f"{date}", date) for date in range(1, 5)]
        world.api.answers |= pages_of(mails)
        third, world.api.answers[f"{A}?2"] = world.api.answers[f"{A}?2"], 404
        await world.until(301)
        world.subscribed()
        await world.until(302)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        world.api.answers[f"{A}?2"] = third
        await world.until(304)
        assert world.scans[-2:] == [(301, A, 0), (303, A, 2)]
        assert world.mails == ["1", "2", "3", "4"]


async def test_a_mail_that_can_never_be_fetched_does_not_hide_later_missed_mail(autojump_clock: MockClock) -> None:
    def listing(request: httpx2.Request) -> dict[str, Any]:
        # AgentMail has not created the later ones yet.
        there = [m for m in mails if datetime.fromisoformat(m["created_at"]).timestamp() <= world.backend.now()]
        answer: dict[str, Any] = pages_of(there)[A](request)
        return answer

    mails = [mail(f"{date}", date) for date in range(10, 2000, 10)]
    answers = {path: listing if "/" not in path[len(A) :] else answer for path, answer in pages_of(mails).items()}
    async with recovering(answers | {f"{A}/10": 403}, Recovery(sweep_rate=6000)) as world:
        world.subscribed()
        for minute in range(15):  # a sweep every 5 minutes, and retries of the gap that it opens
            await world.until(60 * minute + 1)
        assert world.mails == [f"{date}" for date in range(20, 601, 10)]
        await world.until(905)
        assert world.mails[-1] == "900"
        await world.until(910.5)
        world.lost()
        world.subscribed()
        await world.until(942)
        assert world.mails == [f"{date}" for date in range(20, 941, 10)]
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
