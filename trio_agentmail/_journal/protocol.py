"""What a stream needs of a journal: a small protocol, so that one on a shared engine can follow `SQLiteJournal`."""

import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import attrs

from trio_agentmail.events import CaughtUp, Disconnected, ErrorEvent, Event, RecoveryFailed, Subscribed

__all__ = ["NOTHING_KEPT", "Journal", "Kept", "KeptIdentity", "Notice", "RunSync"]

Notice: TypeAlias = Subscribed | Disconnected | ErrorEvent | CaughtUp | RecoveryFailed
"""What is not written down: it tells of the stream, and not of something that happened at AgentMail."""

RunSync: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""`Backend.run_sync`: the one way in which a journal waits for a disk."""


@attrs.frozen
class KeptIdentity:
    """An event that the journal has written down before: it is not delivered again as a new one.

    Attributes:
        kind: Its `event_type` if it is a received mail, else `""`.
        key: The rest of `identity`.
        created: AgentMail's time of a received mail's arrival, in seconds since the epoch, if it is known.
    """

    kind: str
    key: str | bytes
    created: float | None


@attrs.frozen
class Kept:
    """What a journal knows when it is opened.

    Attributes:
        identities: Of the events written down, the oldest first, as far as they are kept.
        forgotten_until: Mail that AgentMail created before this, in seconds since the epoch, may have been written
            down and forgotten. `-math.inf`: nothing has been forgotten.
        state: What `keep` was last given; `b""` in a new journal.
    """

    identities: Iterable[KeptIdentity]
    forgotten_until: float
    state: bytes


NOTHING_KEPT = Kept(identities=(), forgotten_until=-math.inf, state=b"")
"""What a stream without a journal knows."""


class Journal(Protocol):
    """Keeps events from when they come until they are handled. Provisional.

    A stream has it between the network and its channel: it puts in what it receives, and hands to the consumer what
    `next` gives. The consumer says with `ack` or `processing` what has been handled.
    """

    def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AbstractAsyncContextManager[Kept]:
        """Open it for the block, which is a stream's life; what the journal does in the background ends with it.

        Args:
            scope: The environment and the subscription, as text. A journal belongs to one.
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

    async def keep(self, state: bytes | None, scope: str | None = None) -> None:
        """Write down what recovery has to know, or the subscription that it belongs to from now on, or both.

        On disk it comes after all that was recorded before.
        """

    async def ack(self, event: Event) -> None:
        """Mark an event as handled, on disk; nothing happens if it is already, or is a notice.

        Raises:
            trio.ClosedResourceError: the journal is not open.
            JournalError: it cannot be written down.
        """

    def processing(self, event: Event) -> AbstractAsyncContextManager[None]:
        """One attempt to handle an event: see `SQLiteJournal.processing`."""
