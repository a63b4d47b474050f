"""Scans that fail are retried, and what could not be recovered is reported once."""

import math
from itertools import pairwise

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import DAY, HELD, A, B, ControlledSource, inbox, later, recovering, time, with_gap
from tests.helpers.rest_api import mail
from trio_agentmail import (
    CaughtUp,
    Message,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    Recovery,
    RecoveryFailed,
    Subscribe,
)
from trio_agentmail._recovery.source import Target
from trio_agentmail.errors import ApiError, RequestFailedError
from trio_agentmail.events import MessageSecurity

# Retries


def transient() -> Exception:
    return RequestFailedError("no answer")


def refused() -> Exception:
    return ApiError(404, {}, "")


@pytest.mark.parametrize(
    ("failure", "delays"),
    [
        (transient(), [2, 4, 8, 16, 30, 30]),
        (refused(), [2, 4, 8, 16, 32, 64, 100, 100]),  # up to sweep_interval
        (ApiError(503, {"retry-after": "50"}, ""), [50, 50]),
    ],
    ids=repr,
)
async def test_a_failed_scan_is_retried_after_increasing_delays(
    failure: Exception, delays: list[int], autojump_clock: MockClock, no_jitter: None
) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100)) as world:
        source = await with_gap(world, "a")
        source.failure = failure
        source.ends["a"].set()
        await world.until(110 + 10 + sum(delays) + 1)
        times = [when for when, _, _, pages in source.begun if pages == 10]
        assert times[0] == 110
        assert [after - before for before, after in pairwise([120.0, *times[1:]])] == delays
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        source.failure = None
        await world.until(1000)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed, CaughtUp]
        assert world.recoverer.missing_since == math.inf


async def test_the_delays_of_retries_are_drawn_at_random(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        source.failure = transient()
        source.ends["a"].set()
        await world.until(1000)
        times = [when for when, _, _, pages in source.begun if pages == 10]
        delays = [after - before for before, after in pairwise([120.0, *times[1:]])]
        assert all(2**n / 2 < delay < 2**n for n, delay in zip(range(1, 5), delays, strict=False))
        assert all(15 < delay < 30 for delay in delays[4:])


async def test_a_failed_scan_is_retried_soon_after_a_reconnect(autojump_clock: MockClock, no_jitter: None) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        source.failure = refused()
        source.ends["a"].set()
        await world.until(190)  # the last attempt was at 182, and the next would be at 246
        world.lost()
        world.subscribed("a")
        await world.until(193)
        assert [when for when, _, _, pages in source.begun if pages == 10][-2:] == [182, 192]


async def test_a_scan_that_fails_without_a_connection_is_reported_if_it_fails_with_one(
    autojump_clock: MockClock, no_jitter: None
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        source.failure = transient()
        world.lost()
        source.ends["a"].set()
        await world.until(200)
        assert world.notices == []
        world.subscribed("a")
        await world.until(300)
        [failed] = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert failed.since == time(100)


async def test_a_closed_gap_is_reported_even_if_the_last_of_the_others_fails(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a", "b")
        source.ends.pop("a").set()
        await world.until(130)
        assert world.notices == []
        source.failure = refused()
        source.ends["b"].set()
        await world.until(131)
        failed, caught_up = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert failed.inbox_id == "b"
        assert caught_up == CaughtUp(since=time(100), failed=1)


async def test_a_gap_closed_without_a_connection_is_reported_with_the_next_one(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a", "b")
        world.lost()
        for inbox_id in ("a", "b"):
            source.ends.pop(inbox_id).set()
        await world.until(130)
        assert world.notices == []
        world.subscribed("a", "b")
        await world.until(131)
        assert world.notices == [CaughtUp(since=time(100))]


async def test_the_requests_of_a_gap_leave_out_the_sweeps_before_it(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(10_000)
        world.lost()
        await world.until(10_001)
        world.subscribed()
        await world.until(10_002)
        assert world.notices == [CaughtUp(since=time(10_000), requests=1)]


async def test_a_scan_of_an_inbox_no_longer_subscribed_to_ends_at_once(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed("a", "b")
        await world.until(100)
        world.lost()
        await world.until(110)
        world.api.answers |= inbox(mail("m", 105), name="b")
        world.api.answers[f"{B}/m"] = later(10, mail("m", 105))
        world.subscribed("a", "b")
        await world.until(115)
        assert world.notices == []
        world.subscribed("a")
        await world.until(116)
        assert world.notices == [CaughtUp(since=time(100), requests=4 + 3)]
        await world.until(1000)
        assert world.mails == []
        assert [scan for scan in world.scans if scan[1] == B and scan[0] > 115] == []


async def test_an_inbox_that_is_subscribed_again_at_once_is_scanned_anew(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a", "b")
        source.failure = refused()
        source.ends.pop("b").set()  # its failure belongs to the old subscription
        world.subscribed("a")
        world.subscribed("a", "b")
        source.ends.pop("a")
        await world.until(130)
        assert [its.inbox_id for its in world.notices if isinstance(its, RecoveryFailed)] == []
        assert world.recoverer.progress[Target("b")].open_since == math.inf


async def test_a_sweep_skips_inboxes_no_longer_subscribed_to(autojump_clock: MockClock) -> None:
    inbox_ids = ["a", "b", "c", "d", "e", "f"]
    async with recovering() as world:
        source = ControlledSource()
        source.ends = {inbox_id: trio.Event() for inbox_id in inbox_ids}
        source.install(world)
        world.subscribed(*inbox_ids)
        await world.until(10)
        world.subscribed("a", "f")
        await world.until(20)
        assert {inbox_id for _, inbox_id, _, _ in source.begun} == {"a", "b", "c", "d", "f"}


async def test_a_sweep_of_an_inbox_no_longer_subscribed_to_reports_nothing(autojump_clock: MockClock) -> None:
    for failure in (None, refused()):
        async with recovering() as world:
            begin = trio.current_time()
            source = ControlledSource()
            source.ends = {"a": trio.Event(), "b": trio.Event()}
            source.failure = failure
            source.install(world)
            world.subscribed("a", "b")
            await world.until(begin + 10)
            source.ends["b"].set()
            world.subscribed("a")
            await world.until(begin + 20)
            assert world.notices == []


# Memory that runs out


async def test_memory_that_runs_out_is_reported_once_until_a_sweep_has_covered_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 2)

    def push(*times: float) -> None:
        for when in times:
            message = Message(inbox_id="a", message_id=str(when), created_at=time(when))
            world.delivered.claim(MessageReceivedEvent(message=message))

    async def reconnect() -> None:
        world.lost()
        world.subscribed()
        await world.until(trio.current_time() + 1)

    def told() -> list[RecoveryFailed]:
        return [notice for notice in world.notices if isinstance(notice, RecoveryFailed)]

    async with recovering() as world:
        world.subscribed()
        await world.until(300)
        await world.until(310)
        push(302, 303)
        await reconnect()
        assert told() == []
        push(304, 305)
        await reconnect()
        [failed] = told()
        assert (failed.inbox_id, failed.pod_id, failed.since) == (None, None, time(300))
        assert failed.reason == "more mail has come since then than identities can be remembered"
        push(306, 307)
        await reconnect()
        assert len(told()) == 1
        await world.until(350)  # it was swept
        push(347, 348)
        await reconnect()
        assert len(told()) == 1  # what was forgotten since then had been covered
        push(349)
        await reconnect()
        assert len(told()) == 2


# Reports of failures


async def test_a_failed_recovery_is_reported_once_and_so_is_its_success(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed("a", "b")
        await world.until(100)
        world.lost()
        world.api.answers[A] = 403
        await world.until(110)
        world.subscribed("a", "b")
        await world.until(1000)
        failed, caught_up = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert (failed.inbox_id, failed.pod_id, failed.since) == ("a", None, time(100))
        assert failed.reason == 'HTTP status 403: {"name":"no","message":"status 403"}'
        # The other inbox comes at once: it was not delayed.
        assert caught_up == CaughtUp(since=time(100), failed=1, requests=2 * 2 + 2)
        world.api.answers |= inbox(mail("m", 500))
        await world.until(1400)
        assert world.mails == ["m"]
        [late] = world.notices[2:]
        assert isinstance(late, CaughtUp)
        assert (late.since, late.recovered, late.failed) == (time(100), 1, 0)
        # A new failure is reported again.
        world.api.answers[A] = 404
        await world.until(2000)
        [again] = world.notices[3:]
        assert isinstance(again, RecoveryFailed)
        assert time(1300) < again.since < time(1400)


@pytest.mark.parametrize(
    ("subscribe", "pod_id"), [(Subscribe(), None), (Subscribe(pod_ids=["p"]), "p")], ids=["key", "pod"]
)
async def test_a_pod_or_a_key_that_cannot_be_listed_is_named(
    subscribe: Subscribe, pod_id: str | None, autojump_clock: MockClock
) -> None:
    async with recovering({"/threads": 402}) as world:
        world.resume(subscribe)
        await world.until(10)
        [failed] = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert (failed.inbox_id, failed.pod_id, failed.since) == (None, pod_id, time(0))


async def test_a_reason_that_the_server_gave_is_shown_without_control_characters(autojump_clock: MockClock) -> None:
    async with recovering({A: httpx2.Response(403, content=b"\x1b[2Jno\r\n" + b"x" * 10_000)}) as world:
        world.subscribed()
        await world.until(10)
        [failed] = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert failed.reason.isprintable()
        assert len(failed.reason) < 600


async def test_after_days_of_failures_mail_is_found_from_the_last_complete_sweep_on(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(sweep_interval=3600)) as world:
        world.subscribed("a", "b")
        await world.until(100)
        world.lost()
        world.api.answers[A] = 403
        await world.until(110)
        world.subscribed("a", "b")
        await world.until(3 * DAY)
        world.api.answers |= inbox(mail("m", 200))
        await world.until(3 * DAY + 3 * 3600)
        assert world.mails == ["m"]
        scans = [after for when, path, after in world.scans if when > 3 * DAY and path == A]
        scans.remove(100 - 300)  # the one that closes the gap
        first, second, third = scans
        assert first == -DAY
        assert second == 140 - DAY  # the first one began then, and does not cover what came later
        assert third > DAY


async def test_a_failed_check_of_held_mail_is_logged_and_retried(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="m")))
        world.api.answers[f"{A}/batch-get"] = 403
        world.subscribed()
        await world.until(10)
        assert world.notices == []
        assert "held mail could not be checked" in caplog.text
        world.api.answers |= inbox(mail("m", -9999)) | {f"{A}/batch-get": {"messages": [mail("m", -9999)]}}
        await world.until(310)
        assert world.mails == ["m"]


async def test_a_loss_during_the_check_of_held_mail_postpones_the_report_of_the_gap(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="m")))
        world.api.answers[f"{A}/batch-get"] = later(10, {"messages": [mail("m", 1, HELD)]})
        world.lost()
        world.subscribed()
        await world.until(105)
        world.lost()
        await world.until(111)
        assert world.notices == []
        world.subscribed()
        await world.until(130)
        [caught_up] = world.notices
        assert isinstance(caught_up, CaughtUp)
        assert caught_up.since == time(100)
