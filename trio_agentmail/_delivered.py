"""What has been delivered: the memory of identities, so that nothing comes twice."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime

from ._codec import identity, mail_key
from ._journal import KeptIdentity
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
        self._mails: OrderedDict[str | bytes, tuple[tuple[str, ...], datetime | None]] = OrderedDict()
        self._others: OrderedDict[str | bytes, None] = OrderedDict()
        self.forgotten_until = -math.inf
        """Seconds since the epoch."""

    def load(self, identities: Iterable[KeptIdentity], forgotten_until: float) -> None:
        """Know what a journal knows."""
        for kept in identities:
            if kept.kind:
                kinds, _ = self._mails.get(kept.key, ((), None))
                created = None if kept.created is None else datetime.fromtimestamp(kept.created, UTC)
                # Whether it was pushed or found, nobody wants it again.
                self._mails[kept.key] = ((*kinds, kept.kind, _ANY), created)
            else:
                self._others[kept.key] = None
        self.forgotten_until = max(self.forgotten_until, forgotten_until)
        while len(self._mails) > REMEMBERED:
            self._forget_a_mail()
        while len(self._others) > REMEMBERED:
            self._others.popitem(last=False)

    def claim(self, event: Event) -> bool:
        """Whether it is new, and may be delivered. From then on it counts as delivered, unless it is given back."""
        found = identity(event)
        if found is None:
            return True
        kind, key = found
        if not kind:
            if key in self._others:
                return False
            self._others[key] = None
            if len(self._others) > REMEMBERED:
                self._others.popitem(last=False)
            return True
        assert isinstance(event, MessageReceivedEvent)
        if event.origin == RECOVERED:
            kind = _ANY
        kinds: tuple[str, ...] = (kind,)
        created = event.message.created_at
        known = self._mails.get(key)
        if known is not None:
            if kind in known[0] or kind == _ANY or _ANY in known[0]:
                return False
            kinds = (*known[0], kind)
            created = created or known[1]
        self._mails[key] = kinds, created
        if len(self._mails) > REMEMBERED:
            self._forget_a_mail()
        return True

    def give_back(self, event: Event) -> None:
        """It was claimed, and has not been delivered."""
        found = identity(event)
        if found is None:
            return
        kind, key = found
        if not kind:
            self._others.pop(key, None)
        elif key in self._mails:
            kinds, created = self._mails.pop(key)
            claimed = _ANY if isinstance(event, MessageReceivedEvent) and event.origin == RECOVERED else kind
            left = tuple(kind for kind in kinds if kind != claimed)
            if left:
                self._mails[key] = left, created

    def has_mail(self, inbox_id: str, message_id: str) -> bool:
        """Whether a mail has been delivered, as whatever event."""
        return mail_key(inbox_id, message_id) in self._mails

    def _forget_a_mail(self) -> None:
        _, (_, created) = self._mails.popitem(last=False)
        if created is not None:
            self.forgotten_until = max(self.forgotten_until, created.timestamp())
