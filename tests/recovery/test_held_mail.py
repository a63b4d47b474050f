"""Held mail is remembered, and delivered when it is released."""

import json
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.rest_api import Api, mail, rest
from tests.helpers.scanning import (
    BATCH_GET,
    DAY,
    HELD,
    POD,
    RECEIVED,
    A,
    batch,
    inbox,
    now,
    pushed,
    review,
    scanning,
    whole,
)
from trio_agentmail import ApiError
from trio_agentmail._delivered import Delivered
from trio_agentmail._recovery.held import BATCH, GONE_FOR
from trio_agentmail._recovery.listing import MailListing
from trio_agentmail._recovery.source import Counts, Target
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.events import Event, MessageSentEvent, Send


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
