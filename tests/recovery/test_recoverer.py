"""When recovery scans, how far back, what it reports, and what it keeps for the next run."""

import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.rest_api import EPOCH, Api, RestBackend, asked_key, at, mail, settings
from trio_agentmail import (
    CaughtUp,
    Event,
    Message,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    Recovery,
    RecoveryFailed,
    Subscribe,
    decode_event,
)
from trio_agentmail._channel import Abandoned
from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._outbox import Outbox
from trio_agentmail._recovery.progress import Progress, encode_progress
from trio_agentmail._recovery.recoverer import Recoverer
from trio_agentmail._recovery.rest import Pace
from trio_agentmail._recovery.source import Counts, Scan, Source, Target
from trio_agentmail._recovery.sweeps import PAUSE, Rate
from trio_agentmail._unwritten import Unwritten
from trio_agentmail.errors import AgentMailError, ApiError, ConnectionLostError, JournalError, RequestFailedError
from trio_agentmail.events import MessageSecurity, Notice

A = "/inboxes/a/messages"
B = "/inboxes/b/messages"
DAY = 86_400.0
HELD = "agent-armor-held"


def time(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=seconds)


class FakeOutbox(Outbox):
    """An outbox whose consumer takes everything, unless `full` or `gone` is set."""

    def __init__(self, delivered: Delivered) -> None:
        super().__init__(1, 2**25, delivered)
        self.taken: list[Event] = []
        self.full = False
        self.gone = False

    @property
    def is_full(self) -> bool:
        return self.full

    async def put(self, event: Event) -> bool:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise Abandoned
        if not self._delivered.claim(event):
            return False
        self.taken.append(event)
        return True

    def notify(self, notice: Notice) -> None:
        if self.gone:
            raise Abandoned
        self.taken.append(notice)


class FakeJournal:
    """The part of a journal that recovery needs."""

    def __init__(self) -> None:
        self.state = b""
        self.times: list[float] = []
        """When `keep` was called."""
        self.forgotten_until = -math.inf
        self.failure: Exception | None = None

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        assert state is not None
        self.state = state
        self.times.append(trio.current_time())
        self.forgotten_until = forgotten_until


class World:
    """A recoverer with its surroundings. The test plays the supervisor."""

    def __init__(self, answers: dict[str, Any], recovery: Recovery, kept: bytes) -> None:
        self.api = Api(answers)
        self.backend = RestBackend(self.api)
        self.clock = ServerClock(self.backend.now)
        self.delivered = Delivered(self.clock.now, recovery.sweep_depth)
        self.outbox = FakeOutbox(self.delivered)
        self.journal = FakeJournal()
        self.renewed: list[float] = []
        self.renewal_fails: BaseException | None = None
        self.recoverer = Recoverer(
            recovery,
            self.backend,
            settings(),
            asked_key(),
            self.clock,
            self.delivered,
            self.outbox,
            self.renew,
            cast("Journal", self.journal),
            kept,
            lambda: 0.0,
            Unwritten(),
        )

    async def renew(self) -> None:
        await trio.lowlevel.checkpoint()
        self.renewed.append(trio.current_time())
        if self.renewal_fails is not None:
            raise self.renewal_fails

    def subscribed(self, *inbox_ids: str, event_types: list[str] | None = None) -> None:
        """Have a connection confirmed now."""
        self.resume(Subscribe(inbox_ids=inbox_ids or ["a"], event_types=event_types))

    def resume(self, subscribe: Subscribe) -> None:
        self.recoverer.subscribed_to(subscribe, self.clock.moment())
        self.recoverer.resume(self.clock.moment())

    def lost(self, silent_for: float = 0.0) -> None:
        """Lose the connection, which has been silent for `silent_for` seconds."""
        here = self.clock.moment()
        self.recoverer.pause(Moment(here.wall - silent_for, here.monotonic - silent_for))

    @property
    def scans(self) -> list[tuple[float, str, float]]:
        """The scans: when each began, its path, and how far back it went, by the true time."""
        return [
            (when, path, round(datetime.fromisoformat(request.url.params["after"]).timestamp() - EPOCH, 2))
            for when, path, request in zip(self.api.times, self.api.asked, self.api.requests, strict=True)
            if "after" in request.url.params and "page_token" not in request.url.params
        ]

    @property
    def mails(self) -> list[str]:
        return [event.message.message_id for event in self.outbox.taken if isinstance(event, MessageReceivedEvent)]

    @property
    def notices(self) -> list[Event]:
        return [event for event in self.outbox.taken if isinstance(event, CaughtUp | RecoveryFailed)]

    async def until(self, seconds: float) -> None:
        await trio.sleep_until(seconds)
        await wait_all_tasks_blocked()


@asynccontextmanager
async def recovering(
    answers: dict[str, Any] | None = None, recovery: Recovery | None = None, kept: bytes = b""
) -> AsyncIterator[World]:
    empty: dict[str, Any] = {"/inboxes": {}, A: {"messages": []}, B: {"messages": []}, "/threads": {"threads": []}}
    world = World(empty | (answers or {}), recovery or Recovery(), kept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.recoverer.run)
        await wait_all_tasks_blocked()
        yield world
        nursery.cancel_scope.cancel()


def inbox(*mails: dict[str, Any], name: str = "a") -> dict[str, Any]:
    path = f"/inboxes/{name}/messages"
    return {path: {"messages": [*mails]}} | {f"{path}/{m['message_id']}": m | {"text": "text"} for m in mails}


def polls(lost: float, until: float, since: float | None = None, path: str = A) -> list[tuple[float, str, float]]:
    """The polls between the loss of a connection and its return."""
    after, scans = (lost if since is None else since) - 5, []
    for when in range(int(lost) + 2, int(until), 5):
        scans.append((float(when), path, float(after)))
        after = when - 5
    return scans


def later(seconds: float, answer: Any) -> Callable[[httpx2.Request], Coroutine[Any, Any, Any]]:
    async def handle(request: httpx2.Request) -> Any:
        await trio.sleep(seconds)
        return answer

    return handle


# When it scans, and how far back


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


# A source under the control of the test


class ControlledSource(Source):
    """A source whose scans end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[float, str | None, float, float]] = []
        """For each call of `scan`: when, the inbox, the position, and the limit of pages."""
        self.scans: list[Scan] = []
        self.ends: dict[str | None, trio.Event] = {}
        self.failure: Exception | None = None
        self.kept: set[Target] = set()
        self.reaches_the_end = True

    def note(self, event: Event) -> None:
        pass

    def keep_only(self, targets: Collection[Target]) -> None:
        self.kept = set(targets)

    async def scan(
        self, scan: Scan, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        self.begun.append((trio.current_time(), scan.target.inbox_id, scan.position - EPOCH, pages))
        self.scans.append(scan)
        await pace()
        if (end := self.ends.get(scan.target.inbox_id)) is not None:
            await end.wait()
            if self.failure is not None:
                raise self.failure
        return pages == math.inf or self.reaches_the_end

    async def check_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        pass

    def state(self) -> Any:
        return []

    def restore(self, state: Any) -> None:
        assert state == []

    def install(self, world: "World") -> None:
        """Replace the recoverer's source by this one."""
        recoverer = world.recoverer
        recoverer._source = recoverer._gaps._source = recoverer._sweeps._source = self


async def with_gap(world: World, *inbox_ids: str) -> ControlledSource:
    """Go to 120 s, in the middle of the scan of a gap that began at 100 s."""
    source = ControlledSource()
    source.install(world)
    world.subscribed(*inbox_ids)
    await world.until(100)
    world.lost()
    await world.until(110)
    source.ends = {inbox_id: trio.Event() for inbox_id in inbox_ids}
    source.begun.clear()
    source.scans.clear()
    world.subscribed(*inbox_ids)
    await world.until(120)
    return source


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


# A busy inbox


def pages_of(mails: list[dict[str, Any]], path: str = A) -> dict[str, Any]:
    """The answers of an API whose listing honours `after` and has one mail per page; and each mail with its body."""

    def answer(request: httpx2.Request) -> dict[str, Any]:
        after = datetime.fromisoformat(request.url.params["after"])
        page = int(request.url.params.get("page_token", 0))
        listed = [m for m in mails if datetime.fromisoformat(m["timestamp"]) >= after]
        return {"messages": listed[page : page + 1], "next_page_token": str(page + 1) if page + 1 < len(listed) else ""}

    listings = {f"{path}?{page}": answer for page in range(1, len(mails))}
    return {path: answer} | listings | {f"{path}/{m['message_id']}": m | {"text": ""} for m in mails}


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


# Subscriptions


async def test_mail_from_before_the_stream_is_not_delivered(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", 10), mail("new", 10.001))) as world:
        await world.until(10)
        world.subscribed()
        await world.until(11)
        assert world.mails == ["new"]


async def test_an_inbox_that_is_subscribed_later_begins_then(autojump_clock: MockClock) -> None:
    answers = inbox(mail("m", 50)) | inbox(mail("old", 50), mail("new", 150), name="b")
    async with recovering(answers) as world:
        world.subscribed("a")
        await world.until(100)
        world.subscribed("a", "b")
        await world.until(101)
        # It is scanned at once. What was pushed since the confirmation came on the new connection.
        assert sorted(scan[:2] for scan in world.scans) == [(0, A), (100, A), (100, B)]
        assert world.mails == ["m", "new"]


async def test_an_event_type_that_is_subscribed_later_begins_then(autojump_clock: MockClock) -> None:
    answers = inbox(mail("old spam", 50, "spam"), mail("spam", 150, "spam"))
    answers[f"{A}/old%20spam"] = answers.pop(f"{A}/old spam")
    async with recovering(answers) as world:
        world.subscribed(event_types=["message.received"])
        await world.until(100)
        world.subscribed(event_types=["message.received", "message.received.spam"])
        await world.until(101)
        assert world.mails == ["spam"]


async def test_the_same_subscription_on_another_connection_starts_no_scan(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert len(world.scans) == 1


async def test_an_inbox_no_longer_subscribed_to_is_forgotten(autojump_clock: MockClock) -> None:
    async with recovering({B: 403}) as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="b", message_id="m")))
        world.subscribed("a", "b")
        await world.until(10)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        world.subscribed("a")
        await world.until(1000)
        assert [scan for scan in world.scans if scan[1] == B and scan[0] > 10] == []
        assert world.api.asked.count(f"{B}/batch-get") == 1
        assert json.loads(world.journal.state)["source"] == []
        # It has no gap, so a later one is reported without it. If it is added again, it begins anew.
        world.lost()
        await world.until(1010)
        world.subscribed("a")
        await world.until(1020)
        assert world.notices[1] == CaughtUp(since=time(1000), requests=len(polls(1000, 1010)) + 1)
        world.subscribed("a", "b")
        await world.until(1021)
        [failed] = world.notices[2:]
        assert isinstance(failed, RecoveryFailed)
        assert failed.since == time(1020)


async def test_without_received_mail_in_the_subscription_nothing_is_requested(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(1000)
        world.lost()
        await world.until(1100)
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(9000)
        assert world.api.asked == []
        assert world.outbox.taken == []
        # Then it is known, and begins there.
        world.api.answers |= inbox(mail("old", 8999.999), mail("new", 9000))
        world.subscribed()
        await world.until(9001)
        assert world.mails == ["new"]


async def test_pods_inboxes_and_keys_are_all_scanned(autojump_clock: MockClock) -> None:
    async with recovering({"/pods/p/threads": {"threads": []}}) as world:
        world.resume(Subscribe(inbox_ids=["a", "b"], pod_ids=["p"]))
        await world.until(10)
        assert {path for _, path, _ in world.scans} == {A, B, "/pods/p/threads"}
        world.resume(Subscribe())
        await world.until(20)
        assert [path for _, path, _ in world.scans[3:]] == ["/threads"]


async def test_mail_that_was_delivered_and_forgotten_is_not_recovered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 2)
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 1), mail("n", 2), mail("o", 3), mail("p", 3))
        await world.until(1000)
        assert world.mails == ["m", "n", "o", "p"]


# Recovery.since


async def test_a_first_start_may_begin_in_the_past(autojump_clock: MockClock) -> None:
    answers = inbox(mail("too old", -1001), mail("old", -999), mail("new", 1))
    answers[f"{A}/too%20old"] = answers.pop(f"{A}/too old")
    async with recovering(answers, Recovery(since=time(-1000), sweep_depth=2000)) as world:
        world.subscribed()
        await world.until(31)
        assert world.mails == ["old", "new"]
        assert world.scans == [(0, A, -1300), (30, A, -3000)]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=2, requests=4)]


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_recovery_since_is_not_shifted_by_the_difference_of_clocks(
    skew: float, autojump_clock: MockClock
) -> None:
    async with recovering(inbox(mail("old", -1001), mail("m", -999)), Recovery(since=time(-1000))) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = skew
        world.subscribed()
        await world.until(1)
        assert world.scans[0] == (0, A, -1300)
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=1, requests=3)]


async def test_a_beginning_in_the_future_is_now(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", 1)), Recovery(since=time(9999))) as world:
        world.subscribed()
        await world.until(2)
        assert world.mails == ["m"]
        assert world.notices == []


async def test_a_stream_may_begin_at_the_epoch(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", -9 * DAY)), Recovery(since=datetime.fromtimestamp(0, UTC))) as world:
        world.subscribed()
        await world.until(1)
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=datetime.fromtimestamp(0, UTC), recovered=1, requests=3)]


async def test_only_the_first_subscription_begins_there(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", -999)), Recovery(since=time(-1000))) as world:
        world.subscribed(event_types=["message.sent"])
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert world.mails == []


# Clocks


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


# Connections that are alive and deliver nothing


@pytest.mark.parametrize(("lost_at", "subscribed_at"), [(299, 302), (302, 310)], ids=["begins", "ends"])
async def test_mail_of_a_sweep_that_begins_or_ends_in_an_outage_replaces_nothing(
    lost_at: float, subscribed_at: float, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 150), mail("n", 150))
        world.api.answers[f"{A}/n"] = later(5, mail("n", 150))
        await world.until(lost_at)
        world.api.answers[A], listing = {"messages": []}, world.api.answers[A]
        world.lost(silent_for=1)
        if lost_at < 300:
            await world.until(299.5)
            world.api.answers[A] = listing
        await world.until(subscribed_at)
        world.subscribed()
        await world.until(1000)
        assert world.mails == ["m", "n"]
        assert world.renewed == []


async def test_mail_from_before_the_connection_replaces_nothing_whatever_our_clock(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(since=time(-1000))) as world:
        world.backend.wrong_by = -600.0
        world.subscribed()
        await world.until(10)
        world.api.answers |= inbox(mail("m", -300))
        await world.until(100)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_a_sweep_finds_during_an_outage_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(298)
        world.lost(silent_for=200)
        await world.until(299)
        world.api.answers |= inbox(mail("m", 150))
        await world.until(301)
        assert world.mails == ["m"]
        world.subscribed()
        await world.until(1000)
        assert world.renewed == []


async def test_mail_that_was_not_pushed_replaces_the_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100), mail("n", 110))
        await world.until(1000)
        assert world.mails == ["m", "n"]
        assert world.renewed == [300]
        assert "2 mails were not pushed" in caplog.text


@pytest.mark.parametrize(
    ("found", "confirmed_again"),
    [
        (mail("m", 299), False),  # it may still be pushed
        (mail("m", 150), True),  # from before the connection
        (mail("m", None), False),  # unknown
    ],
    ids=["just now", "before", "no time"],
)
async def test_mail_that_may_still_be_pushed_replaces_nothing(
    found: dict[str, Any], confirmed_again: bool, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(200)
        if confirmed_again:
            world.subscribed()
        world.api.answers |= inbox(found)
        await world.until(320)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_of_a_gap_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        world.api.answers |= inbox(mail("m", 150))
        await world.until(250)
        world.subscribed()
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_was_held_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering(
        inbox(mail("m", 10, HELD)) | {f"{A}/batch-get": {"messages": [mail("m", 10, HELD)]}}
    ) as world:
        world.subscribed()
        await world.until(250)
        world.api.answers |= inbox(mail("m", 10)) | {A: {"messages": []}}
        world.api.answers[f"{A}/batch-get"] = {"messages": [mail("m", 10)]}
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_may_be_unread_since_the_consumer_is_behind_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        world.outbox.full = True
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


@pytest.mark.parametrize("failure", [ConnectionLostError("no"), ApiError(503, {}, ""), OSError("refused")], ids=repr)
async def test_a_connection_that_cannot_be_replaced_stays(
    failure: AgentMailError | OSError, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.renewal_fails = failure
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        await world.until(700)
        assert "the connection could not be replaced" in caplog.text
        assert [when for when, _, _ in world.scans] == [0, 300, 600]


async def test_a_stream_left_while_its_connection_is_replaced_ends_without_an_error(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.renewal_fails = trio.ClosedResourceError("the stream has ended")
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        await world.until(700)
        assert world.renewed[0] == 300


# Bodies of pushed mail


def large(**more: Any) -> MessageReceivedEvent:
    message = {"inbox_id": "a", "message_id": "<m/1>", "subject": "pushed"} | more
    event = decode_event(json.dumps({"event_type": "message.received", "event_id": "e", "message": message, "new": 1}))
    assert isinstance(event, MessageReceivedEvent)
    return event


PATH = f"{A}/%3Cm%2F1%3E"


def test_bodies_are_fetched_on_request() -> None:
    assert not World({}, Recovery(), b"").recoverer.fetches_bodies
    assert World({}, Recovery(fetch_bodies=True), b"").recoverer.fetches_bodies


async def test_a_body_that_was_left_out_is_fetched(autojump_clock: MockClock) -> None:
    answer = {"message_id": "<m/1>", "subject": "fetched", "html": "<p>"}
    async with recovering({PATH: answer}) as world:
        event = await world.recoverer.with_body(large())
    assert (event.event_id, event.origin) == ("e", "live")
    assert (event.message.inbox_id, event.message.subject, event.message.html) == ("a", "fetched", "<p>")
    assert json.loads(event.raw) == {
        "event_type": "message.received",
        "event_id": "e",
        "message": {"inbox_id": "a"} | answer,
        "new": 1,
    }


@pytest.mark.parametrize("event", [large(text=""), large(html="")], ids=["text", "html"])
async def test_a_whole_mail_is_not_fetched(event: MessageReceivedEvent, autojump_clock: MockClock) -> None:
    async with recovering() as world:
        assert await world.recoverer.with_body(event) is event
        assert world.api.asked == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (404, "HTTP status 404"),
        (403, "HTTP status 403"),
        (later(11, {"message_id": "<m/1>", "text": "late"}), "not within 10 s"),
        ({}, "another message"),
        ({"message_id": "<another>", "text": "text"}, "another message"),
        ({"message_id": "<m/1>", "inbox_id": "another", "text": "text"}, "another message"),
    ],
    ids=["gone", "forbidden", "late", "nothing", "another message", "another inbox"],
)
async def test_a_mail_whose_body_cannot_be_fetched_comes_without_it(
    answer: Any, why: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering({PATH: answer}) as world:
        event = large()
        assert await world.recoverer.with_body(event) is event
        assert trio.current_time() <= 10
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("a mail is delivered without its body")
    assert why in line


async def test_fetching_a_body_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with recovering({PATH: later(100, {})}) as world:
        with trio.move_on_after(3) as scope:
            await world.recoverer.with_body(large())
        assert scope.cancelled_caught
        assert trio.current_time() == 3


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


# From one run to the next


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
