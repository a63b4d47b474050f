"""Mail that falls into a gap comes out of the stream all the same: recovery, end to end."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock

from trio_agentmail import (
    AgentMailSession,
    CaughtUp,
    Disconnected,
    Event,
    MessageReceivedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    ReconnectPolicy,
    Recovery,
    RecoveryFailed,
    Subscribe,
    Subscribed,
    open_agentmail_session,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

A = "a@agentmail.to"
B = "b@agentmail.to"
ONE = Subscribe(inbox_ids=[A])
BOTH = Subscribe(inbox_ids=[A, B])
SCOPES = [ONE, Subscribe(pod_ids=["default"]), Subscribe()]


@pytest.fixture
def fake() -> FakeAgentMail:
    return FakeAgentMail()


def word(event: Event) -> str:
    """Abbreviate an event: S(ubscribed), D(isconnected), C(aughtUp), F(ailed), or a subject, with + if recovered."""
    match event:
        case MessageReceivedEvent(message=message, origin=origin):
            return ("+" if origin == "recovered" else "") + (message.subject or "")
        case MessageSecurityReviewEvent():
            return "review"
        case MessageSecurityOverrideEvent():
            return "override"
    return {Subscribed: "S", Disconnected: "D", CaughtUp: "C", RecoveryFailed: "F"}[type(event)]


class Reader:
    """Reads events as they come."""

    def __init__(self, session: AgentMailSession) -> None:
        self.session = session
        self.events: list[Event] = []

    async def run(self) -> None:
        async for event in self.session.events:
            self.events.append(event)

    async def story(self, seconds: float = 2) -> str:
        """Wait, and return the abbreviations of what came since the last call."""
        await trio.sleep(seconds)
        told, self.events = self.events, []
        return " ".join(map(word, told))

    def last(self, cls: Any) -> Any:
        return next(event for event in reversed(self.events) if isinstance(event, cls))


@asynccontextmanager
async def reading(fake: FakeAgentMail, subscribe: Subscribe = ONE, **more: Any) -> AsyncIterator[Reader]:
    quick = ReconnectPolicy(initial_delay=0.1, max_delay=1.0)
    async with open_agentmail_session(subscribe, backend=fake, reconnect=quick, ping_interval=None, **more) as session:
        reader = Reader(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            assert await reader.story() == "S"
            yield reader
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def outage(fake: FakeAgentMail, seconds: float = 60) -> AsyncIterator[None]:
    """A block in the middle of an outage: there are no connections, and requests are not answered."""
    fake.faults.refuse_connections(times=None)
    fake.faults.hang_requests(times=None)  # so that nothing is found before the reconnect
    await fake.drop_connections()
    await trio.sleep(seconds / 2)
    yield
    await trio.sleep(seconds / 2)
    fake.faults.clear()


def ago(fake: FakeAgentMail, **ago: float) -> datetime:
    return datetime.fromtimestamp(fake.now(), UTC) - timedelta(**ago)


# What is found


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_mail_of_a_gap_comes_after_the_confirmation_and_then_the_gap_is_closed(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        await fake.deliver(inbox_id=A, subject="before")
        async with outage(fake):
            sent = await fake.deliver(inbox_id=A, subject="in it", text="All of it", html="<p>All of it</p>")
        await trio.sleep(31)
        [_, lost, confirmed, recovered, caught_up] = reader.events
        assert isinstance(confirmed, Subscribed)
        assert isinstance(recovered, MessageReceivedEvent)
        assert (recovered.origin, recovered.event_id, recovered.thread) == ("recovered", None, None)
        assert recovered.message == sent.message
        assert isinstance(lost, Disconnected)
        assert isinstance(caught_up, CaughtUp)
        assert (caught_up.since, caught_up.recovered, caught_up.failed) == (lost.last_received, 1, 0)
        assert (await reader.story(), await reader.story(3600)) == ("before D S +in it C", "")
        assert reader.session.statistics().recovered == 1
        assert reader.session.statistics().requests == len(fake.record.requests)


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_a_mail_that_was_pushed_is_not_recovered_as_well(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        for subject in "123":
            await fake.deliver(inbox_id=A, subject=subject)
        await fake.drop_connections()
        assert await reader.story(90_000) == "1 2 3 D S C"


async def test_a_push_that_comes_after_its_listing_is_not_delivered_again(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        async with outage(fake):
            fake.faults.delay_pushes(90)
            await fake.deliver(inbox_id=A, subject="slow")
        assert await reader.story(200) == "D S +slow C"
        assert reader.session.statistics().duplicates == 1


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_a_first_start_begins_at_now(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    await fake.deliver(inbox_id=A, subject="old")
    await trio.sleep(10)
    async with reading(fake, subscribe) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="new")
        assert await reader.story(1000) == "D S +new C"


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_a_first_start_can_begin_earlier(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    await fake.deliver(inbox_id=A, subject="older")
    await trio.sleep(100)
    since = ago(fake, seconds=50)
    await fake.deliver(inbox_id=A, subject="old")
    async with open_agentmail_session(subscribe, backend=fake, recovery=Recovery(since=since)) as session:
        assert [word(await session.events.receive()) for _ in range(3)] == ["S", "+old", "C"]


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_a_mail_that_was_not_pushed_is_found_if_dated_within_sweep_depth(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    fake.mail.add_inbox(A)
    async with reading(fake, subscribe, recovery=Recovery(sweep_depth=3600)) as reader:
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=A, subject="old", timestamp=ago(fake, seconds=3600))
        assert await reader.story(301) == "+old S"


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_half_a_minute_after_a_gap_back_dated_mail_is_found_as_deep_as_by_sweeps(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="hours", timestamp=ago(fake, hours=23))
            await fake.deliver(inbox_id=A, subject="days", timestamp=ago(fake, days=3))
            await fake.deliver(inbox_id=A, subject="future", timestamp=ago(fake, days=-3))
        assert await reader.story(20) == "D S +future C"
        assert await reader.story(31) == "+hours"
        assert await reader.story(90_000) == ""


async def test_mail_that_was_only_being_indexed_is_found_later(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    fake.mail.index_after(20)
    async with reading(fake) as reader:
        async with outage(fake, seconds=10):
            await fake.deliver(inbox_id=A, subject="not yet")
        assert await reader.story(8) == "D S C"
        assert await reader.story(60) == "+not yet"


@pytest.mark.parametrize("subscribe", [Subscribe(pod_ids=["default"]), Subscribe()], ids=["pod", "key"])
async def test_an_inbox_that_is_made_in_a_gap_is_found(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        async with outage(fake):
            fake.mail.add_inbox("new@agentmail.to")
            await fake.deliver(inbox_id="new@agentmail.to", subject="first")
        assert await reader.story() == "D S +first C"


async def test_a_good_mail_is_found_in_a_thread_with_spam(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake, Subscribe()) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="good", thread_id="t")
            await fake.deliver(inbox_id=A, subject="bad", thread_id="t", event_type="message.received.spam")
        assert await reader.story(60) == "D S +good C"


async def test_what_is_recovered_follows_the_event_types(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake, Subscribe(event_types=["message.received.spam", "message.sent"])) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="good")
            await fake.deliver(inbox_id=A, subject="bad", event_type="message.received.spam")
            await fake.mail.send(inbox_id=A, to="x@example.com", subject="sent")
        await trio.sleep(60)
        assert reader.last(MessageReceivedEvent).event_type == "message.received.spam"
        assert await reader.story() == "D S +bad C"


async def test_without_received_mail_among_the_event_types_nothing_is_asked(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake, Subscribe(event_types=["message.sent"])) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A)
        assert await reader.story(1000) == "D S"
        assert fake.record.requests == []


async def test_without_recovery_nothing_is_asked(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake, recovery=None) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A)
        assert await reader.story(1000) == "D S"
        assert fake.record.requests == []
        assert reader.session.statistics().requests == 0


# Sweeps


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_a_sweep_finds_mail_that_was_not_pushed_and_replaces_the_connection(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=A, subject="swallowed")
        assert await reader.story(310) == "+swallowed S"
        assert reader.session.statistics().connections == 2
        await trio.sleep(100)
        assert (fake.connected, fake.record.close_codes) == (1, [1000])
        assert await reader.story(3600) == ""


async def test_mail_of_the_last_minute_is_no_reason_to_replace_the_connection(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        await trio.sleep(290)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=A, subject="young")
        assert await reader.story(100) == "+young"


async def test_a_connection_that_cannot_be_replaced_stays(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake) as reader:
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=A, subject="swallowed")
        fake.faults.refuse_subscriptions("forbidden", "not any more")
        assert await reader.story(310) == "+swallowed"
        await fake.deliver(inbox_id=A, subject="pushed")
        assert await reader.story() == "pushed"
        assert reader.session.state == "subscribed"


async def test_sweeps_wait_for_a_consumer_who_is_behind_but_not_for_ever(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with open_agentmail_session(ONE, backend=fake, buffer_size=2) as session:
        await trio.sleep(1)
        for number in range(9):
            await fake.deliver(inbox_id=A, subject=f"{number}")
        await trio.sleep(310)
        assert len([request for request in fake.record.requests if request.path.endswith("/messages")]) == 1
        await trio.sleep(300)
        assert len([request for request in fake.record.requests if request.path.endswith("/messages")]) == 2
        taken = [word(await session.events.receive()) for _ in range(10)]
        assert sorted(subject.strip("+") for subject in taken) == [*"012345678", "S"]
        with trio.move_on_after(1000):
            pytest.fail(word(await session.events.receive()))


# Held mail


@pytest.mark.parametrize("subscribe", SCOPES, ids=["inbox", "pod", "key"])
async def test_held_mail_comes_when_it_is_released_and_not_before(
    fake: FakeAgentMail, autojump_clock: MockClock, subscribe: Subscribe
) -> None:
    async with reading(fake, subscribe) as reader:
        async with outage(fake):
            held = await fake.deliver(inbox_id=A, subject="held", held=True)
        await trio.sleep(80_000)
        assert reader.last(CaughtUp).held == 1
        assert await reader.story() == "D S C"
        async with outage(fake):
            await fake.mail.release(A, held.message.message_id)
        assert await reader.story(60) == "D S +held C"
        assert await reader.story(90_000) == ""


async def test_a_review_that_was_pushed_is_remembered_until_the_mail_is_released_or_gone(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        first = await fake.deliver(inbox_id=A, subject="first", held=True)
        second = await fake.deliver(inbox_id=A, subject="second", held=True)
        assert await reader.story(200_000) == "review review"
        async with outage(fake):
            await fake.mail.release(A, first.message.message_id)
            await fake.mail.delete(A, second.message.message_id)
        assert await reader.story() == "D S +first C"
        requests = len(fake.record.requests)
        assert await reader.story(10_000) == ""
        assert not [request for request in fake.record.requests[requests:] if request.path.endswith("/batch-get")]


async def test_a_release_that_is_pushed_is_not_recovered_as_well(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        held = await fake.deliver(inbox_id=A, subject="held", held=True)
        await trio.sleep(1000)
        await fake.mail.release(A, held.message.message_id)
        assert await reader.story(10_000) == "review held override"


# Failures


async def test_an_inbox_that_cannot_be_listed_is_reported_once_and_stops_no_other(
    fake: FakeAgentMail,
    autojump_clock: MockClock,
) -> None:
    async with reading(fake, BOTH) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="a")
            await fake.deliver(inbox_id=B, subject="b")
        fake.faults.fail_requests(403, times=None, path=A)
        await trio.sleep(3600)
        failed, lost = reader.last(RecoveryFailed), reader.last(Disconnected)
        assert (failed.inbox_id, failed.pod_id, failed.since) == (A, None, lost.last_received)
        assert "403" in failed.reason
        assert reader.last(CaughtUp).failed == 1
        # The other inbox may be polled before the reconnect.
        assert await reader.story() in ("D S F +b C", "D +b S F C")
        fake.faults.clear()
        await trio.sleep(310)
        assert reader.last(CaughtUp).since == lost.last_received
        assert await reader.story() == "+a C"


@pytest.mark.parametrize(
    "trouble",
    [
        lambda fake: fake.faults.fail_requests(429, headers=[("Retry-After", "100")], times=2),
        lambda fake: fake.faults.fail_requests(503, times=4),
        lambda fake: fake.faults.hang_requests(times=4),
        lambda fake: fake.faults.break_requests(times=4),
    ],
    ids=["429", "503", "hangs", "breaks"],
)
async def test_recovery_outlasts_failures_of_the_rest_api_while_live_events_go_on(
    fake: FakeAgentMail,
    autojump_clock: MockClock,
    trouble: Callable[[FakeAgentMail], None],
    no_jitter: None,
) -> None:
    async with reading(fake) as reader:
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="missed")
        trouble(fake)
        assert await reader.story(2) == "D S"
        await fake.deliver(inbox_id=A, subject="live")
        assert await reader.story() == "live"
        assert await reader.story(300) == "+missed C"


async def test_a_recovery_that_takes_long_resumes_after_another_loss(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        async with outage(fake):
            for number in range(30):
                await fake.deliver(inbox_id=A, subject=f"{number}")
        fake.faults.hang_requests(path="/messages/")
        assert (await reader.story(2)).startswith("D S")
        await fake.drop_connections()
        await trio.sleep(100)
        told = [word(event) for event in reader.events]
        assert told[0:2] == ["D", "S"]
        assert told[-1] == "C"
        assert reader.last(CaughtUp).since < reader.last(Disconnected).last_received
        assert await reader.story(1000) != ""
        assert reader.session.statistics().recovered == 30


async def test_leaving_does_not_wait_for_a_recovery(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    fake.faults.hang_requests(times=None)
    async with open_agentmail_stream(ONE, backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        await trio.sleep(1)
        left = trio.current_time()
    assert trio.current_time() == left
    assert fake.record.close_codes == [1000]


async def test_when_the_last_receiver_is_closed_recovery_ends_as_well(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with open_agentmail_session(ONE, backend=fake) as session:
        async with outage(fake):
            await fake.deliver(inbox_id=A)
        session.events.close()
        await trio.sleep(100)
        assert session.state == "closed"
        requests = len(fake.record.requests)
        await trio.sleep(10_000)
        assert len(fake.record.requests) == requests


async def test_mail_whose_identity_was_forgotten_is_not_recovered(
    fake: FakeAgentMail, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 10)
    recovery = Recovery(overlap=60, sweep_interval=60, sweep_depth=120)
    async with reading(fake, recovery=recovery) as reader:
        for number in range(100):
            await fake.deliver(inbox_id=A, subject=f"{number}")
            await trio.sleep(10)
        # Identities that sweeps have covered are forgotten, except for those of the last few minutes.
        assert 11 < reader.session.statistics().remembered < 25
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="missed")
        story = await reader.story(1000)
        assert story == " ".join([*map(str, range(100)), "D S +missed C"])


async def test_memory_that_runs_out_during_a_gap_is_reported_and_nothing_comes_twice(
    fake: FakeAgentMail, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail._identities.GENERATION", 10)
    monkeypatch.setattr("trio_agentmail._identities.MAX_GENERATIONS", 3)
    async with reading(fake) as reader:
        async with outage(fake):
            for number in range(100):
                await fake.deliver(inbox_id=A, subject=f"{number}", timestamp=ago(fake, seconds=number))
                await trio.sleep(0.1)
            begin = fake.now()
        await trio.sleep(3600)
        lost, failed = reader.last(Disconnected), reader.last(RecoveryFailed)
        assert failed.inbox_id is failed.pod_id is None
        assert failed.since <= lost.last_received < datetime.fromtimestamp(begin, UTC)
        assert "identities" in failed.reason
        story = (await reader.story()).split()
        assert len(story) == len(set(story))
        assert story.count("F") == story.count("C") == 1
        assert len(story) < 90  # some are lost, which was reported
        await fake.deliver(inbox_id=A, subject="live")
        assert await reader.story() == "live"


# Changing the subscription


async def test_an_added_inbox_begins_now_and_one_that_stays_goes_on(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake) as reader:
        await fake.deliver(inbox_id=B, subject="old")
        await trio.sleep(10)
        await reader.session.subscribe(BOTH)
        assert await reader.story() == "S"
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="a")
            await fake.deliver(inbox_id=B, subject="b")
        assert sorted((await reader.story(1000)).split()) == ["+a", "+b", "C", "D", "S"]
        await reader.session.subscribe(Subscribe(inbox_ids=[B]))
        await trio.sleep(1)
        async with outage(fake):
            await fake.deliver(inbox_id=A, subject="a")
            await fake.deliver(inbox_id=B, subject="b")
        assert await reader.story(1000) == "S D S +b C"


# Bodies


async def test_a_body_that_was_left_out_of_the_push_is_fetched_on_request(
    fake: FakeAgentMail, autojump_clock: MockClock
) -> None:
    async with reading(fake, recovery=Recovery(fetch_bodies=True)) as reader:
        await fake.deliver(inbox_id=A, subject="large", text="a large one", body_in_push=False)
        await fake.deliver(inbox_id=A, subject="small", text="a small one")
        await trio.sleep(1)
        large, small = reader.events
        assert isinstance(large, MessageReceivedEvent)
        assert isinstance(small, MessageReceivedEvent)
        assert (large.message.text, large.origin, small.message.text) == ("a large one", "live", "a small one")
        assert large.event_id is not None
        assert large.thread is not None


async def test_a_body_that_cannot_be_fetched_is_left_out(fake: FakeAgentMail, autojump_clock: MockClock) -> None:
    async with reading(fake, recovery=Recovery(fetch_bodies=True)) as reader:
        fake.faults.hang_requests(times=None)
        await fake.deliver(inbox_id=A, subject="large", text="a large one", body_in_push=False)
        await fake.deliver(inbox_id=A, subject="behind")
        assert await reader.story(9) == ""
        assert await reader.story(2) == "large behind"


# On real sockets


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
async def test_mail_of_a_gap_comes_over_real_sockets(tls: bool) -> None:
    fake = FakeAgentMail()
    server = client = None
    if tls:
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("localhost").configure_cert(server)
        authority.configure_trust(client)
    with trio.fail_after(30):
        async with (
            fake.serve(ssl_context=server) as environment,
            open_agentmail_stream(ONE, environment=environment, api_key="am_key", ssl_context=client) as events,
        ):
            assert isinstance(await events.receive(), Subscribed)
            fake.faults.reject_handshakes(503, headers=[("Retry-After", "1")])
            fake.faults.fail_requests(503, times=None)  # so that the mail is not found before the reconnect
            await fake.drop_connections()
            sent = await fake.deliver(inbox_id=A, message_id="<a/b?c#d é@host>")
            assert [word(await events.receive()) for _ in range(2)] == ["D", "S"]
            fake.faults.clear()
            recovered = await events.receive()
            assert isinstance(recovered, MessageReceivedEvent)
            assert recovered.message == sent.message
            assert isinstance(await events.receive(), CaughtUp)
