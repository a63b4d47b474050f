"""What the tests of leaving the block have in common."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio

from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

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
