"""Group commit: writes many changes to a store in one transaction."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import trio

from trio_agentmail.errors import JournalError

from .store import Change, Store

__all__ = ["GroupCommit"]

T = TypeVar("T")

Then: TypeAlias = Callable[[Any, float], None]
"""A callback for when a change is durable. It is called with the change's result and `trio.current_time()`."""

CHECK_EVERY = 60.0
"""Seconds without a change after which the store is checked.

An idle agent then learns that its journal was removed before the next mail arrives and cannot be stored.
"""


class GroupCommit:
    """Writes to a store, one transaction at a time. Each contains all changes that were added during the previous one.

    A commit takes as long as the disk needs to confirm it, 0.1 to tens of milliseconds, whether it contains one event
    or a thousand. One commit per change would be the bottleneck under load. A timer that waits for more changes would
    delay a single event. So a commit starts as soon as the previous one has ended, with all changes added until then.
    """

    def __init__(self, store: Store, after_callbacks: Callable[[], None]) -> None:
        """
        Args:
            store: The store.
            after_callbacks: Called after the `then` callbacks of each transaction that has any.
        """
        self._store = store
        self._after_callbacks = after_callbacks
        self._one_at_a_time = trio.Lock()
        self._changes: list[tuple[Change, Then | None]] = []
        self._written = trio.Event()  # set when these changes are durable, or have failed
        self._wanted = trio.Event()
        self._closing = False
        self._error: JournalError | None = None

    def add(self, change: Change, then: Then | None = None) -> trio.Event:
        """Schedule a change after all earlier ones.

        Args:
            change: The change.
            then: Called when the change is durable.

        Returns:
            An event that is set when the change is durable or has failed. `check` raises if it has failed.

        Raises:
            JournalError: An earlier transaction has failed.
        """
        self.check()
        self._changes.append((change, then))
        self._wanted.set()
        return self._written

    async def write(self, change: Change, then: Then | None = None) -> None:
        """Schedule a change and wait until it is durable. Cancellation does not undo the change.

        Raises:
            JournalError: The change cannot be stored.
        """
        written = self.add(change, then)
        await written.wait()
        self.check()

    async def read(self, function: Callable[[], Awaitable[T]]) -> T:
        """Call a method of the store while no transaction is under way.

        Raises:
            JournalError: The store cannot be read.
        """
        async with self._one_at_a_time:
            return await function()

    def check(self) -> None:
        """Raise the error of the transaction that has failed, if any.

        Raises:
            JournalError: That error.
        """
        if self._error is not None:
            # Each call raises a new exception, since several tasks may raise it.
            raise type(self._error)(*self._error.args) from self._error.__cause__

    async def run(self) -> None:
        """Write changes until `close`. Shielded from cancellation."""
        with trio.CancelScope(shield=True):
            while self._error is None:
                with trio.move_on_after(CHECK_EVERY):
                    await self._wanted.wait()
                if self._changes:
                    await self._write_all()
                else:
                    await self._check_store()
                    if self._closing and not self._changes:
                        return

    async def _check_store(self) -> None:
        try:
            await self.read(self._store.check)
        except JournalError as exc:
            self._fail(exc)

    def _fail(self, exc: JournalError) -> None:
        self._error = exc
        self._written.set()  # changes that were added in the meantime have failed as well

    async def _write_all(self) -> None:
        changes, self._changes = self._changes, []
        written, self._written = self._written, trio.Event()
        if not self._closing:
            self._wanted = trio.Event()
        try:
            async with self._one_at_a_time:
                results = await self._store.apply([change for change, _ in changes])
        except JournalError as exc:
            self._fail(exc)
        else:
            now = trio.current_time()
            has_callbacks = False
            for (_, then), result in zip(changes, results, strict=True):
                if then is not None:
                    then(result, now)
                    has_callbacks = True
            if has_callbacks:
                self._after_callbacks()
        written.set()

    def close(self) -> None:
        """Let `run` return when all scheduled changes are written."""
        self._closing = True
        self._wanted.set()
