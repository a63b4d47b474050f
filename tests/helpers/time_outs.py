"""Time-outs of tests over real sockets, which pass on a slow machine as well.

If a time-out is short, a slow machine may exceed it before the test has come to the place where it should expire. So
these tests use time-outs of several seconds, and the fixture `adjustable_clock`. This clock runs in real time, as
sockets and threads need it, and where the test wants a time-out to expire, it moves the clock forward.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.servers import Peer
from trio_agentmail import ConnectionFailedError
from trio_agentmail._nursery import background_nursery

OPEN_TIMEOUT = 4.0
ENTER_TIMEOUT = 7.0
"""Seconds. Two attempts that last for `OPEN_TIMEOUT` exceed `ENTER_TIMEOUT`, and both of them stay below `PATIENCE`."""


async def failure_to_enter(
    stream: AbstractAsyncContextManager[Any], clock: MockClock, when: Callable[[], bool]
) -> ConnectionFailedError:
    """Return the error of a stream that is not entered.

    Args:
        stream: The stream, with `ENTER_TIMEOUT`.
        clock: The clock, which is moved beyond the time-out as soon as `when` returns True.
        when: Returns whether the stream has made enough attempts. False at first.
    """

    async def expire() -> None:
        while not when():  # noqa: ASYNC110  nothing announces an attempt
            await trio.sleep(0.02)  # longer than `jump_when_idle` waits
        clock.jump(ENTER_TIMEOUT)

    async with background_nursery() as nursery:
        nursery.start_soon(expire)
        with pytest.raises(ConnectionFailedError) as caught:
            async with stream:
                pytest.fail("entered")
    return caught.value


async def never_answers(clock: MockClock, peer: Peer) -> None:
    """Read once, let `OPEN_TIMEOUT` pass, and answer nothing. A handler for `serve`."""
    await peer.stream.receive_some()
    clock.jump(OPEN_TIMEOUT)
    await peer.wait_for_hang_up()


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Let time pass while all tasks wait, and wait until they have noticed.

    The step must be shorter than all time-outs.
    """
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


@asynccontextmanager
async def jump_when_idle(clock: MockClock, seconds: float) -> AsyncIterator[None]:
    """Move the clock forward as soon as all tasks wait. The block is under way meanwhile."""

    async def expire() -> None:
        await wait_all_tasks_blocked(0.01)
        clock.jump(seconds)

    async with background_nursery() as nursery:
        nursery.start_soon(expire)
        yield
