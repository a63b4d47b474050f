"""What has been delivered: the memory of identities, so that nothing comes twice."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime

from ._codec import identity, mail_key
from ._journal.protocol import KeptIdentity
from .events import Event, MessageReceivedEvent

__all__ = ["RECOVERED", "Delivered"]

REMEMBERED = 2**15
"""How many identities of received mails are remembered, and how many of other events: at a hundred events a second
those of five minutes, which is longer than any two connections overlap; at a mail every three seconds those of a day,
which is how far back a sweep looks. It costs about 12 MiB for mails and 5 for other events (see docs/stream.md)."""

RECOVERED = "recovered"
"""The `origin` of a mail that was found through the REST API."""

_ANY = ""
"""Among the kinds under which a mail was delivered: it was found in a listing, which has no event_type."""


class Delivered:
    """Remembers what has been delivered, and what is just being.

    A live event is the same as an earlier one if its `identity` is. A recovered mail has no event_type but what its
    labels say, so it is one with any live event of the same mail, whichever comes first.

    Memory is bounded, and what was forgotten must not come again from a listing. So what bounds the memory bounds
    recovery too: nothing is recovered that AgentMail created up to `forgotten_until`.
    """

    def __init__(self) -> None:
        # When AgentMail created a mail, and the kinds under which it was delivered: nearly always one. Each mail that
        # comes makes an entry, so it is one flat tuple, and what can be done when it is forgotten is done then.
        self._mails: OrderedDict[str | bytes, tuple[datetime | None, *tuple[str, ...]]] = OrderedDict()
        self._others: OrderedDict[str | bytes, None] = OrderedDict()
        self._youngest_forgotten: datetime | None = None
        self._forgotten_in_journal = -math.inf

    @property
    def forgotten_until(self) -> float:
        """Seconds since the epoch."""
        if self._youngest_forgotten is None:
            return self._forgotten_in_journal
        return max(self._forgotten_in_journal, self._youngest_forgotten.timestamp())

    def load(self, identities: Iterable[KeptIdentity], forgotten_until: float) -> None:
        """Know what a journal knows."""
        for kept in identities:
            if kept.kind:
                known = self._mails.get(kept.key)
                created = None if kept.created is None else datetime.fromtimestamp(kept.created, UTC)
                # Whether it was pushed or found, nobody wants it again.
                kinds = (kept.kind, _ANY) if known is None else (*known[1:], kept.kind, _ANY)
                self._mails[kept.key] = (created, *kinds)
            else:
                self._others[kept.key] = None
        self._forgotten_in_journal = max(self._forgotten_in_journal, forgotten_until)
        while len(self._mails) > REMEMBERED:
            self._forget_a_mail()
        while len(self._others) > REMEMBERED:
            self._others.popitem(last=False)

    def claim(self, event: Event) -> bool:
        """Whether it is new, and may be delivered. From then on it counts as delivered, unless it is given back."""
        if isinstance(event, MessageReceivedEvent):
            return self._claim_mail(event)
        found = identity(event)
        if found is None:
            return True
        _, key = found
        if key in self._others:
            return False
        self._others[key] = None
        if len(self._others) > REMEMBERED:
            self._others.popitem(last=False)
        return True

    def _claim_mail(self, event: MessageReceivedEvent) -> bool:
        message = event.message
        key = mail_key(message.inbox_id, message.message_id)
        kind = _kind(event)
        known = self._mails.get(key)
        if known is None:
            self._mails[key] = (message.created_at, kind)
            if len(self._mails) > REMEMBERED:
                self._forget_a_mail()
            return True
        kinds = known[1:]
        if kind in kinds or kind == _ANY or _ANY in kinds:
            return False
        kinds = (*kinds, kind)
        self._mails[key] = (message.created_at or known[0], *kinds)
        return True

    def give_back(self, event: Event) -> None:
        """It was claimed, and has not been delivered."""
        found = identity(event)
        if found is None:
            return
        _, key = found
        if not isinstance(event, MessageReceivedEvent):
            self._others.pop(key, None)
        elif key in self._mails:
            known = self._mails.pop(key)
            claimed = _kind(event)
            left = tuple(kind for kind in known[1:] if kind != claimed)
            if left:
                self._mails[key] = (known[0], *left)

    def has_mail(self, inbox_id: str, message_id: str) -> bool:
        """Whether a mail has been delivered, as whatever event."""
        return mail_key(inbox_id, message_id) in self._mails

    def _forget_a_mail(self) -> None:
        created = self._mails.popitem(last=False)[1][0]
        if created is not None and (self._youngest_forgotten is None or created > self._youngest_forgotten):
            self._youngest_forgotten = created


def _kind(event: MessageReceivedEvent) -> str:
    return _ANY if event.origin == RECOVERED else event.event_type
