"""Changes to a store, written in groups, so that one commit serves many of them."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import trio

from trio_agentmail.errors import JournalError

from .store import Change, Store

__all__ = ["GroupCommit"]

T = TypeVar("T")

Then: TypeAlias = Callable[[Any, float], None]
"""What follows from a change that is durable; called with its result and `trio.current_time()`."""

CHECK_EVERY = 60.0
"""Seconds without a change, after which the store is checked. An agent that waits for mail then learns that its journal
was removed before the next mail comes, which could not be stored."""


class GroupCommit:
    """Writes to a store, one transaction at a time. Each contains all changes that came during the one before.

    A commit takes as long as the disk takes to confirm it, 0.1 to tens of milliseconds, whether it contains one event
    or a thousand. One commit for each change would be the bottleneck under load, and a timer that waits for more
    changes would delay a single event. Writing at once whatever is there does neither.
    """

    def __init__(self, store: Store, after_consequences: Callable[[], None]) -> None:
        """
        Args:
            store: The store.
            after_consequences: Called once after the `then`s of a transaction, if it had any.
        """
        self._store = store
        self._after_consequences = after_consequences
        self._one_at_a_time = trio.Lock()
        self._changes: list[tuple[Change, Then | None]] = []
        self._written = trio.Event()  # set when these changes are durable, or have failed
        self._wanted = trio.Event()
        self._closing = False
        self._error: JournalError | None = None

    def add(self, change: Change, then: Then | None = None) -> trio.Event:
        """Schedule a change, behind all earlier ones.

        Args:
            change: The change.
            then: Called when it is durable.

        Returns:
            An event that is set when the change is durable or has failed; `check` tells which.

        Raises:
            JournalError: An earlier transaction has failed.
        """
        self.check()
        self._changes.append((change, then))
        self._wanted.set()
        return self._written

    async def write(self, change: Change, then: Then | None = None) -> None:
        """Schedule a change and wait until it is durable. Cancelling this does not undo the change.

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
        """Raise the error of the transaction that has failed, if one has.

        Raises:
            JournalError: That error.
        """
        if self._error is not None:
            # A new exception each time, since several tasks may raise it.
            raise type(self._error)(*self._error.args) from self._error.__cause__

    async def run(self) -> None:
        """Write the changes as they come, until `close`. Cancelling this does not end it."""
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
        self._written.set()  # changes that came in the meantime have failed as well

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
            has_consequences = False
            for (_, then), result in zip(changes, results, strict=True):
                if then is not None:
                    then(result, now)
                    has_consequences = True
            if has_consequences:
                self._after_consequences()
        written.set()

    def close(self) -> None:
        """Let `run` return when all scheduled changes are written."""
        self._closing = True
        self._wanted.set()
