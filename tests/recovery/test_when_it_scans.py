"""When recovery scans, and how far back."""

import math

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import (
    DAY,
    A,
    B,
    ControlledSource,
    inbox,
    later,
    pages_of,
    polls,
    recovering,
    time,
    with_gap,
)
from tests.helpers.rest_api import EPOCH, mail
from trio_agentmail import CaughtUp, Message, MessageReceivedEvent, Recovery
from trio_agentmail._recovery.sweeps import Rate


async def test_nothing_is_requested_before_a_subscription(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        await world.until(1000)
        assert world.api.asked == []
        assert world.recoverer.requests == 0


async def test_it_sweeps_on_entering_and_then_at_every_interval(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100, sweep_depth=1000)) as world:
        await world.until(10)
        world.subscribed()
        await world.until(300)
        assert world.scans == [(10, A, 10 - 1000), (110, A, 10 - 1000), (210, A, 110 - 1000)]
        assert world.recoverer.requests == 4  # one was to learn the time
        assert world.outbox.taken == []


async def test_after_a_gap_it_scans_at_once_and_half_a_minute_later_once_more_and_deeper(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost(silent_for=5)
        await world.until(160)
        world.api.answers |= inbox(mail("m", 110), mail("n", 130))
        world.delivered.claim(MessageReceivedEvent(message=Message(inbox_id="a", message_id="n")))
        polled = polls(100, 160, since=95)
        assert world.scans == [(0, A, -DAY), *polled]
        world.subscribed()
        await world.until(500)
        assert world.scans[1:] == [*polled, (160, A, 95 - 300), (190, A, -DAY), (490, A, 190 - DAY)]
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(95), recovered=1, known=1, requests=len(polled) + 2)]
        assert world.outbox.taken[-1] == world.notices[0]  # after the mail that it reports
        assert world.recoverer.recovered == 1


async def test_a_mail_that_is_pushed_while_it_is_fetched_is_not_counted_as_recovered(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.api.answers |= inbox(mail("m", 100))
        world.api.answers[f"{A}/m"] = later(10, mail("m", 100))
        world.subscribed()
        await world.until(115)
        world.delivered.claim(MessageReceivedEvent(message=Message(inbox_id="a", message_id="m")))
        await world.until(121)
        assert world.mails == []
        assert world.notices == [CaughtUp(since=time(100), recovered=0, requests=2 + 2)]
        assert world.recoverer.recovered == 0


async def test_the_second_scan_waits_its_half_minute_also_when_a_sweep_is_due(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(1000)
        world.subscribed()
        await world.until(1031)
        assert [scan for scan in world.scans[1:] if scan not in polls(100, 1000)] == [
            # Meanwhile sweeps go on.
            (300, A, -DAY),
            (600, A, 100 - DAY),
            (900, A, 100 - DAY),
            (1000, A, 100 - 300),
            (1030, A, 100 - DAY),
        ]


async def test_a_shallow_scan_does_not_shorten_the_reach_of_the_next_sweep(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.subscribed()
        await world.until(120)
        world.api.answers[A] = 403
        await world.until(150)
        world.api.answers |= inbox()
        await world.until(450)
        # The sweep at 140 failed, and back-dated mail was not searched for at 110.
        assert world.scans[-1] == (440, A, -DAY)


async def test_a_loss_before_the_second_scan_does_not_shorten_its_reach(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.subscribed()
        await world.until(120)
        world.lost()
        await world.until(130)
        world.subscribed()
        await world.until(500)
        assert world.scans[1:] == [
            *polls(100, 110),
            (110, A, 100 - 300),
            *polls(120, 130),
            (130, A, 120 - 300),
            (140, A, -DAY),
            (160, A, 120 - DAY),
            (460, A, 160 - DAY),
        ]
        assert [notice.since for notice in world.notices if isinstance(notice, CaughtUp)] == [time(100), time(120)]


async def test_without_a_connection_recent_mail_is_polled_and_sweeps_go_on(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.api.answers |= inbox(mail("m", 110))
        assert world.mails == []
        await world.until(113)
        assert world.mails == ["m"]
        await world.until(1000)
        assert [scan for scan in world.scans if scan not in polls(100, 1000)] == [
            (0, A, -DAY),
            (300, A, -DAY),
            (600, A, 100 - DAY),
            (900, A, 100 - DAY),
        ]
        assert [scan for scan in polls(100, 1000) if scan not in world.scans] == []
        # A poll closes no gap.
        assert world.notices == []
        assert world.recoverer.missing_since == EPOCH + 100


async def test_a_loss_in_the_moment_of_a_reconnect_finds_recovery_waiting(autojump_clock: MockClock) -> None:
    # Recovery's task has been notified of the reconnect but has not run yet.
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.subscribed()
        world.lost()
        await world.until(200)
        assert set(world.scans[1:]) == {*polls(110, 200, since=100), *polls(100, 110), (140, A, -DAY)}
        scans = len(world.scans)
        world.subscribed()
        await world.until(201)
        assert world.scans[scans:] == [(200, A, 100 - 300)]


async def test_a_scan_under_way_survives_a_loss_and_leaves_the_new_gap_to_the_next(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        world.lost()
        [scan] = source.scans
        await world.until(121)
        source.ends.pop("a").set()
        await world.until(130)
        assert world.recoverer.missing_since == EPOCH + 120
        assert world.notices == []
        world.subscribed("a")
        await world.until(131)
        assert [(when, after, pages) for when, _, after, pages in source.begun] == [
            (110, 100 - 300, 10),
            (122, 115, math.inf),
            (127, 117, math.inf),
            (130, 120 - 300, 10),
        ]
        assert (scan.since, scan.began) == (EPOCH + 100, EPOCH + 110)
        assert world.notices == [CaughtUp(since=time(100))]


async def test_while_the_consumer_is_behind_sweeps_wait_but_not_for_ever(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.outbox.full = True
        world.subscribed()
        await world.until(95)
        assert world.scans == []
        world.outbox.full = False
        await world.until(125)
        assert [when for when, _, _ in world.scans] == [120]
        world.outbox.full = True
        await world.until(2000)
        assert [when for when, _, _ in world.scans] == [120, 720, 1320, 1920]


# The rate of sweeps


async def test_a_rate_permits_a_quarter_at_once_and_the_others_evenly(autojump_clock: MockClock) -> None:
    rate = Rate(60)
    times = []
    for _ in range(20):
        await rate.wait()
        times.append(trio.current_time())
    assert times == [0] * 15 + [1, 2, 3, 4, 5]
    # After half of the time it is half full again, and it is never more than full.
    for pause, free in [(7.0, 7), (1000.0, 15)]:
        await trio.sleep(pause)
        begin = trio.current_time()
        for _ in range(free):
            await rate.wait()
        assert trio.current_time() == begin
        await rate.wait()
        assert trio.current_time() == begin + 1


async def test_a_rate_of_one_a_minute_permits_one(autojump_clock: MockClock) -> None:
    rate = Rate(1)
    for _ in range(3):
        await rate.wait()
    assert trio.current_time() == 120


async def test_a_long_sweep_keeps_to_its_rate_and_recent_mail_is_scanned_in_between(
    autojump_clock: MockClock,
) -> None:
    mails = [mail(f"{date}", date) for date in range(-1600, -1400)]
    recovery = Recovery(sweep_interval=100, sweep_rate=12)  # 3 at once, and one every 5 seconds
    async with recovering(pages_of(mails), recovery) as world:
        world.subscribed()
        await world.until(150)
        world.api.answers |= pages_of([*mails, mail("m", 120)])
        await world.until(1200)
        # The second one waits for the first. Each reaches back from the one before.
        assert world.scans[:4] == [(0, A, -DAY), (105, A, 0 - 300), (205, A, 100 - 300), (305, A, 200 - 300)]
        assert world.mails == ["m"]
        assert world.api.times[world.api.asked.index(f"{A}/m")] == 205
        # A long sweep does not start over each time.
        assert [when for when, _, after in world.scans if after == -DAY] == [0, 1100]
        listings = [when for when, path in zip(world.api.times, world.api.asked, strict=True) if path.startswith(A)]
        listings.remove(205)  # the mail
        assert listings[:200] == [0, 0, *range(0, 198 * 5, 5)]


async def test_a_failed_sweep_resumes_at_its_position(autojump_clock: MockClock) -> None:
    mails = [mail(f"{date}", date) for date in range(-10, 0)]
    answers = pages_of(mails)
    answers[f"{A}?5"] = 403
    async with recovering(answers) as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= pages_of(mails)
        await world.until(301)
        assert world.scans[0] == (0, A, -DAY)
        assert (300, A, -6) in world.scans


async def test_an_inbox_added_while_another_is_swept_is_scanned_at_once(
    autojump_clock: MockClock,
) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100)) as world:
        source = ControlledSource()
        source.install(world)
        source.ends["a"] = trio.Event()
        world.subscribed("a")
        await world.until(120)
        assert [(when, inbox_id) for when, inbox_id, _, _ in source.begun] == [(0, "a"), (100, "a")]
        world.subscribed("a", "b")
        await world.until(130)
        assert (120, "b") in [(when, inbox_id) for when, inbox_id, _, _ in source.begun]


async def test_a_long_sweep_of_one_inbox_does_not_delay_the_others(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100)) as world:
        source = ControlledSource()
        source.install(world)
        source.ends["a"] = trio.Event()
        world.subscribed("a", "b")
        await world.until(350)
        assert [when for when, inbox_id, _, _ in source.begun if inbox_id == "b"] == [0, 100, 200, 300]
        assert all(scan.began - scan.after >= DAY - 1 for scan in source.scans if scan.target.inbox_id == "b")


async def test_a_sweep_after_a_gap_is_not_delayed_by_further_gaps(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(since=time(-1000))) as world:
        for seconds in range(0, 200, 20):
            world.subscribed()
            await world.until(seconds + 10)
            world.lost()
            await world.until(seconds + 11)
        sweeps = [when for when, _, after in world.scans if after < 300 - DAY]
        assert sweeps[:3] == [30, 41, 61]


@pytest.mark.parametrize("digit", range(1, 10))
async def test_the_second_scan_of_a_gap_comes_once_however_its_time_is_rounded(
    digit: int, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(digit / 10)
        world.lost()
        world.subscribed()
        await world.until(100)
        assert len(world.scans) == 3


async def test_a_sweep_waits_until_there_is_something_to_scan(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.subscribed(event_types=["message.sent"])
        await world.until(1000)
        assert len(world.scans) == 1
        world.lost()  # and there is nothing to poll
        await world.until(1100)
        assert len(world.scans) == 1
        world.subscribed()
        await world.until(1101)
        assert [when for when, _, _ in world.scans] == [0, 1100]


# An abandoned channel


async def test_it_stops_when_the_channel_is_abandoned(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", 1))) as world:
        world.outbox.gone = True
        world.subscribed()
        await world.until(9999)
        # The sweep, and the scan of recent mail in place of the next one.
        assert [when for when, _, _ in world.scans] == [0, 300]
        assert world.outbox.taken == []


async def test_it_goes_on_when_a_notice_cannot_be_delivered(autojump_clock: MockClock) -> None:
    # The supervisor gets the same exception and ends the stream.
    async with recovering({A: 403}) as world:
        world.outbox.gone = True
        world.subscribed("a", "b")
        await world.until(400)
        scans = [scan[:2] for scan in world.scans]
        assert {(0, A), (0, B), (300, A), (300, B)} <= {*scans}
        assert len({when for when, _ in scans if 0 < when < 300}) > 4  # each gap is retried
