"""`Store`: the protocol of the engine behind a journal, with the records and changes that it takes.

A store decides nothing. It makes the changes that `lifecycle` has decided on, and reads back what it has stored.
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
        identity: Stored for longer than the rest, until `Keep.forgotten_until` has passed it.
        origin: How the event came.
        event_type: Its type, printable.
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
        attempts: How many attempts have begun and have not been taken back.
        under_way: Whether the last attempt has neither ended nor been taken back. At the start of a run this means
            that the process ended during the attempt.
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
    """What an earlier run left.

    Attributes:
        kept: See `Journal.opened`.
        pending: The pending events, by ascending id.
        last_id: The highest id that any event has had, including those that have been deleted; 0 in a new store.
    """

    kept: Kept
    pending: Sequence[PendingRecord]
    last_id: int


# Changes. An `id` that does not exist, or whose event is in another state than the change expects, changes nothing.


@attrs.frozen
class Add:
    """Store an event as pending. The result is False, and nothing changes, if its identity is stored already."""

    id: int
    record: NewRecord


@attrs.frozen
class BeginAttempt:
    """An attempt to handle a pending event begins: count it, and mark it as under way."""

    id: int


@attrs.frozen
class TakeBackAttempt:
    """The attempt that is under way does not count."""

    id: int


@attrs.frozen
class Fail:
    """The attempt that is under way has failed. The event stays pending."""

    id: int
    error: str


@attrs.frozen
class Bury:
    """A pending event becomes a dead letter. `ended_at` is in seconds since the epoch."""

    id: int
    error: str
    ended_at: float


@attrs.frozen
class Ack:
    """A pending event is handled: delete it with its text. Its identity stays."""

    id: int


@attrs.frozen
class Requeue:
    """A dead letter becomes pending, without attempts. The result is its `PendingRecord`, or None."""

    id: int


@attrs.frozen
class Drop:
    """A dead letter counts as handled: as `Ack`. The result tells whether it existed."""

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
    """The engine behind an open journal. Its methods are called one at a time.

    Opening it has made sure that it belongs to the stream's scope, and that no other consumer has it open.

    Ids are given by the journal, in ascending order from `Loaded.last_id`, so that recording an event does not wait for
    the store. They are the order in which pending events are delivered after a restart.

    All methods raise a `JournalError` that says what is the matter if the engine fails.
    """

    async def load(self) -> Loaded:
        """Return what an earlier run left. Called once, before anything else."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Any]:
        """Make changes in one transaction, in their order. It is durable when this returns.

        If this raises, none of the changes will be found by the next run.

        Returns:
            One result for each change; of those that document none, it is not used.
        """

    async def texts(self, ids: Sequence[int], limit: int) -> Mapping[int, bytes]:
        """Read the texts of the first of these events: at least one, and more while they total less than `limit` bytes.

        Ids that are not stored any more are left out.
        """

    async def dead_letters(self) -> Sequence[DeadRecord]:
        """Read all dead letters, by ascending id."""

    async def check(self) -> None:
        """Raise if the store can no longer be used. Called after each minute without changes, and on closing."""
