"""Scans find all missed mail and nothing else, in order, and held mail when it is released."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.events.test_decode_properties import json_values
from tests.helpers.rest_api import EPOCH, Api, at, mail, rest
from trio_agentmail import (
    ApiError,
    Message,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    PermissionDeniedError,
    Subscribe,
)
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery.held import BATCH, GONE_FOR
from trio_agentmail._recovery.listing import REFUSED_FOR, MailListing
from trio_agentmail._recovery.rest import UNDER_WAY
from trio_agentmail._recovery.source import Counts, Scan, Target, recovered_types, targets_of
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.events import Event, MessageSecurity, MessageSentEvent, Send

repeatable = settings(deadline=None, derandomize=True, database=None)

KINDS = ("spam", "blocked", "unauthenticated")
RECEIVED = {"message.received": EPOCH}
EVERY_KIND = RECEIVED | {f"message.received.{kind}": EPOCH for kind in KINDS}
INBOX = Target(inbox_id="a@b")
POD = Target(pod_id="pod/1")
KEY = Target()
A = "/inboxes/a%40b/messages"
HELD = "agent-armor-held"
DAY = 86_400.0


def now() -> float:
    return EPOCH + trio.current_time()


def a_scan(target: Target = INBOX, after: float = 0.0, wanted: dict[str, float] = RECEIVED) -> Scan:
    return Scan(target, wanted, EPOCH + after, began=now())


def whole(message_id: str, at_: float | None = 0.0, *labels: str, **more: Any) -> dict[str, Any]:
    return mail(message_id, at_, *labels, text=f"text of {message_id}", **more)


def inbox(*mails: dict[str, Any], token: str | None = None, name: str = "a%40b") -> dict[str, Any]:
    """The answers of an API with these mails: their listing, without bodies, and each mail with its body."""
    listing = f"/inboxes/{name}/messages"
    answers: dict[str, Any] = {listing: {"messages": [{k: v for k, v in m.items() if k != "text"} for m in mails]}}
    for m in mails:
        answers[f"{listing}/{m['message_id']}"] = m
    return answers


def pushed(message_id: str, inbox_id: str = "a@b", event_type: str = "message.received") -> MessageReceivedEvent:
    return MessageReceivedEvent(event_type=event_type, message=Message(inbox_id=inbox_id, message_id=message_id))


def review(inbox_id: str | None, message_id: str | None) -> MessageSecurityReviewEvent:
    return MessageSecurityReviewEvent(message=MessageSecurity(inbox_id=inbox_id, message_id=message_id))


class Scanner:
    """A `MailListing`, and what it has handed over and counted."""

    def __init__(self, api: Api, listing: MailListing, delivered: Delivered) -> None:
        self.api = api
        self.listing = listing
        self.delivered = delivered
        self.put: list[MessageReceivedEvent] = []
        self.were_held: list[str] = []
        self.counts = Counts()

    async def scan(self, target: Target = INBOX, after: float = 0.0, wanted: dict[str, float] = RECEIVED) -> list[str]:
        """Run a scan, and return the Message-IDs that it has handed over."""
        self.counts = Counts()
        before = len(self.put)
        try:
            await self.listing.scan(a_scan(target, after, wanted), self.counts)
        finally:
            self.found = [event.message.message_id for event in self.put[before:]]
        return self.found

    async def check_held(self, wanted: dict[str, float] = RECEIVED) -> list[str]:
        self.counts = Counts()
        before = len(self.put)
        try:
            await self.listing.check_held(wanted, self.counts)
        finally:
            self.found = [event.message.message_id for event in self.put[before:]]
        return self.found


@asynccontextmanager
async def scanning(answers: dict[str, Any]) -> AsyncIterator[Scanner]:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        await trio.lowlevel.checkpoint()
        assert isinstance(event, MessageReceivedEvent)
        if delivered.claim(event):
            scanner.put.append(event)
            if was_held:
                scanner.were_held.append(event.message.message_id)

    api = Api(answers)
    delivered = Delivered(now, DAY)
    async with rest(api) as asks:
        scanner = Scanner(api, MailListing(asks, asks._clock, delivered, put), delivered)
        yield scanner


# Targets


def test_the_targets_follow_the_subscription() -> None:
    assert targets_of(Subscribe()) == (Target(),)
    assert targets_of(Subscribe(event_types=["message.sent"])) == (Target(),)
    assert targets_of(Subscribe(inbox_ids=["a", "b"])) == (Target(inbox_id="a"), Target(inbox_id="b"))
    assert targets_of(Subscribe(pod_ids=["p"])) == (Target(pod_id="p"),)
    assert targets_of(Subscribe(inbox_ids=["a"], pod_ids=["p"])) == (Target(inbox_id="a"), Target(pod_id="p"))


def test_an_unknown_event_type_cannot_be_listed() -> None:
    with pytest.warns(UserWarning, match="unknown event type 'brand.new'"):
        subscribe = Subscribe(event_types=["brand.new"])
    assert recovered_types(subscribe) == ()


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        (None, ["message.received"]),
        (["message.received"], ["message.received"]),
        (["message.sent", "message.bounced"], []),
        (["message.received.spam", "message.sent"], ["message.received.spam"]),
        ([*EVERY_KIND], [*EVERY_KIND]),
    ],
)
def test_only_received_mail_can_be_listed(asked: list[str] | None, listed: list[str]) -> None:
    assert [*recovered_types(Subscribe(event_types=asked))] == listed


# An inbox


async def test_a_missed_mail_comes_as_the_event_that_was_not_pushed() -> None:
    async with scanning(
        inbox(whole("m", 1, inbox_id="a@b", subject="hello", **{"from": "Jane <jane@x.com>"}))
    ) as scanner:
        assert await scanner.scan() == ["m"]
    [event] = scanner.put
    assert (event.event_type, event.event_id, event.origin) == ("message.received", None, "recovered")
    assert event.message.inbox_id == "a@b"
    assert event.message.text == "text of m"
    assert event.message.from_ == "Jane <jane@x.com>"
    assert json.loads(event.raw)["message"]["subject"] == "hello"


async def test_delivered_mail_is_counted_as_known_and_not_fetched() -> None:
    async with scanning(inbox(whole("m"), whole("n"), whole("o"))) as scanner:
        scanner.delivered.claim(pushed("m"))
        scanner.delivered.claim(pushed("n", event_type="message.received.spam"))
        scanner.delivered.claim(pushed("o", inbox_id="another"))
        assert await scanner.scan() == ["o"]
        assert scanner.counts == Counts(known=2)
        assert await scanner.scan() == []
        assert scanner.counts == Counts(known=3)
        assert scanner.api.asked == [A, f"{A}/o", A]


async def test_the_listing_is_requested_from_the_position_with_the_wanted_labels() -> None:
    async with scanning(inbox()) as scanner:
        await scanner.scan(after=1.25)
        await scanner.scan(after=-2 * EPOCH, wanted={"message.received.spam": 0, "message.received.blocked": 0})
    first, second = [dict(request.url.params) for request in scanner.api.requests]
    assert first == {"limit": "100", "ascending": "true", "after": "2025-01-01T00:00:01.250Z"}
    # A sweep may reach back to before the epoch.
    assert second == {
        "limit": "100",
        "ascending": "true",
        "after": "1970-01-01T00:00:00.000Z",
        "include_spam": "true",
        "include_blocked": "true",
    }


@pytest.mark.parametrize(
    ("labels", "event_type"),
    [
        (["received"], "message.received"),
        (["received", "unread", "whatever"], "message.received"),
        (["received", "sent"], "message.received"),
        (["received", "spam"], "message.received.spam"),
        (["blocked", "received"], "message.received.blocked"),
        (["received", "unauthenticated"], "message.received.unauthenticated"),
        (["sent"], None),
        (["draft"], None),
        (["spam"], None),
        ([], None),
        (["received", HELD], None),
        (["received", "spam", HELD], None),
        (["received", "trash"], None),
    ],
)
async def test_the_labels_of_a_mail_decide_its_event_type(labels: list[str], event_type: str | None) -> None:
    async with scanning(inbox(whole("m") | {"labels": labels})) as scanner:
        await scanner.scan(wanted=EVERY_KIND)
        assert [event.event_type for event in scanner.put] == ([event_type] if event_type else [])
        await scanner.scan(wanted=RECEIVED)
    async with scanning(inbox(whole("m") | {"labels": labels})) as scanner:
        assert await scanner.scan(wanted=RECEIVED) == (["m"] if event_type == "message.received" else [])


async def test_mail_from_before_the_stream_is_ignored_for_each_event_type() -> None:
    floors = {"message.received": EPOCH + 10, "message.received.spam": EPOCH + 20}
    mails = [whole("a", 9), whole("b", 10), whole("c", 19, "spam"), whole("d", 20, "spam"), whole("e", 30, "blocked")]
    async with scanning(inbox(*mails)) as scanner:
        assert await scanner.scan(wanted=floors) == ["b", "d"]


async def test_created_at_decides_what_is_new_and_not_the_mails_own_time() -> None:
    mails = [
        whole("back-dated", 10) | {"timestamp": at(-1000)},
        whole("from the future", -10) | {"timestamp": at(1000)},
        whole("arrival not known", None) | {"timestamp": at(1)},
        whole("neither, and old", None) | {"timestamp": at(-1)},
        whole("no time at all", None),
        whole("no time to speak of", None) | {"timestamp": 7, "created_at": "yesterday"},
    ]
    answers = inbox(*mails)
    answers = {path.replace(" ", "%20").replace("x,", "x%2C"): answer for path, answer in answers.items()}
    answers[f"{A}/neither%2C%20and%20old"] = mails[3]
    async with scanning(answers) as scanner:
        assert await scanner.scan() == ["back-dated", "arrival not known", "no time at all", "no time to speak of"]


async def test_a_listing_is_read_to_its_end_and_handed_over_in_order(autojump_clock: MockClock) -> None:
    # The first ones take longest to fetch.
    async def fetch(request: httpx2.Request) -> dict[str, Any]:
        number = int(request.url.path.rpartition("/")[2])
        await trio.sleep(10 - number % 10)
        return whole(str(number), number)

    numbers = [str(number) for number in range(250)]
    answers: dict[str, Any] = {f"{A}/{number}": fetch for number in numbers}
    for page in range(3):
        items = [mail(number, int(number)) for number in numbers[100 * page : 100 * (page + 1)]]
        answers[A if page == 0 else f"{A}?{page}"] = {"messages": items, "next_page_token": str(page + 1)}
    answers[f"{A}?2"]["next_page_token"] = None
    async with scanning(answers) as scanner:
        assert await scanner.scan() == numbers


async def test_a_mail_deleted_or_held_between_listing_and_fetch_is_not_delivered() -> None:
    answers = inbox(whole("gone"), whole("held"), whole("spam"), whole("stays"))
    answers[f"{A}/gone"] = 404
    answers[f"{A}/held"] = whole("held", 0, HELD)
    answers[f"{A}/spam"] = whole("spam", 0, "spam")
    async with scanning(answers) as scanner:
        assert await scanner.scan() == ["stays"]
        answers[BATCH_GET] = batch(mail("held", 0, HELD))
        assert await scanner.check_held() == []
        assert scanner.listing.state() == [("a@b", "held")]


@pytest.mark.parametrize("target", [INBOX, KEY], ids=["inbox", "key"])
async def test_a_listed_mail_that_is_not_available_yet_comes_later_out_of_any_scans_reach(
    target: Target,
) -> None:
    answers = inbox(whole("m")) | threads(thread("t", "m", 2), t=[mail("m")]) | {f"{A}/m": 404}
    async with scanning(answers) as scanner:
        assert await scanner.scan(target) == []
        answers |= inbox(whole("m")) | {BATCH_GET: batch(mail("m"))}
        assert await scanner.check_held() == ["m"]
        assert scanner.listing.state() == []


@pytest.mark.parametrize("answer", [{}, whole("n"), {"message_id": "m"}, {"message_id": ["m"], "labels": "received"}])
async def test_another_mail_is_not_taken_for_the_requested_one(answer: dict[str, Any]) -> None:
    answers = inbox(whole("m"))
    answers[f"{A}/m"] = answer
    async with scanning(answers) as scanner:
        with pytest.raises(RequestFailedError, match="another message"):
            await scanner.scan()
        assert scanner.put == []


async def test_a_mail_that_cannot_be_fetched_stops_no_other_and_is_raised_at_the_end() -> None:
    answers = inbox(*[whole(str(number)) for number in range(30)])
    answers[f"{A}/3"] = 403
    answers[f"{A}/20"] = 400
    async with scanning(answers) as scanner:
        with pytest.raises(ApiError) as caught:
            await scanner.scan()
        assert caught.value.status_code == 403
        assert scanner.found == [str(number) for number in range(30) if number not in (3, 20)]
        answers[f"{A}/3"], answers[f"{A}/20"] = whole("3"), whole("20")
        assert await scanner.scan() == ["3", "20"]


async def test_mail_found_before_a_page_failed_is_handed_over() -> None:
    answers = inbox(whole("m"))
    answers[A]["next_page_token"] = "lost"
    answers[f"{A}?lost"] = 400
    async with scanning(answers) as scanner:
        with pytest.raises(ApiError):
            await scanner.scan()
        assert scanner.found == ["m"]


@pytest.mark.parametrize("target", [INBOX, POD, KEY], ids=repr)
async def test_a_target_that_may_not_be_listed_raises_a_permission_error(target: Target) -> None:
    async with scanning({}) as scanner:
        with pytest.raises(ApiError) as caught:
            await scanner.scan(target)
        assert caught.value.status_code == 404


async def test_an_exception_of_put_comes_out_of_the_scan() -> None:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        raise ZeroDivisionError

    async with rest(Api(inbox(whole("m")))) as asks:
        with pytest.raises(ZeroDivisionError):
            await MailListing(asks, asks._clock, Delivered(now, DAY), put).scan(a_scan(), Counts())


@pytest.mark.parametrize("target", [INBOX, KEY], ids=repr)
async def test_a_cancelled_scan_remembers_nothing_that_was_not_handed_over(
    target: Target, autojump_clock: MockClock
) -> None:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        if len(taken) == 1:
            await trio.sleep_forever()
        assert isinstance(event, MessageReceivedEvent)
        taken.append(event.message.message_id)

    taken: list[str] = []
    answers = inbox(whole("m"), whole("n"))
    answers["/threads"] = {"threads": [thread("t", "m"), thread("u", "n")]}
    answers["/inboxes/a%40b/threads/t"] = {"messages": [whole("m")]}
    answers["/inboxes/a%40b/threads/u"] = {"messages": [whole("n")]}
    async with rest(Api(answers)) as asks:
        listing = MailListing(asks, asks._clock, Delivered(now, DAY), put)
        with trio.move_on_after(5):
            await listing.scan(a_scan(target), Counts())
        assert taken == ["m"]
        taken.clear()
        with trio.move_on_after(5):
            await listing.scan(a_scan(target), Counts())
        # The thread of the first one has been read. Whether its mail was delivered is not up to the listing.
        assert taken == ["m" if target == INBOX else "n"]


async def test_only_a_few_mails_are_in_memory_at_once() -> None:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        taken.append(sum(path != A for path in api.asked))

    taken: list[int] = []
    api = Api(inbox(*[whole(str(number)) for number in range(100)]))
    async with rest(api) as asks:
        await MailListing(asks, asks._clock, Delivered(now, DAY), put).scan(a_scan(), Counts())
    assert taken[-1] == 100
    assert all(asked - number <= UNDER_WAY for number, asked in enumerate(taken))


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


# Pods and keys


def thread(
    thread_id: str | None,
    last: str | None,
    count: int | None = 1,
    updated: float | None = 0.0,
    *labels: str,
    **more: Any,
) -> dict[str, Any]:
    item = {"inbox_id": "a@b", "thread_id": thread_id, "last_message_id": last, "message_count": count}
    return item | {"updated_at": None if updated is None else at(updated), "labels": [*labels]} | more


THREAD = "/inboxes/a%40b/threads/t"
ALL_THREADS = {f"include_{label}": "true" for label in (*KINDS, "trash")}


def threads(*items: dict[str, Any], **conversations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {"/threads": {"threads": [*items]}}
    for name, mails in conversations.items():
        answers[f"/inboxes/a%40b/threads/{name}"] = {"thread_id": name, "messages": [*mails]}
    return answers


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


# Held mail

BATCH_GET = f"{A}/batch-get"


def batch(*mails: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*mails]}


async def test_held_mail_is_remembered_and_comes_when_it_is_released_however_old_it_is() -> None:
    answers = inbox(whole("m", -9999, HELD)) | {BATCH_GET: batch(mail("m", -9999, HELD))}
    async with scanning(answers) as scanner:
        assert await scanner.scan() == []
        assert await scanner.check_held() == []
        assert scanner.counts == Counts(held=1)
        answers.update(inbox(whole("m", -9999)) | {BATCH_GET: batch(mail("m", -9999))})
        assert await scanner.check_held() == ["m"]
        assert scanner.put[0].message.text == "text of m"
        assert scanner.were_held == ["m"]
        assert scanner.counts == Counts(held=0)
        # It is forgotten then, and costs no more requests.
        before = len(scanner.api.asked)
        assert await scanner.check_held() == []
        assert len(scanner.api.asked) == before


async def test_held_mail_that_was_announced_by_a_push_is_checked_as_well() -> None:
    answers = inbox(whole("m")) | {BATCH_GET: batch(mail("m"))}
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review(None, "n"))
        scanner.listing.note(review("a@b", None))
        scanner.listing.note(MessageSentEvent(send=Send()))
        assert scanner.listing.state() == [("a@b", "m")]
        assert await scanner.check_held() == ["m"]


async def test_held_mail_whose_release_was_pushed_is_no_longer_checked() -> None:
    async with scanning({}) as scanner:
        scanner.listing.note(pushed("m"))
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(pushed("m", inbox_id="another"))
        assert scanner.listing.state() == [("a@b", "m")]
        scanner.listing.note(pushed("m"))
        assert await scanner.check_held() == []
        assert scanner.api.asked == []


async def test_held_mail_that_was_deleted_is_forgotten() -> None:
    async with scanning({BATCH_GET: batch()}) as scanner:
        scanner.listing.note(review("a@b", "m"))
        assert await scanner.check_held() == []
        assert scanner.listing.state() == []


async def test_held_mail_of_a_deleted_inbox_is_forgotten_in_time_without_a_failure(
    autojump_clock: MockClock,
) -> None:
    answers = inbox(whole("n"), name="x") | {"/inboxes/x/messages/batch-get": batch(mail("n"))}
    async with scanning(answers) as scanner:
        for number in range(BATCH + 1):  # more than fit into one request
            scanner.listing.note(review("a@b", str(number)))
        scanner.listing.note(review("x", "n"))
        assert await scanner.check_held() == ["n"]
        for _ in range(20):
            await trio.sleep((GONE_FOR - 1) / 20)
            assert await scanner.check_held() == []
            assert len(scanner.listing.state()) == BATCH + 1
        await trio.sleep(2)
        assert await scanner.check_held() == []
        assert scanner.listing.state() == []


async def test_held_mail_of_an_inbox_that_is_found_again_is_not_forgotten(autojump_clock: MockClock) -> None:
    answers = inbox(whole("m", 0, HELD))
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        for _ in range(3):
            await scanner.check_held()
            await trio.sleep(GONE_FOR - 1)
            await scanner.check_held()
            answers[BATCH_GET] = batch(mail("m", 0, HELD))
            await scanner.check_held()
            del answers[BATCH_GET]
        answers.update(inbox(whole("m")) | {BATCH_GET: batch(mail("m"))})
        assert await scanner.check_held() == ["m"]


async def test_the_time_an_inbox_is_missing_restarts_after_it_had_no_held_mail(autojump_clock: MockClock) -> None:
    async with scanning({}) as scanner:
        scanner.listing.note(review("a@b", "m"))
        await scanner.check_held()
        scanner.listing.note(pushed("m"))
        await scanner.check_held()
        await trio.sleep(GONE_FOR)
        scanner.listing.note(review("a@b", "n"))
        await scanner.check_held()
        assert scanner.listing.state() == [("a@b", "n")]


async def test_held_mail_of_an_inbox_no_longer_subscribed_to_is_forgotten() -> None:
    async with scanning({}) as scanner:
        for held in [("a@b", "m"), ("x", "n"), ("a@b", "o")]:
            scanner.listing.note(review(*held))
        # Which inboxes a pod has is unknown.
        scanner.listing.keep_only([POD, Target(inbox_id="y")])
        assert len(scanner.listing.state()) == 3
        scanner.listing.keep_only([Target(inbox_id="x"), Target(inbox_id="y")])
        assert scanner.listing.state() == [("x", "n")]


async def test_held_mail_that_turns_out_to_be_of_an_unwanted_type_is_not_delivered() -> None:
    answers = inbox(whole("m", 0, "spam"), whole("n")) | {BATCH_GET: batch(mail("m", 0, "spam"), mail("n"))}
    answers[f"{A}/n"] = whole("n", 0, "blocked")
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review("a@b", "n"))
        assert await scanner.check_held() == []
        assert scanner.listing.state() == []


async def test_mail_whose_release_not_every_server_knows_stays_remembered() -> None:
    answers = inbox(whole("m", 0, HELD)) | {BATCH_GET: batch(mail("m"))}
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        assert await scanner.check_held() == []
        assert scanner.listing.state() == [("a@b", "m")]
        answers.update(inbox(whole("m")))
        assert await scanner.check_held() == ["m"]


async def test_held_mail_is_checked_in_batches_by_inbox_in_the_order_it_was_held() -> None:
    ids = [f"{number * 7919 % 1200}" for number in range(1200)]

    def released(request: httpx2.Request) -> dict[str, Any]:
        asked = json.loads(request.content)["message_ids"]
        batches.append(len(asked))
        return batch(*[mail(message_id) for message_id in sorted(asked)])

    batches: list[int] = []
    answers = inbox(*map(whole, ids)) | inbox(whole("x"), name="x")
    answers |= {BATCH_GET: released, "/inboxes/x/messages/batch-get": released}
    async with scanning(answers) as scanner:
        for message_id in ids[:600]:
            scanner.listing.note(review("a@b", message_id))
        scanner.listing.note(review("x", "x"))
        for message_id in ids[600:]:
            scanner.listing.note(review("a@b", message_id))
        assert await scanner.check_held() == [*ids, "x"]
    assert batches == [500, 500, 200, 1]


async def test_held_mail_that_is_not_found_once_is_checked_again() -> None:
    answers = {BATCH_GET: batch(mail("m"))}
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        assert await scanner.check_held() == []
        answers |= inbox(whole("m"))
        assert await scanner.check_held() == ["m"]
        assert scanner.listing.state() == []


async def test_held_mail_in_the_trash_stays_remembered() -> None:
    answers = inbox(whole("m")) | {BATCH_GET: batch(mail("m", 0, HELD, "trash"))}
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        assert await scanner.check_held() == []
        answers[BATCH_GET] = batch(mail("m"))
        assert await scanner.check_held() == ["m"]


async def test_held_mail_whose_release_was_listed_is_no_longer_checked() -> None:
    # A mail whose identity has been forgotten by then would come twice.
    async with scanning(inbox(whole("m"), whole("n"))) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review("a@b", "n"))
        assert await scanner.scan() == ["m", "n"]
        assert scanner.listing.state() == []
        # A server may not know of the release yet.
        scanner.api.answers |= inbox(whole("m", 0, HELD))
        assert await scanner.scan() == []
        assert scanner.listing.state() == []


async def test_held_mail_that_cannot_be_fetched_stops_no_other_and_stays_remembered() -> None:
    answers = inbox(whole("m"), whole("n")) | {BATCH_GET: batch(mail("m"), mail("n"))}
    answers[f"{A}/m"] = 403
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review("a@b", "n"))
        with pytest.raises(ApiError) as caught:
            await scanner.check_held()
        assert caught.value.status_code == 403
        assert scanner.found == ["n"]
        assert scanner.listing.state() == [("a@b", "m")]
        answers[f"{A}/m"] = whole("m")
        assert await scanner.check_held() == ["m"]


@pytest.mark.parametrize("answer", [403, {}, {"messages": None}, {"messages": 5}, {"messages": {"m": 1}}], ids=repr)
async def test_held_mail_is_not_forgotten_without_an_answer(answer: Any) -> None:
    answers = inbox(whole("n"), name="x") | {"/inboxes/x/messages/batch-get": batch(mail("n")), BATCH_GET: answer}
    async with scanning(answers) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review("x", "n"))
        with pytest.raises((ApiError, RequestFailedError)):
            await scanner.check_held()
        assert scanner.found == ["n"]
        assert scanner.listing.state() == [("a@b", "m")]


async def test_held_mail_stays_remembered_when_its_check_is_cancelled(autojump_clock: MockClock) -> None:
    async def put(event: Event, counts: Counts, *, was_held: bool) -> None:
        await trio.sleep_forever()

    async with rest(Api(inbox(whole("m")) | {BATCH_GET: batch(mail("m"))})) as asks:
        listing = MailListing(asks, asks._clock, Delivered(now, DAY), put)
        listing.note(review("a@b", "m"))
        with trio.move_on_after(1):
            await listing.check_held(RECEIVED, Counts())
        assert listing.state() == [("a@b", "m")]


async def test_the_number_of_remembered_held_mails_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_agentmail._recovery.mails.REMEMBERED_HELD", 2)
    async with scanning({}) as scanner:
        for message_id in ["m", "n", "m", "o"]:
            scanner.listing.note(review("a@b", message_id))
        assert scanner.listing.state() == [("a@b", "n"), ("a@b", "o")]


async def test_held_mail_is_remembered_from_one_run_to_the_next() -> None:
    async with scanning({}) as scanner:
        scanner.listing.note(review("a@b", "m"))
        scanner.listing.note(review("x", "<ü@y>"))
        kept = json.loads(json.dumps(scanner.listing.state()))
    async with scanning({}) as scanner:
        scanner.listing.restore(kept)
        assert scanner.listing.state() == [("a@b", "m"), ("x", "<ü@y>")]


# Malformed answers


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
