"""The `Source` that lists mail through AgentMail's REST API."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any

from trio_agentmail._delivered import Delivered
from trio_agentmail.errors import ApiError, PermissionDeniedError, RequestFailedError
from trio_agentmail.events import Event, MessageReceivedEvent, MessageSecurityReviewEvent

from .held import HeldMail
from .in_order import in_order
from .mails import Mails
from .rest import UNDER_WAY, Rest, items_of, raise_first, segment
from .source import KINDS, Counts, Floors, Target
from .threads import Threads

__all__ = ["MailListing"]


class MailListing:
    """The `Source` that lists mail.

    An inbox is listed by its messages, without their bodies: what is missing is fetched. A pod and a whole key are
    listed by threads, which costs no request for each inbox and finds new inboxes.

    Args:
        put: Takes what was missed, in order, and whether it is a mail that was held before.
    """

    def __init__(self, rest: Rest, delivered: Delivered, put: Callable[[Event, bool], Awaitable[None]]) -> None:
        self._rest = rest
        self._mails = Mails(rest, delivered, put)
        self._threads = Threads(rest, self._mails)
        self._held = HeldMail(rest, self._mails)
        self._may_see_all = True
        """Whether the key has not been refused threads with mail that is left out by default."""

    def note(self, event: Event) -> None:
        """See `Source`."""
        if isinstance(event, MessageReceivedEvent):
            if self._mails.held:
                self._mails.held.pop((event.message.inbox_id, event.message.message_id), None)
        elif isinstance(event, MessageSecurityReviewEvent):
            inbox_id, message_id = event.message.inbox_id, event.message.message_id
            if inbox_id and message_id:
                self._mails.hold(inbox_id, message_id)

    def forget(self, target: Target) -> None:
        """See `Source`."""
        for held in [held for held in self._mails.held if held[0] == target.inbox_id]:
            del self._mails.held[held]

    def state(self) -> Any:
        """See `Source`."""
        return list(self._mails.held)

    def restore(self, state: Any) -> None:
        """See `Source`."""
        for inbox_id, message_id in state:
            self._mails.hold(inbox_id, message_id)

    async def look(self, target: Target, after: float, floors: Floors, counts: Counts) -> None:
        """See `Source`."""
        since = datetime.fromtimestamp(max(after, 0.0), UTC).isoformat(timespec="milliseconds")
        asked = {"after": since.replace("+00:00", "Z"), "ascending": "true"}
        wanted = {f"include_{kind}": "true" for kind in KINDS if f"message.received.{kind}" in floors}
        if target.inbox_id is not None:
            await self._look_at_inbox(target.inbox_id, asked | wanted, floors, counts)
            return
        path = "/threads" if target.pod_id is None else f"/pods/{segment(target.pod_id)}/threads"
        # AgentMail leaves out a whole thread for one mail in it that is spam, so all threads are asked for.
        everything = {f"include_{label}": "true" for label in (*KINDS, "trash")}
        try:
            failures = await self._threads.look(
                path, asked | (everything if self._may_see_all else wanted), after, floors, counts
            )
        except PermissionDeniedError:
            if not self._may_see_all:
                raise
            self._may_see_all = False
            failures = await self._threads.look(path, asked | wanted, after, floors, counts)
        raise_first(failures)

    async def look_at_held(self, floors: Floors, counts: Counts) -> None:
        """See `Source`."""
        raise_first(await self._held.look(floors, counts))

    async def _look_at_inbox(self, inbox_id: str, asked: dict[str, str], floors: Floors, counts: Counts) -> None:
        failures: list[Exception] = []

        async def fetch(event: MessageReceivedEvent) -> list[MessageReceivedEvent]:
            try:
                return await self._mails.fetch(event, floors)
            except (ApiError, RequestFailedError) as exc:
                failures.append(exc)
                return []

        pages = self._rest.pages(f"/inboxes/{segment(inbox_id)}/messages", "messages", asked)
        async with in_order(UNDER_WAY) as start, aclosing(items_of(pages, failures)) as items:
            async for item in items:
                event = self._mails.read(item, inbox_id)
                if event is not None and self._mails.is_missed(event, floors, counts):
                    await start(partial(fetch, event), self._mails.put_all)
        raise_first(failures)
