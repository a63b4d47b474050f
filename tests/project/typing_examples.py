"""Code as users write it. It is not run; `test_typing.py` checks it with `mypy --strict`."""

from datetime import datetime
from typing import Literal, assert_never, assert_type

import httpx
import httpx2
import trio

from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailError,
    AgentMailSession,
    ApiError,
    AuthenticationError,
    Backend,
    CalendarEventCreatedEvent,
    CalendarEventDeletedEvent,
    CalendarEventEndingEvent,
    CalendarEventRespondedEvent,
    CalendarEventStartingEvent,
    CalendarEventUpdatedEvent,
    CaughtUp,
    ConnectionFailedError,
    Disconnected,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    EventType,
    Message,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageReceivedEvent,
    MessageRejectedEvent,
    MessageSecurityCompletedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    PermissionDeniedError,
    ReconnectPolicy,
    Recovery,
    RecoveryFailed,
    State,
    Statistics,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
    UnknownEvent,
    decode_event,
    open_agentmail_session,
    open_agentmail_stream,
)
from trio_agentmail.events import Bounce, CalendarEvent, Complaint, Delivery, Domain, Open, Reject, Send
from trio_agentmail.testing import FakeAgentMail, encode_event


def a_match_over_the_event_narrows_and_may_be_exhaustive(event: Event) -> None:
    match event:
        case Subscribed():
            assert_type(event, Subscribed)
            assert_type(event.inbox_ids, tuple[str, ...] | None)
        case Disconnected():
            assert_type(event, Disconnected)
            assert_type(event.reason, str)
        case CaughtUp():
            assert_type(event.since, datetime)
            assert_type(event.recovered, int)
        case RecoveryFailed():
            assert_type(event.inbox_id, str | None)
            assert_type(event.since, datetime)
        case ErrorEvent():
            assert_type(event.name, str)
            assert_type(event.message, str)
        case UnknownEvent():
            assert_type(event.event_type, str | None)
            assert_type(event.raw, str)
        case MessageReceivedEvent():
            assert_type(event, MessageReceivedEvent)
            assert_type(event.message, Message)
            assert_type(event.message.from_, str)
            assert_type(event.message.to, tuple[str, ...])
            assert_type(event.message.timestamp, datetime | None)
            assert_type(event.event_id, str | None)
            assert_type(event.attempt, int)
        case MessageSentEvent():
            assert_type(event.send, Send)
        case MessageDeliveredEvent():
            assert_type(event.delivery, Delivery)
        case MessageBouncedEvent():
            assert_type(event.bounce, Bounce)
        case MessageComplainedEvent():
            assert_type(event.complaint, Complaint)
        case MessageRejectedEvent():
            assert_type(event.reject, Reject)
        case MessageOpenedEvent():
            assert_type(event.open, Open)
        case MessageSecurityCompletedEvent():
            assert_type(event, MessageSecurityCompletedEvent)
        case MessageSecurityReviewEvent():
            assert_type(event, MessageSecurityReviewEvent)
        case MessageSecurityOverrideEvent():
            assert_type(event, MessageSecurityOverrideEvent)
        case DomainVerifiedEvent():
            assert_type(event.domain, Domain)
        case CalendarEventCreatedEvent() | CalendarEventUpdatedEvent() | CalendarEventDeletedEvent():
            assert_type(event.calendar_event, CalendarEvent)
        case CalendarEventRespondedEvent():
            assert_type(event.calendar_event, CalendarEvent)
        case CalendarEventStartingEvent() | CalendarEventEndingEvent():
            assert_type(event.calendar_event, CalendarEvent)
        case _:
            assert_never(event)


def a_match_by_attributes_binds_typed_names(event: Event) -> None:
    match event:
        case MessageReceivedEvent(message=Message(from_=sender, subject=subject)):
            assert_type(sender, str)
            assert_type(subject, str | None)
        case Disconnected(last_received=since):
            assert_type(since, datetime | None)


async def the_stream_is_a_receive_channel_of_events() -> None:
    async with open_agentmail_stream(
        Subscribe(inbox_ids=["agent@agentmail.to"], pod_ids=("pod",), event_types={"message.received"}),
        api_key=lambda: "am_key",
        environment=AgentMailEnvironment.EU_PROD,
        reconnect=ReconnectPolicy(max_delay=60, give_up_after=3600),
        ping_interval=None,
        ping_timeout=5,
        buffer_size=1,
        recovery=Recovery(since=datetime.fromisoformat("2026-01-02T03:04:05Z"), sweep_interval=600),
    ) as events:
        assert_type(events, trio.MemoryReceiveChannel[Event])
        assert_type(await events.receive(), Event)
        assert_type(events.clone(), trio.MemoryReceiveChannel[Event])
        async for event in events:
            assert_type(event, Event)


def the_known_event_types_are_a_literal_and_others_can_be_asked_for() -> None:
    wanted: list[EventType] = ["message.received", "message.received.spam", "calendar.event.starting"]
    assert_type(Subscribe(event_types=wanted).event_types, tuple[str, ...] | None)
    Subscribe(event_types=["message.bounced", "thread.closed"])


async def a_session_has_typed_state_and_statistics() -> None:
    backend: Backend = FakeAgentMail()
    async with open_agentmail_session(api_key="am_key", backend=backend, recovery=None) as session:
        assert_type(session, AgentMailSession)
        assert_type(session.events, trio.MemoryReceiveChannel[Event])
        assert_type(session.state, State)
        state: Literal["connecting", "subscribed", "waiting", "stopping", "closed"] = session.state
        print(state)
        statistics = session.statistics()
        assert_type(statistics, Statistics)
        assert_type(statistics.delivered, int)
        assert_type(statistics.last_received, datetime | None)
        assert_type(statistics.last_error, str | None)
        assert_type(statistics.next_attempt_in, float | None)
        await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))


async def errors_have_typed_attributes() -> None:
    try:
        async with open_agentmail_stream():
            await trio.sleep_forever()
    except (AuthenticationError, PermissionDeniedError) as exc:
        assert_type(exc.status_code, int)
    except ApiError as exc:
        assert_type(exc.headers, dict[str, str])
        assert_type(exc.body, str)
    except SubscriptionRejectedError as exc:
        assert_type(exc.name, str)
        assert_type(exc.message, str)
    except ConnectionFailedError as exc:
        assert_type(exc.__cause__, BaseException | None)
    except AgentMailError:
        pass


def text_becomes_an_event_and_back() -> None:
    assert_type(decode_event("{}"), Event)
    assert_type(decode_event(b"{}"), Event)
    assert_type(encode_event(decode_event("{}")), str)


async def the_fakes_transport_serves_clients_of_httpx2_and_of_httpx() -> None:
    fake = FakeAgentMail()
    transport = fake.http_transport()
    async with httpx2.AsyncClient(transport=transport) as client:
        await client.get("https://api.agentmail.to/v0/inboxes")
    async with httpx.AsyncClient(transport=transport) as old_client:
        await old_client.get("https://api.agentmail.to/v0/inboxes")
    assert_type(await transport.handle_async_request(httpx2.Request("GET", "https://fake/v0")), httpx2.Response)
    assert_type(await transport.handle_async_request(httpx.Request("GET", "https://fake/v0")), httpx.Response)


async def a_function_that_answers_requests_takes_and_returns_objects_of_httpx2() -> None:
    fake = FakeAgentMail()
    fake.faults.answer_requests(lambda request: httpx2.Response(200, text=str(request.url)))

    async def answer(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(5)
        return httpx2.Response(503)

    fake.faults.answer_requests(answer, times=None, path="/inboxes")
