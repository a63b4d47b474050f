"""Faults that last longer than the command that begins them, like an outage."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import trio

from trio_agentmail.testing._wire.tasks import Spawn, fake_tasks

__all__ = ["Blocks"]


@attrs.frozen(eq=False)
class Block:
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)


class Blocks:
    """The blocks of faults that are in force, each entered and left by a task of its own.

    A block ends when its time is over, by `end`, and at the end of the block of `tasks`.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, Block] = {}
        self._spawn: Spawn | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._blocks

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[None]:
        """For the block, faults can begin. An exception of one is a bug, and comes out of the block as itself."""
        async with fake_tasks() as spawn:
            self._spawn = spawn
            yield

    async def begin(self, name: str, block: AbstractAsyncContextManager[object], seconds: float) -> None:
        """Enter a block, and leave it after some seconds.

        Args:
            name: The name of the fault, which is not in force.
        """
        assert self._spawn is not None, "the emulator is not being served"
        entry = self._blocks[name] = Block()
        self._spawn(self._run, name, entry, block, seconds)
        await entry.begun.wait()

    async def end(self) -> None:
        """Leave all blocks."""
        blocks = list(self._blocks.values())
        for block in blocks:
            block.scope.cancel()
        for block in blocks:
            await block.ended.wait()

    async def _run(self, name: str, entry: Block, block: AbstractAsyncContextManager[object], seconds: float) -> None:
        try:
            with entry.scope:
                async with block:
                    entry.begun.set()
                    await trio.sleep(seconds)
        finally:
            del self._blocks[name]
            entry.ended.set()
