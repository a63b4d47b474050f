"""Listings of the REST API: reads the query, and returns the requested page.

A page token contains the position where the previous page ended. So if items are added or removed in between, no other
item is skipped or repeated. But in descending order, a thread that gets mail in between moves to the front, to a page
that the client has already read.
"""

import base64
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar

import attrs
import orjson

from trio_agentmail.testing._agentmail.mail.ordered import Key, Ordered, sort_key
from trio_agentmail.testing._agentmail.permissions import PERMISSION_TO_READ, hidden_labels
from trio_agentmail.testing._agentmail.refusals import invalid

__all__ = ["Query", "filtering", "read_paging", "read_query", "take_page"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 100


class Labelled(Protocol):
    @property
    def labels(self) -> tuple[str, ...]: ...


T = TypeVar("T")

Params: TypeAlias = Mapping[str, Sequence[str]]
"""The values of each parameter of a query."""


@attrs.frozen(kw_only=True)
class Query:
    """The query of a listing.

    Attributes:
        limit: Maximum number of items on the page.
        beyond: The key of the last item of the previous page.
        start: The lowest key, inclusive.
        end: The highest key, exclusive.
        labels: The labels that an item must have.
        hidden: The labels that an item must not have.
    """

    limit: int = DEFAULT_LIMIT
    beyond: Key | None = None
    start: Key | None = None
    end: Key | None = None
    ascending: bool = False
    labels: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()

    def wants(self, item: Labelled) -> bool:
        """Return whether an item has the right labels."""
        return self.labels.issubset(item.labels) and self.hidden.isdisjoint(item.labels)


def read_query(params: Params, permissions: Collection[str] | None) -> Query:
    """Read the query of a listing.

    Raises:
        Refusal: A parameter is invalid.
    """
    wanted = {label for label in PERMISSION_TO_READ if _flag(params, f"include_{label}")}
    return Query(
        limit=_limit(params),
        beyond=_token(params),
        start=_time(params, "after"),
        end=_time(params, "before"),
        ascending=_flag(params, "ascending"),
        labels=_labels(params),
        # Mail that the key may not see is left out without an error, even if the client has requested it.
        hidden=frozenset(PERMISSION_TO_READ) - wanted | hidden_labels(permissions),
    )


def read_paging(params: Params) -> Query:
    """Read the query of a thread, which has no filters.

    Raises:
        Refusal: A parameter is invalid.
    """
    return Query(limit=_limit(params), beyond=_token(params))


def filtering(params: Params, strings_of: Mapping[str, Callable[[T], Iterable[str]]]) -> Callable[[T], bool]:
    """Return a function that returns whether an item matches the text filters of a query.

    An item matches a filter if one of its strings contains the text, ignoring case. It must match all filters.

    Args:
        strings_of: For each parameter that is a text filter, a function that returns the strings of an item.
    """
    wanted = [(of, string.casefold()) for name, of in strings_of.items() for string in _strings(params, name)]
    return lambda item: all(any(part in string.casefold() for string in of(item)) for of, part in wanted)


def take_page(items: Ordered[T], query: Query, wants: Callable[[T], bool]) -> tuple[list[T], str | None]:
    """Return the items on a page, and the token of the next page or `None`."""
    page: list[T] = []
    last = None
    for key, item in items.walk(start=query.start, end=query.end, beyond=query.beyond, ascending=query.ascending):
        if not wants(item):
            continue
        if len(page) == query.limit:
            assert last is not None
            return page, base64.urlsafe_b64encode(orjson.dumps(last)).decode()
        page.append(item)
        last = key
    return page, None


def _first(params: Params, name: str, default: str = "") -> str:
    return params.get(name, (default,))[0]


def _limit(params: Params) -> int:
    text = _first(params, "limit", str(DEFAULT_LIMIT))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise invalid("limit", "a whole number from 1")
    return min(int(text), MAX_LIMIT)


def _token(params: Params) -> Key | None:
    if "page_token" not in params:
        return None
    try:
        time, number = orjson.loads(base64.urlsafe_b64decode(_first(params, "page_token")))
        return int(time), int(number)
    except (ValueError, TypeError):
        raise invalid("page_token", "the next_page_token of a response") from None


def _time(params: Params, name: str) -> Key | None:
    if name not in params:
        return None
    try:
        return sort_key(datetime.fromisoformat(_first(params, name)))
    except (ValueError, TypeError):  # not a time, or one without an offset
        raise invalid(name, "a time like 2026-02-03T04:05:06.789Z") from None


def _flag(params: Params, name: str) -> bool:
    match _first(params, name, "false"):
        case "true":
            return True
        case "false":
            return False
    raise invalid(name, "true or false")


def _labels(params: Params) -> frozenset[str]:
    # Clients set labels in lower case; see `read_labels`.
    return frozenset(label.lower() for label in _strings(params, "labels"))


def _strings(params: Params, name: str) -> list[str]:
    """Return the values of a parameter: a JSON array, as the official SDK sends, or repeated, as in the OpenAPI."""
    strings: list[str] = []
    for text in params.get(name, ()):
        if text.startswith("["):
            strings += _array(text, name)
        else:
            strings.append(text)
    return strings


def _array(text: str, name: str) -> list[str]:
    try:
        array = orjson.loads(text)
    except orjson.JSONDecodeError:
        array = None
    if not isinstance(array, list) or not all(isinstance(string, str) for string in array):
        raise invalid(name, "strings, or a JSON array of them")
    return array
