"""The official SDK, unchanged but for its environment, does on the fake what its README and AgentMail's guides show.

Its synchronous client runs in a thread and its asynchronous one under asyncio, both over the port; under Trio the
asynchronous one is in memory. `tests/test_official_sdk.py` has what it receives on its WebSocket.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any, Literal

import httpx
import pytest
import trio
from agentmail import AgentMail, AsyncAgentMail
from agentmail.attachments.types import SendAttachment
from agentmail.core.api_error import ApiError
from agentmail.environment import AgentMailEnvironment as SdkEnvironment
from agentmail.errors import ConflictError, NotFoundError, ValidationError
from agentmail.events.types import MessageReceivedEvent
from agentmail.inboxes.types import CreateInboxRequest
from agentmail.websockets.types import Subscribe

from trio_agentmail import AgentMailEnvironment
from trio_agentmail.testing import FakeAgentMail

# The SDK prefers what websockets has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:websockets.legacy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:websockets.exceptions.InvalidStatusCode is deprecated:DeprecationWarning"),
]

Kind = Literal["sync", "asyncio", "trio"]
Call = Callable[..., Awaitable[Any]]

KEY = "am_key"
AGENT = "agent@agentmail.to"
OTHER = "other@agentmail.to"
JANE = "Jane <jane@example.com>"

every_client = pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])


def sdk_environment(environment: AgentMailEnvironment) -> SdkEnvironment:
    return SdkEnvironment(http=environment.http, websockets=environment.websockets)


@asynccontextmanager
async def sdk(kind: Kind, fake: FakeAgentMail) -> AsyncIterator[Call]:
    """Methods of the SDK's client, by their names, each with the SDK's own retries off.

    Under Trio these need to be off, since they need asyncio; elsewhere they would make a test wait.
    """
    options: dict[str, Any] = {"request_options": {"max_retries": 0}}
    with trio.fail_after(20):
        if kind == "trio":
            async with httpx.AsyncClient(transport=fake.http_transport()) as http:
                client = AsyncAgentMail(api_key=KEY, httpx_client=http)

                async def call_in_memory(name: str, /, *args: Any, **kwargs: Any) -> Any:
                    return await attrgetter(name)(client)(*args, **options, **kwargs)

                yield call_in_memory
            return
        async with fake.serve() as environment:
            where = sdk_environment(environment)

            def call_sync(name: str, /, *args: Any, **kwargs: Any) -> Any:
                with httpx.Client() as http:
                    client = AgentMail(api_key=KEY, environment=where, httpx_client=http)
                    return attrgetter(name)(client)(*args, **options, **kwargs)

            async def call_asyncio(name: str, /, *args: Any, **kwargs: Any) -> Any:
                async with httpx.AsyncClient() as http:
                    client = AsyncAgentMail(api_key=KEY, environment=where, httpx_client=http)
                    return await attrgetter(name)(client)(*args, **options, **kwargs)

            async def call_in_thread(name: str, /, *args: Any, **kwargs: Any) -> Any:
                def call() -> Any:
                    if kind == "sync":
                        return call_sync(name, *args, **kwargs)
                    return asyncio.run(call_asyncio(name, *args, **kwargs))

                return await trio.to_thread.run_sync(call, abandon_on_cancel=True)

            yield call_in_thread


def two_inboxes() -> FakeAgentMail:
    fake = FakeAgentMail(api_keys={KEY})
    fake.add_inbox(AGENT)
    fake.add_inbox(OTHER)
    return fake


# Inboxes and pods


@every_client
async def test_the_readmes_first_call_makes_an_inbox(kind: Kind) -> None:
    async with sdk(kind, FakeAgentMail()) as call:
        inbox = await call("inboxes.create")
        assert inbox.inbox_id == inbox.email
        assert inbox.email.endswith("@agentmail.to")
        assert (await call("inboxes.get", inbox.inbox_id)) == inbox


@every_client
async def test_an_inbox_is_made_listed_changed_and_deleted(kind: Kind) -> None:
    async with sdk(kind, FakeAgentMail()) as call:
        request = CreateInboxRequest(username="agent", display_name="Agent", client_id="agent-1", metadata={"n": 1})
        inbox = await call("inboxes.create", request=request)
        assert (inbox.inbox_id, inbox.display_name, inbox.client_id) == (AGENT, "Agent", "agent-1")
        assert inbox.metadata == {"n": 1}
        assert await call("inboxes.create", request=request) == inbox
        assert (await call("inboxes.list")).inboxes == [inbox]
        changed = await call("inboxes.update", AGENT, display_name="New", metadata={"n": None, "s": "x"})
        assert (changed.display_name, changed.metadata) == ("New", {"s": "x"})
        assert await call("inboxes.delete", AGENT) is None
        with pytest.raises(NotFoundError):
            await call("inboxes.get", AGENT)


@every_client
async def test_a_pod_has_inboxes_and_threads_of_its_own(kind: Kind) -> None:
    fake = FakeAgentMail()
    async with sdk(kind, fake) as call:
        pod = await call("pods.create", name="Acme", client_id="acme")
        assert await call("pods.get", pod.pod_id) == pod
        assert [other.name for other in (await call("pods.list")).pods] == ["Acme", "default"]
        inbox = await call("pods.inboxes.create", pod.pod_id, username="agent")
        assert inbox.pod_id == pod.pod_id
        assert (await call("pods.inboxes.list", pod.pod_id)).inboxes == [inbox]
        assert await call("pods.inboxes.get", pod.pod_id, AGENT) == inbox
        await call("pods.inboxes.update", pod.pod_id, AGENT, display_name="Agent")
        await fake.deliver(inbox_id=AGENT, thread_id="t")
        await fake.deliver(inbox_id=OTHER)
        assert [thread.thread_id for thread in (await call("pods.threads.list", pod.pod_id)).threads] == ["t"]
        assert (await call("pods.threads.get", pod.pod_id, "t")).message_count == 1
        await call("pods.threads.update", pod.pod_id, "t", add_labels=["x"])
        await call("pods.threads.delete", pod.pod_id, "t")
        with pytest.raises(ApiError) as caught:
            await call("pods.delete", pod.pod_id)
        assert caught.value.body["code"] == "cannot_delete"
        await call("pods.inboxes.delete", pod.pod_id, AGENT)
        await call("pods.delete", pod.pod_id)


# Mail


@every_client
async def test_a_conversation_of_two_inboxes(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        sent = await call("inboxes.messages.send", AGENT, to=OTHER, subject="Hi", text="Hi!", labels=["outreach"])
        [item] = (await call("inboxes.messages.list", OTHER, labels=["unread"])).messages
        assert (item.message_id, item.from_, item.to, item.preview) == (sent.message_id, AGENT, [OTHER], "Hi!")
        message = await call("inboxes.messages.get", OTHER, item.message_id)
        assert (message.text, message.labels) == ("Hi!", ["received", "unread"])
        reply = await call("inboxes.messages.reply", OTHER, item.message_id, text="Hello!", html="<p>Hello!</p>")
        updated = await call(
            "inboxes.messages.update", OTHER, item.message_id, add_labels=["replied"], remove_labels=["unread"]
        )
        assert (updated.message_id, updated.labels) == (sent.message_id, ["received", "replied"])
        [thread] = (await call("inboxes.threads.list", AGENT)).threads
        assert (thread.thread_id, thread.message_count) == (sent.thread_id, 2)
        for found in (
            await call("inboxes.threads.get", AGENT, sent.thread_id),
            await call("threads.get", sent.thread_id),
        ):
            assert [part.message_id for part in found.messages] == [sent.message_id, reply.message_id]
            assert found.messages[1].in_reply_to == sent.message_id
        assert (await call("inboxes.messages.list", AGENT, labels=["outreach"])).count == 1
        assert (await call("inboxes.messages.list", AGENT, from_=["other@"], subject=["re:"])).count == 1
        assert (await call("threads.list", senders=["other@"])).count == 2


@every_client
async def test_a_reply_to_all_and_a_forwarded_mail(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        sent = await call("inboxes.messages.send", AGENT, to=[OTHER, JANE], cc="bob@example.com", subject="Hi")
        reply = await call("inboxes.messages.reply_all", OTHER, sent.message_id, text="Yes")
        message = await call("inboxes.messages.get", AGENT, reply.message_id)
        assert (message.to, message.cc) == ([AGENT, JANE], ["bob@example.com"])
        forward = await call("inboxes.messages.forward", OTHER, sent.message_id, to=[AGENT], text="Look")
        message = await call("inboxes.messages.get", AGENT, forward.message_id)
        assert (message.subject, message.text.splitlines()[0]) == ("Fwd: Hi", "Look")


@every_client
async def test_attachments_and_the_raw_mail_are_downloaded_from_where_the_answers_say(kind: Kind) -> None:
    fake = two_inboxes()
    content = base64.b64encode(b"data").decode()
    files = [SendAttachment(content=content, filename="a.txt", content_type="text/plain", content_disposition="inline")]

    async def download(url: str) -> bytes:
        async with httpx.AsyncClient(transport=fake.http_transport()) as client:
            return (await client.get(url)).content

    async with sdk(kind, fake) as call:
        sent = await call("inboxes.messages.send", AGENT, to=[OTHER], text="See attachment", attachments=files)
        [attachment] = (await call("inboxes.messages.get", OTHER, sent.message_id)).attachments
        assert (attachment.filename, attachment.content_type, attachment.size) == ("a.txt", "text/plain", 4)
        assert attachment.content_disposition == "inline"
        for found in (
            await call("inboxes.messages.get_attachment", OTHER, sent.message_id, attachment.attachment_id),
            await call("threads.get_attachment", sent.thread_id, attachment.attachment_id),
            await call("inboxes.threads.get_attachment", AGENT, sent.thread_id, attachment.attachment_id),
        ):
            assert (found.filename, await download(found.download_url)) == ("a.txt", b"data")
        raw = await call("inboxes.messages.get_raw", OTHER, sent.message_id)
        assert (await download(raw.download_url)).count(content.encode()) == 1


@every_client
async def test_messages_and_threads_in_batches_and_their_end(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        ids = [(await call("inboxes.messages.send", AGENT, to=JANE, subject=str(n))).message_id for n in range(2)]
        assert (await call("inboxes.messages.batch_get", AGENT, message_ids=ids)).count == 2
        batch = await call("inboxes.messages.batch_update", AGENT, message_ids=ids, add_labels=["done"])
        assert [update.message_id for update in batch.updates] == ids
        await call("inboxes.messages.delete", AGENT, ids[0])
        [thread] = (await call("inboxes.threads.list", AGENT)).threads
        updated = await call("inboxes.threads.update", AGENT, thread.thread_id, remove_labels=["done"])
        assert updated.labels == ["sent", "delivered"]
        await call("threads.update", thread.thread_id, add_labels=["x"])
        await call("threads.delete", thread.thread_id)
        assert (await call("threads.list")).threads == []


@every_client
async def test_a_send_with_an_idempotency_key_is_sent_once(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        mail = {"to": [OTHER], "text": "Your receipt", "idempotency_key": "order-4821"}
        sent = await call("inboxes.messages.send", AGENT, **mail)
        assert await call("inboxes.messages.send", AGENT, **mail) == sent
        with pytest.raises(ConflictError):
            await call("inboxes.messages.send", AGENT, **mail | {"text": "Your other receipt"})
        assert (await call("inboxes.messages.list", OTHER)).count == 1


@every_client
async def test_what_is_refused_is_an_error_of_the_sdk(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        with pytest.raises(ValidationError) as invalid:
            await call("inboxes.messages.send", AGENT, to="nobody")
        assert invalid.value.body.errors[0]["path"] == ["to"]
        with pytest.raises(ApiError) as nobody:
            await call("inboxes.messages.send", AGENT, text="To whom?")
        assert (nobody.value.status_code, nobody.value.body["code"]) == (422, "unprocessable")
        with pytest.raises(NotFoundError) as missing:
            await call("inboxes.messages.reply", AGENT, "<nothing>", text="Hi")
        assert (missing.value.body.name, missing.value.body.code) == ("NotFoundError", "not_found")


@every_client
async def test_what_the_fake_does_not_have_is_not_found(kind: Kind) -> None:
    async with sdk(kind, two_inboxes()) as call:
        for name, *args in (
            ("inboxes.drafts.list", AGENT),
            ("webhooks.list",),
            ("domains.list",),
            ("organizations.get",),
        ):
            with pytest.raises(ApiError) as caught:
                await call(name, *args)
            assert caught.value.status_code == 404
        for name, *args in (("inboxes.messages.search", AGENT), ("threads.search",), ("inboxes.search",)):
            with pytest.raises(ApiError) as caught:
                await call(name, *args, q="Hi")
            assert caught.value.status_code == 404


@every_client
async def test_the_python_sdk_finds_no_message_whose_id_has_a_slash(kind: Kind) -> None:
    # Version 2.0.18 puts ids into paths as they are. The Node SDK encodes them.
    fake = two_inboxes()
    await fake.deliver(inbox_id=AGENT, message_id="<a/b@example.com>")
    async with sdk(kind, fake) as call:
        with pytest.raises(NotFoundError):
            await call("inboxes.messages.get", AGENT, "<a/b@example.com>")


# An agent, as AgentMail's quickstart of WebSockets has it


def answer_sync(environment: SdkEnvironment) -> list[Any]:
    with httpx.Client() as http:
        client = AgentMail(api_key=KEY, environment=environment, httpx_client=http)
        seen: list[Any] = []
        with client.websockets.connect() as socket:
            socket.send_subscribe(Subscribe(inbox_ids=[AGENT]))
            for event in socket:
                seen.append(event)
                if isinstance(event, MessageReceivedEvent):
                    client.inboxes.messages.reply(AGENT, event.message.message_id, text="Thank you!")
                if event.type == "event" and event.event_type == "message.delivered":
                    break
        return seen


async def answer_async(environment: SdkEnvironment) -> list[Any]:
    async with httpx.AsyncClient() as http:
        client = AsyncAgentMail(api_key=KEY, environment=environment, httpx_client=http)
        seen: list[Any] = []
        async with client.websockets.connect() as socket:
            await socket.send_subscribe(Subscribe(inbox_ids=[AGENT]))
            async for event in socket:
                seen.append(event)
                if isinstance(event, MessageReceivedEvent):
                    await client.inboxes.messages.reply(AGENT, event.message.message_id, text="Thank you!")
                if event.type == "event" and event.event_type == "message.delivered":
                    break
        return seen


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
async def test_an_agent_that_listens_and_replies(kind: Kind) -> None:
    fake = FakeAgentMail(api_keys={KEY})
    seen: list[Any] = []

    async def agent(environment: SdkEnvironment) -> None:
        def run() -> list[Any]:
            return answer_sync(environment) if kind == "sync" else asyncio.run(answer_async(environment))

        seen.extend(await trio.to_thread.run_sync(run, abandon_on_cancel=True))

    with trio.fail_after(20):
        async with fake.serve() as environment, trio.open_nursery() as nursery:
            nursery.start_soon(agent, sdk_environment(environment))
            await fake.wait_subscribed()
            mail = await fake.deliver(inbox_id=AGENT, from_=JANE, subject="Question")
    confirmed, received, sent, delivered = seen
    assert confirmed.inbox_ids == [AGENT]
    assert received.message.message_id == mail.message.message_id
    assert sent.send.thread_id == delivered.delivery.thread_id == mail.message.thread_id
    assert delivered.delivery.recipients == ["jane@example.com"]
    [answer] = fake.messages(AGENT, "sent")
    assert (answer.to, answer.subject, answer.in_reply_to) == ((JANE,), "Re: Question", mail.message.message_id)
