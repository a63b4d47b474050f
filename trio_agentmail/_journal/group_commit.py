"""Changes to a journal, written in groups, so that not each of them waits for the disk, and the event loop never."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio

from trio_agentmail.errors import JournalError

from .protocol import RunSync
from .sqlite_store import SQLiteStore, Step

__all__ = ["GroupCommit"]

T = TypeVar("T")

CHECK_EVERY = 60.0
"""Seconds without a change, after which the files are looked at: an agent that waits for mail learns that its journal
was removed before the next mail comes, which could not be written down."""


class GroupCommit:
    """Writes to a store, one transaction at a time; each has in it all that came while the last was written.

    A commit waits for the disk to confirm, which takes from a tenth of a millisecond to tens of them, whether there is
    one event in it or a thousand. So under load a commit for each would be the bottleneck, and a timer that waits for
    more would make the lone event late: taking what there is does neither.
    """

    def __init__(self, store: SQLiteStore, run_sync: RunSync) -> None:
        self._store = store
        self._run_sync = run_sync
        self._one_at_a_time = trio.Lock()
        self._steps: list[tuple[Step, Callable[[Any], None] | None]] = []
        self._written = trio.Event()  # set when these have been, or cannot be
        self._wanted = trio.Event()
        self._closing = False
        self._error: JournalError | None = None

    def add(self, step: Step, then: Callable[[Any], None] | None = None) -> trio.Event:
        """Have a change written, behind all that were asked for before.

        Args:
            step: See `SQLiteStore.apply`.
            then: Called with its result when it is on disk.

        Returns:
            What is set when it is on disk, or it is certain that it will not be: see `check`.

        Raises:
            JournalError: nothing can be written any more.
        """
        self.check()
        self._steps.append((step, then))
        self._wanted.set()
        return self._written

    async def write(self, step: Step, then: Callable[[Any], None] | None = None) -> None:
        """Have a change written, and wait until it is on disk. Cancelling this does not undo it.

        Raises:
            JournalError: it cannot be written.
        """
        written = self.add(step, then)
        await written.wait()
        self.check()

    async def read(self, function: Callable[[], T]) -> T:
        """Call a method of the store that reads.

        Raises:
            JournalError: it cannot be read.
        """
        async with self._one_at_a_time:
            result: T = await self._run_sync(function)
        return result

    def check(self) -> None:
        """Raise what went wrong, if something did.

        Raises:
            JournalError: that.
        """
        if self._error is not None:
            # A new one each time: several tasks may raise it.
            raise type(self._error)(*self._error.args) from self._error.__cause__

    async def run(self) -> None:
        """Write what comes, until `close`; whoever cancels this has to close as well."""
        with trio.CancelScope(shield=True):
            while self._error is None:
                with trio.move_on_after(CHECK_EVERY):
                    await self._wanted.wait()
                if self._steps:
                    await self._write_all()
                else:
                    await self._check_files()
                    if self._closing and not self._steps:
                        return

    async def _check_files(self) -> None:
        try:
            await self.read(self._store.check_files)
        except JournalError as exc:
            self._fail(exc)

    def _fail(self, exc: JournalError) -> None:
        self._error = exc
        self._written.set()  # whoever waits for it is told

    async def _write_all(self) -> None:
        steps, self._steps = self._steps, []
        written, self._written = self._written, trio.Event()
        if not self._closing:
            self._wanted = trio.Event()
        try:
            results = await self.read(partial(self._store.apply, [step for step, _ in steps]))
        except JournalError as exc:
            self._fail(exc)  # nor can be written what came in the meantime
        else:
            for (_, then), result in zip(steps, results, strict=True):
                if then is not None:
                    then(result)
        written.set()

    def close(self) -> None:
        """Let `run` end when all has been written."""
        self._closing = True
        self._wanted.set()
