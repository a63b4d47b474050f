"""Mail in threads: those of a pod or of a whole key, with no request for each inbox."""

import math
from collections import OrderedDict
from contextlib import aclosing
from functools import partial

import trio

from trio_agentmail._codec import decode_thread
from trio_agentmail.errors import ApiError, RequestFailedError
from trio_agentmail.events import Message, MessageReceivedEvent, ThreadItem

from .in_order import in_order
from .mails import HELD, Mails, expected_size, size_of_all
from .pages import LookPages
from .rest import UNDER_WAY, Pace, Rest, raise_first, segment
from .source import Counts, Look

__all__ = ["Threads"]

REMEMBERED_THREADS = 2**17
"""How many threads are remembered as they were seen last: about 20 MB, where that many have had a reply."""

THREAD_PAGE = 20
"""Messages of a thread that are fetched at once, with their bodies."""


class Threads:
    """Lists threads, and fetches those that have changed, with the bodies of their messages."""

    def __init__(self, rest: Rest, mails: Mails) -> None:
        self._rest = rest
        self._mails = mails
        self._seen: OrderedDict[int, tuple[int, float]] = OrderedDict()
        """By the hash of its thread_id: what a thread looked like when it was gone through last, and from when on."""

    async def look(self, look: Look, counts: Counts, listed: LookPages, pace: Pace) -> list[Exception]:
        """Hand over what was missed; return the failures of single threads.

        Raises:
            ApiError, RequestFailedError: The listing could not be had.
        """
        failures: list[Exception] = []
        listing_failures: list[Exception] = []
        # A thread that goes on getting mail is listed again and again. It is fetched once: what comes into it after
        # that is for the next look.
        fetched: set[int] = set()

        async def fetch(thread: ThreadItem) -> tuple[list[MessageReceivedEvent], float] | Exception:
            try:
                return await self._fetch_thread(thread, look, counts, pace)
            except (ApiError, RequestFailedError) as exc:
                return exc

        async def put(
            thread: ThreadItem, signature: int, found: tuple[list[MessageReceivedEvent], float] | Exception
        ) -> None:
            if isinstance(found, Exception):
                # 404: it has gone since it was listed; should it be listed again, it is looked at again.
                if not (isinstance(found, ApiError) and found.status_code == 404):
                    failures.append(found)  # in order: the place of the look is right before the first of them
                return
            missed, reached = found
            await self._mails.put_all(missed, counts)
            self._seen[hash(thread.thread_id)] = signature, reached
            if len(self._seen) > REMEMBERED_THREADS:
                self._seen.popitem(last=False)

        def size(found: tuple[list[MessageReceivedEvent], float] | Exception) -> int:
            return 0 if isinstance(found, Exception) else size_of_all(found[0])

        async with (
            in_order(UNDER_WAY, self._mails.room) as start,
            aclosing(listed.walk(listing_failures)) as pages,
        ):
            async for page in pages:
                for item in page:
                    thread = decode_thread(item)
                    if thread is None or hash(thread.thread_id) in fetched:
                        continue
                    signature = self._signature(thread, look)
                    if self._has_news(thread, signature, look):
                        fetched.add(hash(thread.thread_id))
                        await start(
                            partial(fetch, thread), partial(put, thread, signature), expected_size(thread), size
                        )
                await start(trio.lowlevel.checkpoint, listed.mark(failures))
        raise_first(listing_failures)
        return failures

    def _signature(self, thread: ThreadItem, look: Look) -> int:
        """What changes when there is something in a thread to be looked for again."""
        in_thread = thread.updated_at, thread.message_count, thread.last_message_id
        return hash((*in_thread, *look.wanted, self._mails.delivered.given_back))

    def _has_news(self, thread: ThreadItem, signature: int, look: Look) -> bool:
        """Whether there may be a mail in it that was missed."""
        if not thread.thread_id:
            return False
        seen, reached = self._seen.get(hash(thread.thread_id), (None, math.inf))
        if seen == signature and reached <= look.after:
            return False
        if HELD in thread.labels:
            return True
        if thread.updated_at is not None and (
            thread.updated_at.timestamp() < min(look.wanted.values())
            or self._mails.delivered.may_be_forgotten(thread.updated_at)
        ):
            return False
        # Nearly every mail that was pushed begins a thread: that this one was is known without a request.
        is_known = thread.message_count == 1 and self._mails.delivered.has_mail(
            thread.inbox_id or "", thread.last_message_id or ""
        )
        return not is_known

    async def _fetch_thread(
        self, thread: ThreadItem, look: Look, counts: Counts, pace: Pace
    ) -> tuple[list[MessageReceivedEvent], float]:
        """The mails of a thread that were missed, the oldest first; and from when on it was gone through:
        infinity means that it was not, since a mail could not be had."""
        inbox = f"/inboxes/{segment(thread.inbox_id)}" if thread.inbox_id else ""
        path = f"{inbox}/threads/{segment(thread.thread_id or '')}"
        pages = self._rest.pages(path, "messages", {}, THREAD_PAGE, pace)
        missed: list[MessageReceivedEvent] = []
        is_complete = True
        async with aclosing(pages):
            async for page in pages:  # the first page is the newest, and each is ascending
                listed = [self._mails.read(item, thread.inbox_id or "") for item in page.items]
                events = [event for event in listed if event is not None]
                wholes = [
                    [event] if _has_body(event.message) else await self._mails.fetch(event, look.wanted)
                    for event in events
                    if self._mails.is_missed(event, look, counts)
                ]
                # What is listed and not there may be there in the next look.
                is_complete = is_complete and [] not in wholes
                missed[:0] = [whole for found in wholes for whole in found]
                if any(_time(event.message) < look.after for event in events):
                    return missed, look.after if is_complete else math.inf
        return missed, -math.inf if is_complete else math.inf


def _has_body(message: Message) -> bool:
    return message.text is not None or message.html is not None


def _time(message: Message) -> float:
    return message.timestamp.timestamp() if message.timestamp is not None else float("inf")
