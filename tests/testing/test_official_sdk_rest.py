"""The examples of AgentMail's README and quickstarts, run with the official Python SDK on the fake.

Only the environment of the SDK is changed. The examples run in three ways: with the synchronous client in a thread and
the asynchronous client under asyncio, both on the ports of the fake, and with the asynchronous client under Trio in
memory. Tables list which single calls the fake supports.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from operator import attrgetter
from typing import Any, TypeAlias

import httpx
import pytest
import trio
from agentmail import AgentMail, AsyncAgentMail, SendAttachment, Subscribe
from agentmail.core.api_error import ApiError
from agentmail.core.events import EventType
from agentmail.core.request_options import RequestOptions
from agentmail.environment import AgentMailEnvironment as SdkEnvironment
from agentmail.errors import NotFoundError
from agentmail.inboxes import CreateInboxRequest

from trio_agentmail import AgentMailEnvironment
from trio_agentmail.testing import FakeAgentMail

# The SDK prefers what websockets has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:websockets.legacy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:websockets.exceptions.InvalidStatusCode is deprecated:DeprecationWarning"),
]

KEY = "am_key"
AGENT, JANE, CAROL = "agent@agentmail.to", "jane@agentmail.to", "carol@agentmail.to"
DAVE = "dave@example.com"
FILE = b"Soup, 12:30"

Results: TypeAlias = dict[str, Any]
"""The results of a story, by the names of the calls."""

ONCE: RequestOptions = {"max_retries": 0}
"""Disables the retries of the SDK, which need asyncio."""


def attachment_to_send() -> SendAttachment:
    return SendAttachment(filename="menu.txt", content_type="text/plain", content=base64.b64encode(FILE).decode())


def subject_of(raw: bytes) -> str:
    return str(message_from_bytes(raw, policy=policy.default)["Subject"])


# An agent at work, once for each client


def story(client: AgentMail, http: httpx.Client) -> Results:
    told: Results = {}
    request = CreateInboxRequest(username="agent", client_id="agent-1", display_name="Agent")
    agent = client.inboxes.create(request=request)
    told["created again"] = client.inboxes.create(request=request) == agent
    jane = client.inboxes.create(request=CreateInboxRequest(username="jane"))
    client.inboxes.create(request=CreateInboxRequest(username="carol"))
    told["inboxes"] = {inbox.inbox_id for inbox in client.inboxes.list().inboxes}
    told["inbox"] = client.inboxes.get(agent.inbox_id).display_name

    sent = client.inboxes.messages.send(
        jane.inbox_id,
        to=agent.inbox_id,
        cc=[CAROL],
        subject="Lunch?",
        text="Are you there?",
        html="<p>Are you there?</p>",
        attachments=[attachment_to_send()],
    )
    [arrived] = client.inboxes.messages.list(agent.inbox_id, labels=["received"]).messages
    message_id = arrived.message_id
    message = client.inboxes.messages.get(agent.inbox_id, message_id)
    told["arrived"] = (message_id == sent.message_id, message.from_, message.subject, message.text, message.html)
    [part] = message.attachments or []
    attachment = client.inboxes.messages.get_attachment(agent.inbox_id, message_id, part.attachment_id)
    told["attachment"] = (attachment.filename, attachment.size, http.get(attachment.download_url).content)
    raw = client.inboxes.messages.get_raw(agent.inbox_id, message_id)
    told["raw"] = subject_of(http.get(raw.download_url).content)

    client.inboxes.messages.reply(agent.inbox_id, message_id, text="I am.")
    client.inboxes.messages.reply_all(agent.inbox_id, message_id, text="All of us.")
    client.inboxes.messages.forward(agent.inbox_id, message_id, to=DAVE, text="Will you come?")
    update = client.inboxes.messages.update(
        agent.inbox_id, message_id, add_labels=["answered"], remove_labels=["unread"]
    )
    told["labels"] = update.labels

    [item] = client.inboxes.threads.list(agent.inbox_id).threads
    thread = client.threads.get(item.thread_id)
    told["thread"] = [(mail.to, mail.cc, mail.subject) for mail in thread.messages]
    told["same thread"] = client.inboxes.threads.get(agent.inbox_id, item.thread_id) == thread
    told["threads"] = {(one.inbox_id, one.message_count) for one in client.threads.list().threads}
    told["her thread"] = [mail.text for mail in client.inboxes.threads.get(jane.inbox_id, sent.thread_id).messages]

    [pod] = client.pods.list().pods
    told["pod"] = client.pods.get(pod.pod_id) == pod and agent.pod_id == pod.pod_id
    told["inboxes of the pod"] = {inbox.inbox_id for inbox in client.pods.inboxes.list(pod.pod_id).inboxes}

    client.inboxes.delete(jane.inbox_id)
    try:
        client.inboxes.get(jane.inbox_id)
    except NotFoundError as error:
        told["deleted"] = (error.status_code, error.body.code)
    return told


async def async_story(client: AsyncAgentMail, http: httpx.AsyncClient, options: RequestOptions | None) -> Results:
    told: Results = {}
    request = CreateInboxRequest(username="agent", client_id="agent-1", display_name="Agent")
    agent = await client.inboxes.create(request=request, request_options=options)
    told["created again"] = await client.inboxes.create(request=request, request_options=options) == agent
    jane = await client.inboxes.create(request=CreateInboxRequest(username="jane"), request_options=options)
    await client.inboxes.create(request=CreateInboxRequest(username="carol"), request_options=options)
    told["inboxes"] = {inbox.inbox_id for inbox in (await client.inboxes.list(request_options=options)).inboxes}
    told["inbox"] = (await client.inboxes.get(agent.inbox_id, request_options=options)).display_name

    messages = client.inboxes.messages
    sent = await messages.send(
        jane.inbox_id,
        to=agent.inbox_id,
        cc=[CAROL],
        subject="Lunch?",
        text="Are you there?",
        html="<p>Are you there?</p>",
        attachments=[attachment_to_send()],
        request_options=options,
    )
    [arrived] = (await messages.list(agent.inbox_id, labels=["received"], request_options=options)).messages
    message_id = arrived.message_id
    message = await messages.get(agent.inbox_id, message_id, request_options=options)
    told["arrived"] = (message_id == sent.message_id, message.from_, message.subject, message.text, message.html)
    [part] = message.attachments or []
    attachment = await messages.get_attachment(agent.inbox_id, message_id, part.attachment_id, request_options=options)
    told["attachment"] = (attachment.filename, attachment.size, (await http.get(attachment.download_url)).content)
    raw = await messages.get_raw(agent.inbox_id, message_id, request_options=options)
    told["raw"] = subject_of((await http.get(raw.download_url)).content)

    await messages.reply(agent.inbox_id, message_id, text="I am.", request_options=options)
    await messages.reply_all(agent.inbox_id, message_id, text="All of us.", request_options=options)
    await messages.forward(agent.inbox_id, message_id, to=DAVE, text="Will you come?", request_options=options)
    update = await messages.update(
        agent.inbox_id, message_id, add_labels=["answered"], remove_labels=["unread"], request_options=options
    )
    told["labels"] = update.labels

    [item] = (await client.inboxes.threads.list(agent.inbox_id, request_options=options)).threads
    thread = await client.threads.get(item.thread_id, request_options=options)
    told["thread"] = [(mail.to, mail.cc, mail.subject) for mail in thread.messages]
    same = await client.inboxes.threads.get(agent.inbox_id, item.thread_id, request_options=options)
    told["same thread"] = same == thread
    threads = await client.threads.list(request_options=options)
    told["threads"] = {(one.inbox_id, one.message_count) for one in threads.threads}
    hers = await client.inboxes.threads.get(jane.inbox_id, sent.thread_id, request_options=options)
    told["her thread"] = [mail.text for mail in hers.messages]

    [pod] = (await client.pods.list(request_options=options)).pods
    told["pod"] = await client.pods.get(pod.pod_id, request_options=options) == pod and agent.pod_id == pod.pod_id
    in_pod = await client.pods.inboxes.list(pod.pod_id, request_options=options)
    told["inboxes of the pod"] = {inbox.inbox_id for inbox in in_pod.inboxes}

    await client.inboxes.delete(jane.inbox_id, request_options=options)
    try:
        await client.inboxes.get(jane.inbox_id, request_options=options)
    except NotFoundError as error:
        told["deleted"] = (error.status_code, error.body.code)
    return told


STORY: Results = {
    "created again": True,
    "inboxes": {AGENT, JANE, CAROL},
    "inbox": "Agent",
    "arrived": (True, JANE, "Lunch?", "Are you there?", "<p>Are you there?</p>"),
    "attachment": ("menu.txt", len(FILE), FILE),
    "raw": "Lunch?",
    "labels": ["received", "answered"],
    "thread": [
        ([AGENT], [CAROL], "Lunch?"),
        ([JANE], [], "Re: Lunch?"),
        ([JANE], [CAROL], "Re: Lunch?"),
        ([DAVE], [], "Fwd: Lunch?"),
    ],
    "same thread": True,
    "threads": {(AGENT, 4), (JANE, 3), (CAROL, 2)},
    "her thread": ["Are you there?", "I am.", "All of us."],
    "pod": True,
    "inboxes of the pod": {AGENT, JANE, CAROL},
    "deleted": (404, "not_found"),
}


# Where it happens


def sdk_environment(environment: AgentMailEnvironment) -> SdkEnvironment:
    return SdkEnvironment(http=environment.http, websockets=environment.websockets)


async def in_thread(sync_fn: Callable[[], Any]) -> Any:
    # If the test fails, the thread is abandoned. It ends when `serve` cuts its connection.
    return await trio.to_thread.run_sync(sync_fn, abandon_on_cancel=True)


@asynccontextmanager
async def in_memory(fake: FakeAgentMail) -> AsyncIterator[tuple[AsyncAgentMail, httpx.AsyncClient]]:
    where = SdkEnvironment(http="https://api.example", websockets="wss://ws.example")
    async with httpx.AsyncClient(transport=fake.http_transport()) as http:
        yield AsyncAgentMail(api_key=KEY, environment=where, httpx_client=http), http


async def test_the_synchronous_client_does_an_agents_work_in_a_thread() -> None:
    fake = FakeAgentMail(api_keys={KEY})

    def work(where: SdkEnvironment) -> Results:
        with httpx.Client() as http:
            return story(AgentMail(api_key=KEY, environment=where, httpx_client=http), http)

    with trio.fail_after(30):
        async with fake.serve() as environment:
            assert await in_thread(lambda: work(sdk_environment(environment))) == STORY


async def test_the_asynchronous_client_does_an_agents_work_under_asyncio() -> None:
    fake = FakeAgentMail(api_keys={KEY})

    async def work(where: SdkEnvironment) -> Results:
        async with httpx.AsyncClient() as http:
            return await async_story(AsyncAgentMail(api_key=KEY, environment=where, httpx_client=http), http, None)

    with trio.fail_after(30):
        async with fake.serve() as environment:
            assert await in_thread(lambda: asyncio.run(work(sdk_environment(environment)))) == STORY


async def test_the_asynchronous_client_does_an_agents_work_under_trio_in_memory() -> None:
    async with in_memory(FakeAgentMail(api_keys={KEY})) as (client, http):
        assert await async_story(client, http, ONCE) == STORY


# Streams


def stream(where: SdkEnvironment) -> list[Any]:
    """Return what iterating over the socket of the synchronous client yields until the agent has replied."""
    with httpx.Client() as http:
        client = AgentMail(api_key=KEY, environment=where, httpx_client=http)
        happened = []
        with client.websockets.connect() as socket:
            socket.send_subscribe(Subscribe(inbox_ids=[AGENT]))
            for event in socket:
                happened.append(event)
                match event.type, getattr(event, "event_type", None):
                    case "subscribed", _:
                        client.inboxes.messages.send(JANE, to=AGENT, subject="Lunch?", text="Are you there?")
                    case "event", "message.received":
                        client.inboxes.messages.reply(AGENT, event.message.message_id, text="I am.")
                    case "event", "message.delivered":
                        break
        return happened


async def async_stream(where: SdkEnvironment) -> list[Any]:
    """Return the same for the asynchronous client."""
    async with httpx.AsyncClient() as http:
        client = AsyncAgentMail(api_key=KEY, environment=where, httpx_client=http)
        happened = []
        async with client.websockets.connect() as socket:
            await socket.send_subscribe(Subscribe(inbox_ids=[AGENT]))
            async for event in socket:
                happened.append(event)
                match event.type, getattr(event, "event_type", None):
                    case "subscribed", _:
                        await client.inboxes.messages.send(JANE, to=AGENT, subject="Lunch?", text="Are you there?")
                    case "event", "message.received":
                        await client.inboxes.messages.reply(AGENT, event.message.message_id, text="I am.")
                    case "event", "message.delivered":
                        break
        return happened


@pytest.mark.parametrize("work", [stream, lambda where: asyncio.run(async_stream(where))], ids=["sync", "async"])
async def test_an_sdk_stream_receives_a_mail_and_the_agents_own_reply(
    work: Callable[[SdkEnvironment], list[Any]],
) -> None:
    fake = FakeAgentMail(api_keys={KEY})
    fake.mail.add_inbox(AGENT)
    fake.mail.add_inbox(JANE)
    with trio.fail_after(30):
        async with fake.serve() as environment:
            happened = await in_thread(lambda: work(sdk_environment(environment)))
    assert [type(event).__name__ for event in happened] == [
        "Subscribed",
        "MessageReceivedEvent",
        "MessageSentEvent",
        "MessageDeliveredEvent",
    ]
    _, received, sent, delivered = happened
    assert (received.message.from_, received.message.text) == (JANE, "Are you there?")
    assert sent.send.thread_id == delivered.delivery.thread_id == received.message.thread_id
    [answer] = fake.mail.messages(JANE, "received")
    assert answer.in_reply_to == received.message.message_id


async def test_handlers_of_the_sdk_receive_nothing_until_it_listens() -> None:
    # The README shows only `socket.on(…)`, which alone receives nothing.
    fake = FakeAgentMail()

    def listen(where: SdkEnvironment) -> list[str]:
        happened: list[str] = []
        with AgentMail(api_key=KEY, environment=where).websockets.connect() as socket:
            socket.on(EventType.MESSAGE, lambda event: happened.append(event.type))
            socket.on(EventType.CLOSE, lambda _: happened.append("closed"))
            socket.send_subscribe(Subscribe(inbox_ids=[AGENT]))
            socket.start_listening()
        return happened

    happened: list[str] = []
    with trio.fail_after(30):
        async with fake.serve() as environment, trio.open_nursery() as nursery:

            async def run() -> None:
                happened.extend(await in_thread(lambda: listen(sdk_environment(environment))))

            nursery.start_soon(run)
            await fake.wait_subscribed()
            await fake.deliver(inbox_id=AGENT)
            await fake.drop_connections(1000)
    assert happened == ["subscribed", "event", "closed"]


# Single calls

POD = "default"
MAIL = "<1@example.com>"
THREAD, ATTACHMENT, EMPTY_POD = "(thread)", "(attachment)", "(empty pod)"
"""Placeholders for ids that are known only when the call is made."""

WORKS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("inboxes.create", (), {}),
    ("inboxes.list", (), {"limit": 1, "ascending": True}),
    ("inboxes.get", (AGENT,), {}),
    ("inboxes.update", (AGENT,), {"display_name": "Agent", "metadata": {"run": 7}}),
    ("inboxes.delete", (AGENT,), {}),
    ("inboxes.messages.list", (AGENT,), {"from_": ["jane"], "subject": ["lunch"], "include_trash": True}),
    ("inboxes.messages.get", (AGENT, MAIL), {}),
    ("inboxes.messages.batch_get", (AGENT,), {"message_ids": [MAIL]}),
    ("inboxes.messages.update", (AGENT, MAIL), {"add_labels": "answered"}),
    ("inboxes.messages.batch_update", (AGENT,), {"message_ids": [MAIL], "remove_labels": ["unread"]}),
    ("inboxes.messages.get_raw", (AGENT, MAIL), {}),
    ("inboxes.messages.get_attachment", (AGENT, MAIL, ATTACHMENT), {}),
    ("inboxes.messages.delete", (AGENT, MAIL), {}),
    ("inboxes.messages.send", (AGENT,), {"to": DAVE, "text": "Hi!", "track_opens": True, "idempotency_key": "k"}),
    ("inboxes.messages.reply", (AGENT, MAIL), {"text": "Hi!", "reply_all": True}),
    ("inboxes.messages.reply_all", (AGENT, MAIL), {"text": "Hi!"}),
    ("inboxes.messages.forward", (AGENT, MAIL), {"to": [DAVE]}),
    *(
        call
        for name, scope in (("threads", ()), ("inboxes.threads", (AGENT,)), ("pods.threads", (POD,)))
        for call in (
            (f"{name}.list", scope, {"senders": ["jane"], "limit": 1}),
            (f"{name}.get", (*scope, THREAD), {}),
            (f"{name}.update", (*scope, THREAD), {"add_labels": ["answered"]}),
            (f"{name}.get_attachment", (*scope, THREAD, ATTACHMENT), {}),
            (f"{name}.delete", (*scope, THREAD), {}),
        )
    ),
    ("pods.list", (), {}),
    ("pods.get", (POD,), {}),
    ("pods.create", (), {"name": "Customer", "client_id": "customer-1"}),
    ("pods.delete", (EMPTY_POD,), {}),
    ("pods.inboxes.list", (POD,), {}),
    ("pods.inboxes.get", (POD, AGENT), {}),
    ("pods.inboxes.create", (POD,), {"username": "new", "client_id": "new-1"}),
    ("pods.inboxes.update", (POD, AGENT), {"display_name": "Agent"}),
    ("pods.inboxes.delete", (POD, AGENT), {}),
]
"""The supported calls: name, arguments, and keyword arguments."""

ABSENT: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("inboxes.search", (), {"q": "agent"}),
    ("inboxes.authorize", (AGENT,), {"auth_token": "token"}),
    ("inboxes.messages.search", (AGENT,), {"q": "lunch"}),
    ("inboxes.messages.create_agent_armor_feedback", (AGENT, MAIL), {"feedback": "false_positive"}),
    ("inboxes.messages.release_agent_armor_message", (AGENT, MAIL), {"reason": "known"}),
    ("threads.search", (), {"q": "lunch"}),
    ("inboxes.threads.search", (AGENT,), {"q": "lunch"}),
    ("pods.threads.search", (POD,), {"q": "lunch"}),
    ("pods.inboxes.search", (POD,), {"q": "agent"}),
    ("drafts.list", (), {}),
    ("inboxes.drafts.list", (AGENT,), {}),
    ("inboxes.drafts.create", (AGENT,), {"to": [DAVE]}),
    ("pods.drafts.list", (POD,), {}),
    ("webhooks.list", (), {}),
    ("webhooks.create", (), {"url": "https://example.com", "event_types": ["message.received"]}),
    ("inboxes.webhooks.list", (AGENT,), {}),
    ("domains.list", (), {}),
    ("lists.list", ("receive", "block"), {}),
    ("inboxes.lists.list", (AGENT, "receive", "block"), {}),
    ("metrics.query_events", (), {}),
    ("inboxes.metrics.query_events", (AGENT,), {}),
    ("inboxes.events.list", (AGENT,), {}),
    ("inboxes.files.list", (AGENT,), {}),
    ("inboxes.calendar.get", (AGENT,), {}),
    ("api_keys.list", (), {}),
    ("inboxes.api_keys.list", (AGENT,), {}),
    ("accounts.list", (), {}),
    ("apps.list", (), {}),
    ("organizations.get", (), {}),
    ("auth.me", (), {}),
    ("agent.sign_up", (), {"username": "agent"}),
]
"""The calls that the fake does not support."""


def methods(client: Any, name: str) -> set[str]:
    """Return the calls of a part of the client, without those of its own parts."""
    part = attrgetter(name)(client)
    return {f"{name}.{method}" for method, value in vars(type(part)).items() if is_call(method, value)}


def is_call(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, property)


def mail_with_attachment() -> EmailMessage:
    mail = EmailMessage()
    mail["Message-ID"], mail["From"], mail["To"], mail["Subject"] = MAIL, JANE, AGENT, "Lunch?"
    mail.set_content("Are you there?")
    mail.add_attachment(FILE, maintype="text", subtype="plain", filename="menu.txt")
    return mail


async def call_by_name(name: str, args: tuple[str, ...], kwargs: dict[str, Any]) -> Any:
    """Call the SDK on a fake that has an inbox with a mail."""
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    [event] = await fake.deliver(mail_with_attachment())
    async with in_memory(fake) as (client, _):
        pod = await client.pods.create(request_options=ONCE)
        ids = {
            THREAD: event.message.thread_id,
            ATTACHMENT: event.message.attachments[0].attachment_id,
            EMPTY_POD: pod.pod_id,
        }
        return await attrgetter(name)(client)(*(ids.get(arg, arg) for arg in args), request_options=ONCE, **kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs"), WORKS, ids=[name for name, _, _ in WORKS])
async def test_the_fake_answers_the_call_with_what_the_sdk_expects(
    name: str, args: tuple[str, ...], kwargs: dict[str, Any]
) -> None:
    answer = await call_by_name(name, args, kwargs)
    if name.endswith(".delete"):
        assert answer is None
    else:
        # The SDK accepts missing fields silently, so validate strictly.
        type(answer).model_validate(answer.model_dump(by_alias=True, exclude_unset=True, warnings=False))


@pytest.mark.parametrize(("name", "args", "kwargs"), ABSENT, ids=[name for name, _, _ in ABSENT])
async def test_an_unsupported_call_raises_a_404_in_the_sdk(
    name: str, args: tuple[str, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(ApiError) as caught:
        await call_by_name(name, args, kwargs)
    assert caught.value.status_code == 404


def test_the_tables_have_every_sdk_call_for_supported_resources() -> None:
    client = AsyncAgentMail(api_key=KEY, httpx_client=httpx.AsyncClient())
    parts = ["inboxes", "inboxes.messages", "inboxes.threads", "threads", "pods", "pods.inboxes", "pods.threads"]
    known = {name for name, _, _ in (*WORKS, *ABSENT)}
    assert set().union(*(methods(client, part) for part in parts)) <= known


# What surprises in the SDK


async def test_the_sdk_creates_an_inbox_by_a_request_object_except_in_a_pod() -> None:
    # Examples for older versions pass the fields as keyword arguments.
    async with in_memory(FakeAgentMail()) as (client, _):
        untyped: Any = client
        with pytest.raises(TypeError, match="unexpected keyword argument 'username'"):
            await untyped.inboxes.create(username="agent")
        assert (await client.pods.inboxes.create(POD, username="agent", request_options=ONCE)).inbox_id == AGENT


@pytest.mark.filterwarnings("ignore:There is no current event loop")  # before Python 3.14, asyncio creates one then
async def test_under_trio_the_sdk_can_neither_retry_nor_stream() -> None:
    fake = FakeAgentMail()
    async with in_memory(fake) as (client, _):
        fake.faults.fail_requests(503)
        with pytest.raises(RuntimeError, match="no running event loop"):
            await client.inboxes.list()
        fake.faults.fail_requests(503)
        with pytest.raises(ApiError) as caught:
            await client.inboxes.list(request_options=ONCE)
        assert caught.value.status_code == 503
        with pytest.raises(RuntimeError, match=r"no (running|current) event loop"):
            async with client.websockets.connect():
                pass
    assert fake.record.handshakes == []


async def test_an_idempotency_key_makes_it_safe_to_repeat_a_broken_sdk_request() -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    fake.faults.break_requests(path="/send")
    async with in_memory(fake) as (client, _):
        with pytest.raises(httpx.TransportError):
            await client.inboxes.messages.send(AGENT, to=DAVE, idempotency_key="lunch")
        assert len(fake.record.requests) == 1
        answers = [await client.inboxes.messages.send(AGENT, to=DAVE, idempotency_key="lunch") for _ in range(2)]
    [sent] = fake.mail.messages(AGENT, "sent")
    assert [answer.message_id for answer in answers] == [sent.message_id] * 2


async def test_an_error_unexpected_by_the_sdk_is_a_plain_api_error() -> None:
    async with in_memory(FakeAgentMail()) as (client, _):
        with pytest.raises(NotFoundError) as expected:
            await client.inboxes.get("nobody@agentmail.to", request_options=ONCE)
        assert expected.value.body.code == "not_found"
        request = CreateInboxRequest(username="agent")
        await client.inboxes.create(request=request, request_options=ONCE)
        with pytest.raises(ApiError) as unexpected:
            await client.inboxes.create(request=request, request_options=ONCE)
    assert type(unexpected.value) is ApiError
    assert unexpected.value.status_code == 403
    assert isinstance(unexpected.value.body, dict)
    assert unexpected.value.body["code"] == "resource_taken"


async def test_the_sdk_repeats_a_failed_send_without_a_key_of_its_own() -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    fake.faults.fail_requests(503, headers=[("Retry-After", "0")], path="/send")

    def send(where: SdkEnvironment) -> None:
        with httpx.Client() as http:
            client = AgentMail(api_key=KEY, environment=where, httpx_client=http)
            client.inboxes.messages.send(AGENT, to=DAVE)

    with trio.fail_after(30):
        async with fake.serve() as environment:
            await in_thread(lambda: send(sdk_environment(environment)))
    assert [request.status for request in fake.record.requests] == [503, 200]


async def test_an_attachment_by_url_is_refused() -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    attachment = SendAttachment(url="https://example.com/menu.txt")
    async with in_memory(fake) as (client, _):
        with pytest.raises(ApiError) as caught:
            await client.inboxes.messages.send(AGENT, to=DAVE, attachments=[attachment], request_options=ONCE)
    assert caught.value.status_code == 400


def test_the_sdk_uses_the_timeout_of_a_given_httpx_client() -> None:
    with httpx.Client() as http:
        client: Any = AgentMail(api_key=KEY, httpx_client=http)
        assert client._client_wrapper.get_timeout() == 5


@pytest.mark.parametrize("message_id", ["<a/b@example.com>", "<a?b@example.com>", "<a#b@example.com>"])
async def test_the_sdk_does_not_percent_encode_message_ids(message_id: str) -> None:
    # As of version 2.0.18.
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=AGENT, message_id=message_id)
    async with in_memory(fake) as (client, _):
        with pytest.raises(NotFoundError):
            await client.inboxes.messages.get(AGENT, message_id, request_options=ONCE)
