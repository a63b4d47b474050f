"""Any interleaving of operations on a journal, against a model of plain lists."""

import math
import tempfile
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import event as note
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.journals import SCOPE, Disk, Engine, identities, mail, new_engine
from trio_agentmail import Disconnected, MessageReceivedEvent
from trio_agentmail._identity import identity

from .conftest import ENGINES

ATTEMPTS, DELAY, ALONE = 2, 60.0, 60.0
GAP = Disconnected(reason="cut")

PHASES = [phase for phase in Phase if phase is not Phase.explain]  # which takes minutes

OPERATIONS = {
    "record": 6,
    "record again": 2,
    "notice": 1,
    "next": 10,
    "ack": 2,
    "succeed": 2,
    "fail": 3,
    "cancel": 1,
    "begin": 4,
    "end": 2,
    "wait": 3,
    "close": 2,
    "crash": 2,
    "requeue": 1,
    "drop": 1,
}
STEPS = st.lists(
    st.tuples(st.sampled_from([name for name, weight in OPERATIONS.items() for _ in range(weight)]), st.integers(0, 5)),
    min_size=20,
    max_size=80,
)


@attrs.define
class Model:
    """What a journal must deliver: numbers of events, and gaps."""

    handled: set[int] = attrs.field(factory=set)
    dead: list[int] = attrs.field(factory=list)
    attempts: dict[int, int] = attrs.field(factory=dict)  # of all pending events
    suspected: set[int] = attrs.field(factory=set)  # as stored: attempts that have begun and not ended
    recorded: list[int] = attrs.field(factory=list)
    # In this run:
    suspects: list[int] = attrs.field(factory=list)
    retries: list[tuple[float, int]] = attrs.field(factory=list)
    waiting: list[int | Disconnected] = attrs.field(factory=list)
    given: set[int] = attrs.field(factory=set)
    begun: set[int] = attrs.field(factory=set)
    alone: int | None = None
    alone_until: float = -math.inf

    @property
    def pending(self) -> list[int]:
        return [number for number in self.recorded if number not in self.handled and number not in self.dead]

    def reopen(self, crashed: bool) -> None:
        if not crashed:
            for number in self.begun:
                self.take_back(number)
        for number in sorted(self.suspected):
            if self.attempts[number] >= ATTEMPTS:
                self.suspected.discard(number)
                self.dead.append(number)
        self.suspects = sorted(self.suspected, key=lambda number: (self.attempts[number], number))
        self.waiting = [number for number in self.pending if number not in self.suspected]
        self.retries, self.given, self.begun, self.alone = [], set(), set(), None

    def begin(self, number: int) -> None:
        self.begun.add(number)
        self.suspected.add(number)
        self.attempts[number] += 1
        self.retries = [(at, other) for at, other in self.retries if other != number]

    def take_back(self, number: int) -> None:
        self.suspected.discard(number)
        self.attempts[number] -= 1

    def ended(self, number: int) -> None:
        self.begun.discard(number)
        self.suspected.discard(number)
        if self.alone == number:
            self.alone = None

    def end(self, number: int) -> None:
        self.ended(number)
        self.suspects = [other for other in self.suspects if other != number]
        self.retries = [(at, other) for at, other in self.retries if other != number]
        self.waiting = [other for other in self.waiting if other != number]

    def next(self, now: float) -> int | Disconnected | None:
        if self.alone is not None and (self.alone in self.begun or now < self.alone_until):
            return None
        if self.suspects:
            self.alone, self.alone_until = self.suspects.pop(0), now + ALONE
            return self.alone
        if self.retries and self.retries[0][0] <= now:
            return self.retries.pop(0)[1]
        return self.waiting.pop(0) if self.waiting else None


class Run:
    """A journal and its model, on which the same operations are performed."""

    def __init__(self, engine: Engine) -> None:
        self.journal = engine.journal(max_attempts=ATTEMPTS, retry_delay=DELAY)
        self.model = Model()
        self.stack = AsyncExitStack()
        self.disk = Disk()
        self.attempting: dict[int, AbstractAsyncContextManager[None, bool]] = {}

    async def open(self) -> None:
        self.disk = Disk()
        kept = await self.stack.enter_async_context(
            self.journal.opened(SCOPE, self.disk, lambda: 1_800_000_000 + trio.current_time())
        )
        # All recorded events are known, whether pending, handled or dead letters.
        known = [known.key for known in await identities(kept)]
        assert sorted(known) == sorted(identity(mail(number)) or b"" for number in self.model.recorded)

    async def reopen(self, *, crashed: bool) -> None:
        self.disk.dead = crashed
        await self.stack.aclose()
        self.attempting = {}
        self.model.reopen(crashed)
        await self.open()

    async def step(self, operation: str, choice: int) -> None:
        model, journal = self.model, self.journal
        idle = sorted((model.given - model.begun) & set(model.pending))
        candidates: list[int] = {
            "record again": model.recorded,
            "ack": model.pending,
            "succeed": idle,
            "fail": idle,
            "cancel": idle,
            "begin": idle,
            "end": sorted(self.attempting),
            "requeue": model.dead,
            "drop": model.dead,
        }.get(operation, [0])
        if not candidates:
            return
        note(operation)
        number = candidates[choice % len(candidates)]
        match operation:
            case "record":
                number = len(model.recorded) + 1
                assert await journal.record(mail(number))
                model.recorded.append(number)
                model.attempts[number] = 0
                model.waiting.append(number)
            case "record again":
                await journal.record(mail(number))
            case "notice":
                journal.notice(GAP)
                if not model.waiting or model.waiting[-1] != GAP:
                    model.waiting.append(GAP)
            case "next":
                await self.next()
            case "ack":
                await journal.ack(mail(number))
                model.handled.add(number)
                model.end(number)
            case "succeed":
                async with journal.processing(mail(number)):
                    pass
                model.handled.add(number)
                model.end(number)
            case "fail":
                model.begin(number)
                async with journal.processing(mail(number)):
                    raise ValueError
                self.failed(number)
            case "cancel":
                model.begin(number)
                with trio.CancelScope() as scope:
                    async with journal.processing(mail(number)):
                        scope.cancel()
                        await trio.sleep_forever()
                model.take_back(number)
                model.ended(number)
                model.retries.append((trio.current_time() + DELAY, number))
            case "begin":
                self.attempting[number] = journal.processing(mail(number))
                await self.attempting[number].__aenter__()
                model.begin(number)
            case "end":
                await self.attempting.pop(number).__aexit__(None, None, None)
                model.handled.add(number)
                model.end(number)
            case "wait":
                await trio.sleep(DELAY / 2 * (choice + 0.9))
            case "close" | "crash":
                await self.reopen(crashed=operation == "crash")
            case "requeue" | "drop":
                [letter] = [letter for letter in await journal.dead_letters() if letter.event == mail(number)]
                model.dead.remove(number)
                if operation == "drop":
                    await journal.drop(letter)
                    model.handled.add(number)
                else:
                    await journal.requeue(letter)
                    model.attempts[number] = 0
                    model.waiting.append(number)
        await self.compare()

    def failed(self, number: int) -> None:
        self.model.ended(number)
        if self.model.attempts[number] < ATTEMPTS:
            self.model.retries.append((trio.current_time() + DELAY, number))
        else:
            self.model.dead.append(number)
            self.model.end(number)

    async def next(self) -> None:
        found = None
        with trio.move_on_after(0.001):
            found = await self.journal.next()
        expected = self.model.next(trio.current_time())
        if isinstance(expected, int):
            assert isinstance(found, MessageReceivedEvent)
            assert found == mail(expected)
            assert found.attempt == self.model.attempts[expected] + 1
            self.model.given.add(expected)
        else:
            assert found == expected

    async def compare(self) -> None:
        await wait_all_tasks_blocked()
        model = self.model
        assert self.journal.waiting == len(model.suspects) + len(model.retries) + len(model.waiting)
        letters = await self.journal.dead_letters()
        assert sorted(letter.id for letter in letters) == sorted(
            letter.id for letter in letters if letter.event in [mail(number) for number in model.dead]
        )
        assert len(letters) == len(model.dead)

    async def finish(self) -> None:
        """Open the journal again: the pending events are delivered, and then all are handled."""
        await self.reopen(crashed=False)
        while self.journal.waiting:
            await self.next()
            for number in sorted(self.model.given & set(self.model.pending)):
                await self.journal.ack(mail(number))
                self.model.handled.add(number)
                self.model.end(number)
        assert self.model.pending == []


async def interleave(steps: list[tuple[str, int]], engine: Engine) -> None:
    run = Run(engine)
    await run.open()
    async with run.stack:
        for operation, choice in steps:
            await run.step(operation, choice)
        await run.finish()


def check(steps: list[tuple[str, int]], engine: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(interleave, steps, new_engine(engine, Path(directory)), clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("engine_name", ENGINES)
@given(STEPS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
def test_in_any_interleaving_the_journal_delivers_what_the_model_does(
    engine_name: str, steps: list[tuple[str, int]]
) -> None:
    check(steps, engine_name)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine_name", ENGINES)
@given(STEPS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
def test_in_many_interleavings_the_journal_delivers_what_the_model_does(
    engine_name: str, steps: list[tuple[str, int]]
) -> None:
    check(steps, engine_name)
