"""Leaving the block: the caller gets the expected exception, and nothing stays behind."""

import gc
import signal
import socket
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.backends import FakeBackend
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    Event,
    MessageReceivedEvent,
    ReconnectPolicy,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
)
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._faults.table import Faults

INBOX = "agent@agentmail.to"

Opener: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]
with_both = pytest.mark.parametrize(
    "opener", [open_agentmail_stream, open_agentmail_session], ids=["stream", "session"]
)


class Mishap(Exception):
    pass


@asynccontextmanager
async def leaving_nothing(fake: FakeAgentMail) -> AsyncIterator[None]:
    """Every task that is started and every connection that is made in the block have ended when it ends."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(10_000):  # on the mock clock, what hangs would hang for ever
        yield
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert fake.connected == 0


@asynccontextmanager
async def taking(seconds: float) -> AsyncIterator[None]:
    started = trio.current_time()
    yield
    assert trio.current_time() - started == pytest.approx(seconds, abs=1e-6)


async def refuse_for_good(fake: FakeAgentMail) -> None:
    """A non-retryable error, while the block is running."""
    fake.faults.refuse_subscriptions("forbidden", "not any more")
    await fake.drop_connections()


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__context__


# In peace


@with_both
async def test_at_its_end_the_block_closes_with_1000(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        async with opener(backend=fake):
            assert fake.connected == 1
        assert fake.record.close_codes == [1000]


@with_both
async def test_break_closes_with_1000(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        for _ in range(3):
            async with opener(backend=fake):
                break
        assert fake.record.close_codes == [1000]


async def test_break_out_of_the_events_leaves_the_rest_unread(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_stream(backend=fake, buffer_size=1) as events:
            for _ in range(5):
                await fake.deliver(inbox_id=INBOX)
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    break
        assert fake.record.close_codes == [1000]
        with pytest.raises(trio.ClosedResourceError):
            events.receive_nowait()


@with_both
async def test_return_closes_with_1000(opener: Opener, autojump_clock: MockClock) -> None:
    async def listen() -> str:
        async with opener(backend=fake):
            return "returned"

    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        assert await listen() == "returned"
        assert fake.record.close_codes == [1000]


@with_both
async def test_a_server_that_does_not_answer_the_close_costs_close_timeout(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        async with opener(backend=fake, close_timeout=3):
            fake.faults.silence_connections()


@with_both
async def test_leaving_during_an_outage_waits_for_nothing(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(100):
        async with opener(backend=fake):
            fake.faults.hang_handshakes(None)
            await fake.drop_connections()
            await trio.sleep(100)


@with_both
async def test_leaving_with_a_full_channel_closes_with_1000(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        async with opener(backend=fake, buffer_size=1):
            for _ in range(100):
                await fake.deliver(inbox_id=INBOX)
            await wait_all_tasks_blocked()
        assert fake.record.close_codes == [1000]


# What the body raises


@with_both
@pytest.mark.parametrize(
    "error",
    [
        Mishap("as it is"),
        ExceptionGroup("the body's own", [Mishap("one"), OSError("two")]),
        BaseExceptionGroup("the body's own", [Mishap("one"), SystemExit(2)]),
        ExceptionGroup("the body's own", [ExceptionGroup("inner", [Mishap("one")])]),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration("value"),
        StopAsyncIteration("value"),
        GeneratorExit(),
        trio.ClosedResourceError("the body's own"),
        trio.EndOfChannel(),
        RuntimeError("the body's own"),
    ],
    ids=repr,
)
async def test_what_the_body_raises_comes_out_as_it_is(
    opener: Opener, error: BaseException, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(BaseException) as caught:
            async with opener(backend=fake):
                raise error  # the line itself
        assert caught.value is error
        assert (error.__cause__, error.__context__, error.__suppress_context__) == (None, None, False)
        lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
        assert any("raise error  # the line itself" in line for line in lines)
        assert fake.record.close_codes == [1000]


@with_both
async def test_the_cause_and_context_of_what_the_body_raises_stay(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    cause, context = KeyError("the cause"), ValueError("the context")
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                try:
                    raise context
                except ValueError:
                    raise Mishap from cause
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is context
    assert (context.__context__, cause.__context__) == (None, None)


@with_both
async def test_an_exception_that_is_being_handled_outside_stays_the_context(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    outside = ValueError("outside")
    with pytest.raises(Mishap) as caught:
        try:
            raise outside
        except ValueError:
            async with opener(backend=fake):
                raise Mishap  # noqa: B904
    assert list(chain(caught.value)) == [caught.value, outside]


@with_both
async def test_what_the_body_raises_comes_out_when_the_server_does_not_answer_the_close(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake), taking(5):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                fake.faults.silence_connections()
                raise error
    assert caught.value is error
    assert error.__context__ is None


@with_both
async def test_what_the_body_raises_during_an_outage_comes_out_as_it_is(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake), taking(10):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                fake.faults.refuse_connections(None)
                await fake.drop_connections()
                await trio.sleep(10)
                raise error
    assert caught.value is error
    assert error.__context__ is None


# Non-retryable errors


@with_both
async def test_a_fatal_error_cancels_the_body_and_comes_out_alone(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    cleaned_up = False
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    await trio.sleep_forever()
                finally:
                    cleaned_up = True
    assert cleaned_up
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))
    assert caught.value.message == "not any more"


@with_both
async def test_a_fatal_error_cancels_the_body_at_once(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_subscriptions("forbidden", "not any more")
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError):
            async with opener(backend=fake):
                pytest.fail("refused on entering")
        policy = ReconnectPolicy(initial_delay=0, max_delay=0)
        async with taking(0):
            with pytest.raises(SubscriptionRejectedError):
                async with opener(backend=fake, reconnect=policy):
                    await refuse_for_good(fake)
                    await trio.sleep(1)


@with_both
async def test_a_fatal_error_during_the_bodys_cleanup_waits_for_it(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0, max_delay=0)
    async with leaving_nothing(fake), taking(7):
        with pytest.raises(SubscriptionRejectedError):
            async with opener(backend=fake, reconnect=policy):
                await refuse_for_good(fake)
                with trio.CancelScope(shield=True):
                    await trio.sleep(7)


@with_both
async def test_what_the_body_raises_about_a_fatal_error_comes_out_with_that_in_its_context(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    await trio.sleep_forever()
                finally:
                    raise Mishap
    mishap, fatal = chain(caught.value)
    assert mishap is caught.value
    assert isinstance(fatal, SubscriptionRejectedError)


@with_both
async def test_what_the_body_raises_after_a_fatal_error_keeps_its_own_context_before_that(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise KeyError("the body's own context")
                except KeyError:
                    raise Mishap  # noqa: B904
    assert [type(exc) for exc in chain(caught.value)] == [Mishap, KeyError, SubscriptionRejectedError]


@with_both
async def test_a_body_that_swallows_its_cancellation_does_not_swallow_the_fatal_error(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                with suppress(trio.Cancelled):
                    await trio.sleep_forever()
    assert list(chain(caught.value)) == [caught.value]


@with_both
async def test_a_fatal_error_cancels_the_bodys_own_nursery_and_still_comes_out_alone(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(trio.sleep_forever)
                    await refuse_for_good(fake)
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))


@with_both
async def test_tasks_of_the_body_that_raise_when_cancelled_do_so_out_of_their_nursery(
    opener: Opener, autojump_clock: MockClock
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Mishap

    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ExceptionGroup) as caught:
            async with opener(backend=fake):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail_when_cancelled)
                    nursery.start_soon(fail_when_cancelled)
                    nursery.start_soon(trio.sleep_forever)
                    await refuse_for_good(fake)
    assert [type(exc) for exc in caught.value.exceptions] == [Mishap, Mishap]
    assert any(isinstance(exc, SubscriptionRejectedError) for exc in chain(caught.value))


async def test_a_fatal_error_keeps_the_exception_that_the_caller_handles_as_its_context(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    outside = ValueError("outside")
    with pytest.raises(SubscriptionRejectedError) as caught:
        try:
            raise outside
        except ValueError:
            fake.faults.refuse_subscriptions("forbidden", "no")
            async with open_agentmail_stream(backend=fake):
                pytest.fail("refused on entering")
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))


# Cancelled from outside


@with_both
@pytest.mark.parametrize(
    "fault",
    [
        Faults.hang_handshakes,
        Faults.withhold_confirmations,
        partial(Faults.reject_handshakes, status=503, headers=[("Retry-After", "20")]),
        partial(Faults.refuse_connections, times=None),
    ],
    ids=["connecting", "awaiting the confirmation", "told to wait", "backing off"],
)
async def test_cancelled_on_entering_it_leaves_at_once(
    opener: Opener, fault: Callable[[Faults], None], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake.faults)
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake):
                pytest.fail("not entered")
        assert scope.cancelled_caught


@with_both
@pytest.mark.parametrize(
    "fault",
    [
        None,
        Faults.hang_handshakes,
        Faults.withhold_confirmations,
        partial(Faults.reject_handshakes, status=503, headers=[("Retry-After", "20")]),
        partial(Faults.refuse_connections, times=None),
    ],
    ids=["idle", "connecting", "awaiting the confirmation", "told to wait", "backing off"],
)
async def test_cancelled_in_the_body_it_leaves_at_once(
    opener: Opener, fault: Callable[[Faults], None] | None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake):
                if fault is not None:
                    fault(fake.faults)
                    await fake.drop_connections()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None] if fault is None else 1000 not in fake.record.close_codes


@with_both
async def test_cancelled_while_it_waits_for_room_in_the_channel_it_leaves_at_once(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with opener(backend=fake, buffer_size=1):
                for _ in range(10):
                    await fake.deliver(inbox_id=INBOX)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None]


@with_both
async def test_cancelled_while_it_closes_it_leaves_at_once(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(2):
        with trio.move_on_after(2) as scope:
            async with opener(backend=fake, close_timeout=60):
                fake.faults.silence_connections()
        assert scope.cancelled_caught


@with_both
async def test_a_block_cancelled_while_closing_leaves_at_once_with_the_bodys_exception(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake), taking(2):
        with trio.move_on_after(2):
            with pytest.raises(Mishap) as caught:
                async with opener(backend=fake, close_timeout=60):
                    fake.faults.silence_connections()
                    raise error
            assert caught.value is error
            assert error.__context__ is None


@with_both
async def test_cancelled_before_it_begins_it_makes_no_connection(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with trio.move_on_after(0) as scope:
            async with opener(backend=fake):
                pytest.fail("not entered")
        assert scope.cancelled_caught
        assert fake.record.handshakes == []


@with_both
async def test_a_deadline_at_the_very_moment_of_entering_leaves_nothing(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, headers=[("Retry-After", "7")])
    async with leaving_nothing(fake), taking(7):
        with trio.move_on_after(7) as scope:
            async with opener(backend=fake):
                await trio.sleep_forever()
        assert scope.cancelled_caught


@with_both
async def test_cancelled_between_any_two_steps_it_leaves_nothing(opener: Opener) -> None:
    """Entering takes some dozens of scheduling steps. It is cancelled after each of them in turn."""

    async def cancel_after(steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    fake = FakeAgentMail()
    entered = 0
    async with leaving_nothing(fake):
        for steps in range(60):
            async with leaving_nothing(fake), trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_after, steps)
                    async with opener(backend=fake):
                        entered += 1
                        await trio.sleep_forever()
                assert scope.cancelled_caught
    assert 0 < entered < 60


async def test_subscribe_cancelled_changes_nothing(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), open_agentmail_session(backend=fake) as session:
        fake.faults.withhold_confirmations()
        async with taking(3):
            with trio.move_on_after(3) as scope:
                await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
        assert scope.cancelled_caught
        await fake.wait_subscribed(1)
        await fake.deliver(inbox_id=INBOX, subject="still here")
        assert isinstance(await session.events.receive(), Subscribed)
        event = await session.events.receive()
        assert isinstance(event, MessageReceivedEvent)
        assert event.message.subject == "still here"
        assert session.statistics().connections == 1
        await trio.sleep(1)
        assert fake.connected == 1


async def test_the_block_cancelled_in_subscribe_leaves_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(3):
        with trio.move_on_after(3) as scope:
            async with open_agentmail_session(backend=fake) as session:
                fake.faults.withhold_confirmations()
                await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
        assert scope.cancelled_caught
        assert fake.record.close_codes == [None, None]


async def test_the_block_may_be_left_while_a_task_is_in_subscribe(autojump_clock: MockClock) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.withhold_confirmations()
            nursery.start_soon(subscribe, session)
            await wait_all_tasks_blocked()
        assert sorted(fake.record.close_codes, key=str) == [1000, None]


async def test_the_block_may_be_left_while_subscribe_waits_for_the_end_of_an_outage(
    autojump_clock: MockClock,
) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.refuse_connections(None)
            await fake.drop_connections()
            await wait_all_tasks_blocked()
            nursery.start_soon(subscribe, session)
            await wait_all_tasks_blocked()


async def test_subscribe_after_the_end_of_the_block_says_that_it_is_closed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        pass
    assert session.state == "closed"
    with pytest.raises(trio.ClosedResourceError):
        await session.subscribe(Subscribe())
    assert session.statistics().connections == 1


@pytest.mark.parametrize("where", ["in the body", "in a task outside"])
async def test_a_fatal_error_ends_a_subscribe_that_waits(where: str, autojump_clock: MockClock) -> None:
    async def subscribe(session: AgentMailSession) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))

    fake = FakeAgentMail()
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        with pytest.raises(SubscriptionRejectedError):
            async with open_agentmail_session(backend=fake) as session:
                fake.faults.reject_handshakes(503, headers=[("Retry-After", "60")])
                await refuse_for_good(fake)
                await trio.sleep(1)
                assert session.state == "waiting"
                if where == "in the body":
                    await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
                nursery.start_soon(subscribe, session)
                await trio.sleep_forever()


# KeyboardInterrupt


def run(async_fn: Callable[[], Any]) -> None:
    trio.run(async_fn, clock=MockClock(autojump_threshold=0))


@with_both
def test_control_c_in_the_body_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with leaving_nothing(fake):
            with pytest.raises(KeyboardInterrupt):
                async with opener(backend=fake):
                    signal.raise_signal(signal.SIGINT)
        raise Mishap("got here")

    with pytest.raises(Mishap):
        run(main)
    assert fake.record.close_codes == [1000]


def interrupt_soon() -> None:
    """Press control-C while every task waits. Trio then delivers it to the main task."""

    async def interrupt() -> None:
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    trio.lowlevel.spawn_system_task(interrupt)


@with_both
def test_control_c_while_the_body_waits_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with opener(backend=fake):
            interrupt_soon()
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert fake.record.close_codes == [1000]


@with_both
def test_control_c_on_entering_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()

    async def main() -> None:
        interrupt_soon()
        async with opener(backend=fake):
            pytest.fail("not entered")

    with pytest.raises(KeyboardInterrupt):
        run(main)


@with_both
def test_control_c_in_a_task_of_the_stream_is_not_lost(opener: Opener) -> None:
    """Control-C strikes anywhere. An `api_key` callable runs in a task of the stream."""
    fake = FakeAgentMail()
    calls = 0

    def api_key() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return "am_key"

    async def main() -> None:
        async with leaving_nothing(fake):
            with pytest.raises(KeyboardInterrupt):
                async with opener(backend=fake, api_key=api_key):
                    await fake.drop_connections()
                    await trio.sleep(60)
        raise Mishap("got here")

    with pytest.raises(Mishap):
        run(main)
    assert calls == 2


@with_both
def test_control_c_while_closing_is_not_lost(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with opener(backend=fake, close_timeout=60):
            fake.faults.silence_connections()
            await wait_all_tasks_blocked()
            interrupt_soon()

    with pytest.raises(KeyboardInterrupt):
        run(main)


class Interrupting(FakeBackend):
    """A backend in which control-C strikes.

    Args:
        where: The method in which control-C strikes.
        calls: The number of calls before that.
        what: The exception that is raised.
    """

    def __init__(self, fake: FakeAgentMail, where: str, calls: int, what: BaseException) -> None:
        self._where = where
        super().__init__(fake)
        self._calls = calls
        self._what = what

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return partial(self._strike, value) if name == object.__getattribute__(self, "_where") else value

    def _strike(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise self._what
        return method(*args, **kwargs)


@pytest.mark.parametrize("what", [KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize("calls", [0, 1, 2, 5])
@pytest.mark.parametrize("where", ["open_websocket", "http_transport", "now", "run_sync"])
def test_control_c_comes_out_alone_from_any_task(where: str, calls: int, what: BaseException, tmp_path: Path) -> None:
    async def main() -> None:
        fake = FakeAgentMail()
        backend = Interrupting(fake, where, calls, what)
        async with leaving_nothing(fake):
            async with trio_agentmail.open_agentmail_stream(
                Subscribe(inbox_ids=[INBOX]), backend=backend, journal=SQLiteJournal(tmp_path / "agent.db")
            ):
                for _ in range(6):
                    await fake.deliver(inbox_id=INBOX)
                    await trio.sleep(2)
                    async with fake.faults.outage():
                        await fake.deliver(inbox_id=INBOX)
                        await trio.sleep(20)
                    await trio.sleep(30)

    with pytest.raises(BaseException) as caught:
        run(main)
    assert caught.value is what


# Clones


@with_both
@pytest.mark.parametrize("way", ["in peace", "by an exception", "cancelled", "fatal"])
async def test_clones_in_worker_tasks_come_to_their_end_after_what_was_delivered(
    opener: Opener, way: str, autojump_clock: MockClock
) -> None:
    async def work(events: trio.MemoryReceiveChannel[Event]) -> None:
        async with events:
            async for event in events:
                received.append(event)
                await trio.sleep(1)
        ends.append(trio.current_time())

    fake = FakeAgentMail()
    received: list[Event] = []
    ends: list[float] = []
    async with leaving_nothing(fake), trio.open_nursery() as nursery:
        with suppress(Mishap, SubscriptionRejectedError):
            with trio.CancelScope() as scope:
                async with opener(backend=fake) as opened:
                    events = opened.events if isinstance(opened, AgentMailSession) else opened
                    nursery.start_soon(work, events.clone())
                    nursery.start_soon(work, events.clone())
                    for _ in range(9):
                        await fake.deliver(inbox_id=INBOX)
                    await wait_all_tasks_blocked()
                    match way:
                        case "by an exception":
                            raise Mishap
                        case "cancelled":
                            scope.cancel()
                            await trio.sleep_forever()
                        case "fatal":
                            await refuse_for_good(fake)
                            await trio.sleep_forever()
        assert len(ends) == 0
    assert sum(isinstance(event, MessageReceivedEvent) for event in received) == 9
    assert len(ends) == 2


async def test_a_worker_in_the_block_that_has_its_own_clone_ends_with_its_nursery(autojump_clock: MockClock) -> None:
    async def work(events: trio.MemoryReceiveChannel[Event]) -> None:
        async with events:
            async for event in events:
                received.append(event)

    fake = FakeAgentMail()
    received: list[Event] = []
    async with leaving_nothing(fake):
        async with open_agentmail_stream(backend=fake) as events:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(work, events.clone())
                for _ in range(30):
                    await fake.deliver(inbox_id=INBOX)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert len(received) == 31


# The last receiver closed


async def test_once_the_last_receiver_is_closed_the_next_event_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, ping_interval=None) as session:
            session.events.close()
            await trio.sleep(1000)
            assert (session.state, fake.connected) == ("subscribed", 1)
            await fake.deliver(inbox_id=INBOX)
            await trio.sleep(1)
            assert (session.state, fake.connected) == ("closed", 0)
            assert fake.record.close_codes == [1000]
            with pytest.raises(trio.ClosedResourceError):
                await session.subscribe(Subscribe())
            await trio.sleep(1000)  # the body goes on
        assert fake.record.close_codes == [1000]


async def test_once_the_last_receiver_is_closed_the_next_ping_closes_the_connection(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, ping_interval=20) as session:
            session.events.close()
            await trio.sleep(19)
            assert (session.state, fake.connected) == ("subscribed", 1)
            await trio.sleep(2)
            assert (session.state, fake.connected) == ("closed", 0)
            assert fake.record.close_codes == [1000]
            with pytest.raises(trio.ClosedResourceError):
                await session.subscribe(Subscribe())
            await trio.sleep(1000)


async def test_once_the_last_receiver_is_closed_no_lost_connection_is_made_again(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            session.events.close()
            await fake.drop_connections()
            await trio.sleep(1000)
            assert session.state == "closed"
        assert len(fake.record.handshakes) == 1


async def test_once_the_last_receiver_is_closed_in_an_outage_it_ends(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            fake.faults.reject_handshakes(503, headers=[("Retry-After", "60")], times=None)
            await fake.drop_connections()
            await trio.sleep(30)
            assert (session.state, len(fake.record.handshakes)) == ("waiting", 2)
            session.events.close()
            await trio.sleep(60)
            assert session.state == "closed"
            await trio.sleep(1000)
        assert len(fake.record.handshakes) == 2


async def test_without_receivers_a_sender_that_waits_for_room_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            for _ in range(5):
                await fake.deliver(inbox_id=INBOX)
            await wait_all_tasks_blocked()
            session.events.close()
            await wait_all_tasks_blocked()
            assert (session.state, fake.record.close_codes) == ("closed", [1000])


async def test_without_receivers_an_event_behind_notices_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake, buffer_size=1) as session:
            await fake.drop_connections()
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX)
            await wait_all_tasks_blocked()
            session.events.close()
            await wait_all_tasks_blocked()
            assert (session.state, fake.record.close_codes) == ("closed", [1000])


async def test_as_long_as_a_clone_is_open_nothing_is_closed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=fake) as session:
            clone = session.events.clone()
            session.events.close()
            await fake.deliver(inbox_id=INBOX)
            await trio.sleep(1000)
            await fake.drop_connections()
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=INBOX, subject="after the loss")
            async with clone:
                async for event in clone:
                    if isinstance(event, MessageReceivedEvent) and event.message.subject == "after the loss":
                        break
            assert (session.state, fake.connected) == ("subscribed", 1)
            await trio.sleep(1000)
            assert (session.state, fake.connected) == ("closed", 0)


async def test_changing_the_subscription_does_not_outlive_the_stream(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), open_agentmail_session(backend=fake) as session:
        fake.faults.reject_handshakes(503, headers=[("Retry-After", "3000")])
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await session.subscribe(Subscribe(inbox_ids=[INBOX]))

            nursery.start_soon(change)
            await wait_all_tasks_blocked()
            session.events.close()
        assert trio.current_time() - began <= 20  # the next ping


async def test_a_body_that_raises_after_the_stream_has_closed_itself_is_left_as_ever(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with open_agentmail_stream(backend=fake) as events:
                events.close()
                await trio.sleep(1000)
                raise error
    assert caught.value is error
    assert error.__context__ is None


# A bug in the backend


class BuggyBackend(FakeBackend):
    """A backend with a bug that one connection meets. Connections are counted from 1."""

    def __init__(self, fake: FakeAgentMail, at: int) -> None:
        super().__init__(fake)
        self._at = at
        self._connections = 0

    def open_websocket(self, url: str, **kwargs: Any) -> Any:
        self._connections += 1
        if self._connections == self._at:
            raise ZeroDivisionError("a bug")
        return super().open_websocket(url, **kwargs)


@with_both
async def test_a_bug_in_the_backend_on_entering_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyBackend(fake, 1)):
                pytest.fail("not entered")


@with_both
async def test_a_bug_in_the_backend_on_reconnecting_comes_out_as_itself(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyBackend(fake, 2)):
                await fake.drop_connections()
                await trio.sleep_forever()


async def test_a_bug_in_the_backend_on_changing_the_subscription_is_raised_there(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=BuggyBackend(fake, 2)) as session:
            with pytest.raises(ZeroDivisionError):
                await session.subscribe(Subscribe(inbox_ids=[INBOX]))
            assert session.state == "subscribed"
        assert fake.record.close_codes == [1000]


@with_both
async def test_a_bug_in_the_fake_on_entering_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    class BrokenKeys(set[str]):
        def __contains__(self, key: object) -> bool:
            raise ZeroDivisionError

    fake = FakeAgentMail(api_keys=BrokenKeys())
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=fake):
                pytest.fail("not entered")


@with_both
async def test_a_bug_in_the_fake_while_the_body_sleeps_comes_out_as_itself(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ValueError, match="message"):
            async with opener(backend=fake):
                next(iter(fake._connections)).push(5)  # type: ignore[arg-type]
                await trio.sleep_forever()


class BuggyGoodbye(FakeBackend):
    """A backend with a bug that shows when a connection is closed, in a task of the stream."""

    def __init__(self, fake: FakeAgentMail, error: Exception | None = None) -> None:
        super().__init__(fake)
        self._error = error or ZeroDivisionError("a bug")

    @asynccontextmanager
    async def open_websocket(self, url: str, **kwargs: Any) -> Any:
        async with super().open_websocket(url, **kwargs) as websocket:
            yield websocket
            raise self._error


@with_both
async def test_a_bug_in_the_backend_on_leaving_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyGoodbye(fake)):
                pass


@with_both
async def test_a_network_failure_on_leaving_is_no_bug(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with opener(backend=BuggyGoodbye(fake, ConnectionResetError("reset"))):
            pass
        assert fake.record.close_codes == [1000]


@with_both
async def test_what_the_stream_failed_with_may_be_raised_by_the_body_as_well(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()

    def ask_for_the_key() -> str:
        if fake.record.handshakes:
            raise error
        return "am_key"

    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake, api_key=ask_for_the_key):
                await fake.drop_connections()
                try:
                    await trio.sleep_forever()
                finally:
                    raise error
    assert caught.value is error
    assert error.__context__ is not error


async def test_a_bug_that_showed_on_an_earlier_connection_is_not_forgotten(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with open_agentmail_session(backend=BuggyGoodbye(fake)) as session:
                for inbox_id in ("one", "two"):
                    await session.subscribe(Subscribe(inbox_ids=[inbox_id]))
                    await trio.sleep(1)


# Streams among others


async def test_fifty_streams_in_one_nursery_get_all_and_leave_nothing(autojump_clock: MockClock) -> None:
    async def listen(number: int, task_status: trio.TaskStatus[None]) -> None:
        inbox_id = f"agent{number}@agentmail.to"
        async with open_agentmail_stream(Subscribe(inbox_ids=[inbox_id]), backend=fake) as events:
            task_status.started()
            async for event in events:
                if isinstance(event, MessageReceivedEvent):
                    assert event.message.inbox_id == inbox_id
                    counts[number] += 1
                    if counts[number] == 3:
                        break

    fake = FakeAgentMail()
    counts = [0] * 50
    async with leaving_nothing(fake):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                await nursery.start(listen, number)
            assert fake.connected == 50
            for _ in range(3):
                for number in range(50):
                    await fake.deliver(inbox_id=f"agent{number}@agentmail.to")
        assert counts == [3] * 50
        assert fake.record.close_codes == [1000] * 50


@with_both
async def test_nested_streams_are_both_closed_when_the_body_raises(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake), opener(backend=fake):
                raise error
        assert fake.record.close_codes == [1000, 1000]
    assert caught.value is error
    assert error.__context__ is None


@with_both
@pytest.mark.parametrize("which", ["outer", "inner"])
async def test_of_nested_streams_the_fatal_error_of_one_comes_out_alone(
    opener: Opener, which: str, autojump_clock: MockClock
) -> None:
    outer, inner = FakeAgentMail(), FakeAgentMail()
    async with leaving_nothing(outer), leaving_nothing(inner):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=outer), opener(backend=inner):
                await refuse_for_good(outer if which == "outer" else inner)
                await trio.sleep_forever()
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))
    # The outer one cancels the inner, by force; the inner one leaves the outer in peace.
    assert inner.record.close_codes == [None]
    assert outer.record.close_codes == ([None] if which == "outer" else [1000])


@with_both
async def test_a_failing_sibling_cuts_the_stream_and_is_all_that_comes_out(
    opener: Opener, autojump_clock: MockClock
) -> None:
    async def listen(task_status: trio.TaskStatus[None]) -> None:
        async with opener(backend=fake, close_timeout=60):
            task_status.started()
            await trio.sleep_forever()

    fake = FakeAgentMail()
    error = Mishap()
    async with leaving_nothing(fake), taking(5):
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(listen)
                await trio.sleep(5)
                raise error
        assert caught.value.exceptions == (error,)
        assert fake.record.close_codes == [None]


@with_both
async def test_the_fatal_error_of_a_stream_in_a_task_comes_out_of_the_nursery_as_any_other(
    opener: Opener, autojump_clock: MockClock
) -> None:
    async def listen(task_status: trio.TaskStatus[None]) -> None:
        async with opener(backend=fake):
            task_status.started()
            await trio.sleep_forever()

    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(listen)
                await refuse_for_good(fake)
                await trio.sleep_forever()
    [fatal] = caught.value.exceptions
    assert isinstance(fatal, SubscriptionRejectedError)


# Over real sockets


def open_sockets() -> set[socket.socket]:
    gc.collect()  # what was not closed warns here, and warnings are errors
    return {thing for thing in gc.get_objects() if isinstance(thing, socket.socket) and thing.fileno() != -1}


@asynccontextmanager
async def served_leaving_nothing(fake: FakeAgentMail) -> AsyncIterator[AgentMailEnvironment]:
    """As `leaving_nothing`, on a port of this machine. When the block ends, the fake has seen all connections end."""
    async with fake.serve() as environment:
        before = open_sockets()
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield environment
        with trio.fail_after(2):
            await fake.wait_connected(0)
            await wait_all_tasks_blocked()
        assert open_sockets() == before
        assert trio.lowlevel.current_statistics().tasks_living == tasks


@with_both
async def test_left_by_an_exception_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with served_leaving_nothing(fake) as environment:
        with pytest.raises(Mishap) as caught:
            async with opener(api_key="am_key", environment=environment):
                raise error
        assert caught.value is error
        assert error.__context__ is None
    assert fake.record.close_codes == [1000]


@with_both
async def test_cancelled_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    async with served_leaving_nothing(fake) as environment:
        with trio.move_on_after(60) as scope:
            async with opener(api_key="am_key", environment=environment, buffer_size=1):
                for _ in range(10):
                    await fake.deliver(inbox_id=INBOX)
                await wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert fake.record.close_codes == [None]


@pytest.mark.parametrize("fault", [Faults.hang_handshakes, Faults.withhold_confirmations])
async def test_cancelled_on_entering_no_socket_stays_open(fault: Callable[[Faults], None]) -> None:
    fake = FakeAgentMail()
    fault(fake.faults)
    async with served_leaving_nothing(fake) as environment:
        with trio.move_on_after(0.1) as scope:
            async with open_agentmail_stream(api_key="am_key", environment=environment):
                pytest.fail("not entered")
        assert scope.cancelled_caught


@with_both
async def test_ended_by_a_fatal_error_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0.01)
    async with served_leaving_nothing(fake) as environment:
        with pytest.raises(SubscriptionRejectedError):
            async with opener(api_key="am_key", environment=environment, reconnect=policy):
                await refuse_for_good(fake)
                await trio.sleep(5)


async def test_many_losses_and_changes_of_subscription_leave_no_socket_open() -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0, max_delay=0)
    async with served_leaving_nothing(fake) as environment:
        async with open_agentmail_session(api_key="am_key", environment=environment, reconnect=policy) as session:
            with trio.fail_after(5):
                for number in range(10):
                    await session.subscribe(Subscribe(inbox_ids=[f"{number}@agentmail.to"]))
                    await fake.drop_connections()
                    await fake.wait_subscribed()


def fail() -> NoReturn:
    raise Mishap


async def test_what_a_callable_for_the_key_raises_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with open_agentmail_stream(backend=fake, api_key=fail):
                pytest.fail("not entered")
    assert caught.value.__context__ is None
