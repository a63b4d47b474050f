"""The tasks of the fake, which live inside the blocks that need them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from trio_agentmail._nursery import background_nursery, raise_as_it_is

__all__ = ["Spawn", "fake_tasks"]

Spawn = Callable[..., None]
"""`nursery.start_soon`."""


@asynccontextmanager
async def fake_tasks() -> AsyncIterator[Spawn]:
    """Yield a function that starts tasks of the fake. The end of the block cancels them.

    An exception in a task is a bug in the fake or in a function of the test. The block then raises this exception
    unchanged, and not the one that the body raises because its server has gone. Of several exceptions, the block raises
    one that is not an `Exception`, such as KeyboardInterrupt, and otherwise the first.
    """
    errors: list[BaseException] = []

    async def run(async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await async_fn(*args)
        except BaseException as exc:
            if isinstance(exc, trio.Cancelled | BaseExceptionGroup) and not isinstance(exc, Exception):
                raise  # Trio must handle these: only Trio knows to which scope each Cancelled belongs
            errors.append(exc)
            nursery.cancel_scope.cancel()

    raised: BaseException | None = None
    try:
        async with background_nursery() as nursery:
            yield lambda async_fn, *args: nursery.start_soon(partial(run, async_fn, *args), name=async_fn)
    except BaseException as exc:
        if not errors:
            raise
        raised = exc
    if errors:
        error = next((error for error in errors if not isinstance(error, Exception)), errors[0])
        if raised is not None and not isinstance(raised, Exception | trio.Cancelled):
            error = raised
        raise_as_it_is(error)
