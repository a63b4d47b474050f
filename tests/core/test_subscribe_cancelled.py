"""If `session.subscribe()` is cancelled at any of its scheduling steps, nothing has changed.

A failed run prints its seed. To repeat the run:

    STEPS_SEED=<seed> .venv/bin/pytest tests/core/test_subscribe_cancelled.py
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trio

from tests.helpers.steps import BOTH, ONE, QUICK, SEED, A, B, Interruption, new_folder, simulated
from trio_agentmail import (
    AgentMailSession,
    JournalError,
    MessageReceivedEvent,
    SQLiteJournal,
    Subscribe,
    open_agentmail_session,
)
from trio_agentmail.testing import FakeAgentMail

STRIDE = 11
"""The quick tests take one of this many steps."""

FEWEST_STEPS = 20
"""The fewest steps of a whole `subscribe()`."""

CROWD = [f"crowd {number}" for number in range(12)]

Subscribing: TypeAlias = Callable[[], Awaitable[None]]
Circumstance: TypeAlias = Callable[[FakeAgentMail, Subscribing], Awaitable[None]]


async def in_peace(fake: FakeAgentMail, subscribe: Subscribing) -> None:
    await subscribe()


async def in_an_outage(fake: FakeAgentMail, subscribe: Subscribing) -> None:
    async with trio.open_nursery() as nursery:
        async with fake.faults.outage():
            nursery.start_soon(subscribe)
            await trio.sleep(1)


async def refused_at_first(fake: FakeAgentMail, subscribe: Subscribing) -> None:
    fake.faults.refuse_connections()
    await subscribe()


async def while_mail_comes(fake: FakeAgentMail, subscribe: Subscribing) -> None:
    """More mail arrives than the journal has room for, so the old connection cannot be drained."""
    async with trio.open_nursery() as nursery:
        for subject in CROWD:
            await fake.deliver(inbox_id=A, subject=subject)
        nursery.start_soon(subscribe)


@attrs.define
class CancelledSubscribe:
    """The outcome of a `subscribe()` that was cancelled at one of its steps."""

    steps: int = 0
    place: str | None = None
    returned: bool = False
    wrong: list[str] = attrs.field(factory=list)


async def subscribe_and_cancel(
    circumstance: Circumstance,
    path: Path | None,
    step: int | None,
) -> CancelledSubscribe:
    """Open a stream of A, subscribe to A and B, be cancelled before `step`, and check what is in force.

    Args:
        circumstance: What happens meanwhile.
        path: The journal's file; None for no journal.
        step: The step of `subscribe()`; None for no cancellation.
    """
    result = CancelledSubscribe()
    fake = FakeAgentMail()
    came: list[str | None] = []

    def expect(*expected: str) -> None:
        """Check what has arrived since the last check, in any order."""
        if sorted(map(str, came)) != sorted(expected):
            result.wrong.append(f"{came} came instead of {list(expected)}")
        came.clear()

    async def consume(session: AgentMailSession) -> None:
        async for event in session.events:
            if isinstance(event, MessageReceivedEvent):
                await trio.sleep(0.01)
                came.append(event.message.subject)
                if journal is not None:
                    await journal.ack(event)

    async def subscribe_and_be_cancelled() -> None:
        with interruption.counting(), scope:
            await session.subscribe(BOTH)
            result.returned = True

    journal = None if path is None else SQLiteJournal(path, max_pending=4)
    scope = trio.CancelScope()
    interruption = Interruption(step, scope.cancel)
    opening = open_agentmail_session(
        ONE, backend=fake, journal=journal, reconnect=QUICK, ping_interval=None, buffer_size=2
    )
    async with opening as session, trio.open_nursery() as nursery:
        nursery.start_soon(consume, session)
        await trio.sleep(2)
        early = await fake.deliver(inbox_id=B, subject="early")
        await trio.sleep(1)
        if circumstance is not in_an_outage:  # there the old subscription would be confirmed first
            fake.faults.push_before_confirming(early)
        await circumstance(fake, subscribe_and_be_cancelled)
        result.steps, result.place = interruption.steps, interruption.place
        fake.faults.clear()
        await trio.sleep(10)
        crowd = CROWD if circumstance is while_mail_comes else []
        expect(*crowd, *["early"] * (result.returned and circumstance is not in_an_outage))
        for number in range(2):  # as it is, and after a loss
            subscribed = fake.record.subscriptions[-1] if number else ONE
            if not result.returned and subscribed != ONE:
                result.wrong.append(f"{subscribed} was sent")
            if fake.connected != 1:
                result.wrong.append(f"{fake.connected} connections")
            await fake.deliver(inbox_id=A, subject="to A")
            await fake.deliver(inbox_id=B, subject="to B")
            await trio.sleep(400)  # a sweep
            expect("to A", *["to B"] * result.returned)
            await fake.drop_connections()
            await trio.sleep(10)
        if not result.returned:
            # It can be asked for again.
            await session.subscribe(BOTH)
            await trio.sleep(10)
            came.clear()
            await fake.deliver(inbox_id=B, subject="to B")
            await trio.sleep(400)
            expect("to B")
        nursery.cancel_scope.cancel()
    return result


async def subscribe_and_cancel_and_start_again(path: Path, step: int | None) -> CancelledSubscribe:
    """Be cancelled before a step of `subscribe()`, leave, and start again with the subscription that was in force."""
    result = CancelledSubscribe()
    fake = FakeAgentMail()
    scope = trio.CancelScope()
    interruption = Interruption(step, scope.cancel)
    async with session_with(fake, path, ONE) as session:
        await trio.sleep(2)
        with interruption.counting(), scope:
            await session.subscribe(BOTH)
            result.returned = True
    result.steps, result.place = interruption.steps, interruption.place
    await trio.sleep(2)
    await fake.deliver(inbox_id=A, subject="to A")
    await fake.deliver(inbox_id=B, subject="to B")
    came = []
    try:
        async with session_with(fake, path, BOTH if result.returned else ONE) as session:
            with trio.move_on_after(400):
                async for event in session.events:
                    if isinstance(event, MessageReceivedEvent):
                        came.append(event.message.subject)
    except JournalError as exc:
        result.wrong.append(f"refused: {type(exc).__name__}")
    if sorted(map(str, came)) != ["to A", "to B"][: 1 + result.returned]:
        result.wrong.append(f"{came} came")
    return result


def session_with(
    fake: FakeAgentMail, path: Path, subscribe: Subscribe
) -> AbstractAsyncContextManager[AgentMailSession]:
    return open_agentmail_session(
        subscribe, backend=fake, journal=SQLiteJournal(path), reconnect=QUICK, ping_interval=None
    )


def at_steps(
    run: Callable[[int | None], CancelledSubscribe], stride: int
) -> list[tuple[int | None, CancelledSubscribe]]:
    undisturbed = run(None)
    assert undisturbed.returned
    assert undisturbed.steps > FEWEST_STEPS
    steps = range(SEED % stride, undisturbed.steps, stride)
    results: list[tuple[int | None, CancelledSubscribe]] = [(step, run(step)) for step in steps]
    assert all(result.place is not None for _, result in results), "not every run was interrupted"
    assert sum(not result.returned for _, result in results) > FEWEST_STEPS // stride
    return [(None, undisturbed), *results]


def check(results: list[tuple[int | None, CancelledSubscribe]]) -> None:
    wrong = [(step, result) for step, result in results if result.wrong]
    told = "\n".join(f"cancelled before step {step}: {result}" for step, result in wrong[:5])
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(results)} went wrong:\n{told}\nSTEPS_SEED={SEED}", pytrace=False)


circumstances = pytest.mark.parametrize("circumstance", [in_peace, in_an_outage, refused_at_first, while_mail_comes])
journals = pytest.mark.parametrize("with_journal", [False, True], ids=["no journal", "journal"])


def check_circumstance(circumstance: Circumstance, with_journal: bool, inside: Path, stride: int) -> None:
    def run(step: int | None) -> CancelledSubscribe:
        path = new_folder(inside) / "agent.db" if with_journal else None
        return simulated(partial(subscribe_and_cancel, circumstance, path, step))

    check(at_steps(run, stride))


@circumstances
@journals
def test_subscribe_that_is_cancelled_has_changed_nothing(
    circumstance: Circumstance, with_journal: bool, tmp_path: Path
) -> None:
    check_circumstance(circumstance, with_journal, tmp_path, STRIDE)


@pytest.mark.long
@pytest.mark.timeout(600)
@circumstances
@journals
def test_a_cancelled_subscribe_has_changed_nothing_at_every_step(
    circumstance: Circumstance, with_journal: bool, tmp_path: Path
) -> None:
    check_circumstance(circumstance, with_journal, tmp_path, 1)


def test_a_cancelled_subscribe_leaves_the_journal_with_its_subscription(tmp_path: Path) -> None:
    def run(step: int | None) -> CancelledSubscribe:
        return simulated(partial(subscribe_and_cancel_and_start_again, new_folder(tmp_path) / "agent.db", step))

    check(at_steps(run, 1))


def test_a_subscribe_that_goes_on_though_it_was_cancelled_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe = AgentMailSession.subscribe

    async def stubborn(session: AgentMailSession, new: Subscribe) -> None:
        with trio.CancelScope(shield=True):
            await subscribe(session, new)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(AgentMailSession, "subscribe", stubborn)
    result = simulated(partial(subscribe_and_cancel, in_peace, None, 5))
    assert not result.returned
    assert result.wrong
