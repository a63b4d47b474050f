"""Delivering mail in the format of RFC 5322 to the inboxes in its headers: threads, replacing, attachments."""

from collections.abc import Sequence
from email.message import EmailMessage
from typing import Any

import attrs
import httpx
import pytest
from agentmail import AsyncAgentMail
from agentmail.core.request_options import RequestOptions
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import MessageReceivedEvent, MessageSecurityReviewEvent
from trio_agentmail.testing import AttachedFile, FakeAgentMail

INBOX = "agent@agentmail.to"
OTHER = "other@agentmail.to"
NO_RETRIES: RequestOptions = {"max_retries": 0}


def letter(to: str = INBOX, **headers: str) -> EmailMessage:
    mail = EmailMessage()
    for name, value in {"From": "Jane <jane@example.com>", "To": to, "Subject": "Hello", **headers}.items():
        mail[name.replace("_", "-")] = value
    mail.set_content("Hi!")
    return mail


async def test_a_mail_is_delivered_to_every_inbox_in_its_headers(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("Agent@agentmail.to")
    fake.mail.add_inbox("second@agentmail.to")
    fake.mail.add_inbox("third@agentmail.to")
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()
        mail = letter("agent@agentmail.to, jane@example.com", Bcc="second@agentmail.to")
        delivered = await fake.deliver(mail)
        assert [event.message.inbox_id for event in delivered] == ["Agent@agentmail.to", "second@agentmail.to"]
        for event in delivered:
            assert await events.receive() == event
            assert event.message.text == "Hi!\n"
            assert "second@agentmail.to" not in str(attrs.evolve(event.message, inbox_id=""))
    assert fake.mail.messages("third@agentmail.to") == ()


async def test_a_mail_without_an_id_is_one_mail_in_all_inboxes(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.mail.add_inbox("second@agentmail.to")
    first, second = await fake.deliver(letter(INBOX, Cc="second@agentmail.to"))
    assert first.message.message_id == second.message.message_id
    [third, _] = await fake.deliver(letter(INBOX, Cc="second@agentmail.to"))
    assert third.message.message_id != first.message.message_id


async def test_a_mail_to_no_inbox_is_an_error_that_names_the_inboxes(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(ValueError, match=r"addressed to nobody, and the inboxes here are: none\."):
        await fake.deliver(b"")
    fake.mail.add_inbox(INBOX)
    with pytest.raises(ValueError, match=r"addressed to typo@agentmail\.to, and the inboxes here are: agent@agentmail"):
        await fake.deliver(letter("typo@agentmail.to"))


async def test_a_mail_can_be_delivered_to_an_inbox_that_it_does_not_name(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    [event] = await fake.deliver(bytes(letter("list@example.com")), inbox_id=INBOX, event_type="message.received.spam")
    assert (event.message.to, event.message.labels) == (("list@example.com",), ("received", "spam"))
    assert fake.mail.messages(INBOX) == (event.message,)


async def test_deliver_without_a_mail_or_an_inbox_is_an_error() -> None:
    with pytest.raises(TypeError, match="needs an inbox_id"):
        await FakeAgentMail().deliver()  # type: ignore[call-overload]


async def test_a_reply_is_in_the_thread_of_the_mail_that_it_answers(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    first = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>")
    [reply] = await fake.deliver(letter(In_Reply_To="<1@example.com>"))
    [later] = await fake.deliver(letter(In_Reply_To="<lost@example.com>", References="<1@example.com>"))
    [other] = await fake.deliver(letter(In_Reply_To="<elsewhere@example.com>"))
    assert reply.message.thread_id == later.message.thread_id == first.message.thread_id != other.message.thread_id
    assert later.thread is not None
    assert later.thread.message_count == 3


async def test_replies_to_a_missing_mail_are_one_thread_with_that_mail(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.mail.add_inbox("other@agentmail.to")
    both = f"{INBOX}, other@agentmail.to"
    named = "<1@example.com>"
    threads = []
    for mail in (
        letter(both, Message_ID="<3@example.com>", References=f"{named} <2@example.com>"),
        letter(both, Message_ID="<4@example.com>", In_Reply_To=named),
        letter(both, Message_ID="<2@example.com>"),
        letter(both, Message_ID=named),
        letter(both, In_Reply_To="<4@example.com>"),
    ):
        threads.append([event.message.thread_id for event in await fake.deliver(mail)])
    assert len({here for here, _ in threads}) == len({there for _, there in threads}) == 1
    assert threads[0][0] != threads[0][1]
    [alone] = await fake.deliver(letter(Message_ID="<5@example.com>"))
    assert alone.message.thread_id != threads[0][0]


async def test_a_reply_to_a_deleted_mail_is_in_its_thread_while_that_exists(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    first, second = "<1@example.com>", "<2@example.com>"
    for message_id in (first, second):
        await fake.deliver(inbox_id=INBOX, thread_id="t", message_id=message_id)
    await fake.mail.delete(INBOX, first)
    [answer] = await fake.deliver(letter(In_Reply_To=first, Message_ID="<3@example.com>"))
    assert answer.message.thread_id == "t"
    await fake.deliver(inbox_id=INBOX, thread_id="another", message_id=second)
    await fake.mail.delete(INBOX, "<3@example.com>")
    [answer] = await fake.deliver(letter(In_Reply_To=first))
    assert answer.message.thread_id not in ("t", "another")
    [answer] = await fake.deliver(letter(In_Reply_To=second))
    assert answer.message.thread_id == "another"


async def test_a_sent_mail_that_comes_back_is_one_mail_sent_and_received(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    sent = await fake.mail.send(inbox_id=INBOX, message_id="<1@example.com>", to="list@example.com")
    [back] = await fake.deliver(letter(Message_ID="<1@example.com>", Subject="[list] Hello"), inbox_id=INBOX)
    assert fake.mail.messages(INBOX, "sent") == fake.mail.messages(INBOX, "received") == (back.message,)
    assert back.message.thread_id == sent.send.thread_id
    again = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>")
    assert fake.mail.messages(INBOX, "sent", "unread") == (again.message,)
    await fake.deliver(inbox_id=INBOX, message_id="<2@example.com>")
    await fake.mail.send(inbox_id=INBOX, message_id="<2@example.com>")
    assert len(fake.mail.messages(INBOX, "received")) == len(fake.mail.messages(INBOX, "sent")) == 2


async def test_a_sent_mail_that_arrives_again_loses_the_labels_of_its_arrival(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    message_id = "<1@example.com>"
    await fake.mail.send(inbox_id=INBOX, message_id=message_id)
    await fake.mail.label(INBOX, message_id, add=["mine"])
    for event_type, held, labels in (
        ("message.received.spam", False, ("received", "spam")),
        ("message.received", True, ("received", "unread", "agent-armor-held")),
        ("message.received", False, ("received", "unread")),
    ):
        await fake.deliver(inbox_id=INBOX, message_id=message_id, event_type=event_type, held=held)
        [mail] = fake.mail.messages(INBOX)
        assert mail.labels == ("sent", "delivered", "mine", *labels)


async def test_a_sent_mail_is_not_held(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>", held=True)
    await fake.mail.send(inbox_id=INBOX, message_id="<1@example.com>")
    [mail] = fake.mail.messages(INBOX)
    assert mail.labels == ("received", "unread", "sent", "delivered")
    with pytest.raises(ValueError, match="is not held"):
        await fake.mail.release(INBOX, "<1@example.com>")


async def test_a_mail_that_replaces_another_keeps_its_thread_by_default(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    first = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>", thread_id="t")
    await fake.mail.label(INBOX, "<1@example.com>", add=["mine"])
    again = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>")
    [raw] = await fake.deliver(letter(Message_ID="<1@example.com>"))
    assert first.message.thread_id == again.message.thread_id == raw.message.thread_id == "t"
    assert fake.mail.messages(INBOX) == (raw.message,)
    assert "mine" not in raw.message.labels
    moved = await fake.deliver(inbox_id=INBOX, message_id="<1@example.com>", thread_id="other")
    assert moved.message.thread_id == "other"


async def test_a_held_mail_is_announced_when_it_is_released(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()
        await fake.deliver(letter(Message_ID="<1@example.com>"), held=True)
        assert isinstance(await events.receive(), MessageSecurityReviewEvent)
        assert fake.mail.messages(INBOX, "agent-armor-held")
        await fake.mail.release(INBOX, "<1@example.com>")
        assert isinstance(await events.receive(), MessageReceivedEvent)


async def test_messages_can_be_selected_by_labels(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    received = await fake.deliver(inbox_id=INBOX)
    await fake.mail.send(inbox_id=INBOX, text="answer")
    await fake.mail.send(inbox_id="other@agentmail.to")
    assert [message.text for message in fake.mail.messages(INBOX, "sent")] == ["answer"]
    assert fake.mail.messages(INBOX)[0] == received.message


async def test_sender_and_recipients_have_the_same_raw_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("other@agentmail.to")
    await fake.mail.send(inbox_id=INBOX, to="other@agentmail.to", text="Hi!", html="<p>Hi!</p>")
    [sent], [received] = fake._agentmail.store.mails(INBOX), fake._agentmail.store.mails("other@agentmail.to")
    assert sent.raw is not None
    assert sent.raw == received.raw
    assert sent.message.size == received.message.size == len(sent.raw)


async def test_texts_may_have_lone_surrogates_and_ids_and_labels_may_not(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    event = await fake.deliver(inbox_id=INBOX, subject="\ud83d", text="\ud83d", html="\ud83d", message_id="<1@x>")
    assert (event.message.text, event.message.html) == ("\ud83d", "\ud83d")
    await fake.mail.send(inbox_id=INBOX, subject="\ud83d", text="\ud83d")
    with pytest.raises(ValueError, match="lone surrogate"):
        fake.mail.add_inbox("\ud800@x")
    with pytest.raises(ValueError, match="lone surrogate"):
        fake.mail.add_inbox(INBOX, pod_id="\ud800")
    with pytest.raises(ValueError, match="lone surrogate"):
        await fake.mail.label(INBOX, "<1@x>", add=["\ud800"])
    for name in ("inbox_id", "message_id", "thread_id"):
        with pytest.raises(ValueError, match="lone surrogate"):
            await fake.deliver(**{"inbox_id": INBOX, name: "\ud800"})  # type: ignore[call-overload]
    assert len(fake.mail.messages(INBOX)) == 2


FILES: list[AttachedFile] = [
    {"filename": "Zażółć.pdf", "content": b"%PDF\x00\xff", "content_type": "application/pdf"},
    {
        "filename": "logo.png",
        "content": b"PNG",
        "content_type": "image/png",
        "content_disposition": "inline",
        "content_id": "logo",
    },
    {"content": b""},
]


def check_files(attachments: Sequence[Any]) -> None:
    """Check that these are the descriptions of `FILES`."""
    assert [
        (one.filename, one.size, one.content_type, one.content_disposition, one.content_id) for one in attachments
    ] == [
        ("Zażółć.pdf", 6, "application/pdf", "attachment", None),
        ("logo.png", 3, "image/png", "inline", "logo"),
        (None, 0, "application/octet-stream", "attachment", None),
    ]


async def test_the_event_describes_attachments_and_the_rest_api_has_them(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        await events.receive()  # Subscribed
        given = await fake.deliver(inbox_id=INBOX, text="Here they are.", attachments=FILES)
        event = await events.receive()
    assert isinstance(event, MessageReceivedEvent)
    assert event.message == given.message
    check_files(event.message.attachments)
    assert event.message.size == len("Here they are.") + 9
    assert event.thread is not None
    check_files(event.thread.attachments)
    async with httpx.AsyncClient(transport=fake.http_transport()) as http:
        client = AsyncAgentMail(api_key="am_any", httpx_client=http)
        messages, message_id = client.inboxes.messages, event.message.message_id
        [item] = (await messages.list(INBOX, request_options=NO_RETRIES)).messages
        check_files(item.attachments or [])
        contents = []
        for one in event.message.attachments:
            assert one.attachment_id is not None
            where = await messages.get_attachment(INBOX, message_id, one.attachment_id, request_options=NO_RETRIES)
            download = await http.get(where.download_url)
            assert download.headers["Content-Type"] == one.content_type
            contents.append(download.content)
        assert contents == [file["content"] for file in FILES]
        raw = (
            await http.get((await messages.get_raw(INBOX, message_id, request_options=NO_RETRIES)).download_url)
        ).content
        await messages.forward(INBOX, message_id, to=OTHER, request_options=NO_RETRIES)
    # A mail that is delivered as bytes has the same files.
    [again] = await fake.deliver(raw, inbox_id=OTHER)
    assert [one.filename for one in again.message.attachments] == [file.get("filename") for file in FILES]
    [forwarded] = fake.mail.messages(INBOX, "sent")
    check_files(forwarded.attachments)


async def test_sent_attachments_arrive(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(OTHER)
    await fake.mail.send(inbox_id=INBOX, to=OTHER, attachments=FILES)
    [arrived] = fake.mail.messages(OTHER)
    check_files(arrived.attachments)


async def test_the_rest_api_shows_a_file_name_with_a_lone_surrogate(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    event = await fake.deliver(inbox_id=INBOX, message_id="1", attachments=[{"filename": "\ud83d", "content": b"x"}])
    [attachment] = event.message.attachments
    async with httpx.AsyncClient(transport=fake.http_transport(), headers={"Authorization": "Bearer a"}) as http:
        url = f"https://api.example/v0/inboxes/{INBOX}/messages/1/attachments/{attachment.attachment_id}"
        assert (await http.get(url)).json()["filename"] == "\ufffd"
