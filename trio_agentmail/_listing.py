"""Where recovered mail comes from: listings of AgentMail's REST API, each of one inbox, one pod, or one whole key."""

import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs

from ._codec import decode_thread, recovered_event
from ._delivered import RECOVERED, Delivered
from ._in_order import in_order
from ._rest import CONCURRENCY, Rest, segment
from ._settings import Subscribe
from .errors import ApiError, PermissionDeniedError, RequestFailed
from .events import Event, Message, MessageReceivedEvent, MessageSecurityReviewEvent, ThreadItem

__all__ = ["Counts", "Floors", "MailListing", "Source", "Target", "recovered_types", "targets_of"]

T = TypeVar("T")

HELD = "agent-armor-held"
KINDS = ("spam", "blocked", "unauthenticated")
"""The labels of mail that comes only to those who ask for it, under an event_type of its own."""

REMEMBERED_HELD = 10_000
REMEMBERED_THREADS = 2**15
"""How many are remembered: held mails, and threads as they were seen last."""

BATCH = 500
"""Mails that one batch-get may ask for (source: AgentMail's API definition)."""

UNDER_WAY = 2 * CONCURRENCY
"""Mails or threads of one target that are being fetched, or wait for an earlier one, so that requests go on."""

THREAD_PAGE = 20
"""Messages of a thread that are fetched at once, with their bodies."""


@attrs.frozen
class Target:
    """What is listed in one go: an inbox, a pod, or, if it is neither, all that the key may see."""

    inbox_id: str | None = None
    pod_id: str | None = None


Floors: TypeAlias = Mapping[str, float]
"""Which event_types of received mail are wanted; and since when AgentMail must have created such mail, in seconds since
the epoch: what is older came before the stream began, or may have been delivered and forgotten."""


def targets_of(subscribe: Subscribe) -> tuple[Target, ...]:
    """What to list. An event that matches an inbox or a pod is wanted, so both are listed."""
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return (Target(),)
    inboxes = [Target(inbox_id=inbox_id) for inbox_id in subscribe.inbox_ids or ()]
    return (*inboxes, *[Target(pod_id=pod_id) for pod_id in subscribe.pod_ids or ()])


def recovered_types(subscribe: Subscribe) -> tuple[str, ...]:
    """The event_types that can be listed, of those that are pushed."""
    if subscribe.event_types is None:
        return ("message.received",)
    listed = ("message.received", *(f"message.received.{kind}" for kind in KINDS))
    return tuple(event_type for event_type in listed if event_type in subscribe.event_types)


@attrs.define
class Counts:
    """What a look has found, so far."""

    known: int = 0
    held: int = 0


class Source(Protocol):
    """Where missed events come from. A listing today; a source with a cursor may come later."""

    def note(self, event: Event) -> None:
        """An event has come by itself."""

    async def look(self, target: Target, after: float, floors: Floors, counts: Counts) -> None:
        """Hand over what was missed, once the whole target has been gone through raise the first failure.

        Args:
            after: Since when, by the mail's own time, in seconds since the epoch.

        Raises:
            ApiError, RequestFailed: something could not be listed or fetched.
        """

    async def look_at_held(self, floors: Floors, counts: Counts) -> None:
        """Hand over what was held and has been released; as `look`."""

    def forget(self, target: Target) -> None:
        """It is not in the subscription any more."""

    def state(self) -> Any:
        """What it has to remember from one run to the next, as JSON has it."""

    def restore(self, state: Any) -> None:
        """Remember what `state` gave in an earlier run."""


class MailListing:
    """The `Source` that lists mail.

    An inbox is listed by its messages, without their bodies: what is missing is fetched. A pod and a whole key are
    listed by threads, which costs no request for each inbox and finds new inboxes: threads that have changed are
    fetched, with the bodies of their messages. Labels are looked at here, since how AgentMail wants to be asked for
    them differs between its documentation and its SDK.

    Args:
        put: Takes what was missed, in order, and whether it is a mail that was held before.
    """

    def __init__(self, rest: Rest, delivered: Delivered, put: Callable[[Event, bool], Awaitable[None]]) -> None:
        self._rest = rest
        self._delivered = delivered
        self._put = put
        self._may_see_all = True
        """Whether the key has not been refused threads with mail that is left out by default."""
        self._held: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._threads: OrderedDict[str | None, tuple[ThreadItem, float]] = OrderedDict()
        """How a thread was seen last, and from when on it was gone through then."""

    def note(self, event: Event) -> None:
        """See `Source`."""
        if isinstance(event, MessageReceivedEvent):
            if self._held:
                self._held.pop((event.message.inbox_id, event.message.message_id), None)
        elif isinstance(event, MessageSecurityReviewEvent):
            inbox_id, message_id = event.message.inbox_id, event.message.message_id
            if inbox_id and message_id:
                self._hold(inbox_id, message_id)

    def forget(self, target: Target) -> None:
        """See `Source`."""
        for held in [held for held in self._held if held[0] == target.inbox_id]:
            del self._held[held]

    def state(self) -> Any:
        """See `Source`."""
        return list(self._held)

    def restore(self, state: Any) -> None:
        """See `Source`."""
        for inbox_id, message_id in state:
            self._hold(inbox_id, message_id)

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
            failures = await self._look_at_threads(
                path, asked | (everything if self._may_see_all else wanted), after, floors, counts
            )
        except PermissionDeniedError:
            if not self._may_see_all:
                raise
            self._may_see_all = False
            failures = await self._look_at_threads(path, asked | wanted, after, floors, counts)
        _raise_first(failures)

    async def look_at_held(self, floors: Floors, counts: Counts) -> None:
        """See `Source`."""
        failures: list[Exception] = []
        # Sorted by inbox alone: within one, in the order in which they were held.
        for inbox_id, held in groupby(sorted(self._held, key=itemgetter(0)), key=itemgetter(0)):
            for ids in _batches([message_id for _, message_id in held], BATCH):
                try:
                    failures += await self._look_at_held_in(inbox_id, ids, floors, counts)
                except (ApiError, RequestFailed) as exc:
                    failures.append(exc)
        _raise_first(failures)

    # An inbox: a page of its messages at a time

    async def _look_at_inbox(self, inbox_id: str, asked: dict[str, str], floors: Floors, counts: Counts) -> None:
        failures: list[Exception] = []

        async def fetch(event: MessageReceivedEvent) -> list[MessageReceivedEvent]:
            try:
                return await self._fetch(event, floors)
            except (ApiError, RequestFailed) as exc:
                failures.append(exc)
                return []

        pages = self._rest.pages(f"/inboxes/{segment(inbox_id)}/messages", "messages", asked)
        async with in_order(UNDER_WAY) as start, aclosing(_items(pages, failures)) as items:
            async for item in items:
                event = self._read(item, inbox_id)
                if event is not None and self._is_missed(event, floors, counts):
                    await start(partial(fetch, event), self._put_all)
        _raise_first(failures)

    async def _fetch(self, event: MessageReceivedEvent, floors: Floors) -> list[MessageReceivedEvent]:
        """The whole mail of one that was listed, in a list; an empty one if it has gone or is held by now."""
        inbox_id, message_id = event.message.inbox_id, event.message.message_id
        try:
            item = await self._rest.get(f"/inboxes/{segment(inbox_id)}/messages/{segment(message_id)}")
        except ApiError as exc:
            if exc.status_code == 404:
                return []
            raise
        whole = self._read(item, inbox_id)
        if whole is None or whole.message.message_id != message_id:
            raise RequestFailed("the REST API answered with another message than it was asked for")
        return [whole] if self._is_wanted(whole, floors) else []

    # A pod or a key: a page of its threads at a time

    async def _look_at_threads(
        self, path: str, asked: dict[str, str], after: float, floors: Floors, counts: Counts
    ) -> list[Exception]:
        """What the listing tells of; the failures of single threads. It raises if it is the listing that fails."""
        failures: list[Exception] = []
        listing_failures: list[Exception] = []

        async def fetch(thread: ThreadItem) -> tuple[list[MessageReceivedEvent], float] | None:
            try:
                return await self._fetch_thread(thread, after, floors, counts)
            except ApiError as exc:
                if exc.status_code == 404:
                    return [], after  # it has gone since it was listed
                failures.append(exc)
            except RequestFailed as exc:
                failures.append(exc)
            return None

        async def put(thread: ThreadItem, found: tuple[list[MessageReceivedEvent], float] | None) -> None:
            if found is None:
                return
            missed, reached = found
            await self._put_all(missed)
            self._threads[thread.thread_id] = _signature(thread), reached
            if len(self._threads) > REMEMBERED_THREADS:
                self._threads.popitem(last=False)

        pages = self._rest.pages(path, "threads", asked)
        async with in_order(UNDER_WAY) as start, aclosing(_items(pages, listing_failures)) as items:
            async for item in items:
                thread = decode_thread(item)
                if thread is not None and self._has_news(thread, after, floors):
                    await start(partial(fetch, thread), partial(put, thread))
        _raise_first(listing_failures)
        return failures

    def _has_news(self, thread: ThreadItem, after: float, floors: Floors) -> bool:
        """Whether there may be a mail in it that was missed."""
        if not thread.thread_id:
            return False
        seen, reached = self._threads.get(thread.thread_id, (None, math.inf))
        if seen == _signature(thread) and reached <= after:
            return False
        if HELD in thread.labels:
            return True
        if thread.updated_at is not None and thread.updated_at.timestamp() < min(floors.values()):
            return False
        # Nearly every mail that was pushed begins a thread: that this one was is known without a request.
        is_known = thread.message_count == 1 and self._delivered.has_mail(
            thread.inbox_id or "", thread.last_message_id or ""
        )
        return not is_known

    async def _fetch_thread(
        self, thread: ThreadItem, after: float, floors: Floors, counts: Counts
    ) -> tuple[list[MessageReceivedEvent], float]:
        """The mails of a thread that were missed, the oldest first; and from when on it was gone through."""
        inbox = f"/inboxes/{segment(thread.inbox_id)}" if thread.inbox_id else ""
        pages = self._rest.pages(f"{inbox}/threads/{segment(thread.thread_id or '')}", "messages", {}, THREAD_PAGE)
        missed: list[MessageReceivedEvent] = []
        async with aclosing(pages):
            async for page in pages:  # the first page is the newest, and each is ascending
                listed = [self._read(item, thread.inbox_id or "") for item in page]
                events = [event for event in listed if event is not None]
                missed[:0] = [
                    whole
                    for event in events
                    if self._is_missed(event, floors, counts)
                    for whole in ([event] if _has_body(event.message) else await self._fetch(event, floors))
                ]
                if any(_time(event.message) < after for event in events):
                    return missed, after
        return missed, -math.inf

    # Held mail

    async def _look_at_held_in(
        self, inbox_id: str, ids: Sequence[str], floors: Floors, counts: Counts
    ) -> list[Exception]:
        """What one batch-get tells of; the failures of single mails, which stay remembered."""
        failures: list[Exception] = []
        try:
            answer = await self._rest.post(f"/inboxes/{segment(inbox_id)}/messages/batch-get", {"message_ids": ids})
        except ApiError as exc:
            if exc.status_code != 404:
                raise
            answer = {"messages": []}  # the inbox is gone
        items = answer.get("messages")
        if not isinstance(items, list):  # else all of them would seem to be gone
            raise RequestFailed("the REST API answered without the messages that it was asked for")
        listed = [self._read(item, inbox_id) for item in items if isinstance(item, dict)]
        found = {event.message.message_id: event for event in listed if event is not None}
        for message_id in ids:
            event = found.get(message_id)
            if event is not None and HELD in event.message.labels:
                counts.held += 1
                continue
            # Forgotten first: what is fetched may say that it is held after all.
            self._held.pop((inbox_id, message_id), None)
            if event is not None and self._is_wanted(event, floors):
                try:
                    for whole in await self._fetch(event, floors):
                        await self._put(whole, True)
                except BaseException as exc:
                    self._hold(inbox_id, message_id)
                    if not isinstance(exc, (ApiError, RequestFailed)):
                        raise
                    failures.append(exc)
        return failures

    def _hold(self, inbox_id: str, message_id: str) -> None:
        self._held[inbox_id, message_id] = None
        if len(self._held) > REMEMBERED_HELD:
            self._held.popitem(last=False)

    # What all of them need

    def _read(self, item: dict[str, Any], inbox_id: str) -> MessageReceivedEvent | None:
        """A received mail as the event that it would have been; None if it is none, or was thrown away."""
        if not item.get("inbox_id"):
            item = item | {"inbox_id": inbox_id}
        event = recovered_event(item, "message.received", RECOVERED)
        if event is None or "received" not in event.message.labels or "trash" in event.message.labels:
            return None
        for kind in KINDS:
            if kind in event.message.labels:
                return recovered_event(item, f"message.received.{kind}", RECOVERED)
        return event

    def _is_wanted(self, event: MessageReceivedEvent, floors: Floors) -> bool:
        message = event.message
        if HELD in message.labels:
            self._hold(message.inbox_id, message.message_id)
            return False
        return event.event_type in floors

    def _is_missed(self, event: MessageReceivedEvent, floors: Floors, counts: Counts) -> bool:
        message = event.message
        if not self._is_wanted(event, floors):
            return False
        created = message.created_at or message.timestamp
        if self._delivered.has_mail(message.inbox_id, message.message_id):
            counts.known += 1
            return False
        return created is None or created.timestamp() >= floors[event.event_type]

    async def _put_all(self, missed: Sequence[MessageReceivedEvent]) -> None:
        for event in missed:
            await self._put(event, False)


async def _items(
    pages: AsyncGenerator[list[dict[str, Any]], None], failures: list[Exception]
) -> AsyncGenerator[dict[str, Any], None]:
    """The items of a listing; a failure ends it and is noted, so that what was started meanwhile is not cancelled."""
    async with aclosing(pages):
        try:
            async for page in pages:
                for item in page:
                    yield item
        except (ApiError, RequestFailed) as exc:
            failures.append(exc)


def _signature(thread: ThreadItem) -> ThreadItem:
    """What of a thread changes when there is something new in it."""
    return ThreadItem(
        updated_at=thread.updated_at, message_count=thread.message_count, last_message_id=thread.last_message_id
    )


def _has_body(message: Message) -> bool:
    return message.text is not None or message.html is not None


def _time(message: Message) -> float:
    return message.timestamp.timestamp() if message.timestamp is not None else float("inf")


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _raise_first(failures: Sequence[Exception]) -> None:
    if failures:
        raise failures[0]
