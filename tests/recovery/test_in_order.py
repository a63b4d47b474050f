"""Concurrent operations whose results are handed over in order."""

from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from trio_agentmail._recovery.in_order import Room, in_order


async def test_results_come_in_order_without_waiting_for_the_slowest_of_a_batch(autojump_clock: MockClock) -> None:
    async def sleep(seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds

    async def take(seconds: float) -> None:
        taken.append(seconds)

    taken: list[float] = []
    seconds = [4.0, 1, 1, 1, 4, 1, 1, 1]
    began = trio.current_time()
    async with in_order(4, Room(100)) as start:
        for number in seconds:
            await start(partial(sleep, number), take)
    assert taken == seconds
    assert trio.current_time() - began == 8
    taken.clear()
    began = trio.current_time()
    async with in_order(3, Room(100)) as start:
        for number in [2.0] * 3 + [1, 3] * 3:
            await start(partial(sleep, number), take)
    assert trio.current_time() - began < 2 + 3 * 3


async def test_the_number_of_results_not_handed_over_is_bounded(autojump_clock: MockClock) -> None:
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
    async with in_order(3, Room(100)) as start:
        for number in range(20):
            await start(partial(first, number), then)
    assert handed_over == list(range(20))


@pytest.mark.parametrize("which", ["first", "then", "body"])
async def test_an_exception_comes_out_unwrapped_and_cancels_the_rest(which: str, autojump_clock: MockClock) -> None:
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
        async with in_order(3, Room(100)) as start:
            await start(partial(trio.sleep, 5), then)
            await start(first, then)
            if which == "body":
                raise error
    assert caught.value is error
    assert trio.current_time() - began == {"first": 1, "then": 5, "body": 0}[which]


# Room


async def fetch(size: int, seconds: float = 1.0) -> int:
    await trio.sleep(seconds)
    return size


def itself(size: int) -> int:
    return size


async def test_the_size_of_what_is_under_way_or_waits_is_bounded(autojump_clock: MockClock) -> None:
    present, most = 0, 0

    async def first(size: int) -> int:
        nonlocal present, most
        present += size
        most = max(most, present)
        return await fetch(size)

    async def then(size: int) -> None:
        nonlocal present
        await trio.sleep(1)
        handed_over.append(size)
        present -= size

    handed_over: list[int] = []
    sizes = [30, 30, 30, 30, 60, 60, 10, 90, 10]
    async with in_order(16, Room(100)) as start:
        for size in sizes:
            await start(partial(first, size), then, size, itself)
    assert handed_over == sizes
    assert most <= 100


async def test_a_result_larger_than_the_room_has_it_alone(autojump_clock: MockClock) -> None:
    async def then(size: int) -> None:
        times.append((size, trio.current_time() - began))

    times: list[tuple[int, float]] = []
    began = trio.current_time()
    async with in_order(16, Room(100)) as start:
        for size in (10, 1000, 10):
            await start(partial(fetch, size), then, size, itself)
    assert times == [(10, 1), (1000, 2), (10, 3)]


@pytest.mark.parametrize(("expected", "size", "waits_until"), [(1, 99, 5), (99, 1, 2), (50, 50, 2)])
async def test_a_wrong_estimate_is_corrected_when_the_size_is_known(
    expected: int, size: int, waits_until: float, autojump_clock: MockClock
) -> None:
    async def then(_: int) -> None:
        await trio.sleep_until(began + 5)

    began = trio.current_time()
    async with in_order(16, Room(100)) as start:
        await start(partial(fetch, size), then, expected, itself)
        await trio.sleep(2)
        await start(partial(fetch, 50), then, 50, itself)
        assert trio.current_time() - began == waits_until


async def test_blocks_that_share_a_room_do_not_deadlock(autojump_clock: MockClock) -> None:
    handed_over = 0

    async def scan(seconds: float) -> None:
        async with in_order(4, room) as start:
            for number in range(50):
                await start(partial(fetch, 60, seconds * (number % 3)), then, 60, itself)

    async def then(size: int) -> None:
        nonlocal handed_over
        await trio.sleep(0.1)
        handed_over += 1

    room = Room(100)
    async with trio.open_nursery() as nursery:
        for seconds in (0.5, 1, 3):
            nursery.start_soon(scan, seconds)
    assert handed_over == 150


@pytest.mark.parametrize("fails", [False, True], ids=["cancelled", "raises"])
async def test_room_is_given_back_however_a_block_ends(fails: bool, autojump_clock: MockClock) -> None:
    async def fail(size: int) -> None:
        raise ZeroDivisionError

    async def wait(size: int) -> None:
        await trio.sleep_forever()

    room = Room(100)
    with suppress(ZeroDivisionError), trio.move_on_after(5):
        async with in_order(16, room) as start:
            for _ in range(10):
                await start(partial(fetch, 40), fail if fails else wait, 30, itself)
    with trio.fail_after(1):
        await room.take(100)
