"""Nothing is lost and nothing comes twice: stories by Hypothesis, against a trivial model of what must be delivered.

The whole stack runs: the stream with its supervisor, recovery, and the journal in an SQLite file, against a
`FakeAgentMail`. The rules of a state machine are what can happen at AgentMail, in the network, and in the consumer's
process. They are synchronous, and each of them advances one Trio run (see `Stage`). So a rule can be chosen by the
state, for example by which mail was taken and not acknowledged; a story that fails is printed as a program; and
shrinking removes rules from it. (hypothesis-trio, which has asynchronous state machines, has had no release since
2021.)

`Item` has what must be true of a mail, in a few flags. It is checked whenever the consumer takes something, and at the
end, when the faults are over and the stream has had enough time.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from trio.testing import wait_all_tasks_blocked

from tests.helpers.stages import Stage
from trio_agentmail import (
    AgentMailSession,
    CaughtUp,
    Disconnected,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    Recovery,
    RecoveryFailed,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    open_agentmail_session,
)
from trio_agentmail.testing import FakeAgentMail

T = TypeVar("T")

RECOVERY = Recovery(overlap=30.0, sweep_interval=60.0, sweep_depth=600.0)
RECONNECT = ReconnectPolicy(initial_delay=0.5, max_delay=20.0)
MAX_ATTEMPTS = 2
RETRY_DELAY = 20.0

TIME_ENOUGH = 240.0
"""If nothing comes for this many seconds, all has come. It is longer than a request that hangs, a sweep, a suspect
without an attempt, and a connection that has fallen silent take together."""

A, B, OTHER = "a@agentmail.to", "b@agentmail.to", "other@agentmail.to"
SPAM = "message.received.spam"

SUBSCRIPTIONS = {
    "two inboxes": Subscribe(inbox_ids=[A, B]),
    "an inbox, with spam": Subscribe(inbox_ids=[A], event_types=["message.received", SPAM]),
    "a pod": Subscribe(pod_ids=["pod"]),
    "a whole key": Subscribe(),
}

DATED = {"now": 0.0, "a little back": -20.0, "far back": -300.0, "too far back": -50_000.0, "ahead": 86_400.0}
"""How a mail is dated, in seconds from its arrival."""

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A directory in memory for the journals, if the system has one: commits are fast there, and no disk is tested here."""


@attrs.define(eq=False)
class Item:
    """What the model knows of a mail or another event."""

    key: str
    inbox_id: str = ""
    wanted: bool = True
    """Whether the subscription includes it."""
    must_come: bool = False
    held: bool = False
    order: int | None = None
    """Its place in the order of pushes; None: unknown."""
    taken: int = 0
    """How often the consumer took it, in this run."""
    taken_ever: bool = False
    retries: int = 0
    """How often it is redelivered, in this run."""
    attempts: int = 0
    acked: bool | None = False
    """None: the process died while the ack was being stored."""
    dead: bool = False

    def __str__(self) -> str:
        return f"the item {self.key}"


@attrs.define(eq=False)
class Attempt:
    """A task of the consumer that handles an event, until it is told how its attempt ends."""

    item: Item
    event: Event
    end: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    fails: bool = False


class Failure(Exception):
    """Raised by the consumer."""


class Story(RuleBasedStateMachine):
    """The rules for one process, without a journal."""

    with_journal = False

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.fake = FakeAgentMail()
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY)
        self.journal: SQLiteJournal | None = None
        self.journal_path: Path
        self.numbers = itertools.count(1)
        self.items: dict[str, Item] = {}
        self.up = False
        self.has_begun = False
        self.is_cut_off = False
        self.failed = False

    def perform(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return self.stage.perform(async_fn, *args)
        except BaseException:
            self.failed = True
            raise

    def perform_sync(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        async def act() -> T:
            await trio.lowlevel.checkpoint()
            return function(*args, **kwargs)

        result: T = self.perform(act)
        return result

    @initialize(
        listening_to=st.sampled_from(list(SUBSCRIPTIONS)),
        buffer_size=st.sampled_from([64, 1, 2]),
        max_pending=st.sampled_from([10_000, 3]),
        hanging=st.sampled_from([0, 1]),
    )
    def begin(self, listening_to: str, buffer_size: int, max_pending: int, hanging: int) -> None:
        self.listening_to = listening_to
        self.buffer_size = buffer_size
        self.max_pending = max_pending
        self.journal_path = Path(self.directory.name) / "0.db"
        self.perform_sync(self._add_inboxes)
        self.perform(self._deliver, A, "now", True, "message.received", False, "swallow")  # older than the stream
        self.perform(trio.sleep, 5.0)
        if hanging:  # so that the first scan is late
            self.perform_sync(self.fake.faults.hang_requests)
        self.perform(self._start)
        # Mail that arrives in the same millisecond as the subscription may count as older than it.
        self.perform(trio.sleep, 0.002)

    def _add_inboxes(self) -> None:
        for inbox_id in (A, B):
            self.fake.mail.add_inbox(inbox_id, pod_id="pod")
        self.fake.mail.add_inbox(OTHER)

    # The process

    async def _start(self) -> None:
        self.is_in_gap: bool | None = None
        self.has_caught_up = not self.has_begun  # a start is the end of a gap
        self.last_live = 0
        self.in_hand: list[tuple[Item, Event]] = []
        self.attempts: list[Attempt] = []
        for item in self.items.values():
            item.taken = item.retries = 0
        if self.with_journal:
            self.journal = SQLiteJournal(
                self.journal_path, max_attempts=MAX_ATTEMPTS, retry_delay=RETRY_DELAY, max_pending=self.max_pending
            )
        self.leaving, self.ended, self.killed = trio.Event(), trio.Event(), trio.CancelScope()
        self.session: AgentMailSession = await self.stage.nursery.start(self._run)
        self.up = True
        self.has_begun = True

    async def _run(self, task_status: trio.TaskStatus[AgentMailSession]) -> None:
        try:
            with self.killed:
                async with open_agentmail_session(
                    SUBSCRIPTIONS[self.listening_to],
                    backend=self.fake,
                    recovery=RECOVERY,
                    reconnect=RECONNECT,
                    enter_timeout=10_000.0,
                    buffer_size=self.buffer_size,
                    journal=self.journal,
                ) as session:
                    task_status.started(session)
                    await self.leaving.wait()
        finally:
            self.ended.set()

    # AgentMail

    @rule(
        inbox_id=st.sampled_from([A, B, OTHER]),
        dated=st.sampled_from(list(DATED)),
        begins_thread=st.booleans(),
        event_type=st.sampled_from(["message.received", SPAM]),
        held=st.booleans(),
        push=st.sampled_from(["once", "swallow", "twice", "late"]),
        times=st.sampled_from([1, 4]),
    )
    def deliver(
        self, inbox_id: str, dated: str, begins_thread: bool, event_type: str, held: bool, push: str, times: int
    ) -> None:
        for _ in range(times):
            self.perform(self._deliver, inbox_id, dated, begins_thread, event_type, held, push)

    async def _deliver(
        self, inbox_id: str, dated: str, begins_thread: bool, event_type: str, held: bool, push: str
    ) -> None:
        number = next(self.numbers)
        item = Item(f"<{number}@example.com>", inbox_id)
        listened_to = {"two inboxes": (A, B), "an inbox, with spam": (A,), "a pod": (A, B)}
        item.wanted = inbox_id in listened_to.get(self.listening_to, (A, B, OTHER)) and (
            event_type != SPAM or "spam" in self.listening_to
        )
        item.must_come = item.wanted and dated != "too far back" and self.has_begun
        item.held = held
        self.items[item.key] = item
        self._next_push(push)
        item.order = None if push == "late" else number
        # Threads that contain spam are not listed with the others, so spam begins threads of its own.
        thread = f"thread {number}" if begins_thread or event_type == SPAM else f"thread of {inbox_id}"
        await self.fake.deliver(
            inbox_id=inbox_id,
            message_id=item.key,
            thread_id=thread,
            event_type=event_type,
            timestamp=datetime.fromtimestamp(self.fake.now() + DATED[dated], UTC),
            held=held,
        )

    def _next_push(self, push: str) -> None:
        match push:
            case "swallow":
                self.fake.faults.swallow_pushes()
            case "twice":
                self.fake.faults.duplicate_pushes()
            case "late":
                self.fake.faults.delay_pushes(45.0)

    @precondition(lambda self: any(item.held for item in self.items.values()))
    @rule(data=st.data(), push=st.sampled_from(["once", "swallow", "twice"]))
    def release(self, data: st.DataObject, push: str) -> None:
        held = [item for item in self.items.values() if item.held]
        item = held[data.draw(st.integers(0, len(held) - 1))]
        self.perform(self._release, item, push)

    async def _release(self, item: Item, push: str) -> None:
        item.held = False
        item.order = next(self.numbers)
        self._next_push(push)
        await self.fake.mail.release(item.inbox_id, item.key)

    @rule(seconds=st.sampled_from([0.0, 20.0]))
    def index_after(self, seconds: float) -> None:
        self.perform_sync(self.fake.mail.index_after, seconds)

    @rule(
        how=st.sampled_from(["429", "500", "404", "hang", "break"]),
        times=st.sampled_from([1, 5, 12, None]),
        path=st.sampled_from([None, A, "threads", "batch-get"]),
    )
    def requests_fail(self, how: str, times: int | None, path: str | None) -> None:
        match how:
            case "429":
                act = partial(self.fake.faults.fail_requests, 429, headers=[("Retry-After", "3")])
            case "hang":
                act = partial(self.fake.faults.hang_requests)
            case "break":
                act = partial(self.fake.faults.break_requests)
            case status:
                act = partial(self.fake.faults.fail_requests, int(status))
        self.perform_sync(act, times=times, path=path)

    # The network

    @rule(how=st.sampled_from(["cut", "close", "fall silent"]))
    def lose_connections(self, how: str) -> None:
        match how:
            case "cut":
                self.perform_sync(partial(self.stage.nursery.start_soon, self.fake.drop_connections))
            case "close":
                self.perform_sync(partial(self.stage.nursery.start_soon, self.fake.drop_connections, 1001))
            case _:
                self.perform_sync(self.fake.faults.silence_connections)

    @rule(how=st.sampled_from(["refuse", "hang", "reject", "withhold", "drop"]), times=st.sampled_from([1, 3, None]))
    def connections_fail(self, how: str, times: int | None) -> None:
        faults: dict[str, Callable[..., None]] = {
            "refuse": self.fake.faults.refuse_connections,
            "hang": self.fake.faults.hang_handshakes,
            "reject": partial(self.fake.faults.reject_handshakes, 503),
            "withhold": self.fake.faults.withhold_confirmations,
            "drop": self.fake.faults.drop_after_confirming,
        }
        self.perform_sync(faults[how], times=times)
        self.is_cut_off |= times is None

    @rule()
    def clear_faults(self) -> None:
        self.perform_sync(self.fake.faults.clear)
        self.is_cut_off = False

    # Time

    @rule(seconds=st.sampled_from([0.0, 0.3, 21.0, 70.0, 1_000.0]))
    def wait(self, seconds: float) -> None:
        self.perform(partial(trio.sleep, seconds) if seconds else wait_all_tasks_blocked)

    # The consumer

    @precondition(lambda self: self.up)
    @rule(times=st.sampled_from([1, 2, 100]), patient=st.booleans())
    def take(self, times: int, patient: bool) -> None:
        self.perform(self._take, times, 0.0 if patient else None)

    async def _take(self, times: int, patience: float | None) -> bool:
        """Take up to `times` events.

        Args:
            patience: Seconds to wait for each; 0.0: until all tasks are blocked; None: not at all.

        Returns:
            Whether all of them came.
        """
        for _ in range(times):
            try:
                if patience is None:
                    await trio.lowlevel.checkpoint()
                    event = self.session.events.receive_nowait()
                elif patience == 0.0:
                    await wait_all_tasks_blocked()
                    event = self.session.events.receive_nowait()
                else:
                    with trio.fail_after(patience):
                        event = await self.session.events.receive()
            except (trio.WouldBlock, trio.TooSlowError):
                return False
            self._check(event)
        return True

    def _check(self, event: Event) -> None:
        match event:
            case Subscribed():
                self.is_in_gap = False
            case Disconnected():
                assert self.is_in_gap is False, "a Disconnected without a Subscribed before it"
                self.is_in_gap = True
                self.has_caught_up = False
            case CaughtUp():
                assert self.is_in_gap is False, "a CaughtUp in a gap"
                self.has_caught_up = True
            case RecoveryFailed():
                pass
            case MessageReceivedEvent():
                self._check_item(event, self.items[event.message.message_id])
            case _:
                key = getattr(event, "event_id", None)
                assert key is not None, event
                self._check_item(event, self.items.setdefault(key, Item(key)))

    def _check_item(self, event: Event, item: Item) -> None:
        assert item.wanted, f"{item} was not subscribed to"
        assert not item.held, f"{item} was delivered while it is held"
        assert item.acked is not True, f"{item} came again after its ack"
        assert not item.dead, f"{item} is a dead letter, and came again"
        assert item.taken <= item.retries, f"{item} came twice"
        origin = getattr(event, "origin", "")
        if item.taken_ever:
            assert origin == "redelivered", f"{item} came again as {origin}"
        if origin == "live":
            assert self.is_in_gap is False, f"{item} came live without a connection"
            if item.order is not None:
                assert item.order > self.last_live, f"{item} came after an event that was pushed later"
                self.last_live = item.order
        if self.with_journal and item.acked is False:
            assert getattr(event, "attempt") == item.attempts + 1  # noqa: B009  not all events have it
        item.taken += 1
        item.taken_ever = True
        self.in_hand.append((item, event))

    # The end

    def teardown(self) -> None:
        try:
            if self.has_begun and not self.failed:
                self.perform(self._to_the_end)
        finally:
            self.stage.close()
            self.directory.cleanup()

    async def _to_the_end(self) -> None:
        self.fake.faults.clear()
        self.fake.mail.index_after(None)
        await self._last_run()
        missing = [item for item in self.items.values() if item.must_come and not item.held and not item.taken_ever]
        assert not missing, f"lost: {[str(item) for item in missing]}"

    async def _last_run(self) -> None:
        await self._take(100_000, TIME_ENOUGH)
        self._assert_all_is_well()

    def _assert_all_is_well(self) -> None:
        assert self.is_in_gap is False, "a Disconnected without a Subscribed after it"
        assert self.has_caught_up, "a gap without a CaughtUp after it"


class StoryWithJournal(Story):
    """The same with a journal, and with processes that end and start again."""

    with_journal = True

    # The process

    @precondition(lambda self: not self.up and not self.is_cut_off)
    @rule()
    def start(self) -> None:
        self.perform(self._start)

    @precondition(lambda self: self.up)
    @rule()
    def leave(self) -> None:
        self.perform(self._leave)

    async def _leave(self) -> None:
        self.up = False
        for attempt in self.attempts:
            attempt.item.attempts -= 1  # how it ends can no longer be stored
        self.leaving.set()
        await self.ended.wait()
        self._forget_consumer()

    @precondition(lambda self: self.up)
    @rule(turns=st.integers(0, 6), while_acking=st.booleans())
    def crash(self, turns: int, while_acking: bool) -> None:
        self.perform(self._crash, turns, while_acking)

    async def _crash(self, turns: int, while_acking: bool) -> None:
        """End the process after `turns` more turns of its event loop; only what it has written by then remains.

        The files are copied as another process would see them. What the old run still does while it is ended here
        happens to files that are not used any more.
        """
        if while_acking:
            for attempt in self.attempts:
                attempt.end.set()
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        old, self.journal_path = self.journal_path, self.journal_path.with_name(f"{next(self.numbers)}.db")
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{old}{suffix}", f"{self.journal_path}{suffix}")
        self.up = False
        for attempt in self.attempts:
            if not attempt.ended.is_set():
                attempt.item.acked = None if while_acking else False
                attempt.item.dead = not while_acking and attempt.item.attempts >= MAX_ATTEMPTS
        self._forget_consumer()
        self.killed.cancel()
        await self.ended.wait()

    def _forget_consumer(self) -> None:
        for attempt in self.attempts:
            attempt.scope.cancel()
        self.attempts = []
        self.in_hand = []

    # The consumer

    @precondition(lambda self: self.up)
    @rule(times=st.sampled_from([1, 3, 100]), how=st.sampled_from(["ack", "succeed", "fail"]))
    def take_and_handle(self, times: int, how: str) -> None:
        self.perform(self._take_and_handle, times, how)

    async def _take_and_handle(self, times: int, how: str) -> None:
        kept = len(self.in_hand)
        while times and await self._take(1, 0.0):
            times -= 1
            for item, event in self.in_hand[kept:]:
                if how == "ack":
                    await self._ack(item, event)
                else:
                    attempt = Attempt(item, event, fails=how == "fail")
                    await self._begin_attempt(attempt)
                    await self._end_attempt(attempt)
            del self.in_hand[kept:]

    @precondition(lambda self: self.up and self.in_hand)
    @rule(data=st.data(), times=st.sampled_from([1, 2]))
    def ack(self, data: st.DataObject, times: int) -> None:
        item, event = self._let_go_of_one(data)
        for _ in range(times):
            self.perform(self._ack, item, event)

    async def _ack(self, item: Item, event: Event) -> None:
        assert self.journal is not None
        await self.journal.ack(event)
        item.acked = True

    def _let_go_of_one(self, data: st.DataObject) -> tuple[Item, Event]:
        return self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))

    @precondition(lambda self: self.up and self.in_hand)
    @rule(data=st.data())
    def begin_attempt(self, data: st.DataObject) -> None:
        self.perform(self._begin_attempt, Attempt(*self._let_go_of_one(data)))

    async def _begin_attempt(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        await self.stage.nursery.start(self._attempt, attempt)

    async def _attempt(self, attempt: Attempt, task_status: trio.TaskStatus[None]) -> None:
        assert self.journal is not None
        item = attempt.item
        with attempt.scope:
            async with self.journal.processing(attempt.event):
                item.attempts += 1
                task_status.started()
                await attempt.end.wait()
                if attempt.fails:
                    raise Failure
            if attempt.scope.cancel_called:
                return  # the process had ended before
            if not attempt.fails:
                item.acked = True
            elif item.attempts >= MAX_ATTEMPTS:
                item.dead = True
            else:
                item.retries += 1
            attempt.ended.set()

    @precondition(lambda self: self.up and self.attempts)
    @rule(data=st.data(), fails=st.booleans())
    def end_attempt(self, data: st.DataObject, fails: bool) -> None:
        attempt = self.attempts[data.draw(st.integers(0, len(self.attempts) - 1))]
        attempt.fails = fails
        self.perform(self._end_attempt, attempt)

    async def _end_attempt(self, attempt: Attempt) -> None:
        attempt.end.set()
        await attempt.ended.wait()
        self.attempts.remove(attempt)

    # The end

    async def _last_run(self) -> None:
        """Events that are in hand at the end of this run are redelivered in the next, and nothing is after that."""
        for attempt in list(self.attempts):
            await self._end_attempt(attempt)
        if not self.up:
            await self._start()
        if len(self.in_hand) < self.max_pending:  # otherwise nothing more is read until one is acknowledged
            await self._take_and_ack_all()
            self._assert_all_is_well()
        await self._leave()
        await self._start()
        await self._take_and_ack_all()
        self._assert_all_is_well()
        unhandled = [item for item in self.items.values() if item.taken_ever and item.acked is False and not item.dead]
        assert not unhandled, f"taken, and never redelivered: {[str(item) for item in unhandled]}"
        assert self.journal is not None
        letters = {letter.event for letter in await self.journal.dead_letters()}
        await self._leave()
        await self._start()
        await self._take(100_000, RETRY_DELAY)
        assert not self.in_hand, f"came after all had come: {self.in_hand}"
        dead = {_key(event) for event in letters}
        assert dead >= {item.key for item in self.items.values() if item.dead}
        assert dead <= {item.key for item in self.items.values() if item.dead or item.acked is None}

    async def _take_and_ack_all(self) -> None:
        kept = len(self.in_hand)
        while await self._take(1, TIME_ENOUGH):
            for item, event in self.in_hand[kept:]:
                await self._ack(item, event)
            del self.in_hand[kept:]


def _key(event: Any) -> str:
    return str(event.message.message_id if isinstance(event, MessageReceivedEvent) else event.event_id)


SOME = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(SOME, max_examples=250, stateful_step_count=50)


def test_without_a_journal_every_mail_comes_once() -> None:
    run_state_machine_as_test(Story, settings=SOME)


def test_with_a_journal_every_mail_comes_until_it_is_handled_and_never_after() -> None:
    run_state_machine_as_test(StoryWithJournal, settings=SOME)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("story", [Story, StoryWithJournal])
def test_many_longer_stories_without_and_with_a_journal(story: type[Story]) -> None:
    run_state_machine_as_test(story, settings=MANY)
