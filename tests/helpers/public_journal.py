"""A `Journal` that imports public names only, as one on a shared engine would be written outside of this package."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from trio_agentmail import CaughtUp, Disconnected, Event, JournalMismatchError, Subscribed
from trio_agentmail.events import Notice
from trio_agentmail.journal import Kept, KeptIdentity, RunSync


class PublicJournal:
    """Keeps events in memory: they outlive a stream, but not the process. It knows no attempts and no dead letters."""

    def __init__(self, max_pending: int = 1_000) -> None:
        self._max_pending = max_pending
        self._scopes: set[str] = set()
        self._state = b""
        self._forgotten_until = -math.inf
        self._identities: dict[bytes, KeptIdentity] = {}
        self._pending: dict[bytes, Event] = {}
        self._waiting: list[Event] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._now: Callable[[], float] | None = None

    @asynccontextmanager
    async def opened(self, scope: str, run_sync: RunSync, now: Callable[[], float]) -> AsyncIterator[Kept]:
        await run_sync(lambda: None)  # where one on a disk would open its file
        if self._scopes and scope not in self._scopes:
            raise JournalMismatchError(f"this journal belongs to {self._scopes}, and this stream is {scope}")
        self._scopes = self._scopes or {scope}
        self._now = now
        self._waiting = [attrs.evolve(event, origin="redelivered") for event in self._pending.values()]  # type: ignore[arg-type]
        try:
            yield Kept(self._all_identities(), self._forgotten_until, self._state)
        finally:
            self._now = None
            self._changed.unpark_all()

    async def _all_identities(self) -> AsyncIterator[Sequence[KeptIdentity]]:
        yield sorted(self._identities.values(), key=lambda known: known.recorded_at)

    def _check_open(self) -> Callable[[], float]:
        if self._now is None:
            raise trio.ClosedResourceError
        return self._now

    async def record(self, event: Event) -> bool:
        known = KeptIdentity.of(event, self._check_open()())
        while len(self._pending) >= self._max_pending:
            await self._changed.park()
            self._check_open()
        if known.key in self._identities:
            return False
        self._identities[known.key] = known
        self._pending[known.key] = event
        self._waiting.append(event)
        self._changed.unpark_all()
        return True

    def notice(self, notice: Notice) -> None:
        self._check_open()
        if isinstance(notice, Disconnected):
            end = len(self._waiting)
            while end and isinstance(self._waiting[end - 1], Subscribed | CaughtUp):
                end -= 1
            if end and isinstance(self._waiting[end - 1], Disconnected):
                del self._waiting[end:]
                return
        self._waiting.append(notice)
        self._changed.unpark_all()

    async def next(self) -> Event:
        while not self._waiting:
            self._check_open()
            await self._changed.park()
        return self._waiting.pop(0)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def keep(
        self,
        state: bytes | None = None,
        *,
        scope: str | None = None,
        also: str | None = None,
        forgotten_until: float = -math.inf,
    ) -> None:
        await trio.lowlevel.checkpoint()
        if state is not None:
            self._state = state
        if scope is not None:
            self._scopes = {scope} if also is None else {scope, also}
        if forgotten_until > -math.inf:
            self._forgotten_until = forgotten_until
            self._identities = {
                key: known
                for key, known in self._identities.items()
                if known.recorded_at >= forgotten_until or key in self._pending
            }

    async def ack(self, event: Event) -> None:
        now = self._check_open()
        await trio.lowlevel.checkpoint()
        if not isinstance(event, Notice):
            self._pending.pop(KeptIdentity.of(event, now()).key, None)
            self._changed.unpark_all()

    @asynccontextmanager
    async def processing(self, event: Event) -> AsyncIterator[None]:
        yield
        await self.ack(event)
