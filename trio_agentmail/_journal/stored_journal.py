"""`StoredJournal`: the public methods that all journals over a `Store` have in common."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType

import attrs
import trio

from trio_agentmail._nursery import background_nursery
from trio_agentmail._printable import printable
from trio_agentmail._trio_run import TrioRun
from trio_agentmail.errors import JournalError
from trio_agentmail.events import Event, Notice

from .entry import Entry, restored
from .lifecycle import Lifecycle, Rules
from .open_journal import OpenJournal
from .protocol import Kept, RunSync
from .store import Store

__all__ = ["DeadLetter", "StoredJournal"]

logger = logging.getLogger("trio_agentmail")


@attrs.frozen
class DeadLetter:
    """An event that is no longer redelivered, after `max_attempts` attempts that failed or ended with a crash.

    Attributes:
        id: Its number in the journal.
        event: The event.
        attempts: The number of attempts.
        error: The type and text of the exception that ended the last attempt. A long text is cut.
        died_at: When the last attempt ended.
    """

    id: int
    event: Event
    attempts: int
    error: str = attrs.field(repr=False)
    died_at: datetime


class StoredJournal(ABC):
    """A `Journal` over a `Store`, which a subclass opens."""

    def __init__(self, name: str, rules: Rules) -> None:
        """
        Args:
            name: A name that is unique in this process. It is used in error messages.
            rules: The settings.
        """
        self._name = name
        self._rules = rules
        self._open: OpenJournal | None = None
        self._run: TrioRun

    @abstractmethod
    def _open_store(self, scope: str, run_sync: RunSync) -> AbstractAsyncContextManager[Store]:
        """Return a context manager that opens the store; see `Journal.opened` for the arguments and exceptions."""

    @asynccontextmanager
    async def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AsyncIterator[Kept]:
        """See `Journal`. The stream calls this."""
        async with self._open_store(scope, run_sync) as store:
            loaded = await store.load()
            lifecycle = Lifecycle(self._rules)
            dead = lifecycle.start(loaded, now())
            if dead:
                await store.apply([bury for _, bury in dead])
            for record, bury in dead:
                logger.error(
                    "%s (number %d in the journal) is a dead letter now: %s", record.event_type, record.id, bury.error
                )
            journal = OpenJournal(self._name, lifecycle, store, now)
            async with background_nursery() as nursery:
                nursery.start_soon(journal.run)
                self._open, self._run = journal, TrioRun()
                try:
                    yield loaded.kept
                finally:
                    self._open = None
                    await journal.close()
            journal.check()

    def _opened(self) -> OpenJournal:
        if self._open is None:
            raise trio.ClosedResourceError("the journal is not open; it is open while a stream uses it")
        return self._open

    def _opened_for_consumer(self, method: str) -> OpenJournal:
        journal = self._opened()
        self._run.check(method)
        return journal

    # For the stream

    async def record(self, event: Event) -> bool:
        """See `Journal`."""
        return await self._opened().record(event)

    def notice(self, notice: Notice) -> None:
        """See `Journal`."""
        self._opened().notice(notice)

    async def next(self) -> Event:
        """See `Journal`."""
        return await self._opened().next()

    @property
    def waiting(self) -> int:
        """See `Journal`."""
        return 0 if self._open is None else self._open.waiting

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        """See `Journal`."""
        await self._opened().keep(state, scope, also, forgotten_until)

    # For the consumer

    async def ack(self, event: Event) -> None:
        """Mark an event as handled, and wait until that is durable. The event is never delivered again.

        Do nothing if the event is handled already, is a dead letter, or is not in the journal, like a notice
        (`Disconnected`) or an event that was made by hand.

        Raises:
            trio.ClosedResourceError: The journal is not open, since the block of its stream has been left.
            JournalMismatchError: Another journal delivered this event.
            JournalError: The change cannot be stored.
            TypeError: The argument is not an event.
            RuntimeError: This was called in another thread or another `trio.run` than the stream's.
        """
        journal = self._opened_for_consumer("ack()")
        entry = journal.find(event)
        if entry is None:
            await trio.lowlevel.checkpoint()
        else:
            await journal.ack(entry)

    def processing(self, event: Event) -> AbstractAsyncContextManager[None, bool]:
        """Return a context manager whose block is one delivery attempt.

        - If the block ends without an exception, the event is acknowledged, as by `ack`.
        - If it raises an `Exception`, the attempt has failed. The exception is logged with its traceback and
          suppressed, so that the loop around the block continues with the next event. The event is redelivered after
          `retry_delay` seconds, with `attempt` one higher. After `max_attempts` attempts it is a dead letter.
        - If it is cancelled, or raises `KeyboardInterrupt` or another `BaseException`, the attempt does not count. The
          exception propagates. If the stream stays open, the event is redelivered after `retry_delay` seconds. To limit
          the time of an attempt, put `trio.fail_after` inside the block, not around it.
        - If the process dies, the attempt counts. At the next start the event is delivered first, and alone.

        If the event is not in the journal (like `Disconnected`) or is handled already, the context manager has no
        effect: nothing is redelivered, and exceptions propagate.

        Raises:
            trio.ClosedResourceError: The journal is not open. If it was closed during the block, the event is
                redelivered at the next start.
            JournalMismatchError, TypeError, RuntimeError: See `ack`.
            JournalError: The change cannot be stored.
        """
        return _Attempt(self._opened_for_consumer("processing()"), event, self._rules)

    async def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the dead letters, the oldest first.

        Raises:
            trio.ClosedResourceError: The journal is not open. (`trio-agentmail journal list` works without a stream.)
            JournalError: The dead letters cannot be read.
        """
        records = await self._opened_for_consumer("dead_letters()").dead_letters()
        return tuple(
            DeadLetter(
                id=record.id,
                event=restored(record.text, origin="redelivered", attempt=record.attempts),
                attempts=record.attempts,
                error=record.error,
                died_at=datetime.fromtimestamp(record.ended_at, UTC),
            )
            for record in records
        )

    async def requeue(self, letter: DeadLetter) -> None:
        """Make a dead letter pending again, with no attempts, after all other events.

        Do nothing if it is no longer a dead letter.

        Raises:
            trio.ClosedResourceError: The journal is not open.
            JournalError: The change cannot be stored.
        """
        await self._opened_for_consumer("requeue()").requeue(letter.id)

    async def drop(self, letter: DeadLetter) -> None:
        """Delete a dead letter and its text. The event then counts as handled.

        Do nothing if it is no longer a dead letter.

        Raises:
            trio.ClosedResourceError: The journal is not open.
            JournalError: The change cannot be stored.
        """
        await self._opened_for_consumer("drop()").drop(letter.id)


class _Attempt(AbstractAsyncContextManager[None, bool]):
    """See `StoredJournal.processing`."""

    def __init__(self, journal: OpenJournal, event: Event, rules: Rules) -> None:
        self._journal = journal
        self._event = event
        self._rules = rules
        self._entry: Entry | None = None

    async def __aenter__(self) -> None:
        entry = self._journal.find(self._event)
        if entry is None or entry.done:
            await trio.lowlevel.checkpoint()
        else:
            await self._journal.begin_attempt(entry)
            self._entry = entry

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._entry is None or self._entry.done:  # acknowledged in the block
            return False
        # The outcome is stored even if the block has just been cancelled. This takes one commit.
        with trio.CancelScope(shield=True):
            if exc is None:
                await self._journal.ack(self._entry)
            elif isinstance(exc, Exception):
                await self._fail(self._entry, exc)
                return True
            else:
                with suppress(JournalError, trio.ClosedResourceError):
                    await self._journal.take_back_attempt(self._entry)
        return False

    async def _fail(self, entry: Entry, exc: Exception) -> None:
        number = entry.attempts
        again = await self._journal.fail(entry, f"{type(exc).__name__}: {printable(str(exc), 500)}")
        outcome = f"it is redelivered in {self._rules.retry_delay:g} s" if again else "it is a dead letter now"
        # The message contains no content of the event. The traceback is of the consumer's own code.
        logger.error(
            "attempt %d of %d to handle %s failed: %s", number, self._rules.max_attempts, entry, outcome, exc_info=exc
        )
