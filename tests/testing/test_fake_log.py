"""Waiting for what happens at the fake, and `explain`."""

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import (
    AuthenticationError,
    DomainVerifiedEvent,
    ReconnectPolicy,
    Subscribe,
    SubscriptionRejectedError,
    UnknownEvent,
)
from trio_agentmail.events import Domain
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


def told(fake: FakeAgentMail) -> list[str]:
    """Return the lines of `explain` without their times."""
    return [line.partition(" s  ")[2] for line in fake.explain().splitlines()]


async def test_a_condition_is_waited_for_without_a_sleep(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()

    async def send_later() -> None:
        await trio.sleep(30)
        await fake.mail.send(inbox_id=INBOX, text="answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_later)
        [answer] = await fake.wait_for(lambda: fake.mail.messages(INBOX, "sent"))
    assert (answer.text, trio.current_time()) == ("answer", 30)


async def test_what_does_not_happen_in_time_is_an_error_that_tells_what_happened_instead(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(AssertionError, match=r"within 60 s: the condition is \[\]\nnothing has happened here"):
        await fake.wait_for(lambda: fake.record.requests)
    await fake.deliver(inbox_id=INBOX)
    with pytest.raises(
        AssertionError, match=r"within 5 s: .*\n +0\.000 s  message\.received in .*: pushed to no connection"
    ):
        await fake.wait_for(lambda: fake.record.requests, within=5)
    assert trio.current_time() == 65


async def test_a_condition_that_nothing_at_the_fake_has_made_true_is_seen_soon(autojump_clock: MockClock) -> None:
    assert await FakeAgentMail().wait_for(lambda: trio.current_time() > 9)
    assert trio.current_time() == pytest.approx(9, abs=0.11)


async def test_waiting_for_days_costs_few_checks(autojump_clock: MockClock) -> None:
    looks = 0

    def is_over() -> bool:
        nonlocal looks
        looks += 1
        return trio.current_time() >= 10 * 86_400

    await FakeAgentMail().wait_for(is_over, within=11 * 86_400)
    assert trio.current_time() < 10.2 * 86_400
    assert looks < 4000


async def test_what_the_code_under_test_does_at_once_is_seen_at_once(autojump_clock: MockClock) -> None:
    async def agent() -> None:
        async for event in events:
            await trio.lowlevel.checkpoint()
            seen.append(event)

    fake = FakeAgentMail()
    seen: list[object] = []
    async with open_agentmail_stream(backend=fake) as events, trio.open_nursery() as nursery:
        nursery.start_soon(agent)
        await fake.deliver(inbox_id=INBOX)
        assert await fake.wait_for(lambda: len(seen) == 2)
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_a_condition_that_is_an_async_function_is_refused(autojump_clock: MockClock) -> None:
    async def ready() -> bool:
        return False  # pragma: no cover

    with pytest.raises(TypeError, match="async function"):
        await FakeAgentMail().wait_for(ready)  # type: ignore[unused-coroutine]


async def test_waiting_for_a_connection_in_vain_is_an_error_that_says_so(autojump_clock: MockClock) -> None:
    for wait, what in ((FakeAgentMail().wait_connected, "open"), (FakeAgentMail().wait_subscribed, "subscribed")):
        with pytest.raises(AssertionError, match=f"within 60 s: 0 WebSockets are {what} instead of 2\nnothing"):
            await wait(2)
    await FakeAgentMail().wait_connected(0)


async def test_explain_says_how_connections_began_and_ended(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    fake.faults.refuse_connections()
    fake.faults.hang_handshakes()
    fake.faults.reject_handshakes(503)
    fake.faults.withhold_confirmations()
    reconnect = ReconnectPolicy(initial_delay=0, max_delay=0)
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), backend=fake, api_key="am_key", reconnect=reconnect, enter_timeout=60
    ) as events:
        await fake.drop_connections()
        for _ in range(3):  # Subscribed, Disconnected, Subscribed
            await events.receive()
    with pytest.raises(AuthenticationError):
        async with open_agentmail_stream(backend=fake, api_key="am_other"):
            pass
    assert told(fake) == [
        "a connection: fault refuse_connections()",
        "connection 1, handshake: fault hang_handshakes()",
        "connection 1: ended before the handshake was complete",
        "connection 2, handshake: fault reject_handshakes(503)",
        "connection 2: the handshake is answered with 503",
        "connection 2: ended before the handshake was complete",
        "connection 3: open",
        "connection 3, subscription: fault withhold_confirmations()",
        "connection 3: cut by the client",
        "connection 4: open",
        'connection 4: {"type":"subscribed","inbox_ids":["agent@agentmail.to"]}',
        "connection 4: ended by the fake",
        "connection 5: open",
        'connection 5: {"type":"subscribed","inbox_ids":["agent@agentmail.to"]}',
        "connection 5: closed by the client with 1000",
        "connection 6: the handshake is answered with 401",
        "connection 6: ended before the handshake was complete",
    ]


async def test_explain_says_why_a_subscription_was_refused(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"message_read"})
    with pytest.raises(SubscriptionRejectedError):
        async with open_agentmail_stream(Subscribe(event_types=["message.received.spam"]), backend=fake):
            pass
    line = "connection 1: an invalid frame is answered with the error forbidden: label_spam_read is forbidden"
    assert line in told(fake)


async def test_explain_says_to_whom_an_event_was_pushed_and_why_not_to_others(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with (
        open_agentmail_stream(backend=fake),
        open_agentmail_stream(Subscribe(event_types=["message.bounced", "message.opened"]), backend=fake),
        open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake),
        open_agentmail_stream(Subscribe(inbox_ids=[INBOX], pod_ids=["pod"]), backend=fake),
    ):
        await fake.deliver(inbox_id="b@agentmail.to", subject="Hi\n", from_="Jane")
        await fake.deliver(inbox_id=INBOX, event_type="message.received.spam")
        await fake.emit(DomainVerifiedEvent(domain=Domain()))
        await fake.emit(UnknownEvent(payload=[]))
    lines = [line for line in told(fake) if ": pushed to" in line]
    assert lines == [
        "message.received in b@agentmail.to 'Hi\\n' from Jane: pushed to connection 1; "
        "connection 2 listens to event_types message.bounced, message.opened; "
        "connection 3 listens to inbox_ids agent@agentmail.to, and this is of b@agentmail.to; "
        "connection 4 listens to inbox_ids agent@agentmail.to and pod_ids pod, and this is of b@agentmail.to, "
        "the pod default",
        "message.received.spam in agent@agentmail.to 'Hello' from Jane <jane@example.com>: pushed to no connection; "
        "connection 1 has no event_types, and message.received.spam must be requested; "
        "connection 2 listens to event_types message.bounced, message.opened; "
        "connection 3 has no event_types, and message.received.spam must be requested; "
        "connection 4 has no event_types, and message.received.spam must be requested",
        "domain.verified: pushed to connection 1; "
        "connection 2 listens to event_types message.bounced, message.opened; "
        "connection 3 listens to inbox_ids agent@agentmail.to, and this is of no inbox; "
        "connection 4 listens to inbox_ids agent@agentmail.to and pod_ids pod, and this is of no inbox",
        "a frame that is not a JSON object: pushed to connection 1, connection 2, connection 3, connection 4",
    ]


async def test_explain_shows_requests_but_no_api_key(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.break_requests()
    client = httpx2.AsyncClient(
        transport=fake.http_transport(), base_url="https://x/v0", headers={"Authorization": "Bearer am_secret"}
    )
    async with client:
        with pytest.raises(httpx2.ReadError):
            await client.get("/inboxes")
        await client.get("/threads/a")
    async with open_agentmail_stream(backend=fake, api_key="am_secret"):
        pass
    assert 'GET /v0/threads/a: 404 {"name":"' in told(fake)[1]
    assert told(fake)[0] == "GET /v0/inboxes: no answer, by break_requests()"
    assert "am_secret" not in fake.explain()


async def test_explain_shows_what_repeats_once_with_a_count(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for _ in range(3):
        await trio.sleep(2)
        await fake.deliver(inbox_id=INBOX)
    await fake.deliver(inbox_id=INBOX, subject="Bye")
    first, last = told(fake)
    assert first.endswith("pushed to no connection (3 times in 4.000 s)")
    assert last.endswith("pushed to no connection")


async def test_explain_shows_what_a_test_does_to_connections_and_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, ping_interval=None):
        await fake.send_raw('{"a": 1}')
        await fake.faults.send_bytes(b"\x89\x00")
        fake.faults.slow_down(1000)
        fake.faults.slow_down(1000)
        fake.faults.slow_down(None)
        mail = await fake.deliver(inbox_id=INBOX, subject=None)
        await fake.mail.label(INBOX, mail.message.message_id, add=["x"])
        await fake.mail.delete(INBOX, mail.message.message_id)
        fake.faults.swallow_pushes()
        fake.faults.duplicate_pushes()
        fake.faults.delay_pushes(5)
        fake.faults.reorder_pushes(2)
        for _ in range(4):
            await fake.deliver(inbox_id=INBOX)
        fake.faults.silence_connections()
        await fake.deliver(inbox_id=INBOX)
        mail_told = f"message.received in {INBOX} 'Hello' from Jane <jane@example.com>"
        assert [line for line in told(fake) if not line.startswith("GET")][2:] == [
            "raw frame '{\"a\": 1}': pushed to connection 1",
            "the bytes b'\\x89\\x00': sent to connection 1",
            "WebSockets send 1000 bytes per second from now on",
            "WebSockets send without a limit from now on",
            f"message.received in {INBOX} from Jane <jane@example.com>: pushed to connection 1",
            f"the mail {mail.message.message_id} in {INBOX}: labels received, unread, x",
            f"the mail {mail.message.message_id} in {INBOX}: deleted",
            f"{mail_told}: fault swallow_pushes()",
            f"{mail_told}: pushed to connection 1 (2 times in 0.000 s)",
            f"{mail_told}: fault duplicate_pushes()",
            f"{mail_told}: fault delay_pushes(5)",
            f"{mail_told}: fault reorder_pushes(2)",
            "connection 1: silent from now on",
            f"{mail_told}: pushed to connection 1 (silent) (2 times in 0.000 s)",
            f"{mail_told}: fault reorder_pushes(2)",
        ]


@pytest.mark.parametrize("looks", range(3))
async def test_what_a_condition_raises_comes_out_as_it_is(looks: int, autojump_clock: MockClock) -> None:
    answers = [False] * looks
    with pytest.raises(IndexError):
        await FakeAgentMail().wait_for(lambda: answers.pop())


async def test_explain_shows_faults_that_have_struck_and_those_still_to_come(autojump_clock: MockClock) -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadError("no")

    fake = FakeAgentMail()
    fake.faults.fail_requests(503, path="/inboxes")
    fake.faults.answer_requests(lambda _: httpx2.Response(200), path="/pods")
    fake.faults.answer_requests(refuse, path="/pods")
    fake.faults.hang_requests(path="/replies", times=2)
    fake.faults.swallow_pushes(times=None)
    fake.faults.refuse_connections()
    fake.faults.delay_connections(5)
    fake.faults.answer_connections(b"SSH-2.0")
    fake.faults.hang_handshakes()
    fake.faults.reject_handshakes(503, times=3)
    fake.faults.withhold_confirmations()
    fake.faults.refuse_subscriptions("forbidden", "no")
    fake.faults.close_instead_of_confirming(1011)
    fake.faults.push_before_confirming("{}")
    fake.faults.drop_after_confirming()
    async with httpx2.AsyncClient(transport=fake.http_transport(), base_url="http://fake/v0") as client:
        await client.get("/inboxes")
        await client.post("/pods", json={"name": "x" * 200})
        with pytest.raises(httpx2.ReadError):
            await client.get("/pods")
    [failed, answered, refused, left] = fake.explain().splitlines()
    assert failed.endswith(", by fail_requests(503, path='/inboxes')")
    assert 'POST /v0/pods {"name":"xxx' in answered
    assert answered.endswith("xx: 200, by answer_requests(<lambda>, path='/pods')")
    assert refused.endswith("GET /v0/pods: ReadError, by answer_requests(refuse, path='/pods')")
    assert left == (
        "still to come: refuse_connections(), "
        "delay_connections(5), answer_connections(b'SSH-2.0'), hang_handshakes(), reject_handshakes(503), times=3, "
        "withhold_confirmations(), refuse_subscriptions('forbidden', 'no'), close_instead_of_confirming(1011), "
        "push_before_confirming(…), drop_after_confirming(), swallow_pushes(), times=None, "
        "hang_requests(path='/replies'), times=2"
    )


async def test_explain_shows_the_recipients_of_a_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.mail.send(inbox_id=INBOX, to=["jane@example.com", "nobody@agentmail.to"])
    assert told(fake) == [
        f"message.sent in {INBOX} to jane@example.com, nobody@agentmail.to: pushed to no connection",
        f"message.delivered in {INBOX} to jane@example.com: pushed to no connection",
        f"message.bounced in {INBOX} to nobody@agentmail.to: pushed to no connection",
    ]
