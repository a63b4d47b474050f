"""Checks and failures for the tests of leaving the block."""

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
    """Check that the tasks and connections that are started in the block have ended when it ends."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(10_000):  # on the mock clock, a test that hangs would hang for ever
        yield
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert fake.connected == 0


async def refuse_for_good(fake: FakeAgentMail) -> None:
    """Cause a non-retryable error while the block is running."""
    fake.faults.refuse_subscriptions("forbidden", "not any more")
    await fake.drop_connections()


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its contexts."""
    while exc is not None:
        yield exc
        exc = exc.__context__
