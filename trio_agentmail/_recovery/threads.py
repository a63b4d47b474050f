"""Scans the threads of a pod or of a whole key, which needs no request for each inbox."""

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
from .pages import ScanPages
from .paging import pages_of
from .rest import UNDER_WAY, Pace, Rest, raise_first, segment
from .source import Counts, Scan

__all__ = ["Threads"]

REMEMBERED_THREADS = 2**17
"""Maximum number of remembered threads, which take about 20 MB."""

THREAD_PAGE = 20
"""Messages per page of a thread. They include their bodies."""


class Threads:
    """Lists threads, and fetches those that have changed, with the bodies of their messages."""

    def __init__(self, rest: Rest, mails: Mails) -> None:
        self._rest = rest
        self._mails = mails
        self._seen: OrderedDict[int, tuple[int, float]] = OrderedDict()
        """The signature of each thread when it was last read, and the time from which it was read, by its id's hash."""

    async def scan(self, scan: Scan, counts: Counts, listed: ScanPages, pace: Pace) -> list[Exception]:
        """Hand over missed mail, and return the failures of single threads.

        Raises:
            ApiError, RequestFailedError: The listing failed.
        """
        failures: list[Exception] = []
        listing_failures: list[Exception] = []
        # A thread that keeps getting mail is listed repeatedly, but fetched only once. Mail that it gets after that is
        # left to the next scan.
        fetched: set[int] = set()

        async def fetch(thread: ThreadItem) -> tuple[list[MessageReceivedEvent], float] | Exception:
            try:
                return await self._fetch_thread(thread, scan, counts, pace)
            except (ApiError, RequestFailedError) as exc:
                return exc

        async def put(
            thread: ThreadItem, signature: int, found: tuple[list[MessageReceivedEvent], float] | Exception
        ) -> None:
            if isinstance(found, Exception):
                # 404: the thread was deleted after it was listed. If it is listed again, it is fetched again.
                if not (isinstance(found, ApiError) and found.status_code == 404):
                    failures.append(found)  # in order, so the scan's position stays before the first failure
                return
            missed, read_from = found
            await self._mails.put_all(missed, counts)
            self._seen[hash(thread.thread_id)] = signature, read_from
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
                    signature = self._signature(thread, scan)
                    if self._may_have_missed_mail(thread, signature, scan):
                        fetched.add(hash(thread.thread_id))
                        await start(
                            partial(fetch, thread), partial(put, thread, signature), expected_size(thread), size
                        )
                await start(trio.lowlevel.checkpoint, listed.advance(failures))
        raise_first(listing_failures)
        return failures

    def _signature(self, thread: ThreadItem, scan: Scan) -> int:
        """Return a value that changes when the thread has to be read again."""
        in_thread = thread.updated_at, thread.message_count, thread.last_message_id
        return hash((*in_thread, *scan.wanted, self._mails.delivered.given_back))

    def _may_have_missed_mail(self, thread: ThreadItem, signature: int, scan: Scan) -> bool:
        if not thread.thread_id:
            return False
        seen, read_from = self._seen.get(hash(thread.thread_id), (None, math.inf))
        if seen == signature and read_from <= scan.after:
            return False
        if HELD in thread.labels:
            return True
        if thread.updated_at is not None and (
            thread.updated_at.timestamp() < min(scan.wanted.values())
            or self._mails.delivered.may_be_forgotten(thread.updated_at)
        ):
            return False
        # Most pushed mails begin a thread. A thread that consists of one delivered mail needs no request.
        is_known = thread.message_count == 1 and self._mails.delivered.has_mail(
            thread.inbox_id or "", thread.last_message_id or ""
        )
        return not is_known

    async def _fetch_thread(
        self, thread: ThreadItem, scan: Scan, counts: Counts, pace: Pace
    ) -> tuple[list[MessageReceivedEvent], float]:
        """Fetch the missed mails of a thread.

        Returns:
            The mails, the oldest first, and the time from which on the thread was read. The time is `math.inf` if a
            mail was not available, so that the thread is read again.
        """
        inbox = f"/inboxes/{segment(thread.inbox_id)}" if thread.inbox_id else ""
        path = f"{inbox}/threads/{segment(thread.thread_id or '')}"
        pages = pages_of(self._rest, path, "messages", {}, THREAD_PAGE, pace)
        missed: list[MessageReceivedEvent] = []
        is_complete = True
        async with aclosing(pages):
            async for page in pages:  # the newest page comes first; within a page, the oldest message
                listed = [self._mails.read(item, thread.inbox_id or "") for item in page.items]
                events = [event for event in listed if event is not None]
                wholes = [
                    [event] if _has_body(event.message) else await self._mails.fetch(event, scan.wanted)
                    for event in events
                    if self._mails.is_missed(event, scan, counts)
                ]
                # A mail that is listed but not available yet may be available to the next scan.
                is_complete = is_complete and [] not in wholes
                missed[:0] = [whole for found in wholes for whole in found]
                if any(_time(event.message) < scan.after for event in events):
                    return missed, scan.after if is_complete else math.inf
        return missed, -math.inf if is_complete else math.inf


def _has_body(message: Message) -> bool:
    return message.text is not None or message.html is not None


def _time(message: Message) -> float:
    return message.timestamp.timestamp() if message.timestamp is not None else float("inf")
