"""Listings are read page by page to their end, and the end always comes."""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import LIMIT
from tests.helpers.rest_api import Api, rest
from trio_agentmail._recovery.paging import MAX_EMPTY_PAGES, Page, pages_of
from trio_agentmail._recovery.rest import Rest
from trio_agentmail.errors import AnswerTooLargeError, RequestFailedError

ANSWER = {"answer": 42}


async def collect(asks: Rest, size: int = 100) -> list[Page]:
    return [page async for page in pages_of(asks, "/x", "items", {"after": "then"}, size)]


async def test_a_listing_is_read_to_its_end() -> None:
    api = Api(
        {
            "/x": {"items": [{"n": 1}, {"n": 2}], "next_page_token": "b c"},
            "/x?b c": {"items": [], "next_page_token": "d"},
            "/x?d": {"items": [{"n": 3}], "next_page_token": None},
        }
    )
    async with rest(api) as asks:
        assert await collect(asks, 50) == [
            Page([{"n": 1}, {"n": 2}], has_more=True),
            Page([], has_more=True),
            Page([{"n": 3}], has_more=False),
        ]
    assert [(request.url.params["after"], request.url.params["limit"]) for request in api.requests] == [
        ("then", "50")
    ] * 3


async def test_each_request_of_a_listing_awaits_the_pace(autojump_clock: MockClock) -> None:
    api = Api({"/x": {"items": [], "next_page_token": "b"}, "/x?b": {"items": []}})
    async with rest(api) as asks:
        async for _ in pages_of(asks, "/x", "items", {}, pace=partial(trio.sleep, 10)):
            pass
    assert api.times == [10, 20]


async def test_a_listing_without_a_pace_has_a_checkpoint_for_each_request() -> None:
    async with rest(Api({"/x": {"items": []}})) as asks:
        with trio.CancelScope() as scope:
            scope.cancel()
            await collect(asks)
        assert scope.cancelled_caught
    assert asks.requests == 0


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c", "b"]])
async def test_a_page_token_that_comes_again_does_not_go_on_for_ever(circle: list[str]) -> None:
    # It is not the end either: the caller must learn that it has not seen everything.
    left = iter([*circle, *circle, *circle])
    async with rest(lambda_handler(lambda _: {"items": [], "next_page_token": next(left)})) as asks:
        with pytest.raises(RequestFailedError, match="page_token twice"):
            await collect(asks)
    assert asks.requests == len(set(circle)) + 1


def lambda_handler(answer: Callable[[httpx2.Request], dict[str, Any]]) -> rest_api.Handler:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=answer(request))

    return handle


@pytest.mark.parametrize(
    ("page", "items"),
    [
        ({"count": 0}, []),
        ({"items": [1, None, "text", [], {"n": 1}]}, [{"n": 1}]),
        ({"items": [], "next_page_token": ""}, []),
        ({"items": [], "next_page_token": 7}, []),
        ({"items": [], "next_page_token": {}}, []),
    ],
    ids=repr,
)
async def test_a_page_may_have_any_shape(page: dict[str, Any], items: list[Any]) -> None:
    async with rest(Api({"/x": page})) as asks:
        assert await collect(asks) == [Page(items, has_more=False)]


@pytest.mark.parametrize(
    "page", [{}, {"count": 1}, {"items": None}, {"items": 5}, {"items": {"n": 1}}, {"items": "text"}], ids=repr
)
async def test_a_page_without_its_field_is_a_failure_and_not_empty(page: dict[str, Any]) -> None:
    async with rest(Api({"/x": page})) as asks:
        with pytest.raises(RequestFailedError, match="without 'items'"):
            await collect(asks)


async def test_a_page_that_is_too_large_is_requested_in_smaller_ones() -> None:
    def page(request: httpx2.Request) -> dict[str, Any]:
        limit = int(request.url.params["limit"])
        asked.append(limit)
        begin = int(request.url.params.get("page_token", "0"))
        items = [{"n": n, "text": "x" * 6 * 2**20} for n in range(begin, min(begin + limit, 5))]
        return {"items": items} | ({"next_page_token": str(begin + limit)} if begin + limit < 5 else {})

    asked: list[int] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=page(request))

    async with rest(handle) as asks:
        found = [item["n"] async for found in pages_of(asks, "/x", "items", {}, 10) for item in found.items]
    assert found == [0, 1, 2, 3, 4]
    assert asked == [10, 2, 2, 2]


async def test_an_item_that_is_too_large_by_itself_ends_the_listing() -> None:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"items": [{"text": "x" * LIMIT}]})

    async with rest(handle) as asks:
        with pytest.raises(AnswerTooLargeError):
            async for _ in pages_of(asks, "/x", "items", {}):
                pytest.fail("a page")
    assert asks.requests == 4  # 100, 20, 4, 1


def endless(items: Callable[[int], list[dict[str, Any]]]) -> rest_api.Handler:
    """A listing whose pages each name a next one."""

    async def handle(request: httpx2.Request) -> httpx2.Response:
        number = int(request.url.params.get("page_token", "0"))
        return httpx2.Response(200, json={"items": items(number), "next_page_token": str(number + 1)})

    return handle


async def test_a_listing_of_empty_pages_ends() -> None:
    async with rest(endless(lambda number: [])) as asks:
        with pytest.raises(RequestFailedError, match="empty pages"):
            async for page in pages_of(asks, "/x", "items", {}):
                assert page.has_more
    assert asks.requests == MAX_EMPTY_PAGES


async def test_a_listing_that_repeats_a_page_ends() -> None:
    async with rest(endless(lambda number: [{"n": 1}])) as asks:
        with pytest.raises(RequestFailedError, match="the same page twice"):
            async for _ in pages_of(asks, "/x", "items", {}):
                pass
    assert asks.requests == 2


async def test_a_listing_may_have_many_empty_pages() -> None:
    async with rest(endless(lambda number: [{"n": number}] if number % 900 == 0 else [])) as asks:
        pages = pages_of(asks, "/x", "items", {})
        for _ in range(2 * MAX_EMPTY_PAGES):
            await anext(pages)
        await pages.aclose()


@pytest.mark.parametrize("token", ["half \ud83d", "\x00\r\n", "a&b=c#d", "../..", "größe", "%"], ids=ascii)
async def test_a_page_token_may_be_any_text(token: str) -> None:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(parse_qs(request.url.query.decode(), errors="surrogatepass"))
        return httpx2.Response(200, json=ANSWER)

    asked: list[dict[str, list[str]]] = []
    async with rest(handle) as asks:
        assert await asks.get("/x", {"page_token": token}) == ANSWER
    assert asked == [{"page_token": [token]}]


async def test_a_page_token_too_long_for_a_url_is_a_request_that_failed(autojump_clock: MockClock) -> None:
    async with rest(endless(lambda number: [])) as asks:
        with pytest.raises(RequestFailedError, match="InvalidURL"):
            await asks.get("/x", {"page_token": "x" * 2**17})
