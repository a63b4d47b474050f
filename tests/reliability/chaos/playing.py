"""Plays a schedule to a stream, and judges the outcome."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from unittest.mock import patch

import trio
import trio.testing

from trio_agentmail import (
    AgentMailSession,
    CaughtUp,
    Disconnected,
    MessageReceivedEvent,
    Recovery,
    RecoveryFailed,
    open_agentmail_session,
)
from trio_agentmail.testing import FakeAgentMail

from .faults import FAULTS
from .network import ChaosBackend, Wire
from .schedule import LATEST_INDEX, NEWCOMERS, PODS, RECOVERY, SUBSCRIPTIONS, Fault, Mail, Schedule, inbox_is_wanted
from .verdict import Record, Verdict

__all__ = ["Chaos", "run"]


class Chaos:
    """A run in progress: what the faults do things with."""

    def __init__(self, schedule: Schedule, fake: FakeAgentMail, backend: ChaosBackend) -> None:
        self.schedule = schedule
        self.subscribe = SUBSCRIPTIONS[schedule.subscription]
        self.fake = fake
        self.backend = backend
        self.session: AgentMailSession
        self.wire: Wire
        self.records: dict[str, Record] = {}
        self.missing: set[str] = set()
        self.came: list[int] = []
        self.happened: Counter[str] = Counter()
        self.bit: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self.half_open = False
        self.slow_indexing: list[float] = []
        """Seconds after which mail is indexed, one entry for each fault that delays indexing."""
        self.consumer_waits_for = 0
        """The number of faults that keep the consumer from reading."""
        self._waiting: dict[trio.Event, Callable[[], bool]] = {}
        self._breaking = trio.Lock()
        backend.changed = self.changed

    # Mail

    @property
    def in_gap(self) -> bool:
        """Whether a push would reach no connection now."""
        return self.half_open or not self.fake.subscribed

    async def arrive(self, *mails: Mail, held: bool = False) -> None:
        for mail in mails:
            record = self.records[mail.message_id] = Record(mail, held=held, in_gap=self.in_gap)
            if not held and self.is_wanted(mail):
                self.missing.add(mail.message_id)
            if mail.inbox_id in NEWCOMERS:
                self.fake.mail.add_inbox(mail.inbox_id, pod_id=NEWCOMERS[mail.inbox_id])
            most = self.schedule.deepest - (LATEST_INDEX if self.slow_indexing else 0)
            dated = datetime.fromtimestamp(self.fake.now(), UTC) - timedelta(seconds=min(mail.back_dated, most))
            await self.fake.deliver(
                inbox_id=mail.inbox_id,
                event_type=mail.event_type,
                message_id=mail.message_id,
                thread_id=None if mail.thread is None else f"{mail.inbox_id}-{mail.thread}",
                timestamp=dated,
                text=mail.text,
                held=held,
                body_in_push=mail.body_in_push,
            )
            record.in_gap |= self.in_gap

    async def release(self, *mails: Mail) -> None:
        for mail in mails:
            self.records[mail.message_id].held = False
            if self.is_wanted(mail):
                self.missing.add(mail.message_id)
            await self.fake.mail.release(mail.inbox_id, mail.message_id)

    async def delete(self, *mails: Mail) -> None:
        for mail in mails:
            self.records[mail.message_id].deleted = True
            await self.fake.mail.delete(mail.inbox_id, mail.message_id)

    def is_wanted(self, mail: Mail) -> bool:
        types = self.subscribe.event_types or ("message.received",)
        return mail.event_type in types and inbox_is_wanted(self.subscribe, mail.inbox_id)

    # The consumer

    async def consume(self) -> None:
        async for event in self.session.events:
            if self.consumer_waits_for:
                await self.until(lambda: not self.consumer_waits_for, inf)
            if isinstance(event, MessageReceivedEvent):
                record = self.records[event.message.message_id]
                record.came = (*record.came, event.origin)
                record.is_whole = record.is_whole and _is_whole(record.mail, event)
                self.came.append(record.mail.number)
                self.missing.discard(event.message.message_id)
            elif isinstance(event, Disconnected | CaughtUp | RecoveryFailed):
                self.notices[type(event).__name__] += 1
            self.changed()

    def changed(self) -> None:
        """Wake the tasks whose conditions hold now."""
        # The other tasks sleep on: a long run has ten of them, and a million mails.
        for event, condition in self._waiting.items():
            if condition():
                event.set()

    async def until(self, condition: Callable[[], bool], seconds: float, look_every: float = 10.0) -> bool:
        """Wait until a condition holds, and return whether it did within `seconds`."""
        with trio.move_on_after(seconds):
            while not condition():
                event = trio.Event()
                self._waiting[event] = condition
                try:
                    with trio.move_on_after(look_every):  # not every change calls `changed`
                        await event.wait()
                finally:
                    del self._waiting[event]
            return True
        return condition()

    async def steady(self) -> None:
        """Wait until a connection is subscribed, so that it can be broken."""
        await self.until(lambda: not self.in_gap and self.session.state == "subscribed", inf, look_every=0.5)

    def has_come(self, mail: Mail) -> bool:
        return bool(self.records[mail.message_id].came)

    def came_recovered(self, mails: Sequence[Mail]) -> bool:
        return any("recovered" in self.records[mail.message_id].came for mail in mails)

    @asynccontextmanager
    async def breaking(self) -> AsyncIterator[None]:
        """Wait for a subscribed connection, which the block breaks, and at the end for the client's next attempt.

        Faults that overlap break one connection each, one after the other.
        """
        async with self._breaking:
            await self.steady()
            attempts = self.backend.attempts["all"]
            yield
            await self.until(lambda: self.backend.attempts["all"] > attempts, 300)

    @asynccontextmanager
    async def indexing(self, seconds: float) -> AsyncIterator[None]:
        """Mail is indexed late during the block."""
        self.slow_indexing.append(seconds)
        self.fake.mail.index_after(max(self.slow_indexing))
        yield
        self.slow_indexing.remove(seconds)
        self.fake.mail.index_after(max(self.slow_indexing, default=None))

    async def happen(self, fault: Fault) -> None:
        self.happened[fault.kind] += 1
        had_an_effect = await FAULTS[fault.kind](self, fault)
        self.bit[fault.kind] += had_an_effect
        # Not every fault lets these mails arrive, and all mails of the schedule must.
        await self.arrive(*(mail for mail in fault.before if mail.message_id not in self.records))

    def verdict(self, seconds: float) -> Verdict:
        records = self.records.values()
        unwanted = [r.mail for r in records if r.came and (r.held or not r.is_whole or not self.is_wanted(r.mail))]
        return Verdict(
            schedule=self.schedule,
            lost=[r.mail for r in records if not r.came and not r.held and not r.deleted and self.is_wanted(r.mail)],
            twice=[r.mail for r in records if len(r.came) > 1],
            unwanted=unwanted,
            came=self.came,
            recovered=sum(r.came.count("recovered") for r in records),
            in_gaps=sum(r.in_gap for r in records),
            happened=self.happened,
            bit=self.bit,
            notices=self.notices,
            requests=self.backend.statuses.total(),
            statuses=self.backend.statuses,
            connections=self.session.statistics().connections,
            seconds=seconds,
        )


def _is_whole(mail: Mail, event: MessageReceivedEvent) -> bool:
    """Whether a delivery has its text. Only a push may come without it."""
    text = mail.text if mail.body_in_push or event.origin == "recovered" else None
    return event.message.text == text and event.event_type == mail.event_type


def run(
    schedule: Schedule,
    *,
    recovery: Recovery | None = RECOVERY,
    patience: float = 2 * RECOVERY.sweep_interval + 300,
    aftermath: float = RECOVERY.sweep_interval + 60,
    watch: Callable[[Chaos], None] | None = None,
) -> Verdict:
    """Play a schedule to a stream, on the mock clock.

    Args:
        patience: Seconds after the last fault in which all mail must come.
        aftermath: Seconds for which the run then goes on, since a second delivery may be late.
        watch: Called every 15 minutes of the mock clock, and at the end.
    """
    with reproducible(schedule.seed):
        return trio.run(
            partial(_run, schedule, recovery, patience, aftermath, watch),
            clock=trio.testing.MockClock(autojump_threshold=0),
        )


async def _run(
    schedule: Schedule,
    recovery: Recovery | None,
    patience: float,
    aftermath: float,
    watch: Callable[[Chaos], None] | None,
) -> Verdict:
    fake = FakeAgentMail()
    for inbox_id, pod_id in PODS.items():
        fake.mail.add_inbox(inbox_id, pod_id=pod_id)
    backend = ChaosBackend(fake, schedule.skew)
    chaos = Chaos(schedule, fake, backend)

    def wired_pair() -> tuple[Wire, trio.abc.Stream]:
        client_end, server_end = trio.testing.memory_stream_pair()
        chaos.wire = Wire(client_end)
        return chaos.wire, server_end

    fake._websockets.stream_pair = wired_pair
    async with open_agentmail_session(
        chaos.subscribe, backend=backend, recovery=recovery, buffer_size=4
    ) as chaos.session:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chaos.consume)
            if watch is not None:
                nursery.start_soon(_watch, chaos, watch)
            async with trio.open_nursery() as faults:
                for at, step in schedule.steps:
                    await trio.sleep_until(began + at)
                    if isinstance(step, Mail):
                        await chaos.arrive(step)
                    else:
                        faults.start_soon(chaos.happen, step)
            fake.faults.clear()
            fake.mail.index_after(None)
            await chaos.until(lambda: not chaos.missing, patience)
            await trio.sleep(aftermath)
            if watch is not None:
                watch(chaos)
            nursery.cancel_scope.cancel()
        return chaos.verdict(trio.current_time() - began)


async def _watch(chaos: Chaos, watch: Callable[[Chaos], None]) -> None:
    while True:
        watch(chaos)
        await trio.sleep(900)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed the random numbers of the package and of Trio."""
    state = random.getstate()
    random.seed(seed)
    # Trio provides this for tests like this one; see its `_core/_run.py`.
    scheduling = trio._core._run
    scheduling._r.seed(seed)
    try:
        with patch.object(scheduling, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
            yield
    finally:
        random.setstate(state)
