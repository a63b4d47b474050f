"""A nursery for tasks that serve a block lets the block raise as if there were no nursery."""

import dataclasses

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_agentmail import JournalError, JournalInUseError
from trio_agentmail._nursery import add_context, background_nursery


class Mishap(Exception):
    pass


async def fail(error: BaseException) -> None:
    raise error


async def test_when_the_block_ends_the_tasks_are_cancelled(autojump_clock: MockClock) -> None:
    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    ended: list[float] = []
    async with background_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(serve)
        await trio.sleep(3)
        assert ended == []
    assert len(ended) == 2
    assert ended[0] == trio.current_time()


@pytest.mark.parametrize(
    "error", [Mishap(), ExceptionGroup("", [Mishap()]), KeyboardInterrupt(), StopAsyncIteration()], ids=repr
)
async def test_what_the_block_raises_comes_out_as_itself(error: BaseException) -> None:
    with pytest.raises(BaseException) as caught:
        async with background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


@pytest.mark.parametrize("error", [Mishap(), KeyboardInterrupt()], ids=repr)
async def test_what_a_task_raises_ends_the_block_and_comes_out_as_itself(error: BaseException) -> None:
    cleaned_up = False
    with pytest.raises(BaseException) as caught:
        async with background_nursery() as nursery:
            nursery.start_soon(fail, error)
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                cleaned_up = True
    assert caught.value is error
    assert error.__context__ is None
    assert cleaned_up


async def test_what_several_tasks_raise_comes_out_in_a_group() -> None:
    errors = [Mishap("one"), Mishap("two")]
    with pytest.raises(ExceptionGroup) as caught:
        async with background_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert set(caught.value.exceptions) == set(errors)


async def test_a_cancellation_from_outside_goes_through(autojump_clock: MockClock) -> None:
    with trio.move_on_after(3) as scope:
        async with background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 3


async def test_a_cancellation_from_outside_goes_through_nested_ones(autojump_clock: MockClock) -> None:
    with trio.move_on_after(3) as scope:
        async with background_nursery() as outer, background_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_block_that_is_cancelled_through_the_nursery_just_ends() -> None:
    async with background_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    assert nursery.cancel_scope.cancelled_caught


async def test_what_a_cancelled_block_raises_comes_out_as_itself(
    autojump_clock: MockClock,
) -> None:
    error = Mishap()
    with trio.move_on_after(3) as scope:
        with pytest.raises(Mishap) as caught:
            async with background_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise error
        assert caught.value is error
    assert not scope.cancelled_caught


async def test_the_block_may_be_left_while_a_task_cleans_up(autojump_clock: MockClock) -> None:
    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

    started = trio.current_time()
    async with background_nursery() as nursery:
        nursery.start_soon(clean_up)
        await wait_all_tasks_blocked()
    assert trio.current_time() == started + 2


async def test_of_what_the_block_and_a_task_raise_neither_is_forgotten() -> None:
    in_the_block = ValueError("in the block")

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in a task")

    with pytest.raises(KeyError) as caught:
        async with background_nursery() as nursery:
            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            raise in_the_block
    assert caught.value.__context__ is in_the_block


def test_a_context_that_is_there_already_stays_as_it_is() -> None:
    raised, context = ValueError(), KeyError()
    for _ in range(2):
        add_context(raised, context)
        assert raised.__context__ is context
        assert context.__context__ is None


def test_a_context_goes_where_the_story_begins_and_replaces_a_cancellation() -> None:
    raised, between, context = ValueError(), TypeError(), KeyError()
    raised.__context__ = between

    async def be_cancelled() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as exc:
                cancelled = exc
                raise
        return cancelled

    between.__context__ = trio.run(be_cancelled)
    add_context(raised, context)
    assert raised.__context__ is between
    assert between.__context__ is context


async def test_one_failure_that_several_tasks_report_comes_out_once(autojump_clock: MockClock) -> None:
    error = Mishap()
    with pytest.raises(Mishap) as caught:
        async with background_nursery() as nursery:
            nursery.start_soon(fail, error)
            nursery.start_soon(fail_in_a_nursery, error, error)
            await trio.sleep_forever()
    assert caught.value is error


async def test_exceptions_are_distinguished_by_identity() -> None:
    @dataclasses.dataclass
    class Unhashable(Exception):
        code: int

    errors = [Unhashable(1), Unhashable(1)]
    with pytest.raises(ExceptionGroup) as caught:
        async with background_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert {id(error) for error in caught.value.exceptions} == {id(error) for error in errors}
    with pytest.raises(Unhashable) as caught_alone:
        async with background_nursery() as nursery:
            nursery.start_soon(fail_in_a_nursery, errors[0], errors[0])
            await trio.sleep_forever()
    assert caught_alone.value is errors[0]


async def test_a_failed_journal_raises_one_exception_although_each_task_has_its_own() -> None:
    errors = [JournalError("the disk is full"), JournalError("the disk is full")]
    with pytest.raises(JournalError) as caught:
        async with background_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert caught.value in errors


async def test_different_failures_of_journals_are_distinguished() -> None:
    errors = [JournalError("the disk is full"), JournalError("is damaged"), JournalInUseError("the disk is full")]
    with pytest.raises(ExceptionGroup) as caught:
        async with background_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert {id(error) for error in caught.value.exceptions} == {id(error) for error in errors}


async def fail_in_a_nursery(*errors: BaseException) -> None:
    async with trio.open_nursery() as nursery:
        for error in errors:
            nursery.start_soon(fail, error)
