"""`SQLiteJournal`: events on disk until they are handled, for a stream that must not lose any when its process dies."""

import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType

import attrs
import trio

from trio_agentmail._nursery import background_nursery
from trio_agentmail._trio_run import TrioRun
from trio_agentmail.errors import JournalError, printable
from trio_agentmail.events import Event

from .entry import Entry, restored
from .protocol import Kept, Notice, RunSync
from .queue import JournalQueue, open_store

__all__ = ["DeadLetter", "SQLiteJournal"]

logger = logging.getLogger("trio_agentmail")


@attrs.frozen
class DeadLetter:
    """An event that is not tried again: `max_attempts` attempts to handle it failed, or took the process with them.

    Attributes:
        id: Its number in the journal.
        event: The event.
        attempts: How many attempts there were.
        error: How the last one ended: the exception's type and text; the text is cut.
        died_at: When that was.
    """

    id: int
    event: Event
    attempts: int
    error: str = attrs.field(repr=False)
    died_at: datetime


class SQLiteJournal:
    """Keeps events in an SQLite file from when they come until they are handled: `open_agentmail_stream(journal=…)`.

        journal = SQLiteJournal("agent.db")
        async with open_agentmail_stream(journal=journal) as events:
            async for event in events:
                async with journal.processing(event):
                    await handle(event)

    An event is on disk before the consumer gets it. What has not been acknowledged when the process ends comes again
    at the next start, before anything new: at least once, and never again after its `ack`. See docs/journal.md.

    Args:
        path: The file. It is made, for its owner alone, if it does not exist; with it come `-wal`, `-shm` and `-lock`
            beside it.
        max_attempts: After so many attempts that failed, an event is a dead letter.
        retry_delay: Seconds from an attempt that failed to the next.
        max_pending: So many events may be unhandled; with more, reading from the network waits.

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_attempts: int = 5,
        retry_delay: float = 60.0,
        max_pending: int = 10_000,
    ) -> None:
        self._path = _checked_path(path)
        for name, number in (("max_attempts", max_attempts), ("max_pending", max_pending)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} is a whole number, not {type(number).__name__}")
            if number < 1:
                raise ValueError(f"{name} is at least 1, not {number}")
        if isinstance(retry_delay, bool) or not isinstance(retry_delay, int | float):
            raise TypeError(f"retry_delay is a number of seconds, not {type(retry_delay).__name__}")
        if not 0 <= retry_delay < math.inf:
            raise ValueError(f"retry_delay is a number of seconds, not {retry_delay}")
        self._max_attempts = max_attempts
        self._retry_delay = float(retry_delay)
        self._max_pending = max_pending
        self._queue: JournalQueue | None = None
        self._run: TrioRun

    def __repr__(self) -> str:
        return f"SQLiteJournal({str(self._path)!r})"

    @asynccontextmanager
    async def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AsyncIterator[Kept]:
        """See `Journal`: the stream opens it on entering, and closes it on leaving."""
        store, pending = await run_sync(partial(open_store, self._path, scope, now(), self._max_attempts))
        try:
            kept: Kept = await run_sync(partial(store.kept, run_sync))
            queue = JournalQueue(
                str(self._path),
                store,
                pending,
                run_sync,
                now,
                max_attempts=self._max_attempts,
                retry_delay=self._retry_delay,
                max_pending=self._max_pending,
            )
            async with background_nursery() as nursery:
                nursery.start_soon(queue.run)
                self._queue, self._run = queue, TrioRun()
                try:
                    yield kept
                finally:
                    self._queue = None
                    await queue.close()
            queue.check()
        finally:
            with trio.CancelScope(shield=True):
                await run_sync(store.close)

    def _open_queue(self) -> JournalQueue:
        if self._queue is None:
            raise trio.ClosedResourceError("the journal is not open: it is while a stream has it")
        return self._queue

    def _consumers_queue(self, what: str) -> JournalQueue:
        queue = self._open_queue()
        self._run.check(what)
        return queue

    # What the stream does

    async def record(self, event: Event) -> bool:
        """See `Journal`."""
        return await self._open_queue().record(event)

    def notice(self, notice: Notice) -> None:
        """See `Journal`."""
        self._open_queue().notice(notice)

    async def next(self) -> Event:
        """See `Journal`."""
        return await self._open_queue().next()

    @property
    def waiting(self) -> int:
        """See `Journal`."""
        return 0 if self._queue is None else self._queue.waiting

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        """See `Journal`."""
        await self._open_queue().keep(state, scope, also, forgotten_until)

    # What the consumer does

    async def ack(self, event: Event) -> None:
        """Mark an event as handled. When this returns, that is on disk, and the event never comes again.

        Nothing happens if it is handled already, or a dead letter, and with what is not kept: notices like
        `Disconnected`, and events that were made by hand.

        Raises:
            trio.ClosedResourceError: the journal is not open: the block of its stream has been left.
            JournalMismatchError: another journal gave this event.
            JournalError: it cannot be written down.
            TypeError: it is no event.
            RuntimeError: it was called in another thread or another `trio.run` than that of its stream.
        """
        queue = self._consumers_queue("ack()")
        entry = queue.find(event)
        if entry is None:
            await trio.lowlevel.checkpoint()
        else:
            await queue.ack(entry)

    def processing(self, event: Event) -> AbstractAsyncContextManager[None, bool]:
        """The block is one attempt to handle an event.

        - It ends without an exception: the event is acknowledged, see `ack`.
        - It raises an `Exception`: that is logged, with its traceback, and goes no further, so that the loop around
          the block goes on to the next event. This one is given again by the stream after `retry_delay` seconds, with
          `attempt` one higher; or after `max_attempts` it is a dead letter.
        - It is cancelled, or raises a `KeyboardInterrupt` or whatever else is no `Exception`: that was no attempt. It
          goes on its way, and if the stream does too, the event is given again after `retry_delay` seconds. So to
          limit the time of an attempt, put `trio.fail_after` inside of the block, not around it.
        - The process dies: that was an attempt. At the next start the event comes first, and alone.

        With what is not kept, like `Disconnected`, and with an event that is handled already, nothing of this happens:
        there is nothing to be given again, and what the block raises comes out of it.

        Raises:
            trio.ClosedResourceError: the journal is not open; if it has been closed during the block, the event will
                come again.
            JournalMismatchError, TypeError, RuntimeError: as `ack`.
            JournalError: it cannot be written down.
        """
        return _Attempt(self._consumers_queue("processing()"), event)

    async def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The events that are not tried again, the oldest first.

        Raises:
            trio.ClosedResourceError: the journal is not open. (`trio-agentmail journal list` needs no stream.)
            JournalError: they cannot be read.
        """
        queue = self._consumers_queue("dead_letters()")
        return tuple(
            DeadLetter(
                id=row.id,
                event=restored(row.text, origin="redelivered", attempt=row.attempts),
                attempts=row.attempts,
                error=row.error,
                died_at=datetime.fromtimestamp(row.ended_at, UTC),
            )
            for row in await queue.read(queue.store.dead)
        )

    async def requeue(self, letter: DeadLetter) -> None:
        """Have a dead letter given again, behind what waits, as if it had never been tried.

        Nothing happens if it is none any more.

        Raises:
            trio.ClosedResourceError: the journal is not open.
            JournalError: it cannot be written down.
        """
        await self._consumers_queue("requeue()").requeue(letter.id)

    async def drop(self, letter: DeadLetter) -> None:
        """Give a dead letter up: it counts as handled, and its text is deleted.

        Nothing happens if it is none any more.

        Raises:
            trio.ClosedResourceError: the journal is not open.
            JournalError: it cannot be written down.
        """
        await self._consumers_queue("drop()").drop(letter.id)


class _Attempt(AbstractAsyncContextManager[None, bool]):
    """See `SQLiteJournal.processing`."""

    def __init__(self, queue: JournalQueue, event: Event) -> None:
        self._queue = queue
        self._event = event
        self._entry: Entry | None = None

    async def __aenter__(self) -> None:
        entry = self._queue.find(self._event)
        if entry is None or entry.done:
            await trio.lowlevel.checkpoint()
        else:
            await self._queue.begin_attempt(entry)
            self._entry = entry

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._entry is None or self._entry.done:  # acknowledged in the block
            return False
        # What has happened is written down, even if the block has just been cancelled. It takes one commit.
        with trio.CancelScope(shield=True):
            if exc is None:
                await self._queue.ack(self._entry)
            elif isinstance(exc, Exception):
                await self._failed(self._entry, exc)
                return True
            else:
                with suppress(JournalError, trio.ClosedResourceError):
                    await self._queue.take_attempt_back(self._entry)
        return False

    async def _failed(self, entry: Entry, exc: Exception) -> None:
        queue = self._queue
        number = entry.attempts
        again = await queue.fail(entry, f"{type(exc).__name__}: {printable(str(exc), 500)}")
        outcome = f"it comes again in {queue.retry_delay:g} s" if again else "it is a dead letter now"
        # The traceback is that of the consumer's own code; nothing of the event is in the line.
        logger.error(
            "attempt %d of %d to handle %s failed: %s", number, queue.max_attempts, entry, outcome, exc_info=exc
        )


def _checked_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"the path of a journal is text, not {type(text).__name__}")
    if text in ("", ":memory:"):
        raise ValueError(f"a journal is a file: {text!r} would keep nothing")
    if "\0" in text:
        raise ValueError("the path of a journal holds a null character")
    # Links are followed once, so that whichever way it is named, the lock is beside the one file.
    return Path(os.path.realpath(text))
