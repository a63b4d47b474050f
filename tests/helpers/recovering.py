"""A recoverer on its own, with a REST API, an outbox and a journal that the test controls."""

import json
import math
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx2
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers.rest_api import EPOCH, Api, RestBackend, asked_key, settings
from trio_agentmail import CaughtUp, Event, MessageReceivedEvent, Recovery, RecoveryFailed, Subscribe, decode_event
from trio_agentmail._channel import Abandoned
from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._outbox import Outbox
from trio_agentmail._recovery.recoverer import Recoverer
from trio_agentmail._recovery.rest import Pace
from trio_agentmail._recovery.source import Counts, Scan, Source, Target
from trio_agentmail._unwritten import Unwritten
from trio_agentmail.events import Notice

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


def pages_of(mails: list[dict[str, Any]], path: str = A) -> dict[str, Any]:
    """The answers of an API whose listing honours `after` and has one mail per page; and each mail with its body."""

    def answer(request: httpx2.Request) -> dict[str, Any]:
        after = datetime.fromisoformat(request.url.params["after"])
        page = int(request.url.params.get("page_token", 0))
        listed = [m for m in mails if datetime.fromisoformat(m["timestamp"]) >= after]
        return {"messages": listed[page : page + 1], "next_page_token": str(page + 1) if page + 1 < len(listed) else ""}

    listings = {f"{path}?{page}": answer for page in range(1, len(mails))}
    return {path: answer} | listings | {f"{path}/{m['message_id']}": m | {"text": ""} for m in mails}


def large(**more: Any) -> MessageReceivedEvent:
    message = {"inbox_id": "a", "message_id": "<m/1>", "subject": "pushed"} | more
    event = decode_event(json.dumps({"event_type": "message.received", "event_id": "e", "message": message, "new": 1}))
    assert isinstance(event, MessageReceivedEvent)
    return event


PATH = f"{A}/%3Cm%2F1%3E"
