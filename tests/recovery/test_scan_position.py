"""A scan resumes at its position, and ignores mail below the floor."""

from datetime import datetime
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.rest_api import EPOCH, at, mail
from tests.helpers.scanning import (
    BATCH_GET,
    INBOX,
    KEY,
    RECEIVED,
    THREAD,
    A,
    Scanner,
    a_scan,
    batch,
    inbox,
    review,
    scanning,
    thread,
    threads,
    whole,
)
from trio_agentmail import ApiError
from trio_agentmail._recovery.source import Target

# The position of a scan


def in_pages(mails: list[dict[str, Any]], size: int, path: str = A, field: str = "messages") -> dict[str, Any]:
    """The answers of an API with these mails: a listing that honours `after`, in pages, and each mail with its body."""

    def answer(request: httpx2.Request) -> dict[str, Any]:
        after = datetime.fromisoformat(request.url.params["after"])
        begin = int(request.url.params.get("page_token", 0))
        listed = [m for m in mails if datetime.fromisoformat(m["timestamp"]) >= after]
        page = [{key: value for key, value in m.items() if key != "text"} for m in listed[begin : begin + size]]
        return {field: page, "next_page_token": str(begin + size) if begin + size < len(listed) else None}

    listings: dict[str, Any] = {f"{path}?{begin}": answer for begin in range(size, len(mails), size)}
    return {path: answer} | listings | {f"{path}/{m['message_id']}": m for m in mails if "message_id" in m}


def asked_from(scanner: Scanner) -> list[tuple[float, str]]:
    """The requests for listings: the time from which on, and the page."""
    params = [request.url.params for request in scanner.api.requests if "after" in request.url.params]
    return [(round(datetime.fromisoformat(p["after"]).timestamp() - EPOCH, 2), p.get("page_token", "")) for p in params]


async def test_a_failed_scan_resumes_at_its_position_and_requests_nothing_before_it() -> None:
    answers = in_pages([whole(str(number), number) for number in range(10)], size=2)
    third_page, answers[f"{A}?4"] = answers[f"{A}?4"], 400
    async with scanning(answers) as scanner:
        scan = a_scan(wanted=RECEIVED)
        with pytest.raises(ApiError):
            await scanner.listing.scan(scan, scanner.counts)
        position_after = scan.position
        assert position_after == EPOCH + 3
        answers[f"{A}?4"] = third_page
        before = len(scanner.api.requests)
        assert await scanner.listing.scan(scan, scanner.counts)
        assert asked_from(scanner)[:3] == [(0, ""), (0, "2"), (0, "4")]
        assert asked_from(scanner)[3:] == [(3, ""), (3, "2"), (3, "4"), (3, "6")]
        # Not all mail of one millisecond may have been listed, and `after` may be exclusive.
        [*_, after] = [
            datetime.fromisoformat(p["after"]) for r in scanner.api.requests if "after" in (p := r.url.params)
        ]
        assert after.timestamp() == pytest.approx(position_after - 0.001, abs=1e-6)
        fetched = [path for path in scanner.api.asked[before:] if path.startswith(f"{A}/")]
        assert fetched == [f"{A}/{number}" for number in range(4, 10)]
        assert [event.message.message_id for event in scanner.put] == [str(number) for number in range(10)]
        assert scan.position == EPOCH + 9


async def test_a_scan_stays_before_a_mail_that_could_not_be_fetched() -> None:
    answers = in_pages([whole(str(number), number) for number in range(6)], size=2)
    answers[f"{A}/3"] = 400
    async with scanning(answers) as scanner:
        scan = a_scan()
        with pytest.raises(ApiError):
            await scanner.listing.scan(scan, scanner.counts)
        assert scan.position == EPOCH + 1
        assert [event.message.message_id for event in scanner.put] == ["0", "1", "2", "4", "5"]


async def test_the_position_of_a_scan_moves_when_everything_before_is_handed_over(
    autojump_clock: MockClock,
) -> None:
    async def slow(request: httpx2.Request) -> dict[str, Any]:
        await trio.sleep(10)
        return whole("1", 1)

    answers = in_pages([whole(str(number), number) for number in range(6)], size=2)
    answers[f"{A}/1"] = slow
    async with scanning(answers) as scanner, trio.open_nursery() as nursery:
        scan = a_scan()
        nursery.start_soon(scanner.listing.scan, scan, scanner.counts)
        await trio.sleep(5)
        # By now, everything has been listed and fetched except for that one.
        assert scanner.api.asked[-1] == f"{A}/5"
        assert scan.position == EPOCH
        await trio.sleep(6)
        assert scan.position == EPOCH + 5


async def test_a_scan_of_threads_keeps_its_position_as_well() -> None:
    items = [thread(f"t{n}", f"m{n}", 1, n, timestamp=at(n)) for n in range(6)]
    answers = in_pages(items, 2, "/threads", "threads")
    answers |= {f"/inboxes/a%40b/threads/t{n}": {"messages": [whole(f"m{n}", n)]} for n in range(6)}
    last_page, answers["/threads?4"] = answers["/threads?4"], 400
    async with scanning(answers) as scanner:
        scan = a_scan(KEY)
        with pytest.raises(ApiError):
            await scanner.listing.scan(scan, scanner.counts)
        assert scan.position == EPOCH + 3
        answers["/threads?4"] = last_page
        assert await scanner.listing.scan(scan, scanner.counts)
        assert asked_from(scanner)[3:] == [(3, ""), (3, "2")]
        assert [event.message.message_id for event in scanner.put] == [f"m{n}" for n in range(6)]


async def test_a_scan_can_be_limited_to_a_number_of_pages() -> None:
    async with scanning(in_pages([whole(str(number), number) for number in range(5)], size=2)) as scanner:
        scan = a_scan()
        assert not await scanner.listing.scan(scan, scanner.counts, pages=2)
        assert scan.position == EPOCH + 3
        assert len(scanner.put) == 4
        # The last page is the end, even if it is the last that is permitted.
        assert await scanner.listing.scan(scan, scanner.counts, pages=1)
        assert len(scanner.put) == 5


async def test_a_scan_skips_mail_dated_after_it_began_and_ends_with_future_mail(
    autojump_clock: MockClock,
) -> None:
    mails = [whole(str(date), date) for date in range(-4, 1000)]
    mails += [whole(f"future {number}", -1) | {"timestamp": at(2000 + number)} for number in range(3)]
    answers = {path.replace(" ", "%20"): answer for path, answer in in_pages(mails, size=2).items()}
    async with scanning(answers) as scanner:
        scan = a_scan(after=-4, wanted={"message.received": EPOCH - 9})
        assert await scanner.listing.scan(scan, scanner.counts, pace=partial(trio.sleep, 500))
        assert asked_from(scanner) == [(-4, ""), (-4, "2"), (-4, "4"), (1500, ""), (1500, "2")]
        found = [event.message.message_id for event in scanner.put]
        # The mail it began with, the rest of that page, and mail that is dated in the future.
        assert found == ["-4", "-3", "-2", "-1", "0", "1", "future 0", "future 1", "future 2"]


async def test_a_scan_waits_for_its_pace_before_each_page_and_each_thread(autojump_clock: MockClock) -> None:
    async def pace() -> None:
        await trio.sleep(10)

    async with scanning(in_pages([mail(str(date), date) for date in range(-5, 0)], size=2)) as scanner:
        await scanner.listing.scan(a_scan(after=-5), scanner.counts, pace=pace)
        assert [
            when for when, path in zip(scanner.api.times, scanner.api.asked, strict=True) if path == A or "?" in path
        ] == [10, 20, 30]
    async with scanning(threads(thread("t", "m"), t=[whole("m")])) as scanner:
        begin = trio.current_time()
        await scanner.listing.scan(a_scan(KEY), scanner.counts, pace=pace)
        assert [when - begin for when in scanner.api.times] == [10, 20]


# The floor


async def test_mail_below_the_floor_is_ignored() -> None:
    mails = [whole("old", 9), whole("at the floor", 10), whole("new", 11), whole("no time", None)]
    answers = {path.replace(" ", "%20"): answer for path, answer in inbox(*mails).items()}
    async with scanning(answers) as scanner:
        scanner.delivered.floor = EPOCH + 10
        assert await scanner.scan() == ["at the floor", "new", "no time"]
        assert f"{A}/old" not in scanner.api.asked


@pytest.mark.parametrize("target", [INBOX, KEY], ids=repr)
async def test_mail_that_falls_below_the_floor_while_it_is_fetched_is_ignored(target: Target) -> None:
    def fetch(request: httpx2.Request) -> dict[str, Any]:
        # It was pushed and delivered, and its identity forgotten for want of room.
        scanner.delivered.floor = EPOCH + 10
        return whole("m", 9) if target == INBOX else {"messages": [whole("m", 9)]}

    answers = inbox(whole("m", 9)) | threads(thread("t", "m", 1, 9)) | {f"{A}/m": fetch, THREAD: fetch}
    async with scanning(answers) as scanner:
        assert await scanner.scan(target) == []


async def test_released_mail_comes_even_if_it_is_below_the_floor() -> None:
    async with scanning(inbox(whole("m", 9)) | {BATCH_GET: batch(mail("m", 9))}) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.delivered.floor = EPOCH + 10
        assert await scanner.check_held() == ["m"]


async def test_a_thread_that_has_not_changed_above_the_floor_costs_no_request() -> None:
    async with scanning(threads(thread("t", "m", 1, 9), thread("u", "n", 1, 10), u=[whole("n", 10)])) as scanner:
        scanner.delivered.floor = EPOCH + 10
        assert await scanner.scan(KEY) == ["n"]
        assert THREAD not in scanner.api.asked
