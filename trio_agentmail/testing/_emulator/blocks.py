"""Faults that outlast the command that starts them, such as an outage."""

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
    """The active faults that are context managers. A task of its own enters and leaves each of them.

    A fault ends when its time is over, when `end` is called, or when the block of `tasks` ends.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, Block] = {}
        self._spawn: Spawn | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._blocks

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[None]:
        """Let faults begin within the block. If one raises, which is a bug, the block raises the same exception."""
        async with fake_tasks() as spawn:
            self._spawn = spawn
            yield

    async def begin(self, name: str, block: AbstractAsyncContextManager[object], seconds: float) -> None:
        """Enter a block, and leave it after some seconds.

        Args:
            name: The name of the fault, which must not be active.
        """
        assert self._spawn is not None, "the emulator is not being served"
        entry = self._blocks[name] = Block()
        self._spawn(self._run, name, entry, block, seconds)
        await entry.begun.wait()

    async def end(self) -> None:
        """Leave all blocks, and return when they have been left."""
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
