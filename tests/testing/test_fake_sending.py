"""Sending through the REST API of the fake: recipients, threads, attachments, and the events."""

import base64
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import trio
from trio.testing import MockClock

from trio_agentmail import (
    Event,
    MessageBouncedEvent,
    MessageDeliveredEvent,
    MessageReceivedEvent,
    MessageSentEvent,
    Subscribed,
    open_agentmail_stream,
)
from trio_agentmail.testing import FakeAgentMail

AGENT = "agent@agentmail.to"
OTHER = "other@agentmail.to"
JANE = "Jane <jane@example.com>"


class Api:
    """A client of the REST API. It checks the status and returns the body."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def __call__(self, method: str, path: str, status: int = 200, **kwargs: Any) -> Any:
        response = await self.client.request(method, path, **kwargs)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def send(self, inbox_id: str = AGENT, status: int = 200, key: str | None = None, **body: Any) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        json = {"to": OTHER, "subject": "Hi", "text": "Hi!"} | body
        return await self("POST", f"/inboxes/{inbox_id}/messages/send", status, json=json, headers=headers)

    async def act(self, action: str, message_id: str, inbox_id: str = AGENT, status: int = 200, **body: Any) -> Any:
        return await self("POST", f"{message_path(inbox_id, message_id)}/{action}", status, json=body)

    async def message(self, message_id: str, inbox_id: str = AGENT) -> Any:
        return await self("GET", message_path(inbox_id, message_id))

    async def raw(self, message_id: str, inbox_id: str = AGENT) -> EmailMessage:
        answer = await self("GET", message_path(inbox_id, message_id) + "/raw")
        response = await self.client.get(answer["download_url"])
        assert (response.status_code, response.headers["content-type"]) == (200, "message/rfc822")
        assert len(response.content) == answer["size"]
        mail = message_from_bytes(response.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        return mail


def message_path(inbox_id: str, message_id: str) -> str:
    return f"/inboxes/{inbox_id}/messages/{quote(message_id, safe='')}"


def fake_with(*inbox_ids: str) -> FakeAgentMail:
    fake = FakeAgentMail()
    for inbox_id in inbox_ids:
        fake.mail.add_inbox(inbox_id)
    return fake


@asynccontextmanager
async def api(fake: FakeAgentMail) -> AsyncIterator[Api]:
    async with httpx2.AsyncClient(
        transport=fake.http_transport(),
        base_url="https://api.example/v0",
        headers={"Authorization": "Bearer am_key"},
    ) as client:
        yield Api(client)


@asynccontextmanager
async def received_by_stream(fake: FakeAgentMail) -> AsyncIterator[list[Event]]:
    """Collect the events that a stream receives in the block."""
    events: list[Event] = []
    async with open_agentmail_stream(backend=fake, recovery=None) as stream:
        assert isinstance(await stream.receive(), Subscribed)
        yield events
        await trio.testing.wait_all_tasks_blocked()
        while stream.statistics().current_buffer_used:
            events.append(stream.receive_nowait())


# Recipients


async def test_mail_between_inboxes_arrives_and_causes_its_events(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call, received_by_stream(fake) as events:
        answer = await call.send(html="<p>Hi!</p>", headers={"X-Run": "7"}, reply_to=JANE, labels=["Campaign"])
        assert answer.keys() == {"message_id", "thread_id"}
        sent = await call.message(answer["message_id"])
        received = await call.message(answer["message_id"], OTHER)
    sent_event, delivered, arrived = events
    assert isinstance(sent_event, MessageSentEvent)
    assert (sent_event.send.message_id, sent_event.send.recipients) == (answer["message_id"], (OTHER,))
    assert isinstance(delivered, MessageDeliveredEvent)
    assert (delivered.delivery.thread_id, delivered.delivery.recipients) == (answer["thread_id"], (OTHER,))
    assert isinstance(arrived, MessageReceivedEvent)
    assert arrived.message.message_id == received["message_id"]
    assert arrived.thread is not None
    assert arrived.thread.message_count == 1
    assert (sent["labels"], received["labels"]) == (["sent", "campaign", "delivered"], ["received", "unread"])
    assert sent["thread_id"] != received["thread_id"]
    for field in ("from", "to", "reply_to", "subject", "text", "html", "headers", "timestamp", "size"):
        assert sent[field] == received[field]
    assert (sent["from"], sent["to"], sent["reply_to"], sent["headers"]) == (AGENT, [OTHER], [JANE], {"X-Run": "7"})


async def test_the_display_name_of_an_inbox_is_in_the_from_of_its_mail(autojump_clock: MockClock) -> None:
    fake = fake_with(OTHER)
    async with api(fake) as call:
        await call("POST", "/inboxes", json={"username": "agent", "display_name": "An Agent"})
        answer = await call.send()
        assert (await call.message(answer["message_id"]))["from"] == f"An Agent <{AGENT}>"
        assert (await call.raw(answer["message_id"]))["From"] == f"An Agent <{AGENT}>"


async def test_only_the_sender_sees_the_bcc(autojump_clock: MockClock) -> None:
    third = "Third@agentmail.to"
    fake = fake_with(AGENT, OTHER, third)
    async with api(fake) as call:
        message_id = (await call.send(cc=[JANE], bcc="Third <third@AGENTMAIL.to>"))["message_id"]
        assert (await call.message(message_id))["bcc"] == ["Third <third@AGENTMAIL.to>"]
        for inbox_id in (OTHER, third):
            message = await call.message(message_id, inbox_id)
            assert (message["to"], message["cc"], message["bcc"]) == ([OTHER], [JANE], [])
            assert (await call.raw(message_id, inbox_id))["Bcc"] is None


async def test_mail_to_an_unknown_inbox_bounces_and_other_domains_accept_it(
    autojump_clock: MockClock,
) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call, received_by_stream(fake) as events:
        answer = await call.send(to=["Nobody@agentmail.to", JANE])
        message = await call.message(answer["message_id"])
    sent, delivered, bounced = events
    assert isinstance(sent, MessageSentEvent)
    assert isinstance(delivered, MessageDeliveredEvent)
    assert delivered.delivery.recipients == ("jane@example.com",)
    assert isinstance(bounced, MessageBouncedEvent)
    assert (bounced.bounce.type, bounced.bounce.sub_type) == ("Permanent", "General")
    [recipient] = bounced.bounce.recipients
    assert (recipient.address, recipient.status) == ("nobody@agentmail.to", "bounced")
    assert message["labels"] == ["sent", "delivered", "bounced"]


async def test_mail_that_only_bounces_is_not_delivered(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call, received_by_stream(fake) as events:
        await call.send(to="nobody@agentmail.to")
    assert [type(event) for event in events] == [MessageSentEvent, MessageBouncedEvent]


async def test_a_mail_to_oneself_is_one_mail_sent_and_received(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call, received_by_stream(fake) as events:
        answer = await call.send(to=AGENT)
        message = await call.message(answer["message_id"])
    assert [type(event) for event in events] == [MessageSentEvent, MessageDeliveredEvent, MessageReceivedEvent]
    assert message["labels"] == ["sent", "delivered", "received", "unread"]


async def test_mail_that_is_not_indexed_is_announced_without_its_thread(
    autojump_clock: MockClock,
) -> None:
    fake = fake_with(AGENT, OTHER)
    fake.mail.index_after(60)
    async with api(fake) as call, received_by_stream(fake) as events:
        await call.send()
        assert (await call("GET", f"/inboxes/{OTHER}/messages"))["count"] == 0
        await trio.sleep(60)
        assert (await call("GET", f"/inboxes/{OTHER}/messages"))["count"] == 1
    assert isinstance(events[-1], MessageReceivedEvent)
    assert events[-1].thread is None


# Threads


async def test_a_conversation_is_one_thread_in_both_inboxes(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call:
        first = await call.send()
        second = await call.act("reply", first["message_id"], OTHER, text="Hello!")
        third = await call.act("reply", second["message_id"], text="How are you?")
        for inbox_id in (AGENT, OTHER):
            [thread] = (await call("GET", f"/inboxes/{inbox_id}/threads"))["threads"]
            assert (thread["message_count"], thread["subject"]) == (3, "Re: Hi")
        last = await call.message(third["message_id"], OTHER)
        assert (last["from"], last["to"], last["subject"]) == (AGENT, [OTHER], "Re: Hi")
        assert last["in_reply_to"] == second["message_id"]
        assert last["references"] == [first["message_id"], second["message_id"]]
        raw = await call.raw(third["message_id"], OTHER)
        assert raw["In-Reply-To"] == second["message_id"]
        assert raw["References"] == f"{first['message_id']} {second['message_id']}"
    assert first["thread_id"] == third["thread_id"]


async def test_a_reply_goes_to_the_reply_to_address(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call:
        plain = await call.send()
        elsewhere = await call.send(reply_to=[JANE])
        for sent, expected in ((plain, [AGENT]), (elsewhere, [JANE])):
            reply = await call.act("reply", sent["message_id"], OTHER, text="Yes")
            assert (await call.message(reply["message_id"], OTHER))["to"] == expected
        given = await call.act("reply", plain["message_id"], OTHER, to="me@example.com")
        assert (await call.message(given["message_id"], OTHER))["to"] == ["me@example.com"]


@pytest.mark.parametrize("reply_to", ["undisclosed", "undisclosed, nobody@", "nobody:;"])
async def test_a_reply_goes_to_the_sender_if_reply_to_is_no_address(reply_to: str, autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    raw = f"From: jane@example.com\nReply-To: {reply_to}\nTo: {AGENT}\n\nHi"
    [mail] = await fake.deliver(raw.encode())
    async with api(fake) as call:
        for action in ("reply", "reply-all"):
            reply = await call.act(action, mail.message.message_id)
            assert (await call.message(reply["message_id"]))["to"] == ["jane@example.com"]


@pytest.mark.parametrize("field", ["cc", "bcc"])
async def test_cc_and_bcc_of_a_reply_do_not_replace_its_recipient(field: str, autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call:
        sent = await call.send()
        body: dict[str, Any] = {field: "me@example.com"}
        reply = await call.act("reply", sent["message_id"], OTHER, **body)
        message = await call.message(reply["message_id"], OTHER)
        assert (message["to"], message[field]) == ([AGENT], ["me@example.com"])
        assert fake.mail.messages(AGENT, "received")


@pytest.mark.parametrize("from_", ["", "nobody", "MAILER-DAEMON <>", "a@", "a b@example.com, c@example.com", "\ud800@"])
async def test_a_reply_to_a_mail_without_a_sender_needs_a_recipient(from_: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=AGENT, from_=from_)
    message_id = mail.message.message_id
    async with api(fake) as call, received_by_stream(fake) as events:
        for body in ({}, {"cc": JANE}, {"reply_all": True}):
            assert (await call.act("reply", message_id, status=422, **body))["code"] == "unprocessable"
        await call.act("reply", message_id, to=JANE)
    assert isinstance(events[0], MessageSentEvent)


async def test_a_reply_goes_to_an_address_however_its_name_is_written(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    raw = b'From: "a, <b>" <other@agentmail.to>\nTo: nonsense, agent@agentmail.to, jane@example.com\n\nHi'
    [mail] = await fake.deliver(raw)
    async with api(fake) as call:
        await call.act("reply", mail.message.message_id)
        reply = await call.act("reply-all", mail.message.message_id)
        assert len((await call.message(reply["message_id"]))["to"]) == 2
    assert len(fake.mail.messages(OTHER)) == 2


async def test_a_reply_to_a_sent_mail_goes_to_its_recipients(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call:
        sent = await call.send(to=[JANE], subject="RE: Hi")
        reply = await call.act("reply", sent["message_id"], text="One more thing")
        message = await call.message(reply["message_id"])
    assert (message["to"], message["subject"], message["thread_id"]) == ([JANE], "RE: Hi", sent["thread_id"])


@pytest.mark.parametrize(("action", "body"), [("reply-all", {}), ("reply", {"reply_all": True})])
async def test_a_reply_to_all_goes_to_all_but_the_inbox_itself(
    action: str, body: dict[str, Any], autojump_clock: MockClock
) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call:
        sent = await call.send(to=[OTHER, JANE, "bob@example.com"], cc=["BOB@example.com", "eve@example.com", OTHER])
        reply = await call.act(action, sent["message_id"], OTHER, text="All right", **body)
        message = await call.message(reply["message_id"], OTHER)
        assert message["to"] == [AGENT, JANE, "bob@example.com"]
        assert message["cc"] == ["eve@example.com"]
        refused = await call.act(action, sent["message_id"], OTHER, 400, to=JANE, reply_all=True)
        assert refused["errors"][0]["path"] == ["to"]


# What is forwarded


async def test_a_forwarded_mail_quotes_the_original_and_has_its_attachments(
    autojump_clock: MockClock,
) -> None:
    fake = fake_with(AGENT, OTHER)
    file = {"filename": "a.txt", "content_type": "text/plain", "content": base64.b64encode(b"data").decode()}
    async with api(fake) as call:
        first = await call.send(subject="Offer", html="<p>Hi!</p>", attachments=[file])
        forward = await call.act("forward", first["message_id"], OTHER, to=AGENT, text="See <below>")
        message = await call.message(forward["message_id"])
        assert message["subject"] == "Fwd: Offer"
        assert message["text"].startswith("See <below>\n\n---------- Forwarded message ---------\nFrom: agent@")
        assert message["text"].endswith("\nSubject: Offer\nTo: other@agentmail.to\n\nHi!")
        assert message["html"].endswith("To: other@agentmail.to<br><br><p>Hi!</p>")
        assert message["references"] == [first["message_id"]]
        assert message["thread_id"] == first["thread_id"]
        [attachment] = message["attachments"]
        path = f"{message_path(AGENT, forward['message_id'])}/attachments/{attachment['attachment_id']}"
        where = await call("GET", path)
        assert (await call.client.get(where["download_url"])).content == b"data"


async def test_a_forwarded_html_only_mail_stays_html_only(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=AGENT, text=None, html="<p>Hi!</p>", subject=None)
    async with api(fake) as call:
        forward = await call.act("forward", mail.message.message_id, to=JANE, text="Look & see")
        message = await call.message(forward["message_id"])
        assert message["html"].startswith("Look &amp; see<br><br>---------- Forwarded")
        assert "<br>From: Jane &lt;jane@example.com&gt;<br>" in message["html"]
        assert (message["text"], message["subject"]) == ("Look & see", "Fwd: ")
        titled = await call.act("forward", mail.message.message_id, to=JANE, subject="Mine", html="<b>Look</b>")
        message = await call.message(titled["message_id"])
        assert message["html"].startswith("<b>Look</b><br><br>---")
        assert ("text" in message, message["subject"]) == (False, "Mine")


# Once


async def test_a_send_repeated_with_its_idempotency_key_is_sent_once(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call, received_by_stream(fake) as events:
        first = await call.send(key="order-1")
        assert await call.send(key="order-1") == first
        assert await call.send(key="order-2") != first
        assert await call.send() != await call.send()
        conflict = await call.send(key="order-1", status=409, text="Something else")
        assert (conflict["name"], conflict["code"]) == ("ConflictError", "conflict")
        await call.send(OTHER, 409, key="order-1")
        await trio.sleep(24 * 3600)
        assert await call.send(key="order-1") != first
    assert sum(isinstance(event, MessageSentEvent) for event in events) == 5


async def test_an_idempotency_key_is_shared_by_all_api_keys(autojump_clock: MockClock) -> None:
    # AgentMail documents that idempotency keys are "scoped to your organization".
    async with api(fake_with(AGENT, OTHER)) as call:
        first = await call.send(key="order-1")
        call.client.headers["Authorization"] = "Bearer am_another_key"
        assert await call.send(key="order-1") == first
        await call.send(key="order-1", status=409, text="Something else")


@pytest.mark.parametrize("key", ["", "a b", "x" * 257, "@"])
async def test_a_malformed_idempotency_key_is_refused(key: str, autojump_clock: MockClock) -> None:
    async with api(fake_with(AGENT)) as call:
        assert (await call.send(key=key, status=400))["errors"][0]["path"] == ["Idempotency-Key"]


async def test_a_refused_send_may_be_retried_with_its_idempotency_key(autojump_clock: MockClock) -> None:
    async with api(fake_with(AGENT)) as call:
        await call.send(key="k", to=[], status=422)
        await call.send(key="k")


# What is refused


FILE = {"content": "aGk="}


@pytest.mark.parametrize(
    "body",
    [
        {"to": "nobody"},
        {"to": "a@example.com, b@example.com"},
        {"to": [1]},
        {"to": {}},
        {"cc": "Eve\r\nBcc: <eve@example.com>"},
        {"to": [f"{number}@example.com" for number in range(51)]},
        {"subject": "a\r\nBcc: eve@example.com"},
        {"subject": 1},
        {"text": ["Hi"]},
        {"track_opens": "yes"},
        {"labels": ["sent"]},
        {"labels": [""]},
        {"headers": ["X"]},
        {"headers": {"X Y": ""}},
        {"headers": {"From": "eve@example.com"}},
        {"headers": {"X": "a\nb"}},
        {"headers": {"X": 1}},
        {"attachments": {}},
        {"attachments": ["x"]},
        {"attachments": [{"url": "https://example.com/x"}]},
        {"attachments": [{"filename": "empty.txt"}]},
        {"attachments": [{"content": None, "url": None}]},
        {"attachments": [{"content": "not base64!"}]},
        {"attachments": [FILE | {"content_type": "text"}]},
        {"attachments": [FILE | {"content_type": "text/plain; name=ü"}]},
        {"attachments": [FILE | {"content_type": "text/plain; "}]},
        {"attachments": [FILE | {"content_type": "text/plain\n; x=y"}]},
        {"attachments": [FILE | {"content_disposition": "hidden"}]},
        {"attachments": [FILE | {"filename": "a\nb"}]},
    ],
)
async def test_an_invalid_send_is_refused(body: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call, received_by_stream(fake) as events:
        refused = await call.send(status=400, **body)
        assert (refused["name"], refused["code"]) == ("ValidationError", "validation_error")
        assert len(refused["errors"]) == 1
    assert events == []


async def test_a_request_of_more_than_six_megabytes_sends_nothing(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call:
        most = 6 * 2**20 - len('{"to":"jane@example.com","subject":"Hi","text":""}')
        sent = await call.send(to=JANE[6:-1], text="x" * most)
        refused = await call.send(to=JANE[6:-1], text="x" * (most + 1), status=413)
        assert (refused["name"], refused["code"]) == ("PayloadTooLargeError", "payload_too_large")
        await call.act("reply", sent["message_id"], status=413, text="x" * 6 * 2**20)
    assert len(fake.mail.messages(AGENT)) == 1


async def test_an_invalid_reply_is_refused(autojump_clock: MockClock) -> None:
    async with api(fake_with(AGENT)) as call:
        sent = await call.send(to=JANE)
        await call.act("reply", sent["message_id"], status=400, reply_all="yes")
        await call.act("reply", "<nothing>", status=404, text="Hi")
        assert (await call.act("forward", sent["message_id"], status=422))["code"] == "unprocessable"
        await call.act("burn", sent["message_id"], status=404)


async def test_sending_requires_its_permission(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    fake.permissions = {"message_read"}
    async with api(fake) as call:
        refused = await call.send(status=403)
    assert (refused["name"], refused["code"], refused["message"]) == (
        "ForbiddenError",
        "missing_permission",
        "Forbidden",
    )
    assert "'message_send'" in refused["fix"]
    assert refused["docs"].endswith("#missing_permission")


async def test_fake_send_does_what_the_rest_api_does(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with received_by_stream(fake) as events:
        sent = await fake.mail.send(
            inbox_id=AGENT, to=[OTHER, JANE, "nobody@agentmail.to"], text="Hi!", message_id="<1>"
        )
        to_oneself = await fake.mail.send(inbox_id=AGENT, to=AGENT)
    kinds = [type(event) for event in events]
    assert kinds[:4] == [MessageSentEvent, MessageDeliveredEvent, MessageBouncedEvent, MessageReceivedEvent]
    assert kinds[4:] == [MessageSentEvent, MessageDeliveredEvent, MessageReceivedEvent]
    assert (events[0], events[4]) == (sent, to_oneself)
    [arrived] = fake.mail.messages(OTHER)
    assert (arrived.message_id, arrived.text, arrived.labels) == ("<1>", "Hi!", ("received", "unread"))
    first, second = fake.mail.messages(AGENT, "sent")
    assert first.labels == ("sent", "delivered", "bounced")
    assert second.labels == ("sent", "delivered", "received", "unread")


# Attachments and raw mail


async def test_attachments_arrive_unchanged(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    data = bytes(range(256)) * 100
    files = [
        {"filename": "Übersicht.bin", "content": base64.b64encode(data).decode()},
        {"content": "", "content_type": "image/png", "content_disposition": "inline", "content_id": "logo"},
        {
            "filename": "mail.eml",
            "content_type": "message/rfc822",
            "content": base64.b64encode(b"Subject: x\n\ny").decode(),
        },
    ]
    async with api(fake) as call:
        message_id = (await call.send(attachments=files))["message_id"]
        [thread] = (await call("GET", f"/inboxes/{OTHER}/threads"))["threads"]
        message = await call.message(message_id, OTHER)
        assert thread["attachments"] == message["attachments"]
        first, second, third = message["attachments"]
        assert (first["filename"], first["size"], first["content_disposition"]) == (
            "Übersicht.bin",
            len(data),
            "attachment",
        )
        assert (second["content_type"], second["content_id"], "filename" in second) == ("image/png", "logo", False)
        assert third["content_type"] == "message/rfc822"
        for path in (message_path(OTHER, message_id), f"/threads/{thread['thread_id']}"):
            where = await call("GET", f"{path}/attachments/{first['attachment_id']}")
            assert {name: where[name] for name in first} == first
            response = await call.client.get(where["download_url"], headers={"Authorization": ""})
            assert (response.content, response.headers["content-type"]) == (data, "application/octet-stream")
            await call("GET", f"{path}/attachments/none", 404)
        raw = await call.raw(message_id, OTHER)
        assert [part.get_filename() for part in raw.iter_attachments()] == ["Übersicht.bin", None, "mail.eml"]


async def test_a_file_of_any_type_can_be_downloaded() -> None:
    fake = fake_with(AGENT)
    [event] = await fake.deliver(
        b"Content-Type: application/\xc3\xbc; name=x\nContent-Disposition: attachment\n\ndata", inbox_id=AGENT
    )
    async with api(fake) as call, fake.serve() as environment:
        typed = [FILE | {"content_type": 'text/plain; name="a b"'}]
        sent = await call.send(to=JANE, attachments=typed)
        for message_id in (event.message.message_id, sent["message_id"]):
            [attachment] = (await call.message(message_id))["attachments"]
            where = await call("GET", f"{message_path(AGENT, message_id)}/attachments/{attachment['attachment_id']}")
            path = httpx2.URL(where["download_url"]).path
            async with httpx2.AsyncClient(base_url=environment.http) as client:
                response = await client.get(path)
            assert (response.status_code, response.headers["content-type"]) == (200, attachment["content_type"])


async def test_a_download_address_is_valid_for_an_hour(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT)
    async with api(fake) as call:
        message_id = (await call.send(to=JANE))["message_id"]
        url = (await call("GET", message_path(AGENT, message_id) + "/raw"))["download_url"]
        assert url.startswith("https://api.example/downloads/")
        assert (await call.client.post(url)).status_code == 404
        assert (await call.client.get(url + "x")).status_code == 403
        await trio.sleep(3599)
        assert (await call.client.get(url)).status_code == 200
        await trio.sleep(1)
        assert (await call.client.get(url)).status_code == 403


async def test_the_raw_form_of_a_mail_never_changes(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=AGENT, text="Hi!")
    path = message_path(AGENT, mail.message.message_id) + "/raw"
    async with api(fake) as call:
        urls = [(await call("GET", path))["download_url"] for _ in range(2)]
        first, second = [(await call.client.get(url)).content for url in urls]
        assert first == second
        await fake.mail.delete(AGENT, mail.message.message_id)
        assert (await call.client.get(urls[0])).content == first


async def test_expired_downloads_and_idempotency_keys_are_forgotten(autojump_clock: MockClock) -> None:
    fake = fake_with(AGENT, OTHER)
    async with api(fake) as call:
        tracemalloc.start()
        try:
            sizes = []
            for hour in range(50):
                await trio.sleep(3600)
                message_id = (await call.send(to=JANE, text="x" * 100_000, key=f"{hour}"))["message_id"]
                await call("GET", message_path(AGENT, message_id) + "/raw")
                await fake.mail.delete(AGENT, message_id)
                fake.record.requests.clear()  # so that their bodies are not counted
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    # After a day, as much expires as is added, except for a line in the log.
    assert sizes[-1] - sizes[25] < 1_000_000


async def test_a_delivered_mail_has_a_raw_form(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=AGENT, subject="Grüße", text="Hi!", html="<p>Hi!</p>")
    async with api(fake) as call:
        raw = await call.raw(mail.message.message_id)
    assert (raw["Subject"], raw["To"], raw["Message-ID"]) == ("Grüße", AGENT, mail.message.message_id)
    plain = raw.get_body(["plain"])
    assert plain is not None
    assert plain.get_content().strip() == "Hi!"


async def test_a_download_address_has_the_host_of_the_request() -> None:
    fake = fake_with(AGENT)
    async with fake.serve() as environment:
        async with httpx2.AsyncClient(
            base_url=environment.http.replace("127.0.0.1", "localhost") + "/v0",
            headers={"Authorization": "Bearer am_key"},
        ) as client:
            call = Api(client)
            message_id = (await call.send(to=JANE))["message_id"]
            url = (await call("GET", message_path(AGENT, message_id) + "/raw"))["download_url"]
            assert url.startswith(environment.http.replace("127.0.0.1", "localhost") + "/downloads/")
            assert (await call.raw(message_id))["Subject"] == "Hi"
