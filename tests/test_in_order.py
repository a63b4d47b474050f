"""Several things at once, handed over in order."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail._recovery.in_order import in_order


async def test_results_come_in_order_and_nobody_waits_for_the_slowest_of_a_batch(autojump_clock: MockClock) -> None:
    async def sleep(seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds

    async def take(seconds: float) -> None:
        taken.append(seconds)

    taken: list[float] = []
    seconds = [4.0, 1, 1, 1, 4, 1, 1, 1]
    began = trio.current_time()
    async with in_order(4) as start:
        for number in seconds:
            await start(partial(sleep, number), take)
    assert taken == seconds
    assert trio.current_time() - began == 8
    taken.clear()
    began = trio.current_time()
    async with in_order(3) as start:
        for number in [2.0] * 3 + [1, 3] * 3:
            await start(partial(sleep, number), take)
    assert trio.current_time() - began < 2 + 3 * 3


async def test_no_more_than_so_many_are_started_and_not_handed_over(autojump_clock: MockClock) -> None:
    async def first(number: int) -> int:
        started.append(number)
        if number == 0:
            await trio.sleep(10)
        return number

    async def then(number: int) -> None:
        handed_over.append(number)
        assert len(started) - number <= 3

    started: list[int] = []
    handed_over: list[int] = []
    async with in_order(3) as start:
        for number in range(20):
            await start(partial(first, number), then)
    assert handed_over == list(range(20))


@pytest.mark.parametrize("which", ["first", "then", "body"])
async def test_what_is_raised_comes_out_as_it_is_and_cancels_the_rest(which: str, autojump_clock: MockClock) -> None:
    error = ZeroDivisionError()

    async def first() -> None:
        await trio.sleep(1)
        if which == "first":
            raise error

    async def then(result: None) -> None:
        if which == "then":
            raise error

    began = trio.current_time()
    with pytest.raises(ZeroDivisionError) as caught:
        async with in_order(3) as start:
            await start(partial(trio.sleep, 5), then)
            await start(first, then)
            if which == "body":
                raise error
    assert caught.value is error
    assert trio.current_time() - began == {"first": 1, "then": 5, "body": 0}[which]
