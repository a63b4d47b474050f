"""`MailListing`, the `Source` that lists mail through AgentMail's REST API."""

import math
from collections.abc import Collection, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import trio

from trio_agentmail._clock import ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail.errors import ApiError, JournalError, PermissionDeniedError, RequestFailedError
from trio_agentmail.events import Event, MessageReceivedEvent, MessageSecurityReviewEvent

from .held import HeldMail
from .in_order import in_order
from .mails import TRASH, Mails, Put, expected_size, size_of_all
from .pages import ScanPages
from .rest import UNDER_WAY, Pace, Rest, raise_first, segment
from .source import KINDS, Counts, Scan, Target
from .threads import Threads

__all__ = ["MailListing"]

REFUSED_FOR = 3600.0
"""Seconds until a refused listing is requested again, since the key may have been given more permissions."""


class MailListing:
    """The `Source` that lists mail.

    For an inbox, it lists the messages, which come without their bodies, and then fetches missed mail. For a pod or a
    whole key, it lists the threads. That needs no request for each inbox, and finds new inboxes.
    """

    def __init__(self, rest: Rest, clock: ServerClock, delivered: Delivered, put: Put) -> None:
        self._rest = rest
        self._clock = clock
        self._mails = Mails(rest, delivered, put)
        self._threads = Threads(rest, self._mails)
        self._held = HeldMail(rest, self._mails)
        self._list_everything_from = -math.inf
        """When to request threads with all labels again after a refusal, on Trio's clock."""

    def note(self, event: Event) -> None:
        """See `Source`."""
        if isinstance(event, MessageReceivedEvent):
            if self._mails.held:
                self._mails.held.pop((event.message.inbox_id, event.message.message_id), None)
        elif isinstance(event, MessageSecurityReviewEvent):
            inbox_id, message_id = event.message.inbox_id, event.message.message_id
            if inbox_id and message_id:
                self._mails.hold(inbox_id, message_id)

    def keep_only(self, targets: Collection[Target]) -> None:
        """See `Source`."""
        # A pod or a key may contain any inbox, so then all held mail is kept.
        if all(target.inbox_id is not None for target in targets):
            for held in [held for held in self._mails.held if Target(inbox_id=held[0]) not in targets]:
                del self._mails.held[held]

    def state(self) -> Any:
        """See `Source`."""
        return list(self._mails.held)

    def restore(self, state: Any) -> None:
        """See `Source`."""
        for held in state if isinstance(state, list) else [None]:
            match held:
                case [str() as inbox_id, str() as message_id]:
                    self._mails.hold(inbox_id, message_id)
                case _:
                    raise JournalError("the journal is damaged: its list of held mail cannot be read")

    async def scan(
        self, scan: Scan, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        """See `Source`."""
        wanted = {f"include_{kind}": "true" for kind in KINDS if f"message.received.{kind}" in scan.wanted}
        target = scan.target
        if target.inbox_id is not None:
            path = f"/inboxes/{segment(target.inbox_id)}/messages"
            listed = ScanPages(self._rest, self._clock, scan, path, "messages", wanted, pages, pace)
            await self._scan_inbox(target.inbox_id, scan, counts, listed)
            return listed.reached_the_end
        path = "/threads" if target.pod_id is None else f"/pods/{segment(target.pod_id)}/threads"
        # AgentMail leaves out a whole thread if one mail in it is spam, so threads with all labels are requested.
        everything = {f"include_{label}": "true" for label in (*KINDS, TRASH)}
        if trio.current_time() >= self._list_everything_from:
            listed = ScanPages(self._rest, self._clock, scan, path, "threads", everything, pages, pace)
            try:
                failures = await self._threads.scan(scan, counts, listed, pace)
            except PermissionDeniedError:
                self._list_everything_from = trio.current_time() + REFUSED_FOR
            else:
                raise_first(failures)
                return listed.reached_the_end
        listed = ScanPages(self._rest, self._clock, scan, path, "threads", wanted, pages, pace)
        raise_first(await self._threads.scan(scan, counts, listed, pace))
        return listed.reached_the_end

    async def check_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        """See `Source`."""
        raise_first(await self._held.check(wanted, counts))

    async def _scan_inbox(self, inbox_id: str, scan: Scan, counts: Counts, listed: ScanPages) -> None:
        failures: list[Exception] = []
        listing_failures: list[Exception] = []

        async def fetch(event: MessageReceivedEvent) -> list[MessageReceivedEvent] | Exception:
            try:
                return await self._mails.fetch(event, scan.wanted)
            except (ApiError, RequestFailedError) as exc:
                return exc

        async def put(found: list[MessageReceivedEvent] | Exception) -> None:
            if isinstance(found, Exception):
                failures.append(found)  # in order, so the scan's position stays before the first failure
            else:
                await self._mails.put_all(found, counts)

        def size(found: list[MessageReceivedEvent] | Exception) -> int:
            return 0 if isinstance(found, Exception) else size_of_all(found)

        async with (
            in_order(UNDER_WAY, self._mails.room) as start,
            aclosing(listed.walk(listing_failures, passes_over_new=True)) as pages,
        ):
            async for page in pages:
                for item in page:
                    event = self._mails.missed(item, inbox_id, scan, counts)
                    if event is not None:
                        await start(partial(fetch, event), put, expected_size(event.message), size)
                await start(trio.lowlevel.checkpoint, listed.advance(failures))
        raise_first(failures)
        raise_first(listing_failures)
