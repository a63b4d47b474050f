"""A pod and a key are scanned by their threads."""

from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.rest_api import EPOCH, at, mail
from tests.helpers.scanning import (
    EVERY_KIND,
    HELD,
    KEY,
    KINDS,
    POD,
    RECEIVED,
    THREAD,
    a_scan,
    inbox,
    pushed,
    scanning,
    thread,
    threads,
    whole,
)
from trio_agentmail import ApiError, PermissionDeniedError
from trio_agentmail._recovery.listing import REFUSED_FOR
from trio_agentmail._recovery.source import Counts
from trio_agentmail.errors import RequestFailedError

ALL_THREADS = {f"include_{label}": "true" for label in (*KINDS, "trash")}


async def test_a_key_is_listed_by_threads_which_come_with_their_bodies() -> None:
    answers = threads(thread("t", "n", 2), t=[whole("m"), whole("s") | {"labels": ["sent"]}, whole("n")])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY, 1) == ["m", "n"]
        assert scanner.api.asked == ["/threads", THREAD]
        assert [event.message.inbox_id for event in scanner.put] == ["a@b", "a@b"]
    listed, fetched = scanner.api.requests
    asked = {"limit": "100", "ascending": "true", "after": "2025-01-01T00:00:01.000Z"}
    assert dict(listed.url.params) == asked | ALL_THREADS
    assert dict(fetched.url.params) == {"limit": "20"}


async def test_a_key_that_may_not_list_threads_with_spam_lists_the_others_from_then_on() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response | dict[str, Any]:
        if ALL_THREADS.items() <= dict(request.url.params).items():
            return httpx2.Response(403, json={"name": "missing_permission", "message": "label_spam_read"})
        return {"threads": [thread("t", "m")]}

    async with scanning(threads(t=[whole("m")]) | {"/threads": answer}) as scanner:
        assert await scanner.scan(KEY, wanted=RECEIVED | {"message.received.blocked": EPOCH}) == ["m"]
        assert await scanner.scan(KEY) == []
        assert scanner.api.asked == ["/threads", "/threads", THREAD, "/threads"]
        assert "include_blocked=true" in str(scanner.api.requests[1].url)


async def test_threads_with_spam_are_requested_again_an_hour_after_a_refusal(
    autojump_clock: MockClock,
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response | dict[str, Any]:
        return httpx2.Response(403, json={}) if len(scanner.api.requests) == 1 else {"threads": []}

    async with scanning({"/threads": answer}) as scanner:
        for _ in range(3):
            await scanner.scan(KEY)
            await trio.sleep(REFUSED_FOR / 2 + 1)
        for_all = [ALL_THREADS.items() <= dict(request.url.params).items() for request in scanner.api.requests]
        assert for_all == [True, False, False, True]


async def test_a_key_that_may_not_list_threads_at_all_is_refused() -> None:
    refusal = httpx2.Response(403, json={"name": "missing_permission", "message": "message_read"})
    async with scanning({"/threads": refusal}) as scanner:
        for _ in range(2):
            with pytest.raises(PermissionDeniedError):
                await scanner.scan(KEY)
        assert scanner.api.asked == ["/threads"] * 3


async def test_a_refused_thread_stops_no_other_thread() -> None:
    answers = threads(thread("t", "m"), thread("u", "n"), u=[whole("n")]) | {THREAD: 403}
    async with scanning(answers) as scanner:
        for _ in range(2):
            with pytest.raises(ApiError):
                await scanner.scan(KEY)
        assert scanner.api.asked.count("/threads") == 2
        assert all(request.url.params["include_spam"] for request in scanner.api.requests[::3])


async def test_a_malformed_thread_stops_no_other_thread(autojump_clock: MockClock) -> None:
    nonsense = httpx2.Response(200, text="no JSON")
    answers = threads(thread("t", "m"), thread("u", "n"), u=[whole("n")]) | {THREAD: nonsense}
    async with scanning(answers) as scanner:
        with pytest.raises(RequestFailedError):
            await scanner.scan(KEY)
        assert scanner.found == ["n"]


async def test_mail_in_the_trash_is_not_handed_over() -> None:
    async with scanning(inbox(whole("m", 0, "trash"))) as scanner:
        assert await scanner.scan() == []


async def test_a_pod_is_listed_by_its_own_threads() -> None:
    answers = threads(t=[whole("m")]) | {"/pods/pod%2F1/threads": {"threads": [thread("t", "m")]}}
    async with scanning(answers) as scanner:
        assert await scanner.scan(POD) == ["m"]


async def test_a_thread_without_an_inbox_is_requested_by_its_id_alone() -> None:
    answers = threads(thread("t", "m", inbox_id=None)) | {"/threads/t": {"messages": [whole("m", inbox_id="x@y")]}}
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["m"]
        assert scanner.put[0].message.inbox_id == "x@y"


async def test_a_thread_is_not_fetched_again_until_it_changes() -> None:
    answers = threads(thread("t", "m", 1, 1), t=[whole("m")])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["m"]
        assert await scanner.scan(KEY) == []
        assert scanner.api.asked.count(THREAD) == 1
        answers.update(threads(thread("t", "n", 2, 2), t=[whole("m"), whole("n")]))
        assert await scanner.scan(KEY) == ["n"]
        assert scanner.counts == Counts(known=1)


async def test_a_thread_is_fetched_again_when_a_claim_was_given_back() -> None:
    # A mail that one scan counts as delivered may be waiting for the consumer in another scan. When that is
    # cancelled, its claim is given back.
    answers = threads(thread("t", "n", 2, 2), t=[whole("m"), whole("n")])
    async with scanning(answers) as scanner:
        scanner.delivered.claim(pushed("m"))
        assert await scanner.scan(KEY) == ["n"]
        scanner.delivered.give_back(pushed("m"))
        assert await scanner.scan(KEY) == ["m"]


async def test_a_thread_is_fetched_again_when_other_event_types_are_wanted() -> None:
    answers = threads(thread("t", "n", 2, 2), t=[whole("m", 0, "spam"), whole("n")])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["n"]
        assert await scanner.scan(KEY, wanted=EVERY_KIND) == ["m"]


async def test_a_thread_of_one_pushed_mail_costs_no_request() -> None:
    async with scanning(threads(thread("t", "m"))) as scanner:
        scanner.delivered.claim(pushed("m"))
        assert await scanner.scan(KEY) == []
        assert scanner.api.asked == ["/threads"]


async def test_a_thread_that_has_not_changed_since_the_stream_began_costs_no_request() -> None:
    async with scanning(threads(thread("t", "m", 1, 9), thread("u", "n", 1, 10), u=[whole("n", 10)])) as scanner:
        assert await scanner.scan(
            KEY, wanted={"message.received": EPOCH + 10, "message.received.spam": EPOCH + 99}
        ) == ["n"]


async def test_a_thread_with_held_mail_is_always_fetched() -> None:
    async with scanning(threads(thread("t", "m", 1, -9, HELD), t=[whole("m", -9, HELD)])) as scanner:
        assert await scanner.scan(KEY) == []
        assert scanner.listing.state() == [("a@b", "m")]


async def test_a_thread_without_updated_at_is_fetched() -> None:
    async with scanning(threads(thread("t", "m", None, None), t=[whole("m")])) as scanner:
        assert await scanner.scan(KEY) == ["m"]


async def test_a_body_that_was_left_out_of_its_thread_is_fetched() -> None:
    answers = inbox(whole("large")) | threads(thread("t", "n", 2), t=[mail("large"), whole("n")])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["large", "n"]
        assert scanner.put[0].message.text == "text of large"


@pytest.mark.parametrize("after", [-9999.0, 3600.0])  # the thread's end, or the scan's
async def test_a_body_that_is_not_available_yet_is_requested_by_the_next_scan(after: float) -> None:
    answers = threads(thread("t", "n", 2), t=[mail("large"), whole("n", 7200)])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY, after=after) == ["n"]
        answers.update(inbox(whole("large")))
        assert await scanner.scan(KEY, after=after) == ["large"]
        before = len(scanner.api.asked)
        assert await scanner.scan(KEY, after=after) == []
        assert scanner.api.asked[before:] == ["/threads"]


async def test_a_mail_that_is_html_only_is_whole() -> None:
    async with scanning(threads(thread("t", "m"), t=[mail("m", html="<p>")])) as scanner:
        assert await scanner.scan(KEY) == ["m"]
        assert scanner.api.asked == ["/threads", THREAD]


def long_thread(pages: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The answers of an API with a thread in pages, the newest page first."""
    answers = threads(thread("t", "m", sum(map(len, pages))))
    for number, page in enumerate(pages):
        token = str(number + 1) if number + 1 < len(pages) else None
        answers[THREAD if number == 0 else f"{THREAD}?{number}"] = {"messages": page, "next_page_token": token}
    return answers


async def test_a_thread_of_many_pages_comes_with_its_oldest_mail_first() -> None:
    answers = long_thread(
        [[whole("e", 5), whole("f", 6)], [whole("c", 3), whole("d", 4)], [whole("a", 1), whole("b", 2)]]
    )
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["a", "b", "c", "d", "e", "f"]


async def test_a_thread_of_many_pages_is_read_as_far_back_as_the_scan_reaches() -> None:
    answers = long_thread([[whole("e", 60)], [whole("c", 29), whole("d", 40)], [whole("a", 10)]])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY, after=30) == ["c", "d", "e"]
        assert await scanner.scan(KEY, after=30) == []
        assert scanner.api.asked == ["/threads", THREAD, f"{THREAD}?1", "/threads"]


async def test_a_scan_that_reaches_further_back_reads_the_rest_of_an_unchanged_thread() -> None:
    # The scan of the gap has stopped on the first page; the sweep after it finds back-dated mail.
    answers = long_thread([[whole("d", 100), whole("e", 290)], [whole("back-dated", 250) | {"timestamp": at(-50)}]])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY, after=200) == ["d", "e"]
        assert await scanner.scan(KEY, after=-100) == ["back-dated"]
        # It has been read to its end, and no scan reaches further.
        assert await scanner.scan(KEY, after=-9999) == []
        assert len(scanner.api.asked) == 2 + 3 + 1


async def test_a_thread_deleted_between_listing_and_fetch_is_not_a_failure() -> None:
    answers = threads(thread("t", "m"), thread("u", "n"), u=[whole("n")])
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["n"]


async def test_a_thread_that_was_not_found_is_fetched_again_if_listed_again() -> None:
    answers = threads(thread("t", "m"))
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == []
        answers[THREAD] = {"messages": [whole("m")]}
        assert await scanner.scan(KEY) == ["m"]


async def test_a_thread_that_cannot_be_fetched_stops_no_other_and_is_retried() -> None:
    answers = threads(thread("t", "m"), thread("u", "n"), u=[whole("n")])
    answers[THREAD] = 403
    async with scanning(answers) as scanner:
        with pytest.raises(ApiError) as caught:
            await scanner.scan(KEY)
        assert caught.value.status_code == 403
        assert scanner.found == ["n"]
        answers[THREAD] = {"messages": [whole("m")]}
        assert await scanner.scan(KEY) == ["m"]


async def test_threads_are_listed_to_the_end() -> None:
    answers = threads(thread("t", "m"), t=[whole("m")], u=[whole("n")])
    answers["/threads"]["next_page_token"] = "2"
    answers["/threads?2"] = {"threads": [thread("u", "n")]}
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == ["m", "n"]


async def test_a_thread_that_a_page_lists_twice_is_fetched_once() -> None:
    async with scanning(threads(thread("t", "m"), thread("t", "m"), t=[whole("m")])) as scanner:
        assert await scanner.scan(KEY) == ["m"]


async def test_a_thread_that_keeps_getting_mail_is_fetched_once_in_a_scan(autojump_clock: MockClock) -> None:
    # A thread that gets mail moves to the end of the listing, together with its older missed mail.
    answers = threads(thread("t", "m", 1, 1), t=[whole("missed", -5), whole("m", 1)], u=[whole("n", 3)])
    answers["/threads"]["next_page_token"] = "2"
    answers["/threads?2"] = {"threads": [thread("t", "o", 2, 2), thread("u", "n", 3, 3)]}
    async with scanning(answers) as scanner:
        scan = a_scan(KEY, after=-10, wanted={"message.received": EPOCH - 10})
        assert await scanner.listing.scan(scan, scanner.counts, pace=partial(trio.sleep, 10))
        assert [event.message.message_id for event in scanner.put] == ["missed", "m", "n"]
        assert scanner.api.asked.count(THREAD) == 1
        # Another scan fetches the thread that has changed since.
        assert await scanner.scan(KEY) == []
        assert scanner.api.asked.count(THREAD) == 2


async def test_the_number_of_remembered_threads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_agentmail._recovery.threads.REMEMBERED_THREADS", 2)
    names = ["t", "u", "v"]
    answers = threads(*[thread(name, name, 2) for name in names], **{name: [whole(name)] for name in names})
    async with scanning(answers) as scanner:
        assert await scanner.scan(KEY) == names
        before = len(scanner.api.asked)
        assert await scanner.scan(KEY) == []
        assert scanner.api.asked[before:] == ["/threads", THREAD]
        assert len(scanner.listing._threads._seen) == 2
