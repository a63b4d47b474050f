"""A scan of malformed listings raises nothing but the errors of requests."""

import json
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.hypothesis_settings import json_values
from tests.helpers.rest_api import at, mail, rest
from tests.helpers.scanning import (
    DAY,
    EVERY_KIND,
    HELD,
    INBOX,
    KEY,
    POD,
    A,
    a_scan,
    inbox,
    now,
    review,
    scanning,
    thread,
    threads,
    whole,
)
from trio_agentmail import ApiError, MessageReceivedEvent
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery.listing import MailListing
from trio_agentmail._recovery.source import Counts, Target
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.events import Event

repeatable = settings(deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("inbox_id", [{}, {"inbox_id": None}, {"inbox_id": ""}, {"inbox_id": 0}], ids=repr)
async def test_a_mail_without_an_inbox_belongs_to_the_listed_inbox(inbox_id: Any) -> None:
    async with scanning(inbox(whole("m") | inbox_id)) as scanner:
        assert await scanner.scan() == ["m"]
        assert scanner.put[0].message.inbox_id == "a@b"


@pytest.mark.parametrize("message_id", [{}, {"message_id": None}, {"message_id": ""}, {"message_id": 7}], ids=repr)
async def test_a_mail_without_a_message_id_is_ignored(message_id: Any) -> None:
    nameless = {key: value for key, value in mail("m").items() if key != "message_id"} | message_id
    answers = inbox(whole("n"))
    answers[A]["messages"].insert(0, nameless)
    async with scanning(answers) as scanner:
        assert await scanner.scan() == ["n"]


@pytest.mark.parametrize("thread_id", [None, "", 7], ids=repr)
async def test_a_thread_without_a_thread_id_is_ignored(thread_id: Any) -> None:
    async with scanning(threads(thread(thread_id, "m"), thread("t", "n"), t=[whole("n")])) as scanner:
        assert await scanner.scan(KEY) == ["n"]


def distorted(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return strategy | json_values


fields = {
    "inbox_id": distorted(st.just("a@b")),
    "message_id": distorted(st.sampled_from(["m", "n"])),
    "labels": distorted(st.lists(distorted(st.sampled_from(["received", "spam", HELD])), max_size=3)),
    "timestamp": distorted(st.sampled_from([at(0), "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])),
    "created_at": distorted(st.sampled_from([at(0), "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])),
    "updated_at": distorted(st.sampled_from([at(0), "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])),
    "text": distorted(st.just("text")),
    "thread_id": distorted(st.sampled_from(["t", "u"])),
    "last_message_id": distorted(st.just("m")),
    "message_count": distorted(st.just(1)),
}
items = distorted(st.fixed_dictionaries({}, optional=fields))
answers_ = distorted(
    items
    | st.fixed_dictionaries(
        {},
        optional={
            "messages": distorted(st.lists(items, max_size=3)),
            "threads": distorted(st.lists(items, max_size=3)),
            "next_page_token": distorted(st.just("next")),
        },
    )
)


@settings(repeatable, max_examples=150)
@given(st.lists(answers_, min_size=1, max_size=12), st.sampled_from([INBOX, POD, KEY]))
def test_whatever_json_comes_a_scan_raises_only_errors_of_requests(json_: list[Any], target: Target) -> None:
    async def main() -> None:
        left = list(json_)

        async def handle(request: httpx2.Request) -> httpx2.Response:
            answer = left.pop(0) if left else {}
            return httpx2.Response(200, content=json.dumps(answer))

        async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
            assert isinstance(event, MessageReceivedEvent)
            assert event.message.inbox_id
            assert event.message.message_id

        async with rest(handle) as asks:
            listing = MailListing(asks, asks._clock, Delivered(now, DAY), put)
            listing.note(review("a@b", "m"))
            for _ in range(2):
                with suppress(ApiError, RequestFailedError):
                    await listing.scan(a_scan(target, wanted=EVERY_KIND), Counts())
                with suppress(ApiError, RequestFailedError):
                    await listing.check_held(EVERY_KIND, Counts())

    trio.run(main, clock=MockClock(autojump_threshold=0))
