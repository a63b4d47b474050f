"""The bodies that a push left out are fetched."""

import json
import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import PATH, World, large, later, recovering
from trio_agentmail import MessageReceivedEvent, Recovery


def test_bodies_are_fetched_on_request() -> None:
    assert not World({}, Recovery(), b"").recoverer.fetches_bodies
    assert World({}, Recovery(fetch_bodies=True), b"").recoverer.fetches_bodies


async def test_a_body_that_was_left_out_is_fetched(autojump_clock: MockClock) -> None:
    answer = {"message_id": "<m/1>", "subject": "fetched", "html": "<p>"}
    async with recovering({PATH: answer}) as world:
        event = await world.recoverer.with_body(large())
    assert (event.event_id, event.origin) == ("e", "live")
    assert (event.message.inbox_id, event.message.subject, event.message.html) == ("a", "fetched", "<p>")
    assert json.loads(event.raw) == {
        "event_type": "message.received",
        "event_id": "e",
        "message": {"inbox_id": "a"} | answer,
        "new": 1,
    }


@pytest.mark.parametrize("event", [large(text=""), large(html="")], ids=["text", "html"])
async def test_a_whole_mail_is_not_fetched(event: MessageReceivedEvent, autojump_clock: MockClock) -> None:
    async with recovering() as world:
        assert await world.recoverer.with_body(event) is event
        assert world.api.asked == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (404, "HTTP status 404"),
        (403, "HTTP status 403"),
        (later(11, {"message_id": "<m/1>", "text": "late"}), "not within 10 s"),
        ({}, "another message"),
        ({"message_id": "<another>", "text": "text"}, "another message"),
        ({"message_id": "<m/1>", "inbox_id": "another", "text": "text"}, "another message"),
    ],
    ids=["gone", "forbidden", "late", "nothing", "another message", "another inbox"],
)
async def test_a_mail_whose_body_cannot_be_fetched_comes_without_it(
    answer: Any, why: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering({PATH: answer}) as world:
        event = large()
        assert await world.recoverer.with_body(event) is event
        assert trio.current_time() <= 10
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("a mail is delivered without its body")
    assert why in line


async def test_fetching_a_body_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with recovering({PATH: later(100, {})}) as world:
        with trio.move_on_after(3) as scope:
            await world.recoverer.with_body(large())
        assert scope.cancelled_caught
        assert trio.current_time() == 3
