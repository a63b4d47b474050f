"""`Store`: the protocol of the storage engine behind a journal, with its records and changes.

`lifecycle` decides on changes. A store only makes them, and reads records back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from .protocol import Kept, KeptIdentity

__all__ = [
    "Ack",
    "Add",
    "BeginAttempt",
    "Bury",
    "Change",
    "DeadRecord",
    "Drop",
    "Fail",
    "Keep",
    "Loaded",
    "NewRecord",
    "PendingRecord",
    "Requeue",
    "Store",
    "TakeBackAttempt",
]


# What is stored


@attrs.frozen
class NewRecord:
    """An event to be stored.

    Attributes:
        identity: Its identity. The store keeps it after the event is handled, until `Keep.forgotten_until` passes it.
        origin: The `origin` of the event.
        event_type: Its type, in printable characters.
        text: Its bytes as received.
    """

    identity: KeptIdentity
    origin: str
    event_type: str
    text: bytes


@attrs.frozen
class PendingRecord:
    """A pending event, without its text.

    Attributes:
        id: Its number.
        key: See `KeptIdentity`.
        attempts: The number of attempts that have begun, without those taken back.
        under_way: Whether an attempt has begun and has neither ended nor been taken back. At the start of a run this
            means that the process ended during the attempt.
    """

    id: int
    key: bytes
    attempts: int
    under_way: bool
    origin: str
    event_type: str


@attrs.frozen
class DeadRecord:
    """A dead letter. `ended_at` is in seconds since the epoch."""

    id: int
    attempts: int
    error: str
    ended_at: float
    origin: str
    text: bytes


@attrs.frozen
class Loaded:
    """What a store contains when it is opened.

    Attributes:
        kept: See `Journal.opened`.
        pending: The pending events, by ascending id.
        last_id: The highest id that any event has had, including deleted ones; 0 in a new store.
    """

    kept: Kept
    pending: Sequence[PendingRecord]
    last_id: int


# Changes. A change does nothing if its `id` does not exist, or if the event is not in the state that it expects.


@attrs.frozen
class Add:
    """Store an event as pending, unless its identity is stored already. The result is whether it was stored."""

    id: int
    record: NewRecord


@attrs.frozen
class BeginAttempt:
    """Begin an attempt at a pending event: count it and mark it as under way."""

    id: int


@attrs.frozen
class TakeBackAttempt:
    """End the attempt that is under way, without counting it."""

    id: int


@attrs.frozen
class Fail:
    """End the attempt that is under way as failed. The event stays pending."""

    id: int
    error: str


@attrs.frozen
class Bury:
    """Make a pending event a dead letter. `ended_at` is in seconds since the epoch."""

    id: int
    error: str
    ended_at: float


@attrs.frozen
class Ack:
    """Delete a pending event and its text, since it is handled. Keep its identity."""

    id: int


@attrs.frozen
class Requeue:
    """Make a dead letter pending, with no attempts. The result is its `PendingRecord`, or None if it does not exist."""

    id: int


@attrs.frozen
class Drop:
    """Delete a dead letter and its text. Keep its identity. The result is whether it existed."""

    id: int


@attrs.frozen
class Keep:
    """See `Journal.keep`."""

    state: bytes | None
    scope: str | None
    also: str | None
    forgotten_until: float


Change: TypeAlias = Add | BeginAttempt | TakeBackAttempt | Fail | Bury | Ack | Requeue | Drop | Keep


class Store(Protocol):
    """The storage engine of an open journal. Its methods are called one at a time.

    Opening a store checks that it belongs to the stream's scope and has no other consumer.

    The journal assigns ids in ascending order from `Loaded.last_id`, so that recording an event does not wait for the
    store. After a restart, pending events are delivered by ascending id.

    All methods raise a `JournalError` that names the problem if the engine fails.
    """

    async def load(self) -> Loaded:
        """Return what the store contains. Called once, before any other method."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Any]:
        """Make changes in one transaction, in order. They are durable when this returns.

        If this raises, the next run finds either all of the changes or none.

        Returns:
            One result for each change. The result of a change that does not document one is ignored.
        """

    async def texts(self, ids: Sequence[int], limit: int) -> Mapping[int, bytes]:
        """Read the texts of the first of these events: at least one, and more while they total less than `limit` bytes.

        Ids that are no longer stored are left out.
        """

    async def dead_letters(self) -> Sequence[DeadRecord]:
        """Read all dead letters, by ascending id."""

    async def check(self) -> None:
        """Raise if the store can no longer be used. Called after a minute without changes, and on closing."""
