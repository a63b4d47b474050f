"""Chaos: mail that flows through faults, on a schedule that a seed decides, and a judge who knows what the server did.

A schedule is data, drawn before anything runs. `run` plays it to a stream from a `FakeAgentMail` on the mock clock, and
returns a verdict: which mails were lost, which came twice, which came and should not have; how often there was each
fault, and how often it had an effect, since a fault without one shows nothing. The same seed gives the same run, down
to the order in which Trio runs its tasks.

What is promised, and so what counts as lost: a mail that is wanted, that is not held at the end, and that was dated at
most `sweep_depth` before it could be listed. No schedule has others that are wanted, but for those that stay held.
"""

import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from unittest.mock import patch

import attrs
import trio
import trio.testing

from tests.backends import FakeBackend
from trio_agentmail import (
    AgentMailSession,
    ApiError,
    CaughtUp,
    Disconnected,
    MessageReceivedEvent,
    Recovery,
    RecoveryFailed,
    Subscribe,
    open_agentmail_session,
)
from trio_agentmail._websocket import WebSocket
from trio_agentmail.testing import FakeAgentMail

__all__ = ["FAULTS", "RECOVERY", "SUBSCRIPTIONS", "Schedule", "Verdict", "draw_schedule", "run"]

RECOVERY = Recovery(sweep_depth=3600.0)
"""As by default, but for `sweep_depth`: a run is to be long in comparison."""

LATEST_INDEX = 600.0
"""Seconds after which a mail is in the listings, at the latest."""

SPAM = "message.received.spam"

SUBSCRIPTIONS = {
    "key": Subscribe(),
    "pod": Subscribe(pod_ids=["pod-a"]),
    "inboxes": Subscribe(inbox_ids=["a0", "a1", "b0", "late"], event_types=["message.received", SPAM]),
    "pod-and-inbox": Subscribe(pod_ids=["pod-b"], inbox_ids=["a0"]),
}
PODS = {"a0": "pod-a", "a1": "pod-a", "a2": "pod-a", "b0": "pod-b", "b1": "pod-b"}
NEWCOMERS = {"late": "pod-a", "a3": "pod-a", "b2": "pod-b", "a4": "pod-a", "b3": "pod-b"}
"""Inboxes that appear one after the other, by their first mail. The pod is known before."""

BETWEEN_FAULTS = 180.0
"""Seconds, in the mean."""


# The schedule


@attrs.frozen(kw_only=True)
class Mail:
    """A mail that will come.

    Attributes:
        back_dated: Seconds; less than zero: it comes from the future.
        thread: Which of its inbox's threads it is in; None: one of its own.
    """

    number: int
    inbox_id: str
    event_type: str = "message.received"
    back_dated: float = 0.0
    thread: int | None = None
    body_in_push: bool = True

    @property
    def message_id(self) -> str:
        # A Message-ID may hold anything.
        return f"<{self.number}/ä?#%2F@chaos.example>" if self.number % 10 == 0 else f"<{self.number}@chaos.example>"

    @property
    def text(self) -> str:
        return f"text of {self.number}"


@attrs.frozen(kw_only=True)
class Fault:
    """A fault that will happen.

    Attributes:
        kind: The name of the function that makes it.
        seconds: How long it lasts, or how late something is, where that is said nowhere else.
        times: How often something fails.
        code: A close code.
        before: Mails that come just before it.
        mails: Mails that come at its worst moment. The first of them is wanted.
    """

    kind: str
    seconds: float
    times: int
    code: int
    before: tuple[Mail, ...]
    mails: tuple[Mail, ...]


@attrs.frozen
class Schedule:
    """What will happen, and when: seconds from the beginning."""

    seed: int
    subscription: str
    steps: tuple[tuple[float, Mail | Fault], ...]
    skew: float
    """Seconds by which our clock is ahead of AgentMail's."""

    @property
    def mails(self) -> int:
        return sum(1 if isinstance(step, Mail) else len(step.before) + len(step.mails) for _, step in self.steps)

    @property
    def faults(self) -> int:
        return sum(isinstance(step, Fault) for _, step in self.steps)


def draw_schedule(seed: int, subscription: str, *, mails: int, faults: int) -> Schedule:
    """Draw so many mails and faults; every kind of fault is there if there are as many."""
    draw = random.Random(f"{seed} {subscription}")
    duration = faults * BETWEEN_FAULTS
    newcomers = {inbox_id: duration * (number + 1) / (len(NEWCOMERS) + 1) for number, inbox_id in enumerate(NEWCOMERS)}
    wanted_inboxes = [inbox_id for inbox_id in PODS if _inbox_is_wanted(SUBSCRIPTIONS[subscription], inbox_id)]
    number = 0

    def draw_mail(at: float, *, wanted: bool = False, back_dated: float | None = None) -> Mail:
        nonlocal number
        number += 1
        inboxes = wanted_inboxes if wanted else [*PODS, *(inbox for inbox, since in newcomers.items() if since <= at)]
        spam = not wanted and draw.random() < 0.05
        if back_dated is None:
            kind = draw.random()
            back_dated = 0.0
            if kind < 0.05:
                back_dated = draw.uniform(0, RECOVERY.sweep_depth)
            elif kind < 0.07:
                back_dated = -draw.uniform(0, 86_400)
        return Mail(
            number=number,
            inbox_id=draw.choice(inboxes),
            event_type=SPAM if spam else "message.received",
            back_dated=back_dated,
            # What becomes of a thread that has spam in it is AgentMail's business: spam begins threads of its own.
            thread=draw.randrange(5) if not spam and draw.random() < 0.3 else None,
            body_in_push=draw.random() < 0.9,
        )

    kinds = [kind for _ in range(faults // len(FAULTS) + 1) for kind in draw.sample(sorted(FAULTS), len(FAULTS))]
    steps: list[tuple[float, Mail | Fault]] = []
    left = mails
    for kind in kinds[:faults]:
        at = draw.uniform(0, duration)
        # Few, and now and then more than a page of a listing has.
        most = max(1, min(150 if draw.random() < 0.03 else 12, left // 3))
        burst = [draw_mail(at, wanted=index == 0) for index in range(draw.randint(1, most))]
        before = [draw_mail(at) for _ in range(draw.randint(1, most))]
        if kind == "back_dated":
            depths = [draw.uniform(RECOVERY.overlap, RECOVERY.sweep_depth) for _ in burst]
            burst = [attrs.evolve(mail, back_dated=depth) for mail, depth in zip(burst, depths, strict=True)]
        left -= len(burst) + len(before)
        steps.append(
            (
                at,
                Fault(
                    kind=kind,
                    seconds=draw.choice([draw.uniform(0, 10), draw.uniform(0, LATEST_INDEX)]),
                    times=draw.choice([1, 2, 3, 8, 20]),
                    code=draw.choice([1000, 1001, 1006, 1011, 1012, 1013, 1008, 4000]),
                    before=tuple(before),
                    mails=tuple(burst),
                ),
            )
        )
    for _ in range(left):
        at = draw.uniform(0, duration)
        steps.append((at, draw_mail(at)))
    steps.sort(key=lambda step: step[0])
    return Schedule(seed, subscription, tuple(steps), skew=draw.choice([0.0, draw.uniform(-600, 600)]))


def _inbox_is_wanted(subscribe: Subscribe, inbox_id: str) -> bool:
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return True
    return inbox_id in (subscribe.inbox_ids or ()) or (PODS | NEWCOMERS)[inbox_id] in (subscribe.pod_ids or ())


# The network


class Wire(trio.abc.Stream):
    """The client's end of a connection, and all that can happen on the way to it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reading = trio.CancelScope()
        self._was_reset = False
        self._is_jammed = False
        self.slow_until = -inf
        self.slow_reads = 0

    def jam(self) -> None:
        """What comes now gets stuck on its way."""
        self._is_jammed = True

    def reset(self) -> None:
        """What is on its way is lost."""
        self._was_reset = True
        self._reading.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope() as self._reading:
            if self._was_reset:
                self._reading.cancel()
            if trio.current_time() < self.slow_until:
                self.slow_reads += 1
                await trio.sleep(0.5)
                max_bytes = 200
            data = await self._stream.receive_some(max_bytes)
            if self._is_jammed:
                await trio.sleep_forever()
            if not self._was_reset:
                return data
        raise trio.BrokenResourceError("connection reset by peer")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._was_reset:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("connection reset by peer")
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class ChaosBackend(FakeBackend):
    """The fake, whose clock may differ from ours; it counts the attempts to connect, by what became of them."""

    def __init__(self, fake: FakeAgentMail, skew: float) -> None:
        super().__init__(fake)
        self._skew = skew
        self.attempts: Counter[str] = Counter()
        self.changed: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.fake.now() + self._skew

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        self.attempts["all"] += 1
        self.changed()
        try:
            async with self.fake.open_websocket(
                url, headers=headers, max_message_size=max_message_size, ssl_context=ssl_context
            ) as websocket:
                yield websocket
        except ConnectionRefusedError:
            self.attempts["refused"] += 1
            raise
        except ApiError as exc:
            self.attempts[str(exc.status_code)] += 1
            raise


# The run


@attrs.define
class Record:
    """What has become of a mail."""

    mail: Mail
    held: bool = False
    deleted: bool = False
    in_gap: bool = False
    came: list[MessageReceivedEvent] = attrs.field(factory=list)


@attrs.define(kw_only=True)
class Verdict:
    """What has become of a schedule."""

    schedule: Schedule
    lost: list[Mail]
    twice: list[Mail]
    unwanted: list[Mail]
    """Held, deleted before it could be found, or of no interest; or without its text."""
    came: list[int]
    """The numbers of the mails, in the order in which they came."""
    recovered: int
    in_gaps: int
    """Mails that came when there was nobody to push them to."""
    happened: Counter[str]
    """How often there was each fault,"""
    bit: Counter[str]
    """and how often it had an effect."""
    notices: Counter[str]
    requests: int
    statuses: Counter[int | None]
    """Of the requests; None: there was no answer."""
    connections: int
    seconds: float
    """On the mock clock."""

    def __str__(self) -> str:
        s = self.schedule
        kinds = ", ".join(f"{kind} {self.bit[kind]}/{self.happened[kind]}" for kind in sorted(self.happened))
        return (
            f"seed {s.seed}, subscription {s.subscription}: {s.mails} mails, {s.faults} faults in "
            f"{self.seconds / 3600:.1f} h\n"
            f"  lost {len(self.lost)}, twice {len(self.twice)}, unwanted {len(self.unwanted)}; "
            f"recovered {self.recovered}, came in gaps {self.in_gaps}, connections {self.connections}\n"
            f"  REST requests {self.requests}, per fault {self.requests / max(1, s.faults):.1f}; "
            f"by status {dict(self.statuses)}\n"
            f"  notices {dict(self.notices)}\n"
            f"  faults that had an effect, of all: {kinds}"
        )


class Chaos:
    """A run under way, as the faults see it."""

    def __init__(self, schedule: Schedule, fake: FakeAgentMail, backend: ChaosBackend) -> None:
        self.schedule = schedule
        self.subscribe = SUBSCRIPTIONS[schedule.subscription]
        self.fake = fake
        self.backend = backend
        self.session: AgentMailSession
        self.wires: list[Wire] = []
        self.records: dict[str, Record] = {}
        self.missing: set[str] = set()
        self.came: list[int] = []
        self.happened: Counter[str] = Counter()
        self.bit: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self.half_open = False
        self.indexing_is_slow = False
        self.consumer_waits_for = 0
        """How many other things the consumer has to do."""
        self._changed = trio.Event()
        backend.changed = self.changed

    # What is pushed, and to whom

    @property
    def in_gap(self) -> bool:
        """Whether nobody hears what is pushed now."""
        return self.half_open or not self.fake.subscribed

    async def arrive(self, *mails: Mail, held: bool = False) -> None:
        for mail in mails:
            record = self.records[mail.message_id] = Record(mail, held=held, in_gap=self.in_gap)
            if not held and self.is_wanted(mail):
                self.missing.add(mail.message_id)
            if mail.inbox_id in NEWCOMERS:
                self.fake.add_inbox(mail.inbox_id, pod_id=NEWCOMERS[mail.inbox_id])
            most = RECOVERY.sweep_depth - (LATEST_INDEX if self.indexing_is_slow else 0)
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
            await self.fake.release(mail.inbox_id, mail.message_id)

    async def delete(self, *mails: Mail) -> None:
        for mail in mails:
            self.records[mail.message_id].deleted = True
            await self.fake.delete(mail.inbox_id, mail.message_id)

    def is_wanted(self, mail: Mail) -> bool:
        types = self.subscribe.event_types or ("message.received",)
        return mail.event_type in types and _inbox_is_wanted(self.subscribe, mail.inbox_id)

    # What came of it

    async def consume(self) -> None:
        async for event in self.session.events:
            await self.until(lambda: not self.consumer_waits_for, inf)
            if isinstance(event, MessageReceivedEvent):
                record = self.records[event.message.message_id]
                record.came.append(event)
                self.came.append(record.mail.number)
                self.missing.discard(event.message.message_id)
            elif isinstance(event, Disconnected | CaughtUp | RecoveryFailed):
                self.notices[type(event).__name__] += 1
            self.changed()

    def changed(self) -> None:
        """Something has happened for which somebody may wait."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until it is so; False: so many seconds were not enough."""
        with trio.move_on_after(seconds):
            while not condition():
                with trio.move_on_after(10):  # what is not told
                    await self._changed.wait()
            return True
        return condition()

    async def steady(self) -> None:
        """Wait until there is a connection that could be broken."""
        while self.in_gap or self.session.state != "subscribed":  # noqa: ASYNC110  not all of that is an event
            await trio.sleep(0.1)

    def has_come(self, mail: Mail) -> bool:
        return bool(self.records[mail.message_id].came)

    def came_recovered(self, mails: Sequence[Mail]) -> bool:
        return any(event.origin == "recovered" for mail in mails for event in self.records[mail.message_id].came)

    @asynccontextmanager
    async def breaking(self) -> AsyncIterator[None]:
        """What breaks the connection in this block is waited for: the client has to make another one."""
        attempts = self.backend.attempts["all"]
        yield
        await self.until(lambda: self.backend.attempts["all"] > attempts, 300)

    async def happen(self, fault: Fault) -> None:
        self.happened[fault.kind] += 1
        had_an_effect = await FAULTS[fault.kind](self, fault)
        self.bit[fault.kind] += had_an_effect

    def verdict(self, seconds: float) -> Verdict:
        records = self.records.values()
        unwanted = [
            r.mail
            for r in records
            if r.came
            and (r.held or not self.is_wanted(r.mail) or any(not _is_whole(r.mail, event) for event in r.came))
        ]
        return Verdict(
            schedule=self.schedule,
            lost=[r.mail for r in records if not r.came and not r.held and not r.deleted and self.is_wanted(r.mail)],
            twice=[r.mail for r in records if len(r.came) > 1],
            unwanted=unwanted,
            came=self.came,
            recovered=sum(event.origin == "recovered" for r in records for event in r.came),
            in_gaps=sum(r.in_gap for r in records),
            happened=self.happened,
            bit=self.bit,
            notices=self.notices,
            requests=len(self.fake.requests),
            statuses=Counter(request.status for request in self.fake.requests),
            connections=self.session.statistics().connections,
            seconds=seconds,
        )


def _is_whole(mail: Mail, event: MessageReceivedEvent) -> bool:
    """A push may come without its text; what was recovered may not."""
    text = mail.text if mail.body_in_push or event.origin == "recovered" else None
    return event.message.text == text and event.event_type == mail.event_type


def run(schedule: Schedule, *, recovery: Recovery | None = RECOVERY) -> Verdict:
    """Play a schedule to a stream, on the mock clock."""
    with reproducible(schedule.seed):
        return trio.run(partial(_run, schedule, recovery), clock=trio.testing.MockClock(autojump_threshold=0))


async def _run(schedule: Schedule, recovery: Recovery | None) -> Verdict:
    fake = FakeAgentMail()
    for inbox_id, pod_id in PODS.items():
        fake.add_inbox(inbox_id, pod_id=pod_id)
    backend = ChaosBackend(fake, schedule.skew)
    chaos = Chaos(schedule, fake, backend)

    def wired_pair() -> tuple[Wire, trio.abc.Stream]:
        client_end, server_end = trio.testing.memory_stream_pair()
        chaos.wires.append(Wire(client_end))
        return chaos.wires[-1], server_end

    fake._stream_pair = wired_pair
    async with open_agentmail_session(
        chaos.subscribe, backend=backend, recovery=recovery, buffer_size=4
    ) as chaos.session:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chaos.consume)
            async with trio.open_nursery() as faults:
                for at, step in schedule.steps:
                    await trio.sleep_until(began + at)
                    if isinstance(step, Mail):
                        await chaos.arrive(step)
                    else:
                        faults.start_soon(chaos.happen, step)
            fake.clear_faults()
            fake.index_after(None)
            # A look that has just failed is followed by one a sweep later; and what came twice may come late.
            await chaos.until(lambda: not chaos.missing, 2 * RECOVERY.sweep_interval + 300)
            await trio.sleep(RECOVERY.sweep_interval + 60)
            nursery.cancel_scope.cancel()
        return chaos.verdict(trio.current_time() - began)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """What is random in the package and in Trio is decided by the seed."""
    state = random.getstate()
    random.seed(seed)
    # Trio's own, for tests like this one (its `_core/_run.py` says so).
    scheduling = trio._core._run
    scheduling._r.seed(seed)
    try:
        with patch.object(scheduling, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
            yield
    finally:
        random.setstate(state)


# The faults. Each says whether it had an effect.


async def cut(chaos: Chaos, fault: Fault) -> bool:
    """The connection ends without a word."""
    await chaos.steady()
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return chaos.records[fault.mails[0].message_id].in_gap


async def reset(chaos: Chaos, fault: Fault) -> bool:
    """The connection is reset, and what was on its way is lost."""
    await chaos.steady()
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        wire = chaos.wires[-1]
        wire.jam()
        await chaos.arrive(*fault.mails)
        await trio.sleep(fault.seconds / 100)
        wire.reset()
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def half_open(chaos: Chaos, fault: Fault) -> bool:
    """The connection stays open, and nothing goes through it any more."""
    await chaos.steady()
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        chaos.fake.go_silent()
        chaos.half_open = True
        await chaos.arrive(*fault.mails)
    chaos.half_open = False
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def close_code(chaos: Chaos, fault: Fault) -> bool:
    """The server closes, with whatever code."""
    await chaos.steady()
    async with chaos.breaking():
        await chaos.arrive(*fault.before)
        await chaos.fake.drop_connections(fault.code if fault.code != 1006 else 1002)
        await chaos.arrive(*fault.mails)
    return chaos.records[fault.mails[0].message_id].in_gap


async def refused(chaos: Chaos, fault: Fault) -> bool:
    """After a cut there is nobody, for some attempts."""
    await chaos.steady()
    before = chaos.backend.attempts["refused"]
    chaos.fake.refuse_connections(fault.times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["refused"] >= before + fault.times, 3600)


async def unavailable(chaos: Chaos, fault: Fault) -> bool:
    """After a cut the server answers 503, for some attempts, and says when to come again."""
    await chaos.steady()
    before = chaos.backend.attempts["503"]
    headers = [("Retry-After", str(int(fault.seconds)))] if fault.times == 1 else []
    chaos.fake.reject_handshakes(503, headers=headers, times=fault.times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["503"] >= before + fault.times, 3600)


async def unanswered(chaos: Chaos, fault: Fault) -> bool:
    """After a cut handshakes or subscriptions are not answered."""
    await chaos.steady()
    before = chaos.backend.attempts["all"]
    times = min(fault.times, 3)
    (chaos.fake.hang_handshakes if fault.code < 1010 else chaos.fake.withhold_confirmations)(times)
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.backend.attempts["all"] > before + times, 3600)


async def flapping(chaos: Chaos, fault: Fault) -> bool:
    """The server confirms and cuts, several times; mail comes in every gap."""
    await chaos.steady()
    before = chaos.backend.attempts["all"]
    chaos.fake.drop_after_confirming(fault.times)
    await chaos.fake.drop_connections()
    for mail in fault.mails:
        await chaos.arrive(mail)
        await trio.sleep(fault.seconds / 100)
    return await chaos.until(lambda: chaos.backend.attempts["all"] > before + fault.times, 3600)


async def slow(chaos: Chaos, fault: Fault) -> bool:
    """What is sent trickles in."""
    await chaos.steady()
    wire = chaos.wires[-1]
    wire.slow_until = trio.current_time() + max(fault.seconds, 30)
    before = wire.slow_reads
    await chaos.arrive(*fault.before, *fault.mails)
    await trio.sleep_until(wire.slow_until)
    return wire.slow_reads > before


async def slow_consumer(chaos: Chaos, fault: Fault) -> bool:
    """The consumer does something else, while mail that was missed waits for it; and then another cut comes."""
    await chaos.steady()
    chaos.consumer_waits_for += 1
    await chaos.arrive(*fault.before)
    await chaos.fake.drop_connections()
    await chaos.arrive(*fault.mails)
    with trio.move_on_after(60 + fault.seconds):  # while the consumer has no room, the cut may not even be noticed
        await chaos.steady()
        await trio.sleep(fault.seconds / 2)
    is_behind = not chaos.has_come(fault.mails[0])
    await chaos.fake.drop_connections()
    await trio.sleep(fault.seconds / 2)
    chaos.consumer_waits_for -= 1
    return is_behind


async def duplicated(chaos: Chaos, fault: Fault) -> bool:
    """Mails are pushed several times."""
    await chaos.steady()
    before = chaos.session.statistics().duplicates
    chaos.fake.duplicate_pushes(len(fault.mails), copies=1 + fault.times % 3)
    await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: chaos.session.statistics().duplicates > before, 60)


async def swallowed(chaos: Chaos, fault: Fault) -> bool:
    """Mails are not pushed, though there is a connection."""
    await chaos.steady()
    chaos.fake.swallow_pushes(len(fault.mails))
    await chaos.arrive(*fault.mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def reordered(chaos: Chaos, fault: Fault) -> bool:
    """Mails are pushed in another order."""
    await chaos.steady()
    mails = (*fault.before, *fault.mails)
    chaos.fake.reorder_pushes(len(mails))
    await chaos.arrive(*mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    numbers = [mail.number for mail in mails]
    order = [number for number in chaos.came if number in numbers]
    return order != sorted(order) or len(order) == 1


async def pushed_late(chaos: Chaos, fault: Fault) -> bool:
    """Mails are pushed late, when they may have been found already."""
    await chaos.steady()
    chaos.fake.delay_pushes(fault.seconds, len(fault.mails))
    await chaos.arrive(*fault.mails)
    await trio.sleep(fault.seconds / 2)
    is_late = not chaos.has_come(fault.mails[0]) or chaos.came_recovered(fault.mails)
    if fault.times < 3:
        await chaos.fake.drop_connections()
    return is_late


async def back_dated(chaos: Chaos, fault: Fault) -> bool:
    """Mails come in a gap that are dated before what is listed at once, or are swallowed."""
    await chaos.steady()
    if fault.times < 3:
        chaos.fake.swallow_pushes(len(fault.mails))
    else:
        await chaos.fake.drop_connections()
    await chaos.arrive(*fault.mails)
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def indexed_late(chaos: Chaos, fault: Fault) -> bool:
    """Mails come in a gap, and are not in the listings yet when the connection is back."""
    await chaos.steady()
    chaos.fake.index_after(fault.seconds)
    chaos.indexing_is_slow = True
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    await trio.sleep(fault.seconds)
    chaos.fake.index_after(None)
    chaos.indexing_is_slow = False
    await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800)
    return chaos.came_recovered(fault.mails)


async def released_in_gap(chaos: Chaos, fault: Fault) -> bool:
    """Mails are held, and some are released late, in a gap."""
    await chaos.arrive(*fault.before, *fault.mails, held=True)
    return await _release_late(chaos, fault)


async def held_in_gap(chaos: Chaos, fault: Fault) -> bool:
    """Mails are held in a gap, so that nobody hears of it, and some are released late, in another one."""
    await chaos.steady()
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        in_gap = chaos.in_gap
        await chaos.arrive(*fault.before, *fault.mails, held=True)
    return await _release_late(chaos, fault) and in_gap


async def _release_late(chaos: Chaos, fault: Fault) -> bool:
    await trio.sleep(fault.seconds * 10)
    await chaos.steady()
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        in_gap = chaos.in_gap
        await chaos.release(*fault.mails)
    return in_gap


async def released_at_once(chaos: Chaos, fault: Fault) -> bool:
    """Mails are held and released while there is a connection; some are deleted instead."""
    await chaos.steady()
    await chaos.arrive(*fault.before, *fault.mails, held=True)
    await trio.sleep(fault.seconds)
    was_held = not chaos.has_come(fault.mails[0])
    await chaos.release(*fault.mails)
    await chaos.delete(*fault.before)
    return await chaos.until(lambda: chaos.has_come(fault.mails[0]), 1800) and was_held


async def too_many_requests(chaos: Chaos, fault: Fault) -> bool:
    """The REST API answers 429 while mail is to be recovered."""
    chaos.fake.fail_requests(429, headers=[("Retry-After", str(int(fault.seconds / 20)))], times=fault.times)
    return await _requests_fail(chaos, fault, 429)


async def server_error(chaos: Chaos, fault: Fault) -> bool:
    """The REST API answers 500 while mail is to be recovered."""
    chaos.fake.fail_requests(500, times=fault.times)
    return await _requests_fail(chaos, fault, 500)


async def no_answer(chaos: Chaos, fault: Fault) -> bool:
    """The REST API does not answer while mail is to be recovered."""
    chaos.fake.hang_requests(fault.times)
    return await _requests_fail(chaos, fault, None)


async def requests_reset(chaos: Chaos, fault: Fault) -> bool:
    """Connections to the REST API break while mail is to be recovered."""
    chaos.fake.break_requests(fault.times)
    return await _requests_fail(chaos, fault, None)


async def _requests_fail(chaos: Chaos, fault: Fault, status: int | None) -> bool:
    def failed() -> int:
        return sum(request.status == status for request in chaos.fake.requests)

    before = failed()
    await chaos.steady()
    async with chaos.breaking():
        await chaos.fake.drop_connections()
        await chaos.arrive(*fault.mails)
    return await chaos.until(lambda: failed() >= before + fault.times, 3600)


FAULTS: dict[str, Callable[[Chaos, Fault], Awaitable[bool]]] = {
    function.__name__: function
    for function in (
        cut,
        reset,
        half_open,
        close_code,
        refused,
        unavailable,
        unanswered,
        flapping,
        slow,
        slow_consumer,
        duplicated,
        swallowed,
        reordered,
        pushed_late,
        back_dated,
        indexed_late,
        released_in_gap,
        held_in_gap,
        released_at_once,
        too_many_requests,
        server_error,
        no_answer,
        requests_reset,
    )
}
