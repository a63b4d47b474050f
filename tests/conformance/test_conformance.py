"""The fake, the emulator and the live service look the same to a client.

The fake and the emulator must follow AgentMail's schema and documentation. The live service is optional (see
`services`) and is only read: departures from the schema and undocumented behaviour go into a report.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
import trio
from websockets.frames import Close, Frame, Opcode

from tests.conformance.raw_websocket import RawWebSocket, open_raw_websocket
from tests.conformance.schema import EVENTS
from tests.conformance.services import EmulatedService, LiveService, MemoryService, Service, start_emulator
from trio_agentmail import (
    AgentMailEnvironment,
    AuthenticationError,
    Event,
    MessageReceivedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
)

E = TypeVar("E", bound=Event)

NO_SPAM_PERMISSIONS = ["inbox_read", "message_read"]

Start = Callable[..., AgentMailEnvironment]


@pytest.fixture(scope="module")
def emulators() -> Iterator[Start]:
    """Start an emulator, or return the one that was started with the same options."""
    started: dict[tuple[str, ...], AgentMailEnvironment] = {}
    with ExitStack() as ends:

        def start(*options: str) -> AgentMailEnvironment:
            if options not in started:
                process, started[options] = start_emulator(*options)
                ends.callback(process.__exit__, None, None, None)
                ends.callback(process.terminate)
            return started[options]

        yield start


@pytest.fixture(params=["memory", "emulator", "live"])
def service(request: pytest.FixtureRequest, emulators: Start) -> Service:
    match request.param:
        case "memory":
            return MemoryService()
        case "emulator":
            return EmulatedService(emulators())
    return LiveService()


@pytest.fixture(params=["memory", "emulator"])
def limited(request: pytest.FixtureRequest, emulators: Start) -> Service:
    """A service whose keys may not read spam."""
    if request.param == "memory":
        return MemoryService(permissions=NO_SPAM_PERMISSIONS)
    options = [option for permission in NO_SPAM_PERMISSIONS for option in ("--permission", permission)]
    return EmulatedService(emulators(*options))


async def receive(events: trio.MemoryReceiveChannel[Event], kind: type[E]) -> E:
    event = await events.receive()
    assert isinstance(event, kind), event
    return event


# Authentication


async def test_a_websocket_needs_a_known_key(service: Service) -> None:
    with pytest.raises(AuthenticationError) as caught:
        async with service.stream(key="am_nobody_has_this_key"):
            pass
    assert caught.value.status_code == 401


@pytest.mark.parametrize("key", [None, "am_nobody_has_this_key"])
async def test_the_rest_api_needs_a_known_key_and_says_what_is_wrong(service: Service, key: str | None) -> None:
    async with service.http(key=key) as client:
        response = await client.get("/inboxes")
    assert response.status_code == 401
    service.check_shape("Problem", response.json())


# Subscriptions


async def test_a_subscription_is_confirmed_with_its_filters(service: Service) -> None:
    subscribe = Subscribe(inbox_ids=[service.inbox], event_types=["message.received", "message.sent"])
    async with service.stream(subscribe) as events:
        confirmation = await receive(events, Subscribed)
    service.check_shape("Subscribed", json.loads(confirmation.raw))
    assert confirmation.inbox_ids == (service.inbox,)
    assert confirmation.event_types is not None
    assert set(confirmation.event_types) == {"message.received", "message.sent"}


async def test_a_subscription_to_what_the_key_may_not_read_is_an_error(limited: Service) -> None:
    with pytest.raises(SubscriptionRejectedError, match="label_spam_read is forbidden"):
        async with limited.stream(Subscribe(event_types=["message.received.spam"])):
            pass


async def test_only_events_that_match_the_filters_are_pushed(service: Service) -> None:
    subscribe = Subscribe(inbox_ids=[service.inbox], event_types=["message.received", "message.bounced"])
    async with service.stream(subscribe) as events:
        await receive(events, Subscribed)
        await service.happen("message.received", inbox_id="another@agentmail.to")
        await service.happen("message.sent")
        await service.happen("message.received.spam")
        await service.happen("message.received", subject="the one")
        assert (await receive(events, MessageReceivedEvent)).message.subject == "the one"


async def test_spam_is_pushed_only_to_subscriptions_that_name_it(service: Service) -> None:
    async with (
        service.stream(Subscribe(inbox_ids=[service.inbox])) as everything,
        service.stream(Subscribe(inbox_ids=[service.inbox], event_types=["message.received.spam"])) as spam,
    ):
        for events in (everything, spam):
            await receive(events, Subscribed)
        await service.happen("message.received.spam", subject="spam")
        await service.happen("message.received", subject="no spam")
        assert (await receive(everything, MessageReceivedEvent)).message.subject == "no spam"
        assert (await receive(spam, MessageReceivedEvent)).message.subject == "spam"


# Events


@pytest.mark.parametrize("event_type", EVENTS)
async def test_every_event_has_the_fields_of_the_schema(service: Service, event_type: str) -> None:
    fields = {}
    if event_type == "message.security.override":
        fields = {"message_id": "<held@example.com>"}
        await service.happen("message.security.review", **fields)
    # The filter is the type alone, since a domain belongs to no inbox.
    async with service.stream(Subscribe(event_types=[event_type])) as events:
        await receive(events, Subscribed)
        await service.happen(event_type, **fields)
        event: Any = await events.receive()
    assert event.event_type == event_type
    service.check_shape(EVENTS[event_type], json.loads(event.raw))


async def test_held_mail_is_listed_with_a_label_and_pushed_when_it_is_released(service: Service) -> None:
    async with service.stream(Subscribe(inbox_ids=[service.inbox])) as events:
        await receive(events, Subscribed)
        await service.happen("message.security.review", message_id="<held@example.com>")
        review = await receive(events, MessageSecurityReviewEvent)
        assert review.message.message_id == "<held@example.com>"
        [held] = (await service.get(f"/inboxes/{service.inbox}/messages"))["messages"]
        assert "agent-armor-held" in held["labels"]
        await service.happen("message.security.override", message_id="<held@example.com>")
        released = {type(event): event for event in [await events.receive(), await events.receive()]}
    assert set(released) == {MessageReceivedEvent, MessageSecurityOverrideEvent}
    [listed] = (await service.get(f"/inboxes/{service.inbox}/messages"))["messages"]
    assert "agent-armor-held" not in listed["labels"]
    assert listed["timestamp"] == held["timestamp"]


# The REST API


async def test_inboxes_are_listed(service: Service) -> None:
    await _mails(service, 1)
    page = await service.get("/inboxes", {"limit": 2})
    service.check_shape("InboxList", page)
    assert 1 <= len(page["inboxes"]) <= 2


async def test_a_listing_has_the_fields_of_the_schema_and_no_bodies(service: Service) -> None:
    await _mails(service, 2)
    page = await service.get(f"/inboxes/{service.inbox}/messages", {"limit": 10})
    service.check_shape("MessageList", page)
    assert not [message for message in page["messages"] if "text" in message or "html" in message]
    whole = await service.get(f"/inboxes/{service.inbox}/messages/{quote(page['messages'][0]['message_id'], safe='')}")
    service.check_shape("Message", whole)
    threads = await service.get(f"/inboxes/{service.inbox}/threads", {"limit": 10})
    service.check_shape("ThreadList", threads)
    service.check_shape("Thread", await service.get(f"/threads/{threads['threads'][0]['thread_id']}"))


@pytest.mark.parametrize("ascending", [False, True])
async def test_a_listing_has_pages_newest_first_by_default(service: Service, ascending: bool) -> None:
    await _mails(service, 5)
    params: dict[str, Any] = {"limit": 2, **({"ascending": "true"} if ascending else {})}
    pages = [await service.get(f"/inboxes/{service.inbox}/messages", params)]
    while "next_page_token" in pages[-1] and len(pages) < 3:
        token = {"page_token": pages[-1]["next_page_token"]}
        pages.append(await service.get(f"/inboxes/{service.inbox}/messages", params | token))
    messages = [message for page in pages for message in page["messages"]]
    assert all(len(page["messages"]) <= 2 for page in pages)
    assert len({message["message_id"] for message in messages}) == len(messages)
    times = [message["timestamp"] for message in messages]
    assert times == sorted(times, reverse=not ascending)
    if not isinstance(service, LiveService):
        assert len(messages) == 5
        assert "next_page_token" not in pages[-1]


@pytest.mark.parametrize("labels", ['["received"]', "received"])
async def test_labels_are_a_json_list_or_repeated_parameters(service: Service, labels: str) -> None:
    await _mails(service, 2)
    if not isinstance(service, LiveService):
        await service.happen("message.sent")
    async with service.http() as client:
        response = await client.get(f"/inboxes/{service.inbox}/messages", params={"labels": labels, "limit": 10})
    if isinstance(service, LiveService):
        found = response.json().get("messages", []) if response.is_success else []
        service.report(
            *("labels", "JSON list" if "[" in labels else "repeated parameters"),
            {"status": response.status_code, "all have it": all("received" in item["labels"] for item in found)},
        )
    else:
        assert [message["subject"] for message in response.json()["messages"]] == ["1", "0"]


@pytest.mark.parametrize(
    "message_id", ["<1@example.com>", "<a/b?c#d%25e+f&g=h@example.com>", "<zażółć 😀@example.com>"]
)
async def test_a_message_is_found_by_its_percent_encoded_id(service: Service, message_id: str) -> None:
    await service.happen("message.received", message_id=message_id)
    path = f"/inboxes/{service.inbox}/messages/{quote(message_id, safe='')}"
    assert (await service.get(path))["message_id"] == message_id


async def test_an_unknown_message_is_a_404(service: Service) -> None:
    async with service.http() as client:
        response = await client.get(f"/inboxes/{service.inbox}/messages/{quote('<nothing@example.com>', safe='')}")
    assert response.status_code == 404
    service.check_shape("Problem", response.json())


async def test_answers_have_a_date(service: Service) -> None:
    async with service.http() as client:
        response = await client.get("/inboxes")
    if isinstance(service, LiveService):
        names = sorted(name for name in response.headers if "ratelimit" in name.lower() or name.lower() == "date")
        service.report("headers of an answer", names)
    else:
        assert "Date" in response.headers


async def _mails(service: Service, count: int) -> None:
    """Deliver mail to the inbox. The live inbox keeps what it has."""
    if not isinstance(service, LiveService):
        for number in range(count):
            await service.happen("message.received", subject=str(number))


# Undocumented behaviour


@pytest.fixture(params=["emulator", "live"])
def observed(request: pytest.FixtureRequest, emulators: Start) -> Service:
    return LiveService() if request.param == "live" else EmulatedService(emulators())


@pytest.mark.timeout(900)
async def test_undocumented_behaviour_of_the_websocket_is_reported(observed: Service) -> None:
    if isinstance(observed, LiveService):
        report: Callable[..., None] = partial(observed.report, "websocket")
    else:
        report = print
    async with open_raw_websocket(f"{observed.environment.websockets}/v0", observed.key) as (websocket, response):
        assert response.status_code == 101
        report("headers of the handshake", sorted({name.lower() for name, _ in response.headers.raw_items()}))
        first = await _ask(websocket, {"type": "subscribe", "inbox_ids": [observed.inbox]})
        second = await _ask(websocket, {"type": "subscribe", "event_types": ["message.received"]})
        report("a second subscribe: the confirmations", {"first": first, "second": second})
        report("idle", await _observe_idle(websocket, observed.seconds))
    # In a connection of its own, since the server may close it.
    async with open_raw_websocket(f"{observed.environment.websockets}/v0", observed.key) as (websocket, _):
        report("a frame of no known type", await _ask(websocket, {"type": "unsubscribe"}))
    assert first is not None
    assert first["type"] == "subscribed"


async def _ask(websocket: RawWebSocket, message: Any) -> Any:
    """Return the answer to a message, or `None` if there is none within five seconds or the connection ends."""
    await websocket.send(message)
    with trio.move_on_after(5):
        while isinstance(frame := await websocket.receive(), Frame):
            if (
                frame.opcode is Opcode.TEXT
                and frame.fin
                and (answer := json.loads(bytes(frame.data))).get("type") != "event"
            ):
                return answer
            if frame.opcode is Opcode.CLOSE:
                return {"type": "closed", "code": Close.parse(frame.data).code}
    return None


async def _observe_idle(websocket: RawWebSocket, seconds: float) -> dict[str, Any]:
    """Return what the server does on an idle connection."""
    began = trio.current_time()
    pings: list[float] = []
    ended: dict[str, Any] | None = None
    with trio.move_on_after(seconds):
        while ended is None:
            frame = await websocket.receive()
            after = round(trio.current_time() - began, 1)
            if not isinstance(frame, Frame):
                ended = {"after": after, "code": None}
            elif frame.opcode is Opcode.CLOSE:
                ended = {"after": after, "code": Close.parse(frame.data).code}
            elif frame.opcode is Opcode.PING:
                pings.append(after)
    return {"seconds": seconds, "pings after": pings, "ended": ended}
