"""What a stream needs of a journal: a small protocol, so that one on a shared engine can follow `SQLiteJournal`."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

import attrs

from trio_agentmail.events import Event, Notice

__all__ = ["Journal", "Kept", "KeptIdentity", "Notice", "RunSync", "nothing_kept"]

RunSync: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""`Backend.run_sync`: the one way in which a journal waits for a disk."""


class KeptIdentity(NamedTuple):
    """The identity of an event that a journal has written down: it is not delivered again as a new one.

    Attributes:
        key: What `identity` says of the event.
        recorded_at: When it was written down, in seconds since the epoch.
        push: What `push_record` says of a received mail; its bitwise complement if AgentMail did not say when it
            created the mail, or said nonsense. 0 for any other event.
    """

    key: bytes
    recorded_at: float
    push: int


async def _no_identities() -> AsyncIterator[Sequence[KeptIdentity]]:
    return
    yield


@attrs.frozen
class Kept:
    """What a journal knows when it is opened.

    Attributes:
        identities: Of the events written down, in batches, the oldest first. They are asked for before anything else
            is asked of the journal.
        forgotten_until: Mail that AgentMail created before this, in seconds since the epoch, may have been written
            down and forgotten. `-math.inf`: nothing has been forgotten.
        state: What `keep` was last given; `b""` in a new journal.
    """

    identities: AsyncIterator[Sequence[KeptIdentity]]
    forgotten_until: float
    state: bytes


def nothing_kept() -> Kept:
    """What a stream without a journal knows."""
    return Kept(identities=_no_identities(), forgotten_until=-math.inf, state=b"")


class Journal(Protocol):
    """Keeps events from when they come until they are handled. Provisional.

    A stream has it between the network and its channel: it puts in what it receives, and hands to the consumer what
    `next` gives. The consumer says with `ack` or `processing` what has been handled.
    """

    def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AbstractAsyncContextManager[Kept]:
        """Open it for the block, which is a stream's life; what the journal does in the background ends with it.

        Args:
            scope: The environment and the subscription, as text. A journal belongs to one; see `keep`.
            run_sync: See `RunSync`.
            now: The time of day, in seconds since the epoch.

        Raises:
            JournalError: see there, and its subclasses.
        """

    async def record(self, event: Event) -> bool:
        """Take an event, which `next` gives when it is on disk; wait while too many are not handled yet.

        Returns:
            False if it is known already that it is not new. What was handled before, and is not in `Kept.identities`
            any more, turns out when it is written, and `record` does not wait for that: then `next` does not give it.

        Raises:
            JournalError: it, or something before it, cannot be written down.
            TypeError: it is a notice, or was made by hand and has no text.
        """

    def notice(self, notice: Notice) -> None:
        """Take what is not written down, to be given behind what was taken before; see `merge_notice`."""

    async def next(self) -> Event:
        """The next event or notice for the consumer. One task calls this.

        Raises:
            JournalError: something cannot be written down or read.
        """

    @property
    def waiting(self) -> int:
        """Events and notices that `next` has not given."""

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        """Write down, in one transaction, what the next run has to know.

        On disk it comes after all that was recorded before.

        Args:
            state: What recovery has to know; `None`: as before.
            scope: What the journal belongs to from now on; `None`: as before.
            also: Together with `scope`: the journal may be opened with this scope as well.
            forgotten_until: What was written down before this, in seconds since the epoch, and is handled need not be
                known any more; see `Kept`.
        """

    async def ack(self, event: Event) -> None:
        """Mark an event as handled, on disk; nothing happens if it is already, or is a notice.

        Raises:
            trio.ClosedResourceError: the journal is not open.
            JournalError: it cannot be written down.
        """

    def processing(self, event: Event) -> AbstractAsyncContextManager[None]:
        """One attempt to handle an event: see `SQLiteJournal.processing`."""
