"""When recovery looks, how far back, what it says of it, and what it remembers."""

import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

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
from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal, Notice
from trio_agentmail._outbox import Abandoned, Outbox
from trio_agentmail._recovery.recoverer import Recoverer
from trio_agentmail._recovery.rest import Pace
from trio_agentmail._recovery.source import Counts, Look, Source, Target
from trio_agentmail.errors import AgentMailError, ApiError, ConnectionLostError
from trio_agentmail.events import MessageSecurity

from .rest_api import EPOCH, Api, RestBackend, asked_key, mail, settings

A = "/inboxes/a/messages"
B = "/inboxes/b/messages"
DAY = 86_400.0
HELD = "agent-armor-held"


def time(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=seconds)


class Box(Outbox):
    """An outbox whose consumer takes everything, unless the test says otherwise."""

    def __init__(self, delivered: Delivered) -> None:
        super().__init__(1, delivered)
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


class Kept:
    """A journal, as far as recovery needs one."""

    def __init__(self) -> None:
        self.state = b""
        self.times: list[float] = []
        """When it was asked to keep something."""
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
    """A recoverer with all that it deals with; the test is its supervisor, and its clock is right unless it says so."""

    def __init__(self, answers: dict[str, Any], recovery: Recovery, kept: bytes) -> None:
        self.api = Api(answers)
        self.backend = RestBackend(self.api)
        self.clock = ServerClock(self.backend.now)
        self.delivered = Delivered(self.clock.now, recovery.sweep_depth)
        self.box = Box(self.delivered)
        self.journal = Kept()
        self.renewed: list[float] = []
        self.renewal_fails: BaseException | None = None
        self.recoverer = Recoverer(
            recovery,
            self.backend,
            settings(),
            asked_key(),
            self.clock,
            self.delivered,
            self.box,
            self.renew,
            cast("Journal", self.journal),
            kept,
        )

    async def renew(self) -> None:
        await trio.lowlevel.checkpoint()
        self.renewed.append(trio.current_time())
        if self.renewal_fails is not None:
            raise self.renewal_fails

    def subscribed(self, *inbox_ids: str, event_types: list[str] | None = None) -> None:
        """A connection is confirmed now."""
        self.resume(Subscribe(inbox_ids=inbox_ids or ["a"], event_types=event_types))

    def resume(self, subscribe: Subscribe) -> None:
        self.recoverer.subscribed_to(subscribe, self.clock.moment())
        self.recoverer.resume(self.clock.moment())

    def lost(self, silent_for: float = 0.0) -> None:
        """It is lost now, and has been silent for so long."""
        here = self.clock.moment()
        self.recoverer.pause(Moment(here.wall - silent_for, here.monotonic - silent_for))

    @property
    def looks(self) -> list[tuple[float, str, float]]:
        """When something was listed, what, and how far back, by the true time."""
        return [
            (when, path, datetime.fromisoformat(request.url.params["after"]).timestamp() - EPOCH)
            for when, path, request in zip(self.api.times, self.api.asked, self.api.requests, strict=True)
            if "after" in request.url.params and "page_token" not in request.url.params
        ]

    @property
    def mails(self) -> list[str]:
        return [event.message.message_id for event in self.box.taken if isinstance(event, MessageReceivedEvent)]

    @property
    def notices(self) -> list[Event]:
        return [event for event in self.box.taken if isinstance(event, CaughtUp | RecoveryFailed)]

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
    """The looks at recent mail while there is no connection, by when it was lost, and when it is there again."""
    after, looks = (lost if since is None else since) - 5, []
    for when in range(int(lost) + 2, int(until), 5):
        looks.append((float(when), path, float(after)))
        after = when - 5
    return looks


def later(seconds: float, answer: Any) -> Callable[[httpx.Request], Coroutine[Any, Any, Any]]:
    async def handle(request: httpx.Request) -> Any:
        await trio.sleep(seconds)
        return answer

    return handle


# When it looks, and how far back


async def test_nothing_is_asked_for_before_there_is_a_subscription(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        await world.until(1000)
        assert world.api.asked == []
        assert world.recoverer.requests == 0


async def test_it_sweeps_on_entering_and_then_every_so_often(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(sweep_interval=100, sweep_depth=1000)) as world:
        await world.until(10)
        world.subscribed()
        await world.until(300)
        assert world.looks == [(10, A, 10 - 1000), (110, A, 10 - 1000), (210, A, 110 - 1000)]
        assert world.recoverer.requests == 4  # one was for the time
        assert world.box.taken == []


async def test_after_a_gap_it_looks_at_once_and_half_a_minute_later_once_more_and_deeper(
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
        assert world.looks == [(0, A, -DAY), *polled]
        world.subscribed()
        await world.until(500)
        assert world.looks[1:] == [*polled, (160, A, 95 - 300), (190, A, -DAY), (490, A, 190 - DAY)]
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(95), recovered=1, known=1, requests=len(polled) + 2)]
        assert world.box.taken[-1] == world.notices[0]  # behind the mail of which it tells
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


async def test_the_second_look_waits_its_half_minute_also_when_a_sweep_is_due(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(1000)
        world.subscribed()
        await world.until(1031)
        assert [look for look in world.looks[1:] if look not in polls(100, 1000)] == [
            # Sweeps go on meanwhile.
            (300, A, -DAY),
            (600, A, 100 - DAY),
            (900, A, 100 - DAY),
            (1000, A, 100 - 300),
            (1030, A, 100 - DAY),
        ]


async def test_a_look_that_reaches_less_deep_does_not_shorten_the_reach_of_the_next_sweep(
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
        # The sweep at 140 failed, and what was back-dated was not looked for at 110.
        assert world.looks[-1] == (440, A, -DAY)


async def test_a_loss_before_the_second_look_does_not_shorten_its_reach(autojump_clock: MockClock) -> None:
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
        assert world.looks[1:] == [
            *polls(100, 110),
            (110, A, 100 - 300),
            *polls(120, 130),
            (130, A, 120 - 300),
            (140, A, -DAY),
            (160, A, 120 - DAY),
            (460, A, 160 - DAY),
        ]
        assert [notice.since for notice in world.notices if isinstance(notice, CaughtUp)] == [time(100), time(120)]


async def test_while_there_is_no_connection_recent_mail_is_asked_for_and_sweeps_go_on(
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
        assert [look for look in world.looks if look not in polls(100, 1000)] == [
            (0, A, -DAY),
            (300, A, -DAY),
            (600, A, 100 - DAY),
            (900, A, 100 - DAY),
        ]
        assert [look for look in polls(100, 1000) if look not in world.looks] == []
        # No gap is closed by that.
        assert world.notices == []
        assert world.recoverer.missing_since == EPOCH + 100


async def test_a_loss_in_the_moment_of_a_reconnect_finds_recovery_waiting(autojump_clock: MockClock) -> None:
    # Recovery's task has been told of the reconnect, and has not run yet.
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        await world.until(110)
        world.subscribed()
        world.lost()
        await world.until(200)
        assert set(world.looks[1:]) == {*polls(110, 200, since=100), *polls(100, 110), (140, A, -DAY)}
        looks = len(world.looks)
        world.subscribed()
        await world.until(201)
        assert world.looks[looks:] == [(200, A, 100 - 300)]


async def test_a_look_that_has_begun_goes_on_through_a_loss_and_the_gap_that_opens_is_for_the_next(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a")
        world.lost()
        [look] = source.looks
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
        assert (look.since, look.began) == (EPOCH + 100, EPOCH + 110)
        assert world.notices == [CaughtUp(since=time(100))]


async def test_while_the_consumer_is_behind_sweeps_wait_but_not_for_ever(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.box.full = True
        world.subscribed()
        await world.until(95)
        assert world.looks == []
        world.box.full = False
        await world.until(125)
        assert [when for when, _, _ in world.looks] == [120]
        world.box.full = True
        await world.until(2000)
        assert [when for when, _, _ in world.looks] == [120, 720, 1320, 1920]


# A source that the test holds in its hands


class Held(Source):
    """A source whose looks end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[float, str | None, float, float]] = []
        """When a look was begun or gone on with, where, from when on, and how many pages of it."""
        self.looks: list[Look] = []
        self.ends: dict[str | None, trio.Event] = {}
        self.failure: Exception | None = None
        self.forgotten: list[Target] = []
        self.reaches_the_end = True

    def note(self, event: Event) -> None:
        pass

    def forget(self, target: Target) -> None:
        self.forgotten.append(target)

    async def look(
        self, look: Look, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        self.begun.append((trio.current_time(), look.target.inbox_id, look.place - EPOCH, pages))
        self.looks.append(look)
        await pace()
        if (end := self.ends.get(look.target.inbox_id)) is not None:
            await end.wait()
            if self.failure is not None:
                raise self.failure
        return pages == math.inf or self.reaches_the_end

    async def look_at_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        pass

    def state(self) -> Any:
        return []

    def restore(self, state: Any) -> None:
        assert state == []

    def hold(self, world: "World") -> None:
        """Take the place of the source that the recoverer has."""
        recoverer = world.recoverer
        recoverer._source = recoverer._gaps._source = recoverer._sweeps._source = self


async def with_gap(world: World, *inbox_ids: str) -> Held:
    """In the middle of a look after a gap that began at 100."""
    source = Held()
    source.hold(world)
    world.subscribed(*inbox_ids)
    await world.until(100)
    world.lost()
    await world.until(110)
    source.ends = {inbox_id: trio.Event() for inbox_id in inbox_ids}
    source.begun.clear()
    source.looks.clear()
    world.subscribed(*inbox_ids)
    await world.until(120)
    return source


async def test_a_look_that_ends_in_the_moment_of_a_loss_closes_not_the_gap_that_this_opens(
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
        # The first gap is closed, and not looked for again.
        assert source.begun[-1] == (130, "a", 120 - 300, 10)
        assert world.notices == [CaughtUp(since=time(100))]


@pytest.mark.parametrize("turns", range(4))
async def test_a_look_that_ends_in_the_moment_of_a_loss_is_told_of_when_the_next_one_has_ended(
    turns: int, autojump_clock: MockClock
) -> None:
    for _ in range(10):  # who runs first in a turn of Trio's loop is left to chance
        async with recovering() as world:
            begin = trio.current_time()
            source = Held()
            source.hold(world)
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
async def test_a_look_that_ends_in_the_moment_of_another_subscription_says_nothing_of_the_old_one(
    failure: Exception | None, autojump_clock: MockClock
) -> None:
    inbox_ids = ["a", "b", "c", "d", "e", "f"]  # more than are looked at at once, so that some have not begun
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
        assert {target.inbox_id for target in source.forgotten} == {*inbox_ids}
        assert world.notices == []


async def test_a_subscription_that_changes_before_its_look_has_begun_is_looked_at_as_it_is(
    autojump_clock: MockClock,
) -> None:
    async def change() -> None:
        # One of these is the moment in which the tasks of a look have been started and have not run.
        for ticks in range(40):
            world.subscribed(f"new {ticks}")
            for _ in range(ticks % 5):
                await trio.lowlevel.checkpoint()

    async with recovering() as world:
        source = Held()
        source.hold(world)
        world.subscribed("a")
        await world.until(10)
        await change()
        await world.until(20)
        assert source.begun[-1][1] == "new 39"


async def test_a_gap_that_was_closed_is_told_also_if_the_look_is_cut_before_its_end(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        source = await with_gap(world, "a", "b")
        source.ends["a"].set()
        await world.until(121)
        source.ends.clear()
        world.subscribed("a")
        await world.until(122)
        assert world.notices == [CaughtUp(since=time(100))]


async def test_four_inboxes_are_looked_at_at_once_and_one_that_is_slow_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    inbox_ids = [f"inbox {number}" for number in range(10)]
    async with recovering() as world:
        source = Held()
        source.ends = {inbox_id: trio.Event() for inbox_id in inbox_ids}
        source.hold(world)
        world.subscribed(*inbox_ids)
        await wait_all_tasks_blocked()
        assert [inbox_id for _, inbox_id, _, _ in source.begun] == inbox_ids[:4]
        for inbox_id in inbox_ids[1:]:
            source.ends[inbox_id].set()
        await wait_all_tasks_blocked()
        assert [inbox_id for _, inbox_id, _, _ in source.begun] == inbox_ids


async def test_what_a_source_raises_that_is_no_failure_of_a_request_ends_the_stream(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with recovering() as world:
            source = await with_gap(world, "a")
            source.failure = ZeroDivisionError()
            source.ends["a"].set()
            await world.until(130)


# What cannot be recovered


async def test_what_cannot_be_recovered_is_told_once_and_when_it_can_that_is_told(autojump_clock: MockClock) -> None:
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
        # Of the other inbox, at once: it was not held up.
        assert caught_up == CaughtUp(since=time(100), failed=1, requests=2 * 2 + 2)
        world.api.answers |= inbox(mail("m", 500))
        await world.until(1400)
        assert world.mails == ["m"]
        [late] = world.notices[2:]
        assert isinstance(late, CaughtUp)
        assert (late.since, late.recovered, late.failed) == (time(100), 1, 0)
        # And if it fails again, that is news.
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
    async with recovering({A: httpx.Response(403, content=b"\x1b[2Jno\r\n" + b"x" * 10_000)}) as world:
        world.subscribed()
        await world.until(10)
        [failed] = world.notices
        assert isinstance(failed, RecoveryFailed)
        assert failed.reason.isprintable()
        assert len(failed.reason) < 600


async def test_what_failed_for_days_is_made_up_for_from_the_last_sweep_that_did_not(autojump_clock: MockClock) -> None:
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
        looks = [after for when, path, after in world.looks if when > 3 * DAY and path == A]
        looks.remove(100 - 300)  # the one that closes the gap
        first, second, third = looks
        assert first == -DAY
        assert second == 140 - DAY  # the first one had begun then, and says nothing of what came later
        assert third > DAY


async def test_held_mail_that_cannot_be_looked_at_is_logged_and_tried_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="a", message_id="m")))
        world.api.answers[f"{A}/batch-get"] = 403
        world.subscribed()
        await world.until(10)
        assert world.notices == []
        assert "held mail could not be looked at" in caplog.text
        world.api.answers |= inbox(mail("m", -9999)) | {f"{A}/batch-get": {"messages": [mail("m", -9999)]}}
        await world.until(310)
        assert world.mails == ["m"]


# What the subscription says


async def test_mail_of_before_the_stream_began_is_left_alone(autojump_clock: MockClock) -> None:
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
        # It is looked at at once: what was pushed between the confirmation and now came on the new connection.
        assert sorted(look[:2] for look in world.looks) == [(0, A), (100, A), (100, B)]
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


async def test_the_same_subscription_on_another_connection_is_no_reason_to_look(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert len(world.looks) == 1


async def test_an_inbox_that_is_not_subscribed_any_more_is_forgotten(autojump_clock: MockClock) -> None:
    async with recovering({B: 403}) as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="b", message_id="m")))
        world.subscribed("a", "b")
        await world.until(10)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        world.subscribed("a")
        await world.until(1000)
        assert [look for look in world.looks if look[1] == B and look[0] > 10] == []
        assert world.api.asked.count(f"{B}/batch-get") == 1
        assert json.loads(world.journal.state)["source"] == []
        # It has no gap, so that a later one is told of without it; and if it comes back, it begins anew.
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


async def test_without_received_mail_in_the_subscription_nothing_is_ever_asked_for(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(1000)
        world.lost()
        await world.until(1100)
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(9000)
        assert world.api.asked == []
        assert world.box.taken == []
        # Then it has, and begins there.
        world.api.answers |= inbox(mail("old", 9000), mail("new", 9000.001))
        world.subscribed()
        await world.until(9001)
        assert world.mails == ["new"]


async def test_pods_inboxes_and_keys_are_all_looked_at(autojump_clock: MockClock) -> None:
    async with recovering({"/pods/p/threads": {"threads": []}}) as world:
        world.resume(Subscribe(inbox_ids=["a", "b"], pod_ids=["p"]))
        await world.until(10)
        assert {path for _, path, _ in world.looks} == {A, B, "/pods/p/threads"}
        world.resume(Subscribe())
        await world.until(20)
        assert [path for _, path, _ in world.looks[3:]] == ["/threads"]


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
        assert world.looks == [(0, A, -1300), (30, A, -3000)]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=2, requests=4)]


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_beginning_that_was_given_is_that_whatever_the_clocks_say(
    skew: float, autojump_clock: MockClock
) -> None:
    async with recovering(inbox(mail("old", -1001), mail("m", -999)), Recovery(since=time(-1000))) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = skew
        world.subscribed()
        await world.until(1)
        assert world.looks[0] == (0, A, -1300)
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=1, requests=3)]


async def test_a_beginning_in_the_future_is_now(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", 1)), Recovery(since=time(9999))) as world:
        world.subscribed()
        await world.until(2)
        assert world.mails == ["m"]
        assert world.notices == []


async def test_only_the_first_subscription_begins_there(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", -999)), Recovery(since=time(-1000))) as world:
        world.subscribed(event_types=["message.sent"])
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert world.mails == []


# Clocks


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_clock_of_ours_that_is_wrong_makes_no_difference(skew: float, autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", 9), mail("m", 11))) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = skew
        await world.until(10)
        world.subscribed()
        await world.until(100)
        assert world.looks == [(10, A, 10 - DAY)]
        assert world.mails == ["m"]
        assert world.notices == []
        world.lost(silent_for=5)
        await world.until(110)
        world.subscribed()
        await world.until(141)
        polled = polls(100, 110, since=95)
        assert world.looks[1:] == [*polled, (110, A, 95 - 300), (140, A, 10 - DAY)]
        assert world.notices == [CaughtUp(since=time(95), known=3, requests=len(polled) + 1)]


async def test_a_loss_while_the_time_is_being_asked_for_is_told_by_their_clock_as_well(
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
        assert world.looks == [*polled, (20, A, 5 - 300)]
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
        assert world.looks[-1] == (410, A, 400 - 300)


# A connection that is alive and does not deliver


async def test_mail_that_was_not_pushed_is_a_reason_for_another_connection(
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
        (mail("m", 299), False),  # it may be on its way
        (mail("m", 150), True),  # of before the connection
        (mail("m", None), False),  # nobody knows when
    ],
    ids=["just now", "before", "no time"],
)
async def test_mail_that_may_have_been_pushed_yet_is_none(
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


async def test_mail_of_a_gap_is_none(autojump_clock: MockClock) -> None:
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


async def test_mail_that_was_held_is_none(autojump_clock: MockClock) -> None:
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


async def test_mail_that_waits_to_be_read_since_the_consumer_is_behind_is_none(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        world.box.full = True
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
        assert [when for when, _, _ in world.looks] == [0, 300, 600]


# Events that are pushed


def large(**more: Any) -> MessageReceivedEvent:
    message = {"inbox_id": "a", "message_id": "<m/1>", "subject": "pushed"} | more
    event = decode_event(json.dumps({"event_type": "message.received", "event_id": "e", "message": message, "new": 1}))
    assert isinstance(event, MessageReceivedEvent)
    return event


PATH = f"{A}/%3Cm%2F1%3E"


def test_bodies_are_fetched_where_that_is_asked_for() -> None:
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
async def test_what_is_whole_is_not_fetched(event: MessageReceivedEvent, autojump_clock: MockClock) -> None:
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
    assert line.startswith("a mail comes without its body")
    assert why in line


async def test_whoever_reads_the_connection_can_be_cancelled_while_a_body_is_fetched(autojump_clock: MockClock) -> None:
    async with recovering({PATH: later(100, {})}) as world:
        with trio.move_on_after(3) as scope:
            await world.recoverer.with_body(large())
        assert scope.cancelled_caught
        assert trio.current_time() == 3


# When nobody wants the events any more


async def test_it_stops_when_nobody_takes_its_mail(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", 1))) as world:
        world.box.gone = True
        world.subscribed()
        await world.until(9999)
        # The sweep, and the look at recent mail that took the place of the next one.
        assert [when for when, _, _ in world.looks] == [0, 300]
        assert world.box.taken == []


async def test_it_goes_on_when_nobody_takes_its_notices(autojump_clock: MockClock) -> None:
    # Whoever reads the connection is told the same, and ends the stream.
    async with recovering({A: 403}) as world:
        world.box.gone = True
        world.subscribed("a", "b")
        await world.until(400)
        looks = [look[:2] for look in world.looks]
        assert {(0, A), (0, B), (300, A), (300, B)} <= {*looks}
        assert len({when for when, _ in looks if 0 < when < 300}) > 4  # each gap is tried again


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
        assert world.looks == [(5000, A, 900 - 300)]
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
        # The look that failed goes on, and what came since it began is looked for by another.
        assert world.looks == [(5000, A, 100 - 300), (5000, A, 110 - 300)]


async def test_a_journal_knows_better_than_since_where_to_begin(autojump_clock: MockClock) -> None:
    since = Recovery(since=time(-5 * DAY))
    async with recovering(recovery=since) as world:
        world.subscribed()
        await world.until(1000)
        assert world.looks[0] == (0, A, -5 * DAY - 300)
        kept = world.journal.state
    answers = inbox(mail("old", -4 * DAY), mail("too old", -6 * DAY))
    async with recovering(answers, since, kept) as world:
        await world.until(5000)
        world.subscribed()
        await world.until(5001)
        # Since the last sweep; and mail is as old as it may be, since it may be back-dated or late.
        assert world.looks == [(5000, A, 930 - 300)]
        assert world.mails == ["old"]


async def test_what_is_remembered_of_inboxes_that_are_not_subscribed_is_left_alone(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed("a", "b")
        await world.until(1000)
        kept = world.journal.state
    async with recovering(kept=kept) as world:
        await world.until(5000)
        world.subscribed("b")
        await world.until(5001)
        assert [path for _, path, _ in world.looks] == [B]
        assert [target["inbox_id"] for target in json.loads(world.journal.state)["targets"]] == ["b"]


@pytest.mark.parametrize("kept", [b"", b"garbage", b"[]"])
async def test_without_anything_remembered_it_is_a_first_start(kept: bytes, autojump_clock: MockClock) -> None:
    async with recovering(kept=kept) as world:
        world.subscribed()
        await world.until(1)
        assert world.looks == [(0, A, -DAY)]


async def test_without_a_journal_nothing_is_remembered(autojump_clock: MockClock) -> None:
    world = World({A: {"messages": []}}, Recovery(), b"")
    world.recoverer._journal = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.recoverer.run)
        world.subscribed()
        await world.until(1)
        nursery.cancel_scope.cancel()
    assert world.journal.state == b""
