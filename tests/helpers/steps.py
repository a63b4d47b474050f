"""Plays a story once for each of its scheduling steps, interrupts it there, and judges the outcome.

`tell` plays the story to a stream with a journal, on the mock clock: enter, receive, lose the connection, recover,
subscribe to more, ack, process, fail, leave. Before one of its steps, which is one step of any of Trio's tasks, the
first life of the program is cancelled, killed, or stopped by `session.stop()`. A second life then begins on the same
journal, with the subscription that was in force. The same story takes the same steps each time: Trio's scheduling is
decided by a seed.

A kill leaves the files as they are at that moment, so they are copied then, and the second life gets the copy. Nothing
is trusted to stop writing: what the first life does after its death is in the other files. Between two steps no
transaction is under way, since `FakeAgentMail.run_sync` calls functions in the event loop.

What is promised, and so what counts as lost: mail to A that came after the first subscription had been confirmed, and
mail to B that came after `session.subscribe()` had returned, each by more than `SECOND`. A mail is handled when its
handler has ended, in either life; what a program does after its death does not count.
"""

import logging
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from unittest.mock import patch

import attrs
import trio
import trio.testing

from tests.reliability.chaos.playing import reproducible
from trio_agentmail import (
    AgentMailSession,
    MessageReceivedEvent,
    ReconnectPolicy,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    open_agentmail_session,
)
from trio_agentmail.testing import FakeAgentMail

__all__ = [
    "BEHIND",
    "BOTH",
    "ONE",
    "PROMPT",
    "QUICK",
    "SEED",
    "A",
    "B",
    "End",
    "Hasty",
    "Interruption",
    "Life",
    "Plot",
    "Verdict",
    "new_folder",
    "shape",
    "simulated",
    "tell",
]

T = TypeVar("T")

SEED = int(os.environ.get("STEPS_SEED", random.randrange(2**32)))
"""Decides Trio's scheduling, and which steps the quick tests take."""

A, B = "a@agentmail.to", "b@agentmail.to"
ONE, BOTH = Subscribe(inbox_ids=[A]), Subscribe(inbox_ids=[A, B])
QUICK = ReconnectPolicy(initial_delay=0.5, max_delay=2.0)
RETRY_DELAY = 5.0

SECOND = 1.0
"""Clocks are compared to about a second: mail of the second in which a stream begins may count as older than it."""

LONG_ENOUGH = 700.0
"""Seconds of the second life: the look at its gap, and three sweeps."""

End: TypeAlias = Literal["cancelled", "killed", "stopped"]
"""How a life ends before its time: `stopped` is `session.stop()`, after which the consumer goes on to the end."""


@attrs.frozen
class Plot:
    """What differs from one story to another.

    Attributes:
        max_pending: The journal's `max_pending`.
        buffer_size: The stream's `buffer_size`.
        pauses: Whether the consumer takes nothing while the subscription is replaced, and more mail waits than the
            journal has room for.
        restarts: Whether the journal is that of an earlier life, which left mail in it, and mail came since.
    """

    name: str
    max_pending: int = 10_000
    buffer_size: int = 64
    pauses: bool = False
    restarts: bool = False

    def __str__(self) -> str:
        return self.name


PROMPT = Plot("first start, prompt consumer")
BEHIND = Plot("restart, consumer behind", max_pending=4, buffer_size=1, pauses=True, restarts=True)


# On the mock clock


class Hasty(sqlite3.Connection):
    """Skip waiting for the disk. What a process has handed to the kernel outlives it; this is no power failure."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), parameters)


def simulated(function: Callable[[], Awaitable[T]], seed: int = SEED) -> T:
    """Run a function on the mock clock, with the scheduling of the seed. Thousands of runs log nothing."""
    with (
        reproducible(seed),
        patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=Hasty)),
        patch.object(logging.getLogger("trio_agentmail"), "disabled", True),
    ):
        return trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


def new_folder(inside: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=inside))


# Steps


class Interruption(trio.abc.Instrument):
    """Counts scheduling steps, and calls `strike` before the chosen one.

    Attributes:
        place: The task that was about to run, and its line.
        steps: The number of steps so far.
    """

    def __init__(self, step: int | None, strike: Callable[[], None], watch: Callable[[], None] = lambda: None) -> None:
        self._step = step
        self._strike = strike
        self._watch = watch
        self.place: str | None = None
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._watch()
        if self.steps == self._step:
            # This comes first: Trio drops an instrument that raises. Then there is no place, and the caller says so.
            place = place_of(task)
            self._strike()
            self.place = place
        self.steps += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)


def place_of(task: trio.lowlevel.Task) -> str:
    """Return the task, and the innermost line of this project at which it waits."""
    lines = [(Path(frame.f_code.co_filename), line) for frame, line in task.iter_await_frames()]
    ours = [(path, line) for path, line in lines if {"trio_agentmail", "tests"} & set(path.parts)] or lines
    path, line = ours[-1] if ours else (Path("nowhere"), 0)
    return f"{'.'.join(task.name.split('.')[-2:])} at {path.name}:{line}"


# What happens


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@attrs.define
class Life:
    """What one life of the program saw and did, by message. Nothing is added after its death.

    Attributes:
        given: Mails that the stream yielded.
        handled: Mails whose handler ended.
        acked: Mails whose ack returned.
        failed: Mails whose last delivery attempt failed.
        twice: Mails that were delivered again although no attempt had failed.
        subscribed: When `subscribe()` returned.
        ready: Set while the consumer handles mail.
    """

    dead: bool = False
    subscribed: float | None = None
    ready: trio.Event = attrs.field(factory=_set_event)
    given: list[str] = attrs.field(factory=list)
    origins: set[str] = attrs.field(factory=set)
    handled: set[str] = attrs.field(factory=set)
    acked: set[str] = attrs.field(factory=set)
    failed: set[str] = attrs.field(factory=set)
    twice: list[str] = attrs.field(factory=list)

    def give(self, name: str, origin: str) -> None:
        if self.dead:
            return
        if name in self.given and not (name in self.failed and origin == "redelivered"):
            self.twice.append(name)
        self.given.append(name)
        self.origins.add(origin)
        self.failed.discard(name)

    def handle(self, name: str) -> None:
        if not self.dead:
            self.handled.add(name)

    def fail(self, name: str) -> None:
        if not self.dead:
            self.failed.add(name)

    def ack(self, name: str) -> None:
        if not self.dead:
            self.acked.add(name)

    def subscribe(self) -> None:
        if not self.dead:
            self.subscribed = trio.current_time()


@attrs.define(kw_only=True)
class Verdict:
    """The outcome of a story.

    Attributes:
        place: See `Interruption`; None if nothing was interrupted.
        lost: Mails that were promised and handled in neither life.
        again: Mails of the second life that were acknowledged in the first.
        twice: Mails that were delivered twice in one life.
        raised: Exceptions that should not have come out of either life. A refused second life is among them.
    """

    plot: Plot
    end: End | None
    step: int | None
    place: str | None
    steps: int
    lost: list[str]
    again: list[str]
    twice: list[str]
    raised: list[str]
    first: Life
    second: Life

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of errors."""
        wrong = {"lost": self.lost, "again after its ack": self.again, "twice in a life": self.twice}
        return (*(kind for kind, names in wrong.items() if names), *self.raised)

    def __str__(self) -> str:
        return (
            f"{self.plot}, {self.end} before step {self.step} of {self.place}: lost {self.lost}, again after its ack "
            f"{self.again}, twice in a life {self.twice}, raised {self.raised}; subscribe() had "
            f"{'' if self.first.subscribed is not None else 'not '}returned"
        )


class World:
    """AgentMail, which outlives the program, and what the program was promised."""

    def __init__(self, plot: Plot) -> None:
        self.plot = plot
        self.fake = FakeAgentMail()
        self.first, self.second = Life(), Life()
        self.confirmed: float | None = None
        self.promised: list[str] = []

    def watch(self) -> None:
        """Note when the first subscription is confirmed."""
        if self.confirmed is None and self.fake.subscribed:
            self.confirmed = trio.current_time()

    async def deliver(self, inbox_id: str, *names: str) -> None:
        for name in names:
            returned = [life.subscribed for life in (self.first, self.second) if life.subscribed is not None]
            since = self.confirmed if inbox_id == A else min(returned, default=None)
            if since is not None and trio.current_time() - since > SECOND:
                self.promised.append(name)
            await self.fake.deliver(inbox_id=inbox_id, subject=name, message_id=f"<{name}@steps.example>")

    def journal(self, path: Path) -> SQLiteJournal:
        return SQLiteJournal(path, retry_delay=RETRY_DELAY, max_pending=self.plot.max_pending)

    def session(
        self, journal: SQLiteJournal, subscribe: Subscribe, ping_interval: float | None
    ) -> AbstractAsyncContextManager[AgentMailSession]:
        return open_agentmail_session(
            subscribe,
            backend=self.fake,
            journal=journal,
            reconnect=QUICK,
            ping_interval=ping_interval,
            buffer_size=self.plot.buffer_size,
        )


async def earlier_life(world: World, path: Path) -> None:
    """A first life that handles nothing, except that it begins to handle one mail."""
    journal = world.journal(path)
    async with world.session(journal, ONE, ping_interval=None) as session:
        world.watch()
        await trio.sleep(2 * SECOND)
        await world.deliver(A, "a50", "a51 difficult")
        assert isinstance(await session.events.receive(), Subscribed)
        async with journal.processing(await session.events.receive()):
            await trio.sleep(0.1)
            raise ValueError("not yet")
    await trio.sleep(1)
    await world.deliver(A, "a52", "a53")
    await trio.sleep(1)


async def first_life(world: World, path: Path, stopping: trio.Event) -> None:
    async def stop() -> None:
        await stopping.wait()
        await session.stop()

    life, deliver = world.first, world.deliver
    journal = world.journal(path)
    async with world.session(journal, ONE, ping_interval=20.0) as session, trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        nursery.start_soon(consume, life, session, journal)
        await trio.sleep(2 * SECOND)
        await deliver(A, "a1", "a2 difficult", "a3")
        await trio.sleep(1)
        async with world.fake.faults.outage():
            await deliver(A, "a4", "a5 difficult", "a6")
            await trio.sleep(1)
        await deliver(A, "a7")  # while the gap is still open
        await trio.sleep(15)
        if world.plot.pauses:
            life.ready = trio.Event()
        await deliver(A, *[f"a{number}" for number in range(10, 18)])
        nursery.start_soon(deliver, A, "a18", "a19")
        try:
            await session.subscribe(BOTH)
            life.subscribe()
        except trio.ClosedResourceError:
            if not stopping.is_set():
                raise
        await deliver(B, "b20")  # this soon, only its push is promised
        await deliver(A, "a21")
        await trio.sleep(2 * SECOND)
        await deliver(B, "b22", "b23", "b24 difficult")
        await deliver(A, "a25")
        await trio.sleep(1)
        life.ready.set()
        async with world.fake.faults.outage():
            await deliver(B, "b26")
            await deliver(A, "a27 difficult")
            await trio.sleep(1)
        await trio.sleep(40)  # the second look is over
        await deliver(B, "b28")
        await trio.sleep(2)
        nursery.cancel_scope.cancel()


async def second_life(world: World, path: Path) -> None:
    life = world.second
    journal = world.journal(path)
    in_force = ONE if world.first.subscribed is None else BOTH
    async with world.session(journal, in_force, ping_interval=None) as session, trio.open_nursery() as nursery:
        nursery.start_soon(consume, life, session, journal)
        if world.first.subscribed is None:
            await session.subscribe(BOTH)
            life.subscribe()
        await trio.sleep(2 * SECOND)
        await world.deliver(A, "a31")
        await world.deliver(B, "b32")
        await trio.sleep(LONG_ENOUGH)
        nursery.cancel_scope.cancel()


async def consume(life: Life, session: AgentMailSession, journal: SQLiteJournal) -> None:
    """Handle mail, every third with a plain ack. The first attempt at a difficult mail fails."""
    async for event in session.events:
        if not isinstance(event, MessageReceivedEvent):
            continue
        name = event.message.subject
        assert name is not None
        life.give(name, event.origin)
        await life.ready.wait()
        if name.endswith(("3", "6", "9")):
            await trio.sleep(0.1)
            life.handle(name)
            await journal.ack(event)
            life.ack(name)
            continue
        async with journal.processing(event):
            await trio.sleep(0.1)
            if "difficult" in name and event.attempt == 1:
                life.fail(name)
                raise ValueError("not yet")
            life.handle(name)
        if name in life.handled:
            life.ack(name)


def tell(plot: Plot, inside: Path, end: End | None = None, step: int | None = None, *, seed: int = SEED) -> Verdict:
    """Play the story.

    Args:
        inside: Where the journals get a folder of their own.
        end: How the first life ends before `step`. None: it does not, and the second life begins after it.
    """
    return simulated(partial(_tell, plot, new_folder(inside), end, step), seed)


async def _tell(plot: Plot, folder: Path, end: End | None, step: int | None) -> Verdict:
    world = World(plot)
    path, copied = folder / "agent.db", folder / "copy.db"
    first, stopping = trio.CancelScope(), trio.Event()

    def strike() -> None:
        if end == "stopped":
            stopping.set()
            return
        if end == "killed":
            world.first.dead = True
            copy_journal(path, copied)
        first.cancel()

    interruption = Interruption(step, strike, world.watch)
    raised = []
    if plot.restarts:
        await earlier_life(world, path)
    with interruption.counting():
        try:
            with first, trio.fail_after(LONG_ENOUGH):
                await first_life(world, path, stopping)
        except Exception as exc:  # noqa: BLE001  the judge tells of it
            raised.append(f"first life: {shape(exc)}")
    await trio.sleep(3 * SECOND)
    if world.fake.connected:
        raised.append("first life: still connected")
    await world.deliver(A, "a29")
    await world.deliver(B, "b30")
    await trio.sleep(3 * SECOND)
    try:
        with trio.fail_after(2 * LONG_ENOUGH):
            await second_life(world, copied if end == "killed" else path)
    except Exception as exc:  # noqa: BLE001  the judge tells of it
        raised.append(f"second life: {shape(exc)}")
    handled = world.first.handled | world.second.handled
    return Verdict(
        plot=plot,
        end=end,
        step=step,
        place=interruption.place,
        steps=interruption.steps,
        lost=[name for name in world.promised if name not in handled],
        again=[name for name in world.second.given if name in world.first.acked],
        twice=[*world.first.twice, *world.second.twice],
        raised=raised,
        first=world.first,
        second=world.second,
    )


def copy_journal(path: Path, copied: Path) -> None:
    """Copy what a process that dies now leaves: the database and its write-ahead log."""
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, copied.with_name(copied.name + suffix))


def shape(exc: BaseException) -> str:
    """Return the name of its class; for a group, also the names of the classes in it."""
    if not isinstance(exc, BaseExceptionGroup):
        return type(exc).__name__
    return f"{type(exc).__name__}[{', '.join(sorted(map(shape, exc.exceptions)))}]"
