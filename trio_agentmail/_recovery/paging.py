"""Reads listings of the REST API page by page."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import trio

from trio_agentmail.errors import AnswerTooLargeError, RequestFailedError

from .rest import Pace, Rest

__all__ = ["MAX_EMPTY_PAGES", "Page", "pages_of"]

PAGE_SIZE = 100
"""Items per page, the largest number that AgentMail is certain to accept."""

MAX_EMPTY_PAGES = 1_000
"""Consecutive pages without items after which a listing is considered endless."""


class Page(NamedTuple):
    """The items of a page, and whether another page follows."""

    items: list[dict[str, Any]]
    has_more: bool


async def pages_of(
    rest: Rest,
    path: str,
    field: str,
    parameters: Mapping[str, str],
    size: int = PAGE_SIZE,
    pace: Pace = trio.lowlevel.checkpoint,
) -> AsyncGenerator[Page, None]:
    """Yield the pages of a listing, to its end.

    A page that is too large is requested again with a fifth of its items, down to a single item.

    Args:
        path: See `Rest.get`.
        field: The field of a page that contains its items.
        size: Items per page.
        pace: Awaited before each request.

    Raises:
        ApiError, RequestFailedError: See `Rest.get`. `RequestFailedError` is also raised if the listing has no end.
    """
    query = {"limit": str(size), **parameters}
    tokens: set[int] = set()  # hashes, since a token may be long
    before: list[Any] = []
    empty_pages = 0
    while True:
        await pace()
        try:
            page = await rest.get(path, query)
        except AnswerTooLargeError:
            if size == 1:
                raise
            size = max(1, size // 5)
            query["limit"] = str(size)
            continue
        items = page.get(field, [] if page.get("count") == 0 else None)
        if not isinstance(items, list):
            raise RequestFailedError(f"the REST API returned a page without {field!r}")
        token = page.get("next_page_token")
        if not isinstance(token, str):
            token = ""
        if items and items == before:
            raise RequestFailedError("the REST API returned the same page twice: the listing has no end")
        before = items
        yield Page([item for item in items if isinstance(item, dict)], has_more=bool(token))
        if not token:
            return
        if hash(token) in tokens:
            raise RequestFailedError("the REST API returned the same page_token twice: the listing has no end")
        empty_pages = 0 if items else empty_pages + 1
        if empty_pages == MAX_EMPTY_PAGES:
            raise RequestFailedError(f"the REST API returned {MAX_EMPTY_PAGES} empty pages in a row")
        tokens.add(hash(token))
        query["page_token"] = token
