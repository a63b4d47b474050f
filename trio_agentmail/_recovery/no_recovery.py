"""`NoRecovery`: replaces `Recoverer` when `recovery` is None."""

import math
from collections.abc import Callable

import trio

from trio_agentmail._clock import Moment, ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail._journal.protocol import Journal
from trio_agentmail._settings import Subscribe
from trio_agentmail.events import Event, MessageReceivedEvent

__all__ = ["KEEP_IDENTITIES_FOR", "NoRecovery"]

KEEP_IDENTITIES_FOR = 86_400.0
"""Seconds for which identities are kept. Without listings, only a push can repeat an event, and it does so soon."""


class NoRecovery:
    """Has the interface of `Recoverer`, but only forgets old identities. It makes no requests.

    Args:
        clock: AgentMail's clock.
        delivered: The identities of delivered events.
        journal: The journal, or None.
        unread_for: A function that returns for how many seconds the oldest push may have been waiting to be read.
    """

    fetches_bodies = False
    missing_since = math.inf
    recovered = 0
    requests = 0

    def __init__(
        self, clock: ServerClock, delivered: Delivered, journal: Journal | None, unread_for: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._delivered = delivered
        self._journal = journal
        self._unread_for = unread_for

    async def run(self) -> None:
        """Forget old identities periodically."""
        while True:
            await trio.sleep(KEEP_IDENTITIES_FOR / 8)
            self._delivered.forget(self._clock.now() - KEEP_IDENTITIES_FOR - self._unread_for())
            if self._journal is not None:
                await self._journal.keep(forgotten_until=self._delivered.floor)

    async def begin(self, subscribe: Subscribe) -> None:
        pass

    async def extended(self, subscribe: Subscribe, asked_at: Moment) -> None:
        return None

    def subscribed_to(self, subscribe: Subscribe, asked_at: Moment) -> None:
        pass

    def resume(self, confirmed_at: Moment) -> None:
        pass

    def pause(self, last_received: Moment) -> None:
        pass

    def note(self, event: Event) -> None:
        pass

    async def with_body(self, event: MessageReceivedEvent) -> MessageReceivedEvent:
        return event  # pragma: no cover  never called, since fetches_bodies is False

    def stop_fetching_bodies(self) -> None:
        pass
