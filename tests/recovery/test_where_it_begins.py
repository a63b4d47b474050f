"""From which time on mail is recovered, for each inbox and event type."""

import json
from datetime import UTC, datetime

import pytest
from trio.testing import MockClock

from tests.helpers.recovering import DAY, A, B, inbox, polls, recovering, time
from tests.helpers.rest_api import mail
from trio_agentmail import CaughtUp, MessageSecurityReviewEvent, Recovery, RecoveryFailed, Subscribe
from trio_agentmail.events import MessageSecurity

# Subscriptions


async def test_mail_from_before_the_stream_is_not_delivered(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", 10), mail("new", 10.001))) as world:
        await world.until(10)
        world.subscribed()
        await world.until(11)
        assert world.mails == ["new"]


async def test_an_inbox_that_is_subscribed_later_begins_then(autojump_clock: MockClock) -> None:
    answers = inbox(mail("m", 50)) | inbox(mail("old", 50), mail("new", 150), name="b")
    async with recovering(answers) as world:
        world.subscribed("a")
        await world.until(100)
        world.subscribed("a", "b")
        await world.until(101)
        # It is scanned at once. What was pushed since the confirmation came on the new connection.
        assert sorted(scan[:2] for scan in world.scans) == [(0, A), (100, A), (100, B)]
        assert world.mails == ["m", "new"]


async def test_an_event_type_that_is_subscribed_later_begins_then(autojump_clock: MockClock) -> None:
    answers = inbox(mail("old spam", 50, "spam"), mail("spam", 150, "spam"))
    answers[f"{A}/old%20spam"] = answers.pop(f"{A}/old spam")
    async with recovering(answers) as world:
        world.subscribed(event_types=["message.received"])
        await world.until(100)
        world.subscribed(event_types=["message.received", "message.received.spam"])
        await world.until(101)
        assert world.mails == ["spam"]


async def test_the_same_subscription_on_another_connection_starts_no_scan(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert len(world.scans) == 1


async def test_an_inbox_no_longer_subscribed_to_is_forgotten(autojump_clock: MockClock) -> None:
    async with recovering({B: 403}) as world:
        world.recoverer.note(MessageSecurityReviewEvent(message=MessageSecurity(inbox_id="b", message_id="m")))
        world.subscribed("a", "b")
        await world.until(10)
        assert [type(notice) for notice in world.notices] == [RecoveryFailed]
        world.subscribed("a")
        await world.until(1000)
        assert [scan for scan in world.scans if scan[1] == B and scan[0] > 10] == []
        assert world.api.asked.count(f"{B}/batch-get") == 1
        assert json.loads(world.journal.state)["source"] == []
        # Inbox b has no gap any more, so the next gap is reported without it. If b is added again, it begins anew.
        world.lost()
        await world.until(1010)
        world.subscribed("a")
        await world.until(1020)
        assert world.notices[1] == CaughtUp(since=time(1000), requests=len(polls(1000, 1010)) + 1)
        world.subscribed("a", "b")
        await world.until(1021)
        [failed] = world.notices[2:]
        assert isinstance(failed, RecoveryFailed)
        assert failed.since == time(1020)


async def test_without_received_mail_in_the_subscription_nothing_is_requested(autojump_clock: MockClock) -> None:
    async with recovering() as world:
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(1000)
        world.lost()
        await world.until(1100)
        world.subscribed(event_types=["message.sent", "message.bounced"])
        await world.until(9000)
        assert world.api.asked == []
        assert world.outbox.taken == []
        # Recovery of the inbox begins when received mail is subscribed to.
        world.api.answers |= inbox(mail("old", 8999.999), mail("new", 9000))
        world.subscribed()
        await world.until(9001)
        assert world.mails == ["new"]


async def test_pods_inboxes_and_keys_are_all_scanned(autojump_clock: MockClock) -> None:
    async with recovering({"/pods/p/threads": {"threads": []}}) as world:
        world.resume(Subscribe(inbox_ids=["a", "b"], pod_ids=["p"]))
        await world.until(10)
        assert {path for _, path, _ in world.scans} == {A, B, "/pods/p/threads"}
        world.resume(Subscribe())
        await world.until(20)
        assert [path for _, path, _ in world.scans[3:]] == ["/threads"]


async def test_mail_that_was_delivered_and_forgotten_is_not_recovered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 1)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 2)
    async with recovering() as world:
        world.subscribed()
        await world.until(100)
        world.api.answers |= inbox(mail("m", 1), mail("n", 2), mail("o", 3), mail("p", 3))
        await world.until(1000)
        assert world.mails == ["m", "n", "o", "p"]


# Recovery.since


async def test_a_first_start_may_begin_in_the_past(autojump_clock: MockClock) -> None:
    answers = inbox(mail("too old", -1001), mail("old", -999), mail("new", 1))
    answers[f"{A}/too%20old"] = answers.pop(f"{A}/too old")
    async with recovering(answers, Recovery(since=time(-1000), sweep_depth=2000)) as world:
        world.subscribed()
        await world.until(31)
        assert world.mails == ["old", "new"]
        assert world.scans == [(0, A, -1300), (30, A, -3000)]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=2, requests=4)]


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_recovery_since_is_not_shifted_by_the_difference_of_clocks(
    skew: float, autojump_clock: MockClock
) -> None:
    async with recovering(inbox(mail("old", -1001), mail("m", -999)), Recovery(since=time(-1000))) as world:
        world.api.ahead = 0.0
        world.backend.wrong_by = skew
        world.subscribed()
        await world.until(1)
        assert world.scans[0] == (0, A, -1300)
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=time(-1000), recovered=1, requests=3)]


async def test_a_beginning_in_the_future_is_now(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", 1)), Recovery(since=time(9999))) as world:
        world.subscribed()
        await world.until(2)
        assert world.mails == ["m"]
        assert world.notices == []


async def test_a_stream_may_begin_at_the_epoch(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("m", -9 * DAY)), Recovery(since=datetime.fromtimestamp(0, UTC))) as world:
        world.subscribed()
        await world.until(1)
        assert world.mails == ["m"]
        assert world.notices == [CaughtUp(since=datetime.fromtimestamp(0, UTC), recovered=1, requests=3)]


async def test_only_the_first_subscription_begins_there(autojump_clock: MockClock) -> None:
    async with recovering(inbox(mail("old", -999)), Recovery(since=time(-1000))) as world:
        world.subscribed(event_types=["message.sent"])
        await world.until(100)
        world.subscribed()
        await world.until(200)
        assert world.mails == []
