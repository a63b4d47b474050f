"""`Journal`: what a stream needs of any journal. A journal on another engine implements this and nothing else."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

import attrs

from trio_agentmail._events.base import ServerEvent
from trio_agentmail._identity import PLAUSIBLE, identity, push_record
from trio_agentmail.events import Event, MessageReceivedEvent, Notice, UnknownEvent

__all__ = ["Journal", "Kept", "KeptIdentity", "RunSync", "nothing_kept"]

RunSync: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""`Backend.run_sync`. A journal that waits for a disk does so through this, and in no other way."""


class KeptIdentity(NamedTuple):
    """The identity of an event that a journal has stored. An event with the same identity is not delivered as new.

    `of` makes one; a journal stores its three values, and gives them back in `Kept.identities`.

    Attributes:
        key: What tells that two deliveries are of one event. It is the same in every process.
        recorded_at: When the event was stored, in seconds since the epoch.
        push: What tells two pushes of one received mail from pushes of two mails with one Message-ID. It is negative if
            AgentMail did not say when it created the mail, or gave no plausible time; 0 for any other event.
    """

    key: bytes
    recorded_at: float
    push: int

    @classmethod
    def of(cls, event: Event, now: float) -> "KeptIdentity":
        """Return the identity of an event that is stored now.

        Args:
            now: Seconds since the epoch.

        Raises:
            TypeError: The event cannot be stored: it is a notice, or was made by hand and has no text.
        """
        if not isinstance(event, ServerEvent | UnknownEvent):
            raise TypeError(f"a journal stores events, and {type(event).__name__} is a notice")
        if event._raw == "":  # what was received is bytes, even if it is empty
            raise TypeError(
                f"a journal stores the text of an event as it was received, and this {type(event).__name__} was made "
                "by hand and has none: make it with decode_event"
            )
        key = identity(event)
        assert key is not None  # an event with a text has one
        if not isinstance(event, MessageReceivedEvent):
            return cls(key, now, 0)
        push = push_record(event)
        created_at = event.message.created_at
        if created_at is None or created_at.timestamp() > now + PLAUSIBLE:
            return cls(key, now, ~push)
        # AgentMail's clock may be a little ahead, and identities are forgotten by its time.
        return cls(key, max(now, created_at.timestamp()), push)


async def _no_identities() -> AsyncIterator[Sequence[KeptIdentity]]:
    return
    yield


@attrs.frozen
class Kept:
    """What a journal knows when it is opened.

    Attributes:
        identities: The identities of the stored events, in batches, the oldest first. The stream reads all of them
            before it calls any other method of the journal.
        forgotten_until: The journal may have forgotten mail that AgentMail created before this, in seconds since the
            epoch. `-math.inf`: it has forgotten nothing.
        state: What `keep` was last given; `b""` in a new journal.
    """

    identities: AsyncIterator[Sequence[KeptIdentity]]
    forgotten_until: float
    state: bytes


def nothing_kept() -> Kept:
    """Return what a stream without a journal knows."""
    return Kept(identities=_no_identities(), forgotten_until=-math.inf, state=b"")


class Journal(Protocol):
    """Stores events from their arrival until they are handled. Provisional.

    A stream with a journal records in it what it receives, and delivers to the consumer what `next` returns. The
    consumer tells the journal with `ack` or `processing` what has been handled.

    The types in these signatures are public: in `trio_agentmail.journal`, and `Event` and `Notice` in
    `trio_agentmail.events`.
    """

    def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AbstractAsyncContextManager[Kept]:
        """Open the journal for the block, which is the life of one stream.

        Tasks of the journal's own end with the block.

        Args:
            scope: The environment and the subscription, as text. A journal belongs to one scope; see `keep`.
            run_sync: See `RunSync`.
            now: Returns the time of day, in seconds since the epoch.

        Raises:
            JournalError: The journal cannot be opened; see also the subclasses.
        """

    async def record(self, event: Event) -> bool:
        """Take an event. `next` returns it when it is durable. Wait while too many events are pending.

        Returns:
            False if the event is already known not to be new. `record` does not wait to find out: an event that was
            handled long ago, and is not among `Kept.identities`, may turn out not to be new when it is stored. Then
            `next` does not return it.

        Raises:
            JournalError: The event, or something before it, cannot be stored.
            TypeError: The event is a notice, or was made by hand and has no text.
        """

    def notice(self, notice: Notice) -> None:
        """Take a notice, to be returned by `next` behind what was taken before.

        Notices must not pile up while the consumer sleeps. A `Disconnected` is therefore dropped if an earlier one is
        still waiting with nothing but `Subscribed` and `CaughtUp` behind it, and these are dropped as well.
        """

    async def next(self) -> Event:
        """Wait for the next event or notice for the consumer. Called by one task.

        Raises:
            JournalError: The journal cannot be read or written.
        """

    @property
    def waiting(self) -> int:
        """The number of events and notices that `next` has not returned."""

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        """Store what the next run has to know, in one transaction, and wait until it is durable.

        All that was recorded before becomes durable before it or with it.

        Args:
            state: What recovery has to know; `None`: unchanged.
            scope: The scope to which the journal belongs from now on; `None`: unchanged.
            also: Together with `scope`: another scope with which the journal may be opened.
            forgotten_until: Identities that were recorded before this, in seconds since the epoch, may be forgotten if
                their events are handled; see `Kept`.
        """

    async def ack(self, event: Event) -> None:
        """Mark an event as handled, and wait until that is durable.

        Nothing happens if the event is a notice, or is handled already.

        Raises:
            trio.ClosedResourceError: The journal is not open.
            JournalError: It cannot be stored.
        """

    def processing(self, event: Event) -> AbstractAsyncContextManager[None]:
        """The block is one delivery attempt: see `SQLiteJournal.processing`."""
