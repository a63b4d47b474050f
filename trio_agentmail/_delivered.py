"""What has been delivered: the memory of identities, by which nothing is delivered twice."""

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
"""Generations within the time for which an identity is kept: it may be kept longer by one of them."""

MIN_SPAN = 15.0
"""Seconds that a generation spans at least."""

MAX_UNDATED = 2**16
"""Mails without a plausible `created_at` that are remembered."""

MAX_PUSHES = 32
"""Pushes of one mail that are remembered: who chooses one Message-ID for very many mails must not slow us down."""


class Delivered:
    """Remembers what has been delivered, and what is just being delivered.

    A mail has one identity and may be pushed as several events: as spam, and as received once it is released. A mail
    that was found in a listing has no event_type but what its labels say, so it is the same as any push of that mail.
    Senders choose Message-IDs, and some choose one for many mails. Two pushes with different event_ids, whose
    timestamps differ by a whole second or more, are two mails.

    A listing may give a mail again long after it was delivered. So forgetting its identity is only right together with
    leaving alone whatever AgentMail created up to then: that is `floor`. It is raised by whoever lists (`forget`), and
    then only to where listings have been completed. When memory runs out before that, `floor` is raised all the same,
    since nothing may come twice: then mail created before it may have been missed.

    Args:
        now: AgentMail's clock, in seconds since the epoch.
        keep: Seconds for which an identity is kept, about.
        is_durable: Whether identities come from a journal (`load`), which keeps hashes of them. Otherwise the ids
            themselves do, and it takes less time.

    Attributes:
        floor: Mail that AgentMail created before this, in seconds since the epoch, may have been delivered and
            forgotten. `-math.inf`: none was.
        ran_out_until: Up to then, identities were forgotten since there was no room for them; `-math.inf`: none was.
        given_back: How many claims were given back. When it has grown, a mail that was known may be missing.
        has_run_out: Called when that happens, so that whoever lists can tell what may have been missed by it.
    """

    def __init__(self, now: Callable[[], float], keep: float, *, is_durable: bool = True) -> None:
        self._now = now
        self._mail_key: Callable[[str, str], Hashable] = mail_key if is_durable else _mail_ids
        span = max(keep / GENERATIONS_WITHIN, MIN_SPAN)
        self._mails = Identities(span)
        self._others = Identities(span)
        # No floor forgets these, so each is forgotten by itself.
        self._undated: OrderedDict[Hashable, Record] = OrderedDict()
        self._near = min(span, PLAUSIBLE)
        self._asked_at = -math.inf
        """When the clock was asked last, by it; `-math.inf`: not since identities were forgotten."""
        self.floor = -math.inf
        self.ran_out_until = -math.inf
        self.given_back = 0
        self.has_run_out: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._mails) + len(self._others) + len(self._undated)

    def load(self, kept: Iterable[KeptIdentity]) -> None:
        """Remember what a journal knows."""
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
        """Whether an event is new, and may be delivered. From then on it counts as delivered, unless given back."""
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
        """Take a claim back: the event has not been delivered."""
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
        """Whether a mail has been delivered, as whatever event."""
        return bool(self._records(self._mail_key(inbox_id, message_id)))

    def may_be_forgotten(self, created: datetime | None) -> bool:
        """Whether a mail that AgentMail created at that time may have been delivered and forgotten."""
        return created is not None and created.timestamp() < self.floor

    def forget(self, before: float) -> None:
        """Forget what was delivered before a time, in seconds since the epoch, and raise the floor to it."""
        self._mails.forget(before)
        self._others.forget(before)
        self.floor = max(self.floor, before)
        # Held mail may come long after the clock was asked, and have been created just then: see `_time_of`.
        self._asked_at = -math.inf

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
        """When a mail is delivered, in seconds since the epoch; `None`: it was created at no plausible time.

        A mail that was held, or was missed, may have been created long ago. Then its identity is not older for that:
        the same mail may be pushed again in the next moment. But nearly always a mail was created just now, and its
        own time is as good as the clock's, which takes longer to ask.
        """
        if created_at is None:
            return None
        created = created_at.timestamp()
        if not -self._near < created - self._asked_at < self._near:
            self._asked_at = self._now()
        if created > self._asked_at + PLAUSIBLE:
            return None
        return max(created, self._asked_at - self._near)


def _mail_ids(inbox_id: str, message_id: str) -> str:
    return f"{inbox_id}\0{message_id}"
