"""A listing of the REST API: what its query says, and the page of things that it gets.

A page token says where the page before it ended. So paging goes on there, whatever has come or gone in between; but a
thread that gets mail in between moves to the front, where the reader has been already.
"""

import base64
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Protocol, TypeVar

import attrs
import httpx
import orjson

from trio_agentmail.testing._mail.ordered import Key, Ordered, sort_key
from trio_agentmail.testing._permissions import PERMISSION_TO_READ

from .errors import invalid

__all__ = ["Query", "filtering", "hidden_labels", "read_paging", "read_query", "take_page"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 100


class Labelled(Protocol):
    @property
    def labels(self) -> tuple[str, ...]: ...


T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Query:
    """What a listing is asked for.

    Attributes:
        beyond: Where the page before ended.
        start: The first that is wanted.
        end: The first that is not wanted any more.
        labels: What is listed has all of these.
        hidden: What is listed has none of these.
    """

    limit: int = DEFAULT_LIMIT
    beyond: Key | None = None
    start: Key | None = None
    end: Key | None = None
    ascending: bool = False
    labels: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()

    def wants(self, thing: Labelled) -> bool:
        return self.labels.issubset(thing.labels) and self.hidden.isdisjoint(thing.labels)


def hidden_labels(permissions: Collection[str] | None) -> frozenset[str]:
    """The labels of what a key may not see.

    Args:
        permissions: What it may do; `None`: everything.
    """
    return frozenset(
        label
        for label, permission in PERMISSION_TO_READ.items()
        if permissions is not None and permission not in permissions
    )


def read_query(params: httpx.QueryParams, permissions: Collection[str] | None) -> Query:
    """Read the query of a listing.

    Raises:
        Refusal: a parameter makes no sense.
    """
    wanted = {label for label in PERMISSION_TO_READ if _flag(params, f"include_{label}")}
    return Query(
        limit=_limit(params),
        beyond=_token(params),
        start=_time(params, "after"),
        end=_time(params, "before"),
        ascending=_flag(params, "ascending"),
        labels=_labels(params),
        # A key that may not see them does not get them, and is not told so either.
        hidden=frozenset(PERMISSION_TO_READ) - wanted | hidden_labels(permissions),
    )


def read_paging(params: httpx.QueryParams) -> Query:
    """Read the query of a thread, which has no filters.

    Raises:
        Refusal: a parameter makes no sense.
    """
    return Query(limit=_limit(params), beyond=_token(params))


def filtering(params: httpx.QueryParams, strings_of: Mapping[str, Callable[[T], Iterable[str]]]) -> Callable[[T], bool]:
    """Whether a thing has all that the query asks for by these parameters, each time as part of one of its strings.

    Args:
        strings_of: By the name of the parameter: the thing's strings of that kind.
    """
    wanted = [(of, string.casefold()) for name, of in strings_of.items() for string in _strings(params, name)]
    return lambda thing: all(any(part in string.casefold() for string in of(thing)) for of, part in wanted)


def take_page(things: Ordered[T], query: Query, wants: Callable[[T], bool]) -> tuple[list[T], str | None]:
    """What is on the page that was asked for, and the token of the next one, if there is more."""
    page: list[T] = []
    last = None
    for key, thing in things.walk(start=query.start, end=query.end, beyond=query.beyond, ascending=query.ascending):
        if not wants(thing):
            continue
        if len(page) == query.limit:
            assert last is not None
            return page, base64.urlsafe_b64encode(orjson.dumps(last)).decode()
        page.append(thing)
        last = key
    return page, None


def _limit(params: httpx.QueryParams) -> int:
    text = params.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise invalid("limit", "a number from 1")
    return min(int(text), MAX_LIMIT)


def _token(params: httpx.QueryParams) -> Key | None:
    if "page_token" not in params:
        return None
    try:
        time, number = orjson.loads(base64.urlsafe_b64decode(params["page_token"]))
        return int(time), int(number)
    except (ValueError, TypeError):
        raise invalid("page_token", "the next_page_token of an answer") from None


def _time(params: httpx.QueryParams, name: str) -> Key | None:
    if name not in params:
        return None
    try:
        return sort_key(datetime.fromisoformat(params[name]))
    except (ValueError, TypeError):  # no time; no offset
        raise invalid(name, "a time like 2026-02-03T04:05:06.789Z") from None


def _flag(params: httpx.QueryParams, name: str) -> bool:
    match params.get(name, "false"):
        case "true":
            return True
        case "false":
            return False
    raise invalid(name, "true or false")


def _labels(params: httpx.QueryParams) -> frozenset[str]:
    # They are kept in lower case.
    return frozenset(label.lower() for label in _strings(params, "labels"))


def _strings(params: httpx.QueryParams, name: str) -> list[str]:
    """As the official SDK writes them, in one parameter as a JSON array, and as the OpenAPI has it, repeated."""
    strings: list[str] = []
    for text in params.get_list(name):
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
