"""`Journal`: the protocol between a stream and its journal.

Whoever implements it decides everything about the journal, including attempts and retries. `StoredJournal` implements
it over a `Store`, so that an engine of this package has to implement `Store` only.
"""

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
"""The type of `Backend.run_sync`. A journal uses it for every call that waits for a disk."""


class KeptIdentity(NamedTuple):
    """The identity of an event that a journal has stored. An event with the same identity is not delivered as new.

    `of` makes one. A journal stores its three values, and returns them in `Kept.identities`.

    Attributes:
        key: Equal for all deliveries of one event, and in every process.
        recorded_at: When the event was stored, in seconds since the epoch.
        push: Distinguishes two pushes of one received mail from pushes of two mails with the same Message-ID. It is
            negative if AgentMail sent no plausible creation time. It is 0 for other types of events.
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
            TypeError: The event is a notice, or was made by hand and has no text.
        """
        if not isinstance(event, ServerEvent | UnknownEvent):
            raise TypeError(f"a journal stores events, and {type(event).__name__} is a notice")
        if event._raw == "":  # the text of a received event is bytes, even if it is empty
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
        # Identities are forgotten by AgentMail's clock, which may be a little ahead of this machine's.
        return cls(key, max(now, created_at.timestamp()), push)


async def _no_identities() -> AsyncIterator[Sequence[KeptIdentity]]:
    return
    yield


@attrs.frozen
class Kept:
    """What a journal has kept from earlier runs.

    Attributes:
        identities: The identities of the stored events in batches, the oldest first. The stream reads all of them
            before it calls any other method of the journal.
        forgotten_until: The journal may have forgotten mail that AgentMail created before this time, in seconds since
            the epoch; `-math.inf` if it has forgotten none.
        state: The last `state` that `keep` stored; `b""` in a new journal.
    """

    identities: AsyncIterator[Sequence[KeptIdentity]]
    forgotten_until: float
    state: bytes


def nothing_kept() -> Kept:
    """Return the empty `Kept` of a stream without a journal."""
    return Kept(identities=_no_identities(), forgotten_until=-math.inf, state=b"")


class Journal(Protocol):
    """Stores events from their arrival until they are handled. Provisional.

    A stream records the events that it receives in its journal, and delivers the events that `next` returns. The
    consumer marks events as handled with `ack` or `processing`.

    The types in these signatures are public: in `trio_agentmail.journal`, and `Event` and `Notice` in
    `trio_agentmail.events`.
    """

    def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AbstractAsyncContextManager[Kept]:
        """Return a context manager that opens the journal for the lifetime of one stream.

        Background tasks of the journal end with the block.

        Args:
            scope: The environment and the subscription, as text. A journal belongs to one scope; see `keep`.
            run_sync: See `RunSync`.
            now: A function that returns the time of day, in seconds since the epoch.

        Raises:
            JournalError: The journal cannot be opened; see also the subclasses.
        """

    async def record(self, event: Event) -> bool:
        """Add an event. `next` returns it when it is durable. Wait while too many events are pending.

        Returns:
            False if the event is known to be a duplicate. `record` does not wait until it is stored. If it turns out to
            be a duplicate then, `next` does not return it.

        Raises:
            JournalError: The event, or an earlier change, cannot be stored.
            TypeError: The event is a notice, or was made by hand and has no text.
        """

    def notice(self, notice: Notice) -> None:
        """Add a notice. `next` returns it after all earlier events and notices.

        Notices must not pile up while the consumer is slow. So a `Disconnected` is dropped if an earlier one still
        waits and only `Subscribed` and `CaughtUp` follow it. These are dropped as well.
        """

    async def next(self) -> Event:
        """Wait for and return the next event or notice for the consumer. Called by one task.

        Raises:
            JournalError: The journal cannot be read or written.
        """

    @property
    def waiting(self) -> int:
        """The number of events and notices that `next` has not returned yet."""

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        """Store what the next run needs in one transaction, and wait until it is durable.

        All earlier events become durable before it or with it.

        Args:
            state: The state of recovery; `None` leaves it unchanged.
            scope: The scope to which the journal belongs from now on; `None` leaves it unchanged.
            also: With `scope`: another scope with which the journal may be opened.
            forgotten_until: Identities that were recorded before this time, in seconds since the epoch, may be
                forgotten if their events are handled; see `Kept`.
        """

    async def ack(self, event: Event) -> None:
        """Mark an event as handled, and wait until that is durable.

        Do nothing if the event is a notice or is handled already.

        Raises:
            trio.ClosedResourceError: The journal is not open.
            JournalError: The change cannot be stored.
        """

    def processing(self, event: Event) -> AbstractAsyncContextManager[None]:
        """Return a context manager whose block is one delivery attempt; see `SQLiteJournal.processing`."""
