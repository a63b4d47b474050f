"""Faults that go on when the order for them has been answered, like an outage."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import trio

from trio_agentmail.testing._fake_connection import Spawn, fake_tasks

__all__ = ["LastingFaults"]


@attrs.frozen(eq=False)
class LastingFault:
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)


class LastingFaults:
    """Blocks of the fake, each in a task of its own, which no request has to wait for.

    A block ends when its time is over, by `end`, and with the block of `tasks`, in whose nursery all of them are.
    """

    def __init__(self) -> None:
        self._faults: dict[str, LastingFault] = {}
        self._spawn: Spawn | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._faults

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[None]:
        """For the block, faults can begin. A bug in one comes out of it, as itself."""
        async with fake_tasks() as spawn:
            self._spawn = spawn
            yield

    async def begin(self, name: str, block: AbstractAsyncContextManager[object], seconds: float) -> None:
        """Enter a block, and leave it so many seconds later.

        Args:
            name: Whose fault none is going on.
        """
        assert self._spawn is not None, "the emulator is not being served"
        fault = self._faults[name] = LastingFault()
        self._spawn(self._last, name, fault, block, seconds)
        await fault.begun.wait()

    async def end(self) -> None:
        """Leave all blocks."""
        faults = list(self._faults.values())
        for fault in faults:
            fault.scope.cancel()
        for fault in faults:
            await fault.ended.wait()

    async def _last(
        self, name: str, fault: LastingFault, block: AbstractAsyncContextManager[object], seconds: float
    ) -> None:
        try:
            with fault.scope:
                async with block:
                    fault.begun.set()
                    await trio.sleep(seconds)
        finally:
            del self._faults[name]
            fault.ended.set()
