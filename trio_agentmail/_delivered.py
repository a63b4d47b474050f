"""De-duplication: remembers which events have been delivered."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime

from ._identities import Identities, Record
from ._identity import DIGEST_SIZE, PLAUSIBLE, identity, is_mail, is_same_push, mail_key, push_record
from ._journal.protocol import KeptIdentity
from .events import Event, MessageReceivedEvent

__all__ = ["Delivered"]

GENERATIONS_WITHIN = 8
"""Number of generations that span `keep` seconds. An identity may be kept for one generation longer."""

MIN_SPAN = 15.0
"""Minimum time that a generation spans, in seconds."""

MAX_UNDATED = 2**16
"""Maximum number of mails without a plausible `created_at` that are remembered."""

MAX_PUSHES = 32
"""Maximum number of pushes that are remembered for one mail, so that a sender who reuses a Message-ID cannot slow this
down."""


class Delivered:
    """Remembers the events that have been delivered or are being delivered.

    A mail has one `mail_key`, but it may be pushed as several events, for example as spam and, after its release, as
    received. A listed mail has no event_type apart from its labels, so it equals any push of that mail. Senders choose
    Message-IDs, and some use one for many mails. So two pushes are two mails if their event_ids differ and their
    timestamps differ by at least one second.

    Memory is bounded, so identities must be forgotten. But a listing may contain a mail long after it was delivered,
    and the mail would be delivered again if its identity had been forgotten. Therefore, forgetting identities raises
    `floor`, and listed mail that AgentMail created before `floor` is not delivered. Recovery raises `floor` (`forget`)
    only as far as its completed listings reach, so nothing is missed. If memory runs out before that, `floor` is raised
    nevertheless, because nothing may be delivered twice. In that case, mail that was created before `floor` may have
    been missed, and `has_run_out` is called.

    Args:
        now: AgentMail's clock, in seconds since the epoch.
        keep: Approximate time for which an identity is kept, in seconds.
        is_durable: Whether identities are loaded from a journal (`load`), which contains their hashes. If not, the ids
            of a mail are used as they are, which is faster.

    Attributes:
        floor: A time in seconds since the epoch. Mail that AgentMail created before it may have been delivered and
            forgotten. `-math.inf` if none was forgotten.
        ran_out_until: The time up to which identities were forgotten for lack of memory, in seconds since the epoch.
            `-math.inf` if none were.
        given_back: Number of claims that were undone. If it has grown, a mail that was known may be undelivered.
        has_run_out: A function to call when memory runs out, so that recovery can report mail that may be missing.
    """

    def __init__(self, now: Callable[[], float], keep: float, *, is_durable: bool = True) -> None:
        self._now = now
        self._mail_key: Callable[[str, str], Hashable] = mail_key if is_durable else _mail_ids
        span = max(keep / GENERATIONS_WITHIN, MIN_SPAN)
        self._mails = Identities(span)
        self._others = Identities(span)
        # `floor` does not apply to these, so they are forgotten one by one.
        self._undated: OrderedDict[Hashable, Record] = OrderedDict()
        self._near = min(span, PLAUSIBLE)
        self._clock_read_at = -math.inf
        """The last reading of the clock; `-math.inf` if it has not been read since identities were last forgotten."""
        self.floor = -math.inf
        self.ran_out_until = -math.inf
        self.given_back = 0
        self.has_run_out: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._mails) + len(self._others) + len(self._undated)

    def load(self, kept: Iterable[KeptIdentity]) -> None:
        """Add identities from a journal."""
        for key, time, record in kept:
            if not is_mail(key):
                self._others.add(key, 1, time)
                continue
            mail = key[:DIGEST_SIZE]
            if record < 0:
                self._add_mail_record(mail, self._records(mail), ~record, None)
            else:
                self._add_mail_record(mail, self._records(mail), record, time)

    def claim(self, event: Event) -> bool:
        """Return whether an event is new, and remember it as delivered until `give_back`."""
        if isinstance(event, MessageReceivedEvent):
            return self._claim_mail(event)
        key = identity(event)
        if key is None:
            return True
        if self._others.get(key) is not None:
            return False
        self._others.add(key, 1, self._now())
        return True

    def _claim_mail(self, event: MessageReceivedEvent) -> bool:
        message = event.message
        mail = self._mail_key(message.inbox_id, message.message_id)
        record = push_record(event)
        known = self._records(mail)
        if known and any(is_same_push(record, other) for other in known):
            return False
        self._add_mail_record(mail, known, record, self._time_of(message.created_at))
        return True

    def give_back(self, event: Event) -> None:
        """Undo a claim, because the event was not delivered."""
        self.given_back += 1
        if isinstance(event, MessageReceivedEvent):
            mail = self._mail_key(event.message.inbox_id, event.message.message_id)
            record = push_record(event)
            known = self._records(mail)
            if record in known:
                left = tuple(other for other in known if other != record)
                self._replace(mail, left or None)
        elif (key := identity(event)) is not None:
            self._others.replace(key, None)

    def has_mail(self, inbox_id: str, message_id: str) -> bool:
        """Return whether a mail has been delivered, as an event of any type."""
        return bool(self._records(self._mail_key(inbox_id, message_id)))

    def may_be_forgotten(self, created: datetime | None) -> bool:
        """Return whether a mail that AgentMail created at that time may have been delivered and forgotten."""
        return created is not None and created.timestamp() < self.floor

    def forget(self, before: float) -> None:
        """Forget identities older than a time, in seconds since the epoch, and raise `floor` to that time."""
        self._mails.forget(before)
        self._others.forget(before)
        self.floor = max(self.floor, before)
        # Otherwise, held mail that was created when the clock was last read would get that old time in `_time_of`.
        self._clock_read_at = -math.inf

    def _records(self, mail: Hashable) -> tuple[int, ...]:
        known = self._mails.get(mail)
        if known is None and self._undated:
            known = self._undated.get(mail)
        if known is None:
            return ()
        return known if isinstance(known, tuple) else (known,)

    def _add_mail_record(self, mail: Hashable, known: tuple[int, ...], record: int, time: float | None) -> None:
        if not known and time is not None:
            self._note_forgotten(self._mails.add(mail, record, time))
        elif known and (time is None or mail in self._undated):
            self._replace(mail, (*known, record)[-MAX_PUSHES:])
        elif time is None:
            self._undated[mail] = record
            if len(self._undated) > MAX_UNDATED:
                self._undated.popitem(last=False)
        else:
            self._note_forgotten(self._mails.renew(mail, (*known, record)[-MAX_PUSHES:], time))

    def _note_forgotten(self, newest: float | None) -> None:
        if newest is not None:
            self.ran_out_until = max(self.ran_out_until, math.nextafter(min(newest, self._now()), math.inf))
            self.floor = max(self.floor, self.ran_out_until)
            if self.has_run_out is not None:
                self.has_run_out()

    def _replace(self, mail: Hashable, records: tuple[int, ...] | None) -> None:
        record = records[0] if records is not None and len(records) == 1 else records
        if mail not in self._undated:
            self._mails.replace(mail, record)
        elif record is None:
            del self._undated[mail]
        else:
            self._undated[mail] = record

    def _time_of(self, created_at: datetime | None) -> float | None:
        """Return the time of a mail's identity, in seconds since the epoch. `None` if `created_at` is not plausible.

        This is approximately the time of delivery: a mail that was held or missed may have been created long ago, and
        may be pushed again at any moment. Nearly always, however, a mail was created just now. Then `created_at` is
        used, because reading the clock takes longer.
        """
        if created_at is None:
            return None
        created = created_at.timestamp()
        if not -self._near < created - self._clock_read_at < self._near:
            self._clock_read_at = self._now()
        if created > self._clock_read_at + PLAUSIBLE:
            return None
        return max(created, self._clock_read_at - self._near)


def _mail_ids(inbox_id: str, message_id: str) -> str:
    return f"{inbox_id}\0{message_id}"
