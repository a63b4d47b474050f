"""AgentMail's official SDK talks to the fake, so our field names are those of the SDK, on the wire and in Python.

This tests `FakeAgentMail` and `encode_event` with an independent client. For the WebSocket, the clients of the SDK run
in threads, because one is synchronous and the other needs asyncio. For the REST API, the asynchronous client runs under
Trio.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import httpx
import pytest
import trio
import websockets
from agentmail import AgentMail, AsyncAgentMail
from agentmail.core.api_error import ApiError
from agentmail.environment import AgentMailEnvironment as SdkEnvironment
from agentmail.errors import NotFoundError
from agentmail.events.types.event_type import EventType
from agentmail.websockets.types import Subscribe as SdkSubscribe

from trio_agentmail import AgentMailEnvironment, ErrorEvent, Event, MessageReceivedEvent, Subscribe, UnknownEvent
from trio_agentmail.testing import FakeAgentMail

# The SDK prefers what websockets has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:websockets.legacy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:websockets.exceptions.InvalidStatusCode is deprecated:DeprecationWarning"),
    pytest.mark.parametrize("kind", ["async", "sync"]),
]

Kind = Literal["async", "sync"]
INBOX = "agent@agentmail.to"
KEY = "am_key"


def listen(
    kind: Kind,
    environment: AgentMailEnvironment,
    count: int,
    *,
    key: str = KEY,
    key_in_query: bool = False,
    **filters: Any,
) -> list[Any]:
    """Subscribe with the official SDK, and return the first `count` messages."""
    where = SdkEnvironment(http=environment.http, websockets=environment.websockets)
    query = {"api_key": key} if key_in_query else {}

    async def listen_async() -> list[Any]:
        client = AsyncAgentMail(api_key=key, environment=where)
        async with client.websockets.connect(**query) as socket:
            await socket.send_subscribe(SdkSubscribe(**filters))
            return [await socket.recv() for _ in range(count)]

    if kind == "async":
        return asyncio.run(listen_async())
    client = AgentMail(api_key=key, environment=where)
    with client.websockets.connect(**query) as socket:
        socket.send_subscribe(SdkSubscribe(**filters))
        return [socket.recv() for _ in range(count)]


async def in_thread(sync_fn: Callable[..., list[Any]], *args: Any, **kwargs: Any) -> list[Any]:
    # If the test fails, the thread is abandoned. It ends when `serve` cuts its connection.
    return await trio.to_thread.run_sync(lambda: sync_fn(*args, **kwargs), abandon_on_cancel=True)


# One of each event, with a value in every field


TIME = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)

VALUES = {
    "AgentArmorManualOverride.original_verdict": "review",
    "AgentArmorReleaseActor.kind": "api_key",
    "AgentArmorResult.status": "complete",
    "AgentArmorResult.verdict": "review",
    "AgentArmorResult.started_at": None,
    "AgentArmorResult.deadline_at": None,
    "AgentArmorResult.unavailable_reason": None,
    "Attachment.content_disposition": "inline",
    "Attendee.role": "required",
    "Attendee.status": "accepted",
    "CalendarEvent.duration_mode": "exact",
    "CalendarEvent.kind": "instance",
    "CalendarEvent.response_status": "tentative",
    "CalendarEvent.source": "email",
    "CalendarEvent.status": "confirmed",
    "CalendarEventPrevious.duration_mode": "nominal",
    "CalendarEventPrevious.status": "cancelled",
    "Domain.status": "VERIFIED",
    "VerificationRecord.status": "VALID",
    "VerificationRecord.type": "MX",
}
"""Values of fields for which the SDK has a list of values, or which depend on other fields."""


MADE_HERE = ("_raw", "origin", "attempt")
"""The fields of an event that are not on the wire."""


def filled(cls: type, **given: Any) -> Any:
    """Return an instance of one of our classes with a value in every field."""
    types = get_type_hints(cls)
    values = {}
    for number, field in enumerate(attrs.fields(cls)):
        key = f"{cls.__name__}.{field.name}"
        if field.name not in ("event_type", *MADE_HERE):
            values[field.name] = VALUES[key] if key in VALUES else value_for(types[field.name], key, number)
    return cls(**values | given)


def value_for(hint: Any, key: str, number: int) -> Any:
    if get_origin(hint) is UnionType:
        return value_for(next(arg for arg in get_args(hint) if arg is not NoneType), key, number)
    if get_origin(hint) is tuple:
        kinds = get_args(get_args(hint)[0]) or get_args(hint)[:1]
        return tuple(value_for(kind, f"{key}.{n}", number) for n, kind in enumerate(kinds))
    if attrs.has(hint):
        return filled(hint)
    simple = {
        str: key,
        bool: True,
        int: number + 1,
        datetime: TIME + timedelta(hours=number),
        Mapping[str, str]: {"X-Header": key},
        Any: {"anything": [key]},
    }
    return simple[hint]


EVENTS: list[Any] = [
    *(filled(cls) for cls in get_args(Event) if cls is not UnknownEvent and hasattr(cls, "event_type")),
    *(
        filled(MessageReceivedEvent, event_type=f"message.received.{kind}")
        for kind in ("spam", "blocked", "unauthenticated")
    ),
]


def differences(ours: Any, theirs: Any, path: str = "event") -> list[str]:
    """Return where an object of the SDK lacks a value of ours, or has a different one."""
    if attrs.has(type(ours)):
        return [
            difference
            for name in attrs.fields_dict(type(ours))
            if name not in MADE_HERE and getattr(ours, name) is not None
            for difference in differences(getattr(ours, name), getattr(theirs, name, None), f"{path}.{name}")
        ]
    if isinstance(ours, tuple) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            difference
            for number, (our, their) in enumerate(zip(ours, theirs, strict=True))
            for difference in differences(our, their, f"{path}[{number}]")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} is {theirs!r}"]


async def test_the_sdk_decodes_every_event_with_all_fields(kind: Kind) -> None:
    types = [event.event_type for event in EVENTS]
    assert set(types) == {value for arg in get_args(EventType) for value in get_args(arg)}
    sent = [*EVENTS, ErrorEvent(name="rate_limit_exceeded", message="slow down")]
    received: list[Any] = []
    fake = FakeAgentMail(api_keys={KEY})

    async def receive() -> None:
        received.extend(await in_thread(listen, kind, environment, len(sent) + 1, event_types=types))

    with trio.fail_after(20):
        async with fake.serve() as environment, trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await fake.wait_subscribed()
            for event in sent:
                await fake.emit(event)
    confirmed = received.pop(0)
    assert (type(confirmed).__name__, confirmed.event_types) == ("Subscribed", types)
    assert fake.record.subscriptions == [Subscribe(event_types=types)]
    for ours, theirs in zip(sent, received, strict=True):
        assert type(theirs).__module__.startswith("agentmail.")
        assert type(theirs).__name__ == type(ours).__name__.replace("ErrorEvent", "Error")
        assert differences(ours, theirs) == []


async def test_the_fake_applies_the_filters_of_the_sdk(kind: Kind) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("in-pod@agentmail.to", pod_id="pod")
    received: list[Any] = []

    async def receive() -> None:
        filters = {"inbox_ids": [INBOX], "pod_ids": ["pod"], "event_types": ["message.received"]}
        received.extend(await in_thread(listen, kind, environment, 3, **filters))

    with trio.fail_after(20):
        async with fake.serve() as environment:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await fake.wait_subscribed()
                await fake.deliver(inbox_id="other@agentmail.to")
                await fake.deliver(inbox_id=INBOX, event_type="message.received.spam")
                first = await fake.deliver(inbox_id=INBOX, subject="for the inbox")
                second = await fake.deliver(inbox_id="in-pod@agentmail.to", subject="for the pod")
            await fake.wait_connected(0)
    confirmed, *mails = received
    assert (confirmed.inbox_ids, confirmed.pod_ids) == ([INBOX], ["pod"])
    assert confirmed.event_types == ["message.received"]
    assert [differences(ours, theirs) for ours, theirs in zip((first, second), mails, strict=True)] == [[], []]
    assert fake.record.close_codes == [1000]


async def test_the_key_is_in_the_header_and_on_request_in_the_query(kind: Kind) -> None:
    fake = FakeAgentMail(api_keys={KEY})
    with trio.fail_after(20):
        async with fake.serve() as environment:
            await in_thread(listen, kind, environment, 1)
            await in_thread(listen, kind, environment, 1, key_in_query=True)
    assert [handshake.query for handshake in fake.record.handshakes] == ["", f"api_key={KEY}"]
    assert [handshake.headers["authorization"] for handshake in fake.record.handshakes] == [f"Bearer {KEY}"] * 2


async def test_the_sdk_raises_a_401_for_an_unknown_key(kind: Kind) -> None:
    fake = FakeAgentMail(api_keys={KEY})
    with trio.fail_after(20), pytest.raises((ApiError, websockets.InvalidStatus)) as caught:
        async with fake.serve() as environment:
            await in_thread(listen, kind, environment, 1, key="am_unknown")
    match caught.value:
        case ApiError(status_code=status):
            assert status == 401
        case websockets.InvalidStatus(response=response):
            # The synchronous client of version 2.0.18 raises it unchanged.
            assert kind == "sync"
            assert response.status_code == 401


async def test_the_sdk_raises_for_a_missing_permission(kind: Kind) -> None:
    fake = FakeAgentMail(permissions={"message_read"})
    with trio.fail_after(20):
        async with fake.serve() as environment:
            [refused] = await in_thread(listen, kind, environment, 1, event_types=["message.received.spam"])
    assert type(refused).__name__ == "Error"
    assert (refused.name, refused.message) == ("forbidden", "label_spam_read is forbidden")


# The REST API


Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def sdk(kind: Kind, fake: FakeAgentMail, key: str = KEY) -> AsyncIterator[Call]:
    """Call methods of an SDK client by name, on the port of the fake, under Trio or in a thread."""
    with trio.fail_after(20):
        async with fake.serve() as environment:
            where = SdkEnvironment(http=environment.http, websockets=environment.websockets)
            if kind == "async":
                async with httpx.AsyncClient() as http:
                    yield partial(call_async, AsyncAgentMail(api_key=key, environment=where, httpx_client=http))
            else:
                with httpx.Client() as http:
                    yield partial(call_in_thread, AgentMail(api_key=key, environment=where, httpx_client=http))


async def call_async(client: AsyncAgentMail, name: str, *args: Any, **kwargs: Any) -> Any:
    # The retries of the SDK need asyncio.
    return await attrgetter(name)(client)(*args, request_options={"max_retries": 0}, **kwargs)


async def call_in_thread(client: AgentMail, name: str, *args: Any, **kwargs: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: attrgetter(name)(client)(*args, **kwargs), abandon_on_cancel=True)


async def test_the_sdk_lists_messages_page_by_page(kind: Kind) -> None:
    fake = FakeAgentMail(api_keys={KEY})
    mails = [await fake.deliver(inbox_id=INBOX, subject=str(number)) for number in range(5)]
    await fake.deliver(inbox_id=INBOX, event_type="message.received.spam")
    await fake.mail.send(inbox_id=INBOX)
    found: list[Any] = []
    async with sdk(kind, fake) as call:
        token = None
        while token is not None or not found:
            filters: dict[str, Any] = {"labels": ["received"], "after": TIME, "ascending": True, "include_spam": False}
            page = await call("inboxes.messages.list", INBOX, limit=2, page_token=token, **filters)
            assert (page.limit, page.count) == (2, len(page.messages))
            found += page.messages
            token = page.next_page_token
    assert len(fake.record.requests) == 3
    for ours, theirs in zip(mails, found, strict=True):
        listed = attrs.evolve(ours.message, text=None, html=None, extracted_text=None)
        assert differences(listed, theirs) == ["event.reply_to: () is None"]


async def test_the_sdk_gets_messages(kind: Kind) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>", html="<p>", held=True)
    async with sdk(kind, fake) as call:
        whole = await call("inboxes.messages.get", INBOX, "<1@example.com>")
        assert differences(mail.message, whole) == []
        batch = await call("inboxes.messages.batch_get", INBOX, message_ids=["<1@example.com>", "<2@example.com>"])
        assert [(message.message_id, message.text) for message in batch.messages] == [("<1@example.com>", None)]
        with pytest.raises(NotFoundError):
            await call("inboxes.messages.get", INBOX, "<2@example.com>")


async def test_the_sdk_lists_and_gets_threads(kind: Kind) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX, pod_id="pod")
    mails = [await fake.deliver(inbox_id=INBOX, thread_id="t") for _ in range(3)]
    async with sdk(kind, fake) as call:
        listings: list[tuple[str, list[str]]] = [("threads", []), ("inboxes.threads", [INBOX])]
        for name, args in [*listings, ("pods.threads", ["pod"])]:
            [thread] = (await call(f"{name}.list", *args)).threads
            assert differences(mails[-1].thread, thread) == []
        for name, args in listings:
            newest = await call(f"{name}.get", *args, "t", limit=2)
            older = await call(f"{name}.get", *args, "t", limit=2, page_token=newest.next_page_token)
            found = [*older.messages, *newest.messages]
            assert [differences(ours.message, theirs) for ours, theirs in zip(mails, found, strict=True)] == [[]] * 3


async def test_the_sdk_lists_inboxes(kind: Kind) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX, pod_id="pod")
    async with sdk(kind, fake) as call:
        [inbox] = (await call("inboxes.list")).inboxes
        assert (inbox.inbox_id, inbox.pod_id, inbox.email) == (INBOX, "pod", INBOX)
        assert inbox.created_at == inbox.updated_at
        assert (await call("pods.inboxes.list", "pod")).inboxes == [inbox]


async def test_the_sdk_shows_the_errors_of_the_rest_api(kind: Kind) -> None:
    fake = FakeAgentMail(api_keys={KEY}, permissions={"inbox_read"})
    for key, expected in (("am_unknown", (401, "unknown_api_key")), (KEY, (403, "missing_permission"))):
        async with sdk(kind, fake, key) as call:
            with pytest.raises(ApiError) as caught:
                await call("threads.list")
        assert (caught.value.status_code, caught.value.body["code"]) == expected
