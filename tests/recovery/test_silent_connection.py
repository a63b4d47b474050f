"""A connection that is alive and delivers nothing is replaced."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.recovering import HELD, A, inbox, later, recovering, time
from tests.helpers.rest_api import mail
from trio_agentmail import Recovery
from trio_agentmail.errors import AgentMailError, ApiError, ConnectionLostError


@pytest.mark.parametrize(("lost_at", "subscribed_at"), [(299, 302), (302, 310)], ids=["begins", "ends"])
async def test_mail_of_a_sweep_that_begins_or_ends_in_an_outage_replaces_nothing(
    lost_at: float, subscribed_at: float, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 150), mail("n", 150))
        world.api.answers[f"{A}/n"] = later(5, mail("n", 150))
        await world.until(lost_at)
        world.api.answers[A], listing = {"messages": []}, world.api.answers[A]
        world.lost(silent_for=1)
        if lost_at < 300:
            await world.until(299.5)
            world.api.answers[A] = listing
        await world.until(subscribed_at)
        world.subscribed()
        await world.until(1000)
        assert world.mails == ["m", "n"]
        assert world.renewed == []


async def test_mail_from_before_the_connection_replaces_nothing_whatever_our_clock(autojump_clock: MockClock) -> None:
    async with recovering(recovery=Recovery(since=time(-1000))) as world:
        world.backend.wrong_by = -600.0
        world.subscribed()
        await world.until(10)
        world.api.answers |= inbox(mail("m", -300))
        await world.until(100)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_a_sweep_finds_during_an_outage_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(298)
        world.lost(silent_for=200)
        await world.until(299)
        world.api.answers |= inbox(mail("m", 150))
        await world.until(301)
        assert world.mails == ["m"]
        world.subscribed()
        await world.until(1000)
        assert world.renewed == []


async def test_mail_that_was_not_pushed_replaces_the_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100), mail("n", 110))
        await world.until(1000)
        assert world.mails == ["m", "n"]
        assert world.renewed == [300]
        assert "2 mails were not pushed" in caplog.text


@pytest.mark.parametrize(
    ("found", "confirmed_again"),
    [
        (mail("m", 299), False),  # it may still be pushed
        (mail("m", 150), True),  # from before the connection
        (mail("m", None), False),  # unknown
    ],
    ids=["just now", "before", "no time"],
)
async def test_mail_that_may_still_be_pushed_replaces_nothing(
    found: dict[str, Any], confirmed_again: bool, autojump_clock: MockClock
) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(200)
        if confirmed_again:
            world.subscribed()
        world.api.answers |= inbox(found)
        await world.until(320)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_of_a_gap_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.lost()
        world.api.answers |= inbox(mail("m", 150))
        await world.until(250)
        world.subscribed()
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_was_held_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering(
        inbox(mail("m", 10, HELD)) | {f"{A}/batch-get": {"messages": [mail("m", 10, HELD)]}}
    ) as world:
        world.subscribed()
        await world.until(250)
        world.api.answers |= inbox(mail("m", 10)) | {A: {"messages": []}}
        world.api.answers[f"{A}/batch-get"] = {"messages": [mail("m", 10)]}
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


async def test_mail_that_may_be_unread_since_the_consumer_is_behind_replaces_nothing(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        world.outbox.full = True
        await world.until(1000)
        assert world.mails == ["m"]
        assert world.renewed == []


@pytest.mark.parametrize("failure", [ConnectionLostError("no"), ApiError(503, {}, ""), OSError("refused")], ids=repr)
async def test_a_connection_that_cannot_be_replaced_stays(
    failure: AgentMailError | OSError, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with recovering() as world:
        world.renewal_fails = failure
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        await world.until(700)
        assert "the connection could not be replaced" in caplog.text
        assert [when for when, _, _ in world.scans] == [0, 300, 600]


async def test_a_stream_left_while_its_connection_is_replaced_ends_without_an_error(
    autojump_clock: MockClock,
) -> None:
    async with recovering() as world:
        world.renewal_fails = trio.ClosedResourceError("the stream has ended")
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 100))
        await world.until(700)
        assert world.renewed[0] == 300
