"""Leaving the block: the connection is closed, and what the body raises comes out."""

import traceback

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.leaving import Mishap, Opener, chain, leaving_nothing, refuse_for_good, with_both
from tests.helpers.streams import open_agentmail_stream
from tests.helpers.taking import taking
from trio_agentmail import MessageReceivedEvent, Subscribe, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


# Without an exception


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


# With an exception of the body


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


# Several streams


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
    # An error of the outer stream cancels the inner one. The error of the inner stream lets the outer one close.
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
