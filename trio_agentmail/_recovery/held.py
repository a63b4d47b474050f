"""Held mail, which is checked again until it is released or deleted."""

from collections.abc import Container, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import trio

from trio_agentmail.errors import AnswerTooLargeError, ApiError, RequestFailedError

from .mails import HELD, Mails, is_in_trash
from .rest import Rest, segment
from .source import Counts

__all__ = ["HeldMail"]

T = TypeVar("T")

BATCH = 500
"""Maximum number of mails in one batch-get (source: AgentMail's API definition)."""

GONE_FOR = 3600.0
"""Seconds after which the held mail of an inbox that is not found is forgotten.

AgentMail also answers 404 while the key may not see an inbox, so the mail is not forgotten at once.
"""


class HeldMail:
    """Checks the mails that AgentMail holds for a security review, and hands over those that have been released.

    This is needed because a scan may not find mail that was released during a gap: the mail keeps its old times.
    """

    def __init__(self, rest: Rest, mails: Mails) -> None:
        self._rest = rest
        self._mails = mails
        self._gone_since: dict[str, float] = {}
        """For each inbox with held mail that is not found: since when, on Trio's clock."""

    async def check(self, wanted: Container[str], counts: Counts) -> list[Exception]:
        """Hand over released mail, and return the failures."""
        failures: list[Exception] = []
        inboxes = {inbox_id for inbox_id, _ in self._mails.held}
        self._gone_since = {inbox: since for inbox, since in self._gone_since.items() if inbox in inboxes}
        # Sort by inbox only, so that the mails of an inbox stay in the order in which they were held.
        for inbox_id, held in groupby(sorted(self._mails.held, key=itemgetter(0)), key=itemgetter(0)):
            batches = list(_batches([message_id for _, message_id in held], BATCH))[::-1]
            while batches:
                ids = batches.pop()
                try:
                    failures += await self._check_batch(inbox_id, ids, wanted, counts)
                except AnswerTooLargeError as exc:
                    if len(ids) == 1:
                        failures.append(exc)
                        continue
                    half = len(ids) // 2
                    batches += (ids[half:], ids[:half])
                except (ApiError, RequestFailedError) as exc:
                    failures.append(exc)
        return failures

    async def _check_batch(
        self, inbox_id: str, ids: Sequence[str], wanted: Container[str], counts: Counts
    ) -> list[Exception]:
        """Check mails with one batch-get. Return the failures of single mails, which stay remembered."""
        failures: list[Exception] = []
        try:
            answer = await self._rest.post(f"/inboxes/{segment(inbox_id)}/messages/batch-get", {"message_ids": ids})
        except ApiError as exc:
            if exc.status_code != 404:
                raise
            since = self._gone_since.setdefault(inbox_id, trio.current_time())
            if trio.current_time() - since < GONE_FOR:
                return []
            answer = {"messages": []}
        else:
            self._gone_since.pop(inbox_id, None)
        items = answer.get("messages")
        if not isinstance(items, list):  # an empty list would mean that all of them were deleted
            raise RequestFailedError("the REST API answered a batch-get without messages")
        listed = [self._mails.read(item, inbox_id) for item in items if isinstance(item, dict)]
        found = {event.message.message_id: event for event in listed if event is not None}
        in_trash = [item.get("message_id") for item in items if isinstance(item, dict) and is_in_trash(item)]
        for message_id in ids:
            event = found.get(message_id)
            if event is not None and HELD in event.message.labels:
                counts.held += 1
                continue
            if message_id in in_trash:
                continue  # it may be restored
            # Forget it before fetching it, since `fetch` remembers it again if it is still held.
            self._mails.held.pop((inbox_id, message_id), None)
            if event is not None and self._mails.is_wanted(event, wanted):
                try:
                    for whole in await self._mails.fetch(event, wanted):
                        await self._mails.put(whole, counts, was_held=True)
                except BaseException as exc:
                    self._mails.hold(inbox_id, message_id)
                    if not isinstance(exc, (ApiError, RequestFailedError)):
                        raise
                    failures.append(exc)
        return failures


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
