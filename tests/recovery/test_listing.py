"""A scan of an inbox finds all missed mail and nothing else, in order."""

import json
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.rest_api import EPOCH, Api, at, mail, rest
from tests.helpers.scanning import (
    BATCH_GET,
    DAY,
    EVERY_KIND,
    HELD,
    INBOX,
    KEY,
    POD,
    RECEIVED,
    A,
    a_scan,
    batch,
    inbox,
    now,
    pushed,
    scanning,
    thread,
    threads,
    whole,
)
from trio_agentmail import ApiError, MessageReceivedEvent, Subscribe
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery.listing import MailListing
from trio_agentmail._recovery.rest import UNDER_WAY
from trio_agentmail._recovery.source import Counts, Target, recovered_types, targets_of
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.events import Event

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
        # The thread of the first one has been read. The listing does not decide whether its mail was delivered.
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
