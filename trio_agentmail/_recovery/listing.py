"""The `Source` that lists mail through AgentMail's REST API."""

import math
from collections.abc import Collection, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import trio

from trio_agentmail._clock import ServerClock
from trio_agentmail._delivered import Delivered
from trio_agentmail.errors import ApiError, PermissionDeniedError, RequestFailedError
from trio_agentmail.events import Event, MessageReceivedEvent, MessageSecurityReviewEvent

from .held import HeldMail
from .in_order import in_order
from .mails import TRASH, Mails, Put, expected_size, size_of_all
from .pages import LookPages
from .rest import UNDER_WAY, Pace, Rest, raise_first, segment
from .source import KINDS, Counts, Look, Target
from .threads import Threads

__all__ = ["MailListing"]

REFUSED_FOR = 3600.0
"""Seconds after which a refusal is put to the test: the key may have other permissions by then."""


class MailListing:
    """The `Source` that lists mail.

    An inbox is listed by its messages, without their bodies: what is missing is fetched. A pod and a whole key are
    listed by threads, which costs no request for each inbox and finds new inboxes.
    """

    def __init__(self, rest: Rest, clock: ServerClock, delivered: Delivered, put: Put) -> None:
        self._rest = rest
        self._clock = clock
        self._mails = Mails(rest, delivered, put)
        self._threads = Threads(rest, self._mails)
        self._held = HeldMail(rest, self._mails)
        self._asks_for_all_from = -math.inf
        """The key was refused threads with mail that is left out by default. From when on, by Trio's clock, it is
        asked again whether it may list them."""

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
        if all(target.inbox_id is not None for target in targets):  # else held mail may be of any inbox
            for held in [held for held in self._mails.held if Target(inbox_id=held[0]) not in targets]:
                del self._mails.held[held]

    def state(self) -> Any:
        """See `Source`."""
        return list(self._mails.held)

    def restore(self, state: Any) -> None:
        """See `Source`."""
        for inbox_id, message_id in state:
            self._mails.hold(inbox_id, message_id)

    async def look(
        self, look: Look, counts: Counts, *, pages: float = math.inf, pace: Pace = trio.lowlevel.checkpoint
    ) -> bool:
        """See `Source`."""
        wanted = {f"include_{kind}": "true" for kind in KINDS if f"message.received.{kind}" in look.wanted}
        target = look.target
        if target.inbox_id is not None:
            path = f"/inboxes/{segment(target.inbox_id)}/messages"
            listed = LookPages(self._rest, self._clock, look, path, "messages", wanted, pages, pace)
            await self._look_at_inbox(target.inbox_id, look, counts, listed)
            return listed.reached_the_end
        path = "/threads" if target.pod_id is None else f"/pods/{segment(target.pod_id)}/threads"
        # AgentMail leaves out a whole thread for one mail in it that is spam, so all threads are asked for.
        everything = {f"include_{label}": "true" for label in (*KINDS, TRASH)}
        if trio.current_time() >= self._asks_for_all_from:
            listed = LookPages(self._rest, self._clock, look, path, "threads", everything, pages, pace)
            try:
                failures = await self._threads.look(look, counts, listed, pace)
            except PermissionDeniedError:
                self._asks_for_all_from = trio.current_time() + REFUSED_FOR
            else:
                raise_first(failures)
                return listed.reached_the_end
        listed = LookPages(self._rest, self._clock, look, path, "threads", wanted, pages, pace)
        raise_first(await self._threads.look(look, counts, listed, pace))
        return listed.reached_the_end

    async def look_at_held(self, wanted: Mapping[str, float], counts: Counts) -> None:
        """See `Source`."""
        raise_first(await self._held.look(wanted, counts))

    async def _look_at_inbox(self, inbox_id: str, look: Look, counts: Counts, listed: LookPages) -> None:
        failures: list[Exception] = []
        listing_failures: list[Exception] = []

        async def fetch(event: MessageReceivedEvent) -> list[MessageReceivedEvent] | Exception:
            try:
                return await self._mails.fetch(event, look.wanted)
            except (ApiError, RequestFailedError) as exc:
                return exc

        async def put(found: list[MessageReceivedEvent] | Exception) -> None:
            if isinstance(found, Exception):
                failures.append(found)  # in order: the place of the look is right before the first of them
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
                    event = self._mails.missed(item, inbox_id, look, counts)
                    if event is not None:
                        await start(partial(fetch, event), put, expected_size(event.message), size)
                await start(trio.lowlevel.checkpoint, listed.mark(failures))
        raise_first(failures)
        raise_first(listing_failures)
