"""`FakeAgentMail`, in memory on the mock clock, and on a port with a client that is not ours."""

import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
import trustme
import websockets
from agentmail.api_keys import ApiKeyPermissions
from trio.testing import MockClock
from websockets.trio.client import ClientConnection
from websockets.trio.client import connect as websockets_connect

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import (
    AgentMailEnvironment,
    ApiError,
    AuthenticationError,
    CalendarEventStartingEvent,
    CaughtUp,
    Disconnected,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    PermissionDeniedError,
    RecoveryFailed,
    Subscribe,
    Subscribed,
    UnknownEvent,
    decode_event,
)
from trio_agentmail._backend import WebSocket
from trio_agentmail._nursery import background_nursery
from trio_agentmail._websocket import client_websocket
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.events import CalendarEvent, Domain, Send
from trio_agentmail.testing import FakeAgentMail, make_event
from trio_agentmail.testing._agentmail.permissions import PERMISSIONS

INBOX = "agent@agentmail.to"
BEARER = [("Authorization", "Bearer am_key")]


@asynccontextmanager
async def connect(
    fake: FakeAgentMail, path: str = "/v0", headers: Sequence[tuple[str, str]] = BEARER
) -> AsyncIterator[WebSocket]:
    async with fake.open_websocket(
        "wss://ws.example" + path, headers=headers, max_message_size=2**20, ssl_context=None
    ) as websocket:
        yield websocket


async def subscribe(websocket: WebSocket | ClientConnection, **filters: Any) -> Any:
    await websocket.send(json.dumps({"type": "subscribe"} | filters))
    return await receive(websocket)


async def receive(websocket: WebSocket | ClientConnection) -> Any:
    data = await (websocket.recv() if isinstance(websocket, ClientConnection) else websocket.receive())
    return json.loads(data)


async def ping(websocket: WebSocket) -> None:
    """Send a ping, and receive its pong and no message."""
    async with background_nursery() as nursery:
        nursery.start_soon(websocket.receive)
        await websocket.ping()


# The handshake


async def test_a_connection_without_a_key_is_refused(autojump_clock: MockClock) -> None:
    with pytest.raises(AuthenticationError) as caught:
        async with connect(FakeAgentMail(), headers=[]):
            pass
    assert json.loads(caught.value.body) == {
        "name": "UnauthorizedError",
        "code": "missing_authorization",
        "message": "an API key is required",
        "docs": "https://docs.agentmail.to/errors#missing_authorization",
    }
    assert caught.value.headers["content-type"] == "application/json"


async def test_an_unknown_key_is_refused_where_keys_are_listed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail(api_keys={"am_other"})
    with pytest.raises(AuthenticationError) as caught:
        async with connect(fake):
            pass
    assert json.loads(caught.value.body)["code"] == "unknown_api_key"
    fake.api_keys = {"am_key"}
    async with connect(fake):
        pass


async def test_the_key_may_also_stand_in_the_query(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    async with connect(fake, "/v0?api_key=am_key", headers=[]):
        assert fake.connected == 1
    assert fake.record.handshakes[0].query == "api_key=am_key"


async def test_each_key_may_do_what_is_said_of_it_and_other_keys_what_is_said_of_all(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail(api_keys={"am_key": {"label_spam_read"}, "am_all": None, "am_none": ()})
    for key, answer in (("am_key", "error"), ("am_all", "subscribed")):
        async with connect(fake, headers=[("Authorization", f"Bearer {key}")]) as websocket:
            await subscribe(websocket, event_types=["message.received.spam"])
            assert (await subscribe(websocket, event_types=["message.received.blocked"]))["type"] == answer
    assert fake.api_keys is not None
    fake.api_keys = {"am_key"}
    fake.permissions = {"label_blocked_read"}
    async with connect(fake) as websocket:
        assert (await subscribe(websocket, event_types=["message.received.spam"]))["type"] == "error"


def test_an_unknown_permission_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no permission mesage_read, thread_read; it has inbox_read, .*message_read, "
    ):
        FakeAgentMail(permissions=["thread_read", "message_read", "mesage_read"])
    with pytest.raises(ValueError, match="no permission mesage_read; it has "):
        FakeAgentMail(api_keys={"am_all": None, "am_key": {"mesage_read"}})
    fake = FakeAgentMail(api_keys={"am_key": {"inbox_read"}}, permissions={"message_read"})
    with pytest.raises(ValueError, match="no permission mesage_read"):
        fake.permissions = {"mesage_read"}
    with pytest.raises(ValueError, match="no permission mesage_read"):
        fake.api_keys = {"am_key": {"mesage_read"}}
    assert (fake.api_keys, fake.permissions) == ({"am_key": {"inbox_read"}}, {"message_read"})


def test_the_permissions_are_those_of_the_official_sdk() -> None:
    assert set(PERMISSIONS) == ApiKeyPermissions.model_fields.keys()


def test_a_string_is_no_collection_of_permissions_or_keys() -> None:
    for wrong in ("label_spam_read", {"label_spam_read": False}):
        with pytest.raises(TypeError, match="permissions is a collection of the granted permissions"):
            FakeAgentMail(permissions=wrong)
        with pytest.raises(TypeError, match="permissions is a collection of the granted permissions"):
            FakeAgentMail(api_keys={"am_key": wrong})
    with pytest.raises(TypeError, match="api_keys is a collection of keys"):
        FakeAgentMail(api_keys="am_key")


async def test_a_key_that_may_not_do_anything_is_not_let_in(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(api_keys={"am_key": ()})
    with pytest.raises(PermissionDeniedError) as caught:
        async with connect(fake):
            pass
    refusal = json.loads(caught.value.body)
    assert refusal["code"] == "missing_permission"
    assert "may not do anything" in refusal["fix"]
    assert [handshake.status for handshake in fake.record.handshakes] == [403]


async def test_another_path_is_not_found(autojump_clock: MockClock) -> None:
    with pytest.raises(ApiError) as caught:
        async with connect(FakeAgentMail(), "/v1"):
            pass
    assert caught.value.status_code == 404


async def test_handshakes_are_recorded_and_do_not_show_the_key(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    await trio.sleep(3)
    started = trio.current_time()
    async with connect(fake, "/v0?api_key=am_secret"):
        pass
    [handshake] = fake.record.handshakes
    assert (handshake.path, handshake.at) == ("/v0", started)
    assert handshake.headers["authorization"] == "Bearer am_key"
    assert "am_" not in repr(handshake)


async def test_the_fake_has_a_key_for_callers_without_one() -> None:
    assert FakeAgentMail().api_key.startswith("am_fake")


# The rest of a backend


async def test_on_a_mock_clock_the_time_of_day_passes_as_that_does(autojump_clock: MockClock) -> None:
    before = int(time.time())
    fake = FakeAgentMail()
    began = fake.now()
    assert before <= began <= time.time() + trio.current_time()
    await trio.sleep(3 * 86_400)
    assert fake.now() == began + 3 * 86_400


async def test_on_a_real_clock_it_tells_the_time_of_this_machine() -> None:
    fake = FakeAgentMail()
    before = time.time()
    assert before <= fake.now() <= time.time()


async def test_the_last_sign_of_life_of_a_connection_is_told_by_the_fakes_clock(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        await trio.sleep(86_400)
        await fake.send_raw("{}")
        await receive(websocket)
        assert websocket.last_received == fake.now()


def which_thread() -> threading.Thread:
    return threading.current_thread()


async def test_on_a_mock_clock_run_sync_uses_no_thread(
    autojump_clock: MockClock,
) -> None:
    began = trio.current_time()
    with trio.fail_after(1):
        assert await FakeAgentMail().run_sync(which_thread) is threading.current_thread()
    assert trio.current_time() == began


async def test_on_a_real_clock_run_sync_uses_a_thread() -> None:
    assert await FakeAgentMail().run_sync(which_thread) is not threading.current_thread()


async def test_on_a_mock_clock_run_sync_is_a_checkpoint_and_passes_on_errors(
    autojump_clock: MockClock,
) -> None:
    error = OSError("disk full")

    def fail() -> None:
        raise error

    with trio.CancelScope() as scope:
        scope.cancel()
        await FakeAgentMail().run_sync(fail)
    assert scope.cancelled_caught
    with pytest.raises(OSError) as caught:
        await FakeAgentMail().run_sync(fail)
    assert caught.value is error


# Subscriptions, and who gets which events


async def test_a_subscription_is_confirmed_with_the_filters_that_were_given(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        # The official SDK writes null for what is not set.
        confirmed = await subscribe(websocket, inbox_ids=[INBOX], pod_ids=None, event_types=["message.sent"])
    assert confirmed == {"type": "subscribed", "inbox_ids": [INBOX], "event_types": ["message.sent"]}
    assert fake.record.subscriptions == [Subscribe(inbox_ids=[INBOX], event_types=["message.sent"])]
    assert [json.loads(frame)["inbox_ids"] for frame in fake.record.frames] == [[INBOX]]
    assert [handshake.status for handshake in fake.record.handshakes] == [101]


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "[]",
        '{"type":"unsubscribe"}',
        '{"type":"subscribe","inbox_ids":"a"}',
        '{"type":"subscribe","pod_ids":[]}',
    ],
)
async def test_a_malformed_frame_is_answered_with_an_error(frame: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await websocket.send(frame)
        answer = await receive(websocket)
        assert (answer["type"], answer["name"]) == ("error", "ValidationError")
        assert answer["message"]
        assert await subscribe(websocket) == {"type": "subscribed"}
    assert len(fake.record.subscriptions) == 1


async def test_asking_for_spam_takes_a_permission(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"message_read", "label_blocked_read"})
    async with connect(fake) as websocket:
        refused = await subscribe(websocket, event_types=["message.received.spam"])
        assert refused == {"type": "error", "name": "forbidden", "message": "label_spam_read is forbidden"}
        confirmed = await subscribe(websocket, event_types=["message.received.blocked"])
        assert confirmed["type"] == "subscribed"


@pytest.mark.parametrize("event_types", [None, ["domain.verified", "message.bounced"]])
async def test_a_key_that_may_not_read_messages_does_not_hear_of_them(
    event_types: list[str] | None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail(permissions={"inbox_read"})
    async with connect(fake) as websocket:
        refused = await subscribe(websocket, event_types=event_types)
        assert refused == {"type": "error", "name": "forbidden", "message": "message_read is forbidden"}
        assert (await subscribe(websocket, event_types=["domain.verified"]))["type"] == "subscribed"
        fake.permissions = {"message_read"}
        assert (await subscribe(websocket, event_types=event_types))["type"] == "subscribed"


async def test_calendar_events_require_a_permission_or_are_left_out_by_default(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail(permissions={"message_read"})
    async with connect(fake) as websocket:
        refused = await subscribe(websocket, event_types=["message.received", "calendar.event.starting"])
        assert refused == {"type": "error", "name": "forbidden", "message": "calendar_event_read is forbidden"}
        assert (await subscribe(websocket))["type"] == "subscribed"
        await fake.emit(make_event("calendar.event.starting"))
        mail = await fake.deliver(inbox_id=INBOX)
        assert decode_event(await websocket.receive()) == mail
        assert "lacks calendar_event_read, which calendar.event.starting requires" in fake.explain()
        fake.permissions = {"message_read", "calendar_event_read"}
        for event_types in (None, ["calendar.event.starting"]):
            assert (await subscribe(websocket, event_types=event_types))["type"] == "subscribed"
            event = make_event("calendar.event.starting")
            await fake.emit(event)
            assert decode_event(await websocket.receive()) == event


async def test_the_thread_in_a_push_shows_no_other_mail_that_requires_a_permission(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    for kind in ("", ".spam", ".blocked"):
        await fake.deliver(inbox_id=INBOX, thread_id="t", event_type=f"message.received{kind}")
    event = await fake.deliver(inbox_id=INBOX, thread_id="t", subject="ham")
    assert event.thread is not None
    assert (event.thread.message_count, event.thread.labels) == (2, ("received", "unread"))
    event = await fake.deliver(inbox_id=INBOX, thread_id="t", event_type="message.received.spam")
    assert event.thread is not None
    assert (event.thread.message_count, event.thread.labels) == (4, ("received", "spam", "unread"))
    await fake.deliver(inbox_id=INBOX, thread_id="spam", event_type="message.received.spam")
    fake.mail.index_after(60)
    assert (await fake.deliver(inbox_id=INBOX, thread_id="spam")).thread is None


async def test_a_delivered_mail_comes_as_the_event_that_deliver_returns(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        first = await fake.deliver(inbox_id=INBOX)
        written = datetime(2024, 2, 29, tzinfo=UTC)
        second = await fake.deliver(
            inbox_id=INBOX,
            from_="bob@example.com",
            to=["a@example.com", "b@example.com"],
            subject=None,
            text=None,
            html="<p>ü</p>",
            message_id="<1@example.com>",
            thread_id="thread",
            event_id="event",
            timestamp=written,
        )
        third = await fake.deliver(inbox_id=INBOX, to="c@example.com")
        assert [decode_event(await websocket.receive()) for _ in range(3)] == [first, second, third]
    assert first.message.to == (INBOX,)
    assert first.message.labels == ("received", "unread")
    assert first.message.message_id != third.message.message_id
    assert (second.event_id, second.message.message_id, second.message.thread_id) == (
        "event",
        "<1@example.com>",
        "thread",
    )
    assert (second.message.timestamp, second.message.size, second.message.preview) == (written, 9, None)
    assert second.thread is not None
    assert second.thread.recipients == ("a@example.com", "b@example.com")
    assert third.message.to == ("c@example.com",)


async def test_without_event_types_spam_is_left_out(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as all_mail, connect(fake) as spam:
        await subscribe(all_mail)
        await subscribe(spam, event_types=["message.received.spam"])
        event = await fake.deliver(inbox_id=INBOX, event_type="message.received.spam")
        await fake.deliver(inbox_id=INBOX, subject="ham")
        assert event.message.labels == ("received", "spam")
        assert (await receive(all_mail))["message"]["subject"] == "ham"
        assert (await receive(spam))["event_type"] == "message.received.spam"


async def test_filters_by_inbox_and_by_pod_let_through_what_either_matches(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("in-pod@agentmail.to", pod_id="pod")
    calendar_event = CalendarEventStartingEvent(inbox_id=INBOX, calendar_event=CalendarEvent(title="in inbox"))
    async with connect(fake) as websocket:
        await subscribe(websocket, inbox_ids=[INBOX], pod_ids=["pod"])
        await fake.deliver(inbox_id="other@agentmail.to")
        await fake.emit(DomainVerifiedEvent(domain=Domain(pod_id="other")))
        await fake.emit(MessageSentEvent(send=Send(inbox_id=INBOX)))
        await fake.emit(calendar_event)
        await fake.deliver(inbox_id="in-pod@agentmail.to")
        await fake.emit(DomainVerifiedEvent(domain=Domain(pod_id="pod")))
        assert [(await receive(websocket))["event_type"] for _ in range(4)] == [
            "message.sent",
            "calendar.event.starting",
            "message.received",
            "domain.verified",
        ]


async def test_a_second_subscription_replaces_the_first(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket, inbox_ids=["a"])
        await subscribe(websocket, inbox_ids=["b"])
        await fake.deliver(inbox_id="a")
        event = await fake.deliver(inbox_id="b")
        assert decode_event(await websocket.receive()) == event


async def test_what_is_pushed_goes_to_subscribed_connections_only(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, subject="nobody is there")
    async with connect(fake) as idle, connect(fake) as filtered:
        await subscribe(filtered, inbox_ids=["nobody's"])
        await fake.deliver(inbox_id=INBOX)
        await fake.emit(ErrorEvent(name="rate_limit", message="slow down"))
        await fake.send_raw("not even JSON")
        await fake.send_raw(b"\x00")
        assert (await receive(filtered))["name"] == "rate_limit"
        assert await filtered.receive() == b"not even JSON"
        assert await filtered.receive() == b"\x00"
        assert await subscribe(idle) == {"type": "subscribed"}


async def test_any_frame_can_be_emitted_as_an_unknown_event(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    new_type = {"type": "event", "event_type": "message.read", "read": {"inbox_id": ["?"], "by": "\ud83d"}}
    async with connect(fake) as websocket, connect(fake) as filtered:
        await subscribe(websocket)
        await subscribe(filtered, inbox_ids=[INBOX])
        for payload in (new_type, ["no", "object"]):
            await fake.emit(UnknownEvent(payload=payload))
            assert await receive(websocket) == payload
        assert await receive(filtered) == ["no", "object"]


@pytest.mark.parametrize(
    "event",
    [
        Disconnected(reason="cut"),
        CaughtUp(since=datetime.now(UTC)),
        RecoveryFailed(since=datetime.now(UTC), reason="gone"),
    ],
)
async def test_an_event_without_a_wire_form_is_refused(event: Event) -> None:
    with pytest.raises(TypeError, match="the client makes it"):
        await FakeAgentMail().emit(event)


async def test_a_mail_that_was_sent_is_told_of(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        event = await fake.mail.send(inbox_id=INBOX, to=["a@example.com", "b@example.com"])
        assert decode_event(await websocket.receive()) == event
    assert event.send.recipients == ("a@example.com", "b@example.com")
    assert event.send.timestamp is not None
    assert event.send.timestamp.timestamp() == pytest.approx(fake.now())


async def test_a_held_mail_is_reviewed_and_received_when_it_is_released(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        held = await fake.deliver(inbox_id=INBOX, message_id="<1>", held=True)
        review = decode_event(await websocket.receive())
        assert isinstance(review, MessageSecurityReviewEvent)
        assert (review.message.inbox_id, review.message.message_id) == (INBOX, "<1>")
        assert review.message.agent_armor is not None
        assert review.message.agent_armor.verdict == "review"
        await trio.sleep(3600)
        released = await fake.mail.release(INBOX, "<1>")
        received, override = decode_event(await websocket.receive()), decode_event(await websocket.receive())
        assert received == released
        assert isinstance(override, MessageSecurityOverrideEvent)
        assert override.message.manual_override is not None
        assert override.message.manual_override.override_id == override.event_id
    assert (released.event_id, released.message.timestamp) == (held.event_id, held.message.timestamp)
    assert released.message.labels == ("received", "unread")


async def test_the_body_can_be_left_out_of_the_push(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        event = await fake.deliver(inbox_id=INBOX, text="large", html="<p>large", body_in_push=False)
        assert decode_event(await websocket.receive()) == event
    assert (event.message.text, event.message.html, event.message.preview) == (None, None, "large")
    assert event.message.size == 13


# Faults of pushes


async def pushed(websocket: WebSocket) -> list[str]:
    """Return the subjects of the mails that come within a second."""
    subjects = []
    with trio.move_on_after(1):
        while True:
            subjects.append((await receive(websocket))["message"]["subject"])
    return subjects


async def deliver(fake: FakeAgentMail, *subjects: str) -> None:
    for subject in subjects:
        await fake.deliver(inbox_id=INBOX, subject=subject)


async def test_a_push_can_be_swallowed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.swallow_pushes(times=2)
        await deliver(fake, "1", "2", "3")
        assert await pushed(websocket) == ["3"]


async def test_a_push_can_come_more_than_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.duplicate_pushes()
        fake.faults.duplicate_pushes(copies=2)
        await deliver(fake, "1", "2", "3")
        assert await pushed(websocket) == ["1", "1", "2", "2", "2", "3"]


async def test_a_push_can_come_late_to_the_connections_that_are_open_then(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.delay_pushes(60)
        await deliver(fake, "1", "2")
        assert await pushed(websocket) == ["2"]
    async with connect(fake) as websocket:
        await subscribe(websocket)
        await trio.sleep(58.5)
        assert await pushed(websocket) == ["1"]
        fake.faults.delay_pushes(3)
        await deliver(fake, "nobody is there")
    await trio.sleep(4)


async def test_pushes_can_come_in_the_opposite_order(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.reorder_pushes(3)
        fake.faults.swallow_pushes()
        fake.faults.reorder_pushes(2)
        await deliver(fake, "1", "2")
        assert await pushed(websocket) == []
        await deliver(fake, "3", "swallowed", "4", "5", "6")
        assert await pushed(websocket) == ["3", "2", "1", "5", "4", "6"]


async def test_clearing_the_faults_lets_go_of_the_pushes_that_were_held_back(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.reorder_pushes(3)
        fake.faults.swallow_pushes(times=None)
        await deliver(fake, "1", "2")
        fake.faults.clear()
        await deliver(fake, "3")
        assert await pushed(websocket) == ["2", "1", "3"]


async def test_raw_frames_meet_no_faults_of_pushes(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.swallow_pushes()
        await fake.send_raw('{"message":{"subject":"raw"}}')
        await deliver(fake, "swallowed")
        assert await pushed(websocket) == ["raw"]


# The ends of connections


async def test_a_client_that_closes_or_just_goes_is_remembered_by_its_close_code(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await websocket.close()
        assert fake.connected == 0
    async with connect(fake):
        assert fake.connected == 1
    assert fake.record.close_codes == [1000, None]


async def test_a_client_that_is_cancelled_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    with trio.move_on_after(10) as scope:
        async with connect(fake) as websocket:
            await subscribe(websocket)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(scope.deadline)
    assert (fake.connected, fake.subscribed) == (0, 0)
    await fake.deliver(inbox_id=INBOX)


async def test_what_the_block_raises_comes_out_as_itself(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(KeyError):
        async with connect(fake):
            raise KeyError
    with pytest.raises(KeyError):
        async with fake.serve():
            raise KeyError


async def test_cut_connections_end_after_what_was_pushed_and_without_a_close_frame(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        event = await fake.deliver(inbox_id=INBOX)
        await fake.drop_connections()
        assert (fake.connected, fake.subscribed) == (0, 0)
        await fake.deliver(inbox_id=INBOX, subject="too late")
        assert decode_event(await websocket.receive()) == event
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == 1006
    assert fake.record.close_codes == []


async def test_connections_closed_with_a_code_end_after_what_was_pushed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        event = await fake.deliver(inbox_id=INBOX)
        await fake.drop_connections(1001, "going away")
        assert fake.connected == 0
        await fake.send_raw("too late")
        assert decode_event(await websocket.receive()) == event
        with pytest.raises(ConnectionLostError, match="going away") as caught:
            await websocket.receive()
        assert caught.value.code == 1001
    assert fake.record.close_codes == []


async def test_a_client_that_does_not_answer_the_close_frame_is_cut_in_the_end(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        await fake.send_raw("the client does not read on before it has taken this")
        await fake.drop_connections(1001)
        before = trio.current_time()
        await fake.wait_connected(0)
        assert trio.current_time() - before == pytest.approx(5)


async def test_a_ping_that_crosses_the_close_frame_does_no_harm(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        async with trio.open_nursery() as nursery:
            await fake.drop_connections(1001)
            nursery.start_soon(ping_in_vain, websocket)
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == 1001


async def ping_in_vain(websocket: WebSocket) -> None:
    with trio.move_on_after(1), pytest.raises(ConnectionLostError):
        await websocket.ping()


async def test_silent_connections_stay_open_and_say_nothing(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        event = await fake.deliver(inbox_id=INBOX)
        fake.faults.silence_connections()
        await fake.deliver(inbox_id=INBOX)
        assert decode_event(await websocket.receive()) == event
        with trio.move_on_after(3600) as scope:
            await ping(websocket)
        assert scope.cancelled_caught
        with trio.move_on_after(3600) as scope:
            await websocket.receive()
        assert scope.cancelled_caught
        assert fake.connected == 1
    async with connect(fake) as websocket:
        await ping(websocket)
        assert fake.connected == 1


@pytest.mark.parametrize("code", [None, 1001])
async def test_silent_connections_can_be_dropped(code: int | None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with connect(fake) as websocket:
        await subscribe(websocket)
        fake.faults.silence_connections()
        await fake.drop_connections(code)
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == 1006
    assert trio.current_time() == autojump_clock.current_time()


async def test_who_waits_for_connections_sees_them_come_and_go(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    seen = []

    async def watch() -> None:
        await fake.wait_connected()
        seen.append(("connected", fake.connected, fake.subscribed))
        await fake.wait_subscribed()
        seen.append(("subscribed", fake.connected, fake.subscribed))
        await fake.wait_connected(2)
        seen.append(("two connected", fake.connected, fake.subscribed))
        await fake.wait_connected(0)
        seen.append(("none connected", fake.connected, fake.subscribed))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.sleep(1)
        async with connect(fake) as websocket:
            await trio.sleep(1)
            await subscribe(websocket)
            await trio.sleep(1)
            async with connect(fake):
                await trio.sleep(1)
    assert seen == [
        ("connected", 1, 0),
        ("subscribed", 1, 1),
        ("two connected", 2, 1),
        ("none connected", 0, 0),
    ]


# Bugs


class BrokenKeys(set[str]):
    def __len__(self) -> int:
        return 1

    def __contains__(self, key: object) -> bool:
        raise RuntimeError("a bug in the test's own set of keys")


async def test_a_bug_in_the_fake_comes_out_as_itself(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(api_keys=BrokenKeys())
    with pytest.raises(RuntimeError, match="a bug"):
        async with connect(fake):
            pass
    assert fake.connected == 0


async def test_a_bug_in_the_fake_ends_a_block_that_is_waiting_for_something_else(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail(permissions=BrokenKeys())
    with pytest.raises(RuntimeError, match="a bug"):
        async with connect(fake) as websocket:
            await websocket.send('{"type":"subscribe","event_types":["message.received.spam"]}')
            await trio.sleep_forever()


async def test_a_bug_in_the_fake_comes_before_what_the_block_raises(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail(permissions=BrokenKeys())
    with pytest.raises(RuntimeError, match="a bug"):
        async with connect(fake) as websocket:
            await websocket.send('{"type":"subscribe","event_types":["message.received.spam"]}')
            with pytest.raises(trio.Cancelled):
                await trio.sleep_forever()
            raise KeyError("the block's own")


# Faults


async def test_faults_come_in_the_order_in_which_they_were_asked_for(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_connections()
    fake.faults.reject_handshakes(503, headers=[("Retry-After", "7")], body=b"later", times=2)
    fake.faults.reject_handshakes(429, times=None)
    with pytest.raises(ConnectionRefusedError):
        async with connect(fake):
            pass
    for status, body in [(503, "later"), (503, "later"), (429, LIMITED), (429, LIMITED)]:
        with pytest.raises(ApiError) as caught:
            async with connect(fake):
                pass
        assert (caught.value.status_code, caught.value.body) == (status, body)
        assert caught.value.headers.get("retry-after") == ("7" if status == 503 else None)
    fake.faults.clear()
    async with connect(fake) as websocket:
        assert await subscribe(websocket) == {"type": "subscribed"}
    assert len(fake.record.handshakes) == 5


LIMITED = (
    '{"name":"RateLimitError","code":"rate_limit_exceeded","message":"requested by a test",'
    '"docs":"https://docs.agentmail.to/errors#rate_limit_exceeded"}'
)


async def test_a_fault_for_no_connection_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        FakeAgentMail().faults.hang_handshakes(times=0)


async def test_a_hanging_handshake_is_never_answered(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()
    with trio.move_on_after(3600) as scope:
        async with connect(fake):
            pass
    assert scope.cancelled_caught
    assert (len(fake.record.handshakes), fake.connected, fake.record.close_codes) == (1, 0, [])


@pytest.mark.parametrize("code", [None, 1001])
async def test_hanging_handshakes_are_dropped_with_the_rest(code: int | None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()
    async with trio.open_nursery() as nursery:

        async def drop() -> None:
            await trio.sleep(1)
            fake.faults.silence_connections()
            await fake.send_raw("for nobody")
            await fake.drop_connections(code)

        nursery.start_soon(drop)
        with pytest.raises(ConnectionLostError):
            async with connect(fake):
                pass


async def test_a_confirmation_can_be_withheld(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.withhold_confirmations()
    async with connect(fake) as websocket:
        with trio.move_on_after(3600) as scope:
            await subscribe(websocket)
        assert scope.cancelled_caught
        assert (len(fake.record.subscriptions), fake.subscribed) == (1, 0)
        await ping(websocket)


async def test_a_subscription_can_be_refused(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_subscriptions("internal", "try again")
    async with connect(fake) as websocket:
        assert await subscribe(websocket) == {"type": "error", "name": "internal", "message": "try again"}
        assert (len(fake.record.subscriptions), fake.subscribed) == (1, 0)


async def test_a_subscription_can_be_answered_with_a_close_frame(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.close_instead_of_confirming(4401, "who are you?")
    async with connect(fake) as websocket:
        with pytest.raises(ConnectionLostError, match="who are you") as caught:
            await subscribe(websocket)
        assert caught.value.code == 4401


async def test_events_can_come_before_the_confirmation(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    early = MessageSentEvent(send=Send(inbox_id=INBOX))
    fake.faults.push_before_confirming(early, "early text", b"early bytes")
    async with connect(fake) as websocket:
        await websocket.send('{"type":"subscribe"}')
        assert decode_event(await websocket.receive()) == early
        assert await websocket.receive() == b"early text"
        assert await websocket.receive() == b"early bytes"
        assert await receive(websocket) == {"type": "subscribed"}


async def test_a_connection_can_be_dropped_as_soon_as_it_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.drop_after_confirming()
    async with connect(fake) as websocket:
        assert await subscribe(websocket) == {"type": "subscribed"}
        with pytest.raises(ConnectionLostError):
            await websocket.receive()


# On a port, with real time: each test has a time-out of its own


def port_of(environment: AgentMailEnvironment) -> int:
    return int(environment.websockets.rpartition(":")[2])


async def test_the_served_fake_speaks_with_a_client_that_is_not_ours() -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    with trio.fail_after(10):
        async with fake.serve() as environment:
            assert environment.http.startswith("http://127.0.0.1:")
            url = environment.websockets + "/v0"
            async with websockets_connect(url, additional_headers=BEARER) as websocket:
                assert await subscribe(websocket, inbox_ids=[INBOX]) == {
                    "type": "subscribed",
                    "inbox_ids": [INBOX],
                }
                event = await fake.deliver(inbox_id=INBOX, text="x" * 2**18)
                assert decode_event(await websocket.recv()) == event
                await (await websocket.ping()).wait()
            await fake.wait_connected(0)
            assert fake.record.close_codes == [1000]
            with pytest.raises(websockets.InvalidStatus) as caught:
                async with websockets_connect(url):
                    pass
            assert caught.value.response.status_code == 401
            assert json.loads(caught.value.response.body)["code"] == "missing_authorization"


async def test_the_served_fake_speaks_tls() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with fake.serve(ssl_context=server_context) as environment:
            assert environment.http.startswith("https://localhost:")
            url = environment.websockets + "/v0"
            with pytest.raises(trio.BrokenResourceError) as distrust:
                async with websockets_connect(url, ssl=client_context, additional_headers=BEARER):
                    pass
            assert isinstance(distrust.value.__cause__, ssl.SSLCertVerificationError)
            authority.configure_trust(client_context)
            async with websockets_connect(url, ssl=client_context, additional_headers=BEARER) as websocket:
                assert await subscribe(websocket) == {"type": "subscribed"}
                await fake.drop_connections(1012, "restart")
                with pytest.raises(websockets.ConnectionClosedError) as caught:
                    await websocket.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1012, "restart")


async def test_a_served_connection_comes_to_its_end_in_the_order_of_what_was_pushed() -> None:
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with fake.serve() as environment:
            for code in (None, 1001):
                async with websockets_connect(environment.websockets + "/v0", additional_headers=BEARER) as websocket:
                    await subscribe(websocket)
                    sent = [await fake.deliver(inbox_id=INBOX, subject=str(n)) for n in range(100)]
                    await fake.drop_connections(code)
                    if code is not None:
                        # A ping that crosses the close frame must not cost what was pushed before it.
                        await websocket.ping()
                    assert [decode_event(await websocket.recv()) for _ in sent] == sent
                    with pytest.raises(websockets.ConnectionClosed) as caught:
                        await websocket.recv()
                    assert (caught.value.rcvd and caught.value.rcvd.code) == code


async def test_a_refused_connection_is_reset() -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_connections()
    with trio.fail_after(10):
        async with fake.serve() as environment:
            # The reset may come while the client is still connecting.
            with pytest.raises((OSError, trio.BrokenResourceError)):
                async with await trio.open_tcp_stream("127.0.0.1", port_of(environment)) as stream:
                    await stream.receive_some()
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(environment))
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")


async def test_leaving_serve_cuts_what_is_left_at_once() -> None:
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with fake.serve() as environment:

                async def stay() -> None:
                    async with websockets_connect(
                        environment.websockets + "/v0", additional_headers=BEARER
                    ) as websocket:
                        with pytest.raises(websockets.ConnectionClosedError):
                            await websocket.recv()

                nursery.start_soon(stay)
                await fake.wait_connected()
                fake.faults.silence_connections()
            assert fake.connected == 0


async def test_a_client_that_takes_nothing_does_not_keep_the_fake_from_cutting_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_agentmail.testing._wire.connection.CLOSE_TIMEOUT", 0.1)
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with fake.serve() as environment:
            async with client_websocket(
                await trio.open_tcp_stream("127.0.0.1", port_of(environment)),
                host="localhost",
                target="/v0",
                headers=BEARER,
                max_message_size=2**20,
            ) as websocket:
                await subscribe(websocket)
                for _ in range(100):
                    await fake.send_raw("x" * 2**20)
                await fake.drop_connections()
                assert fake.connected == 0


async def test_a_bug_in_the_served_fake_comes_out_of_serve() -> None:
    fake = FakeAgentMail(api_keys=BrokenKeys())
    with trio.fail_after(10), pytest.raises(RuntimeError, match="a bug"):
        async with fake.serve() as environment:
            async with websockets_connect(environment.websockets + "/v0", additional_headers=BEARER):
                pass


async def test_a_deliverer_need_not_know_who_listens() -> None:
    assert isinstance(await FakeAgentMail().deliver(inbox_id=INBOX), MessageReceivedEvent)


async def test_a_subscription_to_an_unknown_event_type_is_a_warning_of_the_client_alone(
    autojump_clock: MockClock,
) -> None:
    with pytest.warns(UserWarning, match="unknown event type 'brand.new'") as warned:
        subscribe = Subscribe(event_types=["brand.new"])
    fake = FakeAgentMail()
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        confirmed = await events.receive()
    assert isinstance(confirmed, Subscribed)
    assert confirmed.event_types == ("brand.new",)
    assert len(warned) == 1
