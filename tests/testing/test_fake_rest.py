"""The REST API of the fake: listings, threads, permissions, faults; in memory on the mock clock, and on a port."""

import errno
import gzip
import json
import os
import resource
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import httpx
import httpx2
import pytest
import trio
import trustme
from agentmail import AsyncAgentMail, MessageItem
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_agentmail import MessageReceivedEvent, decode_event
from trio_agentmail.testing import FakeAgentMail, Request
from trio_agentmail.testing._wire.ports import accept_from

INBOX = "agent@agentmail.to"
OTHER = "other@agentmail.to"
BEARER = {"Authorization": "Bearer am_key"}
ODD_ID = "<a/b?c#d%2Fe ü+&@host>"

client_library: Any = httpx2


@pytest.fixture(params=["httpx2", "httpx"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The HTTP library of the clients: the one of the kit itself, or the one that the official SDK uses."""
    module = {"httpx2": httpx2, "httpx": httpx}[request.param]
    monkeypatch.setattr(sys.modules[__name__], "client_library", module)
    return module


@asynccontextmanager
async def rest(fake: FakeAgentMail, **kwargs: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the REST API in memory."""
    options: dict[str, Any] = {"base_url": "https://api.example/v0", "headers": BEARER} | kwargs
    async with client_library.AsyncClient(transport=fake.http_transport(), **options) as client:
        yield client


async def get(client: httpx2.AsyncClient, path: str, **params: Any) -> Any:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def pages(client: httpx2.AsyncClient, path: str, name: str, **params: Any) -> list[list[Any]]:
    """Return all pages of a listing."""
    found = []
    while True:
        answer = await get(client, path, **params)
        assert answer["count"] == len(answer[name])
        found.append(answer[name])
        if "next_page_token" not in answer:
            return found
        params["page_token"] = answer["next_page_token"]


def subjects(items: Sequence[Any]) -> list[str]:
    return [item["subject"] for item in items]


async def listed(fake: FakeAgentMail, path: str = f"/inboxes/{INBOX}/messages", **params: Any) -> list[str]:
    """Return the subjects in a listing of one page."""
    async with rest(fake) as client:
        [page] = await pages(client, path, path.rpartition("/")[2], limit=100, **params)
        return subjects(page)


async def refusal(fake: FakeAgentMail, path: str, **params: Any) -> tuple[int, str]:
    """Return the status and the code of an error."""
    async with rest(fake) as client:
        response = await client.get(path, params=params)
        return response.status_code, response.json()["code"]


# Messages


async def test_a_listing_leaves_out_the_text_of_a_mail_and_a_get_has_it(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    event = await fake.deliver(inbox_id=INBOX, text="Hi!", html="<p>Hi!</p>", message_id="<1@example.com>")
    async with rest(fake) as client:
        answer = await get(client, f"/inboxes/{INBOX}/messages")
        whole = await get(client, f"/inboxes/{INBOX}/messages/{quote('<1@example.com>', safe='')}")
    assert (answer["count"], answer["limit"], "next_page_token" in answer) == (1, 50, False)
    [item] = answer["messages"]
    assert item.keys() == whole.keys() - {"text", "html", "extracted_text", "extracted_html", "reply_to"}
    # These are the names in the official SDK, which has `from_` for `from`.
    assert {name.replace("from", "from_") for name in item} <= MessageItem.model_fields.keys()
    assert (whole["text"], whole["html"], whole["from"]) == ("Hi!", "<p>Hi!</p>", "Jane <jane@example.com>")
    frame = {"type": "event", "event_type": "message.received", "message": whole}
    assert decode_event(json.dumps(frame)) == MessageReceivedEvent(message=event.message)


async def test_created_at_is_the_time_of_arrival_to_the_millisecond(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await trio.sleep(3600.123456)
    dated = datetime(2001, 2, 3, tzinfo=UTC)
    message = (await fake.deliver(inbox_id=INBOX, timestamp=dated)).message
    assert message.timestamp == dated
    assert message.created_at is not None
    assert fake.now() - message.created_at.timestamp() == pytest.approx(0, abs=0.001)
    assert message.created_at.microsecond == 123_000
    assert message.updated_at == message.created_at


async def test_a_listing_is_ordered_by_the_timestamps_of_the_mails(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    now = datetime.fromtimestamp(fake.now(), UTC)
    await fake.deliver(inbox_id=INBOX, subject="now")
    await fake.deliver(inbox_id=INBOX, subject="tomorrow", timestamp=now + timedelta(days=1))
    await fake.deliver(inbox_id=INBOX, subject="yesterday", timestamp=now - timedelta(days=1))
    await fake.deliver(inbox_id=INBOX, subject="now, too")
    await fake.deliver(inbox_id=OTHER, subject="elsewhere")
    assert await listed(fake) == ["tomorrow", "now, too", "now", "yesterday"]
    assert await listed(fake, ascending=True) == ["yesterday", "now", "now, too", "tomorrow"]


async def test_before_and_after_compare_the_timestamps_of_the_mails(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    noon = datetime(2026, 2, 3, 12, tzinfo=UTC)
    for hour in range(-2, 3):
        await fake.deliver(inbox_id=INBOX, subject=str(hour), timestamp=noon + timedelta(hours=hour))
    assert await listed(fake, after="2026-02-03T12:00:00Z") == ["2", "1", "0"]
    assert await listed(fake, after="2026-02-03T14:00:00.001+02:00") == ["2", "1"]
    assert await listed(fake, before="2026-02-03T12:00:00Z") == ["-1", "-2"]
    assert await listed(fake, after="2026-02-03T11:00:00Z", before="2026-02-03T13:00:00Z") == ["0", "-1"]


async def test_labels_may_be_repeated_or_a_json_array_in_any_case(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX, subject="both")
    await fake.mail.label(INBOX, mail.message.message_id, add=["todo", "unread"])
    await fake.deliver(inbox_id=INBOX, subject="one")
    await fake.mail.send(inbox_id=INBOX, subject="sent")
    assert await listed(fake, labels="unread") == ["one", "both"]
    assert await listed(fake, labels=["unread", "todo"]) == ["both"]
    assert await listed(fake, labels='["unread", "todo"]') == ["both"]
    assert await listed(fake, labels="sent") == ["sent"]
    await fake.mail.label(INBOX, mail.message.message_id, remove=["unread"])
    assert await listed(fake, labels="unread") == ["one"]


@pytest.mark.parametrize("kind", ["spam", "blocked", "unauthenticated"])
async def test_spam_blocked_and_unauthenticated_mail_is_listed_on_request(kind: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, subject="ham")
    await fake.deliver(inbox_id=INBOX, subject=kind, event_type=f"message.received.{kind}")
    for path in (f"/inboxes/{INBOX}/messages", f"/inboxes/{INBOX}/threads", "/threads"):
        assert await listed(fake, path) == ["ham"]
        assert await listed(fake, path, include_trash=True) == ["ham"]
        assert await listed(fake, path, **{f"include_{kind}": True}) == [kind, "ham"]


async def test_trash_is_listed_on_request(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX)
    await fake.mail.label(INBOX, mail.message.message_id, add=["trash"])
    assert (await listed(fake), await listed(fake, include_trash=True)) == ([], ["Hello"])


async def test_a_message_id_may_contain_anything_if_it_is_percent_encoded(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id="a/b@agentmail.to", message_id=ODD_ID)
    inbox, message = quote("a/b@agentmail.to", safe=""), quote(ODD_ID, safe="")
    async with rest(fake) as client:
        assert (await get(client, f"/inboxes/{inbox}/messages/{message}"))["message_id"] == ODD_ID
        assert (await client.get(f"/inboxes/{inbox}/messages/{ODD_ID}")).status_code == 404
    assert fake.record.requests[0].path == f"/v0/inboxes/a/b@agentmail.to/messages/{ODD_ID}"


async def test_a_lone_surrogate_in_a_mail_is_shown_unchanged(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    event = await fake.deliver(inbox_id=INBOX, subject="\ud83d", thread_id="t")
    for path in (f"/inboxes/{INBOX}/messages", "/threads"):
        assert await listed(fake, path) == ["\ud83d"]
    async with rest(fake) as client:
        thread = await get(client, "/threads/t")
        assert (thread["subject"], subjects(thread["messages"])) == ("\ud83d", ["\ud83d"])
        assert event.message.subject == "\ud83d"


async def test_a_batch_has_the_existing_mails_in_the_requested_order(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for number in range(3):
        await fake.deliver(inbox_id=INBOX, message_id=f"<{number}>", html="<p>")
    await fake.deliver(inbox_id=OTHER, message_id="<other>")
    async with rest(fake) as client:
        ids = ["<2>", "<gone>", "<other>", "<0>"]
        response = await client.post(f"/inboxes/{INBOX}/messages/batch-get", json={"message_ids": ids})
    answer = response.json()
    assert (answer["count"], answer["limit"]) == (2, 4)
    assert [message["message_id"] for message in answer["messages"]] == ["<2>", "<0>"]
    keys = answer["messages"][0].keys()
    assert keys.isdisjoint({"text", "html", "extracted_text", "extracted_html"})
    assert "reply_to" in keys  # which items of a listing lack


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"message_ids": "<1>"}',
        b'{"message_ids": ["<1>", 1]}',
        b'{"message_ids": ["<1>", "<1>"]}',
        b'{"message_ids": [' + b",".join(b'"%d"' % number for number in range(501)) + b"]}",
    ],
)
async def test_an_invalid_batch_is_refused(body: bytes, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with rest(fake) as client:
        response = await client.post(f"/inboxes/{INBOX}/messages/batch-get", content=body)
        assert (response.status_code, response.json()["code"]) == (400, "validation_error")


async def test_a_mail_replaces_another_one_with_its_message_id(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, message_id="<1>", subject="old")
    await fake.deliver(inbox_id=OTHER, message_id="<1>", subject="elsewhere")
    await fake.deliver(inbox_id=INBOX, message_id="<1>", subject="new")
    assert await listed(fake) == ["new"]
    assert await listed(fake, "/threads") == ["new", "elsewhere"]


async def test_a_deleted_mail_is_gone(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, message_id="<1>", thread_id="t")
    await fake.mail.delete(INBOX, "<1>")
    assert (await listed(fake), await listed(fake, "/threads")) == ([], [])
    for path in (f"/inboxes/{INBOX}/messages/<1>", "/threads/t"):
        assert await refusal(fake, path) == (404, "not_found")
    for method in (fake.mail.delete, fake.mail.label, fake.mail.release):
        with pytest.raises(KeyError, match="no mail <1>"):
            await method(INBOX, "<1>")


async def test_a_timestamp_without_an_offset_is_refused() -> None:
    fake = FakeAgentMail()
    with pytest.raises(TypeError, match="offset"):
        await fake.deliver(inbox_id=INBOX, timestamp=datetime(2026, 2, 3))
    assert await listed(fake, "/threads") == []


# Paging


async def test_mail_that_arrives_between_pages_hides_no_mail_on_them(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    now = datetime.fromtimestamp(fake.now(), UTC)
    for number in range(9):
        await fake.deliver(inbox_id=INBOX, subject=str(number), timestamp=now + timedelta(seconds=number // 2))
    async with rest(fake) as client:
        for ascending in (False, True):
            found: list[str] = []
            params: dict[str, Any] = {"limit": 2, "ascending": ascending}
            while params.get("page_token", "first"):
                page = await get(client, f"/inboxes/{INBOX}/messages", **params)
                found += subjects(page["messages"])
                params["page_token"] = page.get("next_page_token")
                for seconds in (-60, 0, 2, 60):
                    await fake.deliver(inbox_id=INBOX, subject="new", timestamp=now + timedelta(seconds=seconds))
            old = [subject for subject in found if subject != "new"]
            assert old == [str(number) for number in (range(9) if ascending else reversed(range(9)))]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (100, 100), (101, 100), (999_999_999, 100)])
async def test_a_page_has_at_most_its_limit_and_at_most_a_hundred_items(
    asked: int, given: int, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    for _ in range(102):
        await fake.deliver(inbox_id=INBOX)
    async with rest(fake) as client:
        answer = await get(client, f"/inboxes/{INBOX}/messages", limit=asked)
        assert (answer["count"], answer["limit"]) == (given, given)
        assert (await get(client, "/threads"))["limit"] == 50
        sizes = [len(page) for page in await pages(client, "/threads", "threads")]
        assert sizes == [50, 50, 2]


async def test_a_full_last_page_has_no_next_page_token(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for _ in range(4):
        await fake.deliver(inbox_id=INBOX)
    await fake.deliver(inbox_id=INBOX, event_type="message.received.spam", timestamp=datetime(2001, 1, 1, tzinfo=UTC))
    async with rest(fake) as client:
        sizes = [len(page) for page in await pages(client, f"/inboxes/{INBOX}/messages", "messages", limit=2)]
    assert sizes == [2, 2]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "many"},
        {"page_token": "nonsense"},
        {"page_token": "W10="},
        {"page_token": "MQ=="},
        {"after": "yesterday"},
        {"before": "2026-02-03T04:05:06"},
        {"ascending": "yes"},
        {"include_spam": "1"},
        {"labels": "["},
        {"labels": "[1"},
        {"labels": "[[]]"},
    ],
)
async def test_an_invalid_parameter_is_refused(params: dict[str, str], autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    for path in (f"/inboxes/{INBOX}/messages", "/threads", "/inboxes"):
        assert await refusal(fake, path, **params) == (400, "validation_error")


# Inboxes and pods


async def test_inboxes_are_listed_the_newest_first_with_their_pods(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox("added", pod_id="pod")
    await trio.sleep(1)
    await fake.deliver(inbox_id="received")
    await trio.sleep(1)
    await fake.mail.send(inbox_id="sent")
    async with rest(fake) as client:
        found = await pages(client, "/inboxes", "inboxes", limit=2)
        assert [[inbox["inbox_id"] for inbox in page] for page in found] == [["sent", "received"], ["added"]]
        assert {inbox["inbox_id"]: inbox["pod_id"] for page in found for inbox in page} == {
            "added": "pod",
            "received": "default",
            "sent": "default",
        }
        [page] = await pages(client, "/pods/default/inboxes", "inboxes", ascending=True)
        assert [inbox["inbox_id"] for inbox in page] == ["received", "sent"]
        fake.mail.add_inbox("received", pod_id="pod")
        fake.mail.add_inbox("added")
        [page] = await pages(client, "/pods/pod/inboxes", "inboxes")
        assert [inbox["inbox_id"] for inbox in page] == ["received", "added"]
        created = datetime.fromisoformat(page[0]["created_at"])
        assert created.timestamp() == pytest.approx(fake.now() - 1)


def test_inboxes_can_be_added_before_the_test_runs() -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)

    async def ask() -> None:
        assert await listed(fake) == []

    trio.run(ask)


@pytest.mark.parametrize(
    "path",
    [
        "/inboxes/nobody/messages",
        "/inboxes/nobody/messages/<1>",
        f"/inboxes/{INBOX}/messages/<1>",
        "/inboxes/nobody/threads",
        "/inboxes/nobody/threads/t",
        f"/inboxes/{OTHER}/threads/t",
        "/threads/none",
        "/pods/none/inboxes",
        "/pods/none/threads",
        "/inboxes/",
        "/nothing",
        "/../v1/inboxes",
    ],
)
async def test_an_unknown_object_is_a_404(path: str, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, thread_id="t")
    fake.mail.add_inbox(OTHER)
    assert await refusal(fake, path) == (404, "not_found")


# Threads


async def test_every_listing_of_threads_has_a_thread_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(OTHER, pod_id="pod")
    await fake.deliver(inbox_id=OTHER, subject="elsewhere")
    question = await fake.deliver(inbox_id=INBOX, thread_id="t", subject="question", text="?")
    await trio.sleep(60)
    answer = await fake.mail.send(inbox_id=INBOX, thread_id="t", subject="answer", to=["jane@example.com"], text="!!")
    for path in ("/threads", "/pods/default/threads", f"/inboxes/{INBOX}/threads"):
        async with rest(fake) as client:
            thread = (await get(client, path))["threads"][0]
        assert thread == {
            "inbox_id": INBOX,
            "thread_id": "t",
            "labels": ["received", "unread", "sent", "delivered"],
            "timestamp": wire(answer.send.timestamp),
            "received_timestamp": wire(question.message.timestamp),
            "sent_timestamp": wire(answer.send.timestamp),
            "senders": ["Jane <jane@example.com>", INBOX],
            "recipients": [INBOX, "jane@example.com"],
            "subject": "answer",
            "preview": "!!",
            "attachments": [],
            "last_message_id": answer.send.message_id,
            "message_count": 2,
            "size": 1 + (fake.mail.messages(INBOX, "sent")[0].size or 0),
            "updated_at": wire(answer.send.timestamp),
            "created_at": wire(question.message.created_at),
        }
    assert await listed(fake, "/threads") == ["answer", "elsewhere"]
    assert await listed(fake, "/pods/pod/threads") == ["elsewhere"]
    assert await listed(fake, f"/inboxes/{OTHER}/threads") == ["elsewhere"]


def wire(time: datetime | None) -> str:
    assert time is not None
    return time.isoformat().replace("+00:00", "Z")


async def test_threads_are_ordered_by_their_newest_mails(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for thread in ("a", "b"):
        await fake.deliver(inbox_id=INBOX, thread_id=thread, subject=thread)
        await trio.sleep(1)
    newest = await fake.deliver(inbox_id=INBOX, thread_id="a", subject="a2")
    assert await listed(fake, "/threads") == ["a2", "b"]
    await trio.sleep(1)
    await fake.deliver(inbox_id=INBOX, thread_id="b", subject="b2", timestamp=datetime(2001, 1, 1, tzinfo=UTC))
    assert await listed(fake, "/threads") == ["a2", "b"]
    assert await listed(fake, "/threads", after=wire(newest.message.timestamp)) == ["a2"]
    await fake.mail.delete(INBOX, newest.message.message_id)
    assert await listed(fake, "/threads") == ["b", "a"]
    async with rest(fake) as client:
        b, a = (await get(client, "/threads"))["threads"]
        assert (b["message_count"], b["size"], a["message_count"], a["size"]) == (2, 12, 1, 6)
        assert a["labels"] == ["received", "unread"]
    # On a mock clock, several mails arrive at the same time.
    for thread in ("a", "b", "a"):
        await fake.deliver(inbox_id=INBOX, thread_id=thread, subject=thread)
    assert await listed(fake, "/threads") == ["a", "b"]


async def test_a_thread_with_spam_is_listed_only_with_spam(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, thread_id="t", subject="ham")
    spam = await fake.deliver(inbox_id=INBOX, thread_id="t", subject="spam", event_type="message.received.spam")
    assert await listed(fake, "/threads") == []
    assert await listed(fake, "/threads", include_spam=True) == ["spam"]
    assert await listed(fake) == ["ham"]
    await fake.mail.delete(INBOX, spam.message.message_id)
    assert await listed(fake, "/threads") == ["ham"]


async def test_a_thread_pages_back_from_its_newest_messages_each_page_in_order(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    for number in range(5):
        await fake.deliver(inbox_id=INBOX, thread_id="t", subject=str(number), text="text", html="<p>")
        await trio.sleep(1)
    for path in ("/threads/t", f"/inboxes/{INBOX}/threads/t"):
        async with rest(fake) as client:
            first = await get(client, path, limit=2)
            assert (first["subject"], first["message_count"], first["count"], first["limit"]) == ("4", 5, 2, 2)
            assert (first["messages"][0]["text"], first["messages"][0]["html"]) == ("text", "<p>")
            found = await pages(client, path, "messages", limit=2)
            assert [subjects(page) for page in found] == [["3", "4"], ["1", "2"], ["0"]]
            assert subjects((await get(client, path))["messages"]) == ["0", "1", "2", "3", "4"]


async def test_an_event_describes_its_thread_including_the_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.mail.send(inbox_id=INBOX, thread_id="t")
    event = await fake.deliver(inbox_id=INBOX, thread_id="t")
    assert event.thread is not None
    assert (event.thread.message_count, event.thread.last_message_id) == (2, event.message.message_id)


async def test_a_thread_belongs_to_one_inbox() -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, thread_id="t", message_id="<1>")
    with pytest.raises(ValueError, match="in the inbox agent"):
        await fake.deliver(inbox_id=OTHER, thread_id="t")
    assert await listed(fake, "/threads") == ["Hello"]


async def test_a_thread_is_deleted_with_its_last_mail(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, thread_id="t", message_id="<1>")
    await trio.sleep(60)
    again = await fake.deliver(inbox_id=INBOX, thread_id="t", message_id="<1>")
    assert again.thread is not None
    assert again.thread.created_at != again.message.created_at
    await fake.mail.delete(INBOX, "<1>")
    anew = await fake.deliver(inbox_id=INBOX, thread_id="t", message_id="<2>")
    assert anew.thread is not None
    assert anew.thread.created_at == anew.message.created_at
    await fake.deliver(inbox_id=INBOX, thread_id="another", message_id="<2>")
    fake.mail.index_after(60)
    await fake.deliver(inbox_id=OTHER, thread_id="t", message_id="<3>")
    await fake.mail.delete(OTHER, "<3>")
    await fake.deliver(inbox_id=INBOX, thread_id="t")
    with pytest.raises(ValueError, match="in the inbox agent"):
        await fake.deliver(inbox_id=OTHER, thread_id="t")


# Held mail


async def test_a_held_mail_is_listed_with_its_label_and_keeps_its_times_when_released(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    held = await fake.deliver(inbox_id=INBOX, message_id="<1>", thread_id="t", held=True)
    assert held.message.labels == ("received", "unread", "agent-armor-held")
    await trio.sleep(3600)
    async with rest(fake) as client:
        [item] = (await get(client, f"/inboxes/{INBOX}/messages", labels="agent-armor-held"))["messages"]
        assert item["agent_armor"]["verdict"] == "review"
        released = await fake.mail.release(INBOX, "<1>")
        [item] = (await get(client, f"/inboxes/{INBOX}/messages"))["messages"]
        [thread] = (await get(client, "/threads"))["threads"]
    assert item["labels"] == thread["labels"] == ["received", "unread"] == list(released.message.labels)
    assert (item["timestamp"], item["created_at"]) == (wire(held.message.timestamp), wire(held.message.created_at))
    assert thread["timestamp"] == wire(held.message.timestamp)
    assert datetime.fromisoformat(thread["updated_at"]).timestamp() == pytest.approx(fake.now())
    assert item["agent_armor"]["manual_override"]["original_verdict"] == "review"
    assert released.event_id == held.event_id
    with pytest.raises(ValueError, match="not held"):
        await fake.mail.release(INBOX, "<1>")


async def test_a_mail_with_the_label_of_held_mail_is_held(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, message_id="<1>")
    await fake.mail.label(INBOX, "<1>", add=["agent-armor-held"])
    assert await listed(fake, labels="agent-armor-held") == ["Hello"]
    assert (await fake.mail.release(INBOX, "<1>")).message.labels == ("received", "unread")


# Keys and permissions


async def test_a_request_without_a_key_or_with_an_unknown_one_is_refused(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    async with rest(fake, headers={}) as client:
        response = await client.get("/inboxes", params={"api_key": "am_key"})
        assert (response.status_code, response.json()["code"]) == (401, "missing_authorization")
        response = await client.get("/inboxes", headers={"Authorization": "Bearer am_other"})
        assert (response.status_code, response.json()["code"]) == (401, "unknown_api_key")
        assert response.headers["content-type"] == "application/json"
    assert await listed(fake, "/threads") == []


async def test_a_call_without_its_permission_is_refused(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"inbox_read"})
    await fake.deliver(inbox_id=INBOX, message_id="1", thread_id="t")
    messages = f"/inboxes/{INBOX}/messages"
    for path in (messages, messages + "/1", "/threads", "/threads/t"):
        assert await refusal(fake, path) == (403, "missing_permission")
    async with rest(fake) as client:
        response = await client.post(messages + "/batch-get", json={"message_ids": []})
        assert response.status_code == 403
        assert (await client.get("/inboxes")).status_code == 200
    fake.permissions = {"message_read"}
    assert await refusal(fake, "/inboxes") == (403, "missing_permission")
    assert await listed(fake) == ["Hello"]


async def test_mail_that_a_key_may_not_see_is_a_404(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"message_read", "label_blocked_read"})
    await fake.deliver(inbox_id=INBOX, subject="ham", thread_id="mixed")
    for kind in ("spam", "blocked"):
        await fake.deliver(
            inbox_id=INBOX, subject=kind, message_id=kind, thread_id=kind, event_type=f"message.received.{kind}"
        )
    await fake.deliver(inbox_id=INBOX, subject="spam", thread_id="mixed", event_type="message.received.spam")
    everything: dict[str, Any] = {"include_spam": True, "include_blocked": True}
    assert await listed(fake, **everything) == ["blocked", "ham"]
    assert await listed(fake, "/threads", **everything) == ["blocked"]
    assert await refusal(fake, f"/inboxes/{INBOX}/messages/spam") == (404, "not_found")
    assert await refusal(fake, "/threads/spam") == (404, "not_found")
    async with rest(fake) as client:
        assert subjects((await get(client, "/threads/mixed"))["messages"]) == ["ham"]
        ids = {"message_ids": ["spam", "blocked"]}
        answer = (await client.post(f"/inboxes/{INBOX}/messages/batch-get", json=ids)).json()
        assert subjects(answer["messages"]) == ["blocked"]


async def test_a_thread_leaves_out_messages_that_the_key_may_not_see(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail(permissions={"message_read", "message_update"})
    seen = await fake.deliver(inbox_id=INBOX, thread_id="t", subject="Lunch?", text="Hungry?")
    await trio.sleep(60)
    spam = await fake.deliver(
        inbox_id=INBOX,
        thread_id="t",
        from_="spam@example.com",
        to=["victims@example.com"],
        subject="SPAM",
        text="Buy!",
        event_type="message.received.spam",
    )
    async with rest(fake) as client:
        thread = await get(client, "/threads/t")
        assert thread.pop("count") == len(thread.pop("messages")) == 1
        at = wire(seen.message.timestamp)
        assert thread == {
            "inbox_id": INBOX,
            "thread_id": "t",
            "labels": ["received", "unread"],
            "timestamp": at,
            "received_timestamp": at,
            "senders": [seen.message.from_],
            "recipients": [INBOX],
            "subject": "Lunch?",
            "preview": "Hungry?",
            "attachments": [],
            "last_message_id": seen.message.message_id,
            "message_count": 1,
            "size": seen.message.size,
            "updated_at": at,
            "created_at": at,
            "limit": 50,
        }
        patched = await client.patch("/threads/t", json={"add_labels": ["seen"]})
        assert patched.json() == {"thread_id": "t", "labels": ["received", "unread", "seen"]}
        # From here on, the view of the thread is updated and not built again.
        await fake.mail.label(INBOX, spam.message.message_id, remove=["spam"])
        assert (await get(client, "/threads/t"))["message_count"] == 2
        await fake.mail.label(INBOX, spam.message.message_id, add=["trash"])
        await fake.deliver(inbox_id=INBOX, thread_id="t", subject="Dinner?")
        await fake.mail.delete(INBOX, seen.message.message_id)
        thread = await get(client, "/threads/t")
        assert (thread["message_count"], thread["subject"], "seen" in thread["labels"]) == (1, "Dinner?", False)
        patched = await client.patch("/threads/t", json={"add_labels": ["trash"]})
        assert patched.json()["labels"] == ["received", "unread", "trash"]
        assert await refusal(fake, "/threads/t") == (404, "not_found")
        fake.permissions = None
        assert (await get(client, "/threads/t"))["message_count"] == 2


# Observation and faults


async def test_requests_are_recorded_without_the_key(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with rest(fake) as client:
        await client.get("/inboxes", params={"limit": 1})
        await trio.sleep(5)
        await client.post("/inboxes/a%20b/messages/batch-get")
    assert fake.record.requests == [
        Request(method="GET", path="/v0/inboxes", query="limit=1", status=200, at=fake.record.requests[1].at - 5),
        Request(
            method="POST",
            path="/v0/inboxes/a b/messages/batch-get",
            query="",
            status=404,
            at=trio.current_time(),
        ),
    ]


async def test_a_recorded_request_has_its_body_and_no_key_in_its_repr(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with rest(fake) as client:
        await client.post("/pods", json={"name": "x"}, headers={"Idempotency-Key": "k"})
    [request] = fake.record.requests
    assert json.loads(request.body) == {"name": "x"}
    assert request.headers["idempotency-key"] == "k"
    assert request.headers["Authorization"] == BEARER["Authorization"]
    assert "am_key" not in repr(request)


async def test_every_response_has_a_date_from_the_clock_of_the_fake(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.fail_requests(500)
    async with rest(fake) as client:
        for path in ("/inboxes", "/inboxes", "/nothing"):
            await trio.sleep(3600)
            date = parsedate_to_datetime((await client.get(path)).headers["Date"])
            assert date.timestamp() == pytest.approx(fake.now(), abs=1)


async def test_request_faults_apply_in_order_and_only_to_their_path(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.faults.fail_requests(403, path=INBOX, times=None)
    fake.faults.fail_requests(429, headers=[("Retry-After", "7")], body=b"later", times=2)
    async with rest(fake) as client:
        for _ in range(2):
            response = await client.get("/inboxes")
            assert (response.status_code, response.headers["Retry-After"], response.text) == (429, "7", "later")
            assert (await client.get(f"/inboxes/{quote(INBOX, safe='')}/messages")).status_code == 403
        assert (await client.get("/inboxes")).status_code == 200
        fake.faults.clear()
        assert (await client.get(f"/inboxes/{INBOX}/messages")).status_code == 200
    assert [request.status for request in fake.record.requests] == [429, 403, 429, 403, 200, 200]


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (418, "error"), (504, "internal_error")])
async def test_a_requested_error_has_the_body_of_an_agentmail_error(
    status: int, code: str, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.fail_requests(status)
    fake.faults.fail_requests(status, body=b"")
    fake.faults.fail_requests(status, headers={"Content-Type": "application/problem+json"})
    async with rest(fake) as client:
        response = await client.get("/inboxes")
        assert (response.json()["code"], response.headers["Content-Type"]) == (code, "application/json")
        response = await client.get("/inboxes")
        assert (response.content, "Content-Type" in response.headers) == (b"", False)
        response = await client.get("/inboxes")
        assert (response.json()["code"], response.headers["Content-Type"]) == (code, "application/problem+json")


async def test_a_requested_status_below_400_has_no_body(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.fail_requests(204)
    async with rest(fake) as client:
        response = await client.get("/inboxes")
        assert (response.status_code, response.content) == (204, b"")


async def test_a_search_is_a_404_that_names_the_call(autojump_clock: MockClock) -> None:
    async with rest(FakeAgentMail()) as client:
        for path in ("/inboxes/search", f"/inboxes/{INBOX}/messages/search", "/threads/search"):
            assert (await client.get(path)).json()["message"] == f"FakeAgentMail has no GET /v0{path}"


async def test_an_answer_function_may_be_synchronous(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.answer_requests(lambda request: httpx2.Response(202, text=request.method))
    async with rest(fake) as client:
        assert (await client.get("/inboxes")).text == "GET"


async def test_an_answer_function_may_be_async_and_take_time(autojump_clock: MockClock) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        assert [request.status for request in fake.record.requests] == [None]
        await trio.sleep(5)
        return httpx2.Response(200, headers={"Date": "yesterday"}, json={"echo": request.content.decode()})

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer, path="/pods")
    async with rest(fake) as client:
        response = await client.post("/pods", content=b"hello")
        assert response.json() == {"echo": "hello"}
        assert response.headers["Date"] == "yesterday"
        assert trio.current_time() == 5
        assert (await client.get("/pods")).json()["count"] == 1
    assert [request.status for request in fake.record.requests] == [200, 200]


@pytest.mark.parametrize("error", [httpx2.ConnectTimeout("no way"), ZeroDivisionError("a bug in the test")], ids=repr)
async def test_an_exception_from_an_answer_function_reaches_the_client(
    error: Exception, library: Any, autojump_clock: MockClock
) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        raise error

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer)
    async with rest(fake) as client:
        with pytest.raises(getattr(library, type(error).__name__, type(error))) as caught:
            await client.get("/inboxes")
        assert str(caught.value) == str(error)
        if library is httpx2 or isinstance(error, ZeroDivisionError):
            assert caught.value is error
        else:
            assert caught.value.__cause__ is error
            assert isinstance(caught.value.request, httpx.Request)
    assert [request.status for request in fake.record.requests] == [None]
    assert "GET /v0/inboxes: ConnectTimeout" in fake.explain() or isinstance(error, ZeroDivisionError)


async def test_the_fake_does_not_read_a_streamed_answer(autojump_clock: MockClock) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.sleep(10)
            yield b"."

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500, content=trickle())

    fake = FakeAgentMail()
    fake.faults.answer_requests(answer)
    async with rest(fake) as client:
        async with client.stream("GET", "/inboxes") as response:
            assert trio.current_time() == 0
            assert await response.aread() == b"..."
            assert trio.current_time() == 30


async def test_an_answer_function_answers_on_a_port_byte_for_byte() -> None:
    async def compressed(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=gzip.compress(b"hello"))

    async def in_pieces(request: httpx2.Request) -> httpx2.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"hel"
            yield b"lo"

        return httpx2.Response(200, content=pieces())

    async def broken(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadError("reset")

    fake = FakeAgentMail()
    for function in (compressed, in_pieces, broken):
        fake.faults.answer_requests(function)
    async with served(fake) as client:
        assert (await client.get("/inboxes")).text == "hello"
        assert (await client.get("/inboxes")).text == "hello"
        with pytest.raises(client_library.ReadError):
            await client.get("/inboxes")
        assert (await client.get("/inboxes")).status_code == 200


async def test_a_hanging_request_times_out_in_the_client(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_requests(times=2)
    async with rest(fake, timeout=7) as client:
        started = trio.current_time()
        with pytest.raises(client_library.ReadTimeout):
            await client.get("/inboxes")
        assert trio.current_time() == started + 7
        with trio.move_on_after(3600) as scope:
            await client.get("/inboxes", timeout=None)
        assert scope.cancelled_caught
        assert (await client.get("/inboxes")).status_code == 200
    assert [request.status for request in fake.record.requests] == [None, None, 200]


async def test_a_broken_request_is_a_read_error(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.break_requests(path="/threads")
    async with rest(fake) as client:
        assert (await client.get("/inboxes")).status_code == 200
        with pytest.raises(client_library.ReadError):
            await client.get("/threads")
        assert (await client.get("/threads")).status_code == 200
    assert [request.status for request in fake.record.requests] == [200, None, 200]


async def test_mail_appears_in_listings_after_the_index_delay(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, thread_id="t", subject="before")
    fake.mail.index_after(30)
    event = await fake.deliver(inbox_id=INBOX, thread_id="t", message_id="1", subject="late")
    await fake.deliver(inbox_id=INBOX, message_id="2", subject="deleted meanwhile")
    await fake.deliver(inbox_id=INBOX, message_id="3", thread_id="new", subject="held", held=True)
    assert event.thread is not None
    assert event.thread.message_count == 1
    for _ in range(2):
        assert (await listed(fake), await listed(fake, "/threads")) == (["before"], ["before"])
        await trio.sleep(14)
    async with rest(fake) as client:
        assert (await get(client, f"/inboxes/{INBOX}/messages/1"))["subject"] == "late"
        assert subjects((await get(client, "/threads/t"))["messages"]) == ["before"]
    assert await refusal(fake, "/threads/new") == (404, "not_found")
    await fake.mail.delete(INBOX, "2")
    assert (await fake.mail.release(INBOX, "3")).thread is None
    await trio.sleep(2)
    assert await listed(fake) == ["held", "late", "before"]
    assert await listed(fake, labels="agent-armor-held") == []
    assert await listed(fake, "/threads") == ["held", "late"]
    await fake.deliver(inbox_id=INBOX, subject="at once")
    assert "at once" not in await listed(fake)
    fake.mail.index_after(None)
    assert "at once" in await listed(fake)


# Many


async def test_twenty_thousand_mails_are_delivered_and_listed_in_seconds(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    now = datetime.fromtimestamp(fake.now(), UTC)
    for number in range(20_000):
        await fake.deliver(
            inbox_id=f"inbox-{number % 10}",
            thread_id=f"{number % 10}" if number % 2 else None,
            timestamp=now - timedelta(seconds=number * 7919 % 86_400),
        )
    async with rest(fake) as client:
        for _ in range(200):
            await get(client, "/threads", limit=10)
            await get(client, "/inboxes/inbox-1/messages", limit=10, after=wire(now - timedelta(minutes=5)))
        found = await pages(client, "/threads", "threads", limit=100)
        assert sum(len(page) for page in found) == 10_005


# On a port, with real time: every test has its own time-out


@asynccontextmanager
async def served(fake: FakeAgentMail, **kwargs: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the REST API on a port."""
    with trio.fail_after(10):
        async with fake.serve() as environment:
            async with client_library.AsyncClient(
                base_url=environment.http + "/v0", headers=BEARER, **kwargs
            ) as client:
                yield client


async def open_stream(client: httpx2.AsyncClient) -> trio.SocketStream:
    """Connect to the port that a client uses."""
    port = client.base_url.port
    assert port is not None
    return await trio.open_tcp_stream("127.0.0.1", port)


async def test_the_rest_api_answers_on_a_port() -> None:
    fake = FakeAgentMail(api_keys={"am_key"})
    mail = await fake.deliver(inbox_id=INBOX, message_id=ODD_ID, text="x" * 2**20)
    async with served(fake) as client:
        for _ in range(2):
            answer = await get(client, f"/inboxes/{INBOX}/messages/{quote(ODD_ID, safe='')}")
            assert answer["text"] == mail.message.text
            batch = {"message_ids": [ODD_ID, *map(str, range(499))]}
            response = await client.post(f"/inboxes/{INBOX}/messages/batch-get", json=batch)
            assert (response.json()["count"], response.json()["limit"]) == (1, 500)
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/inboxes", headers={"Authorization": ""})).status_code == 401
        assert (await client.get("/inboxes", headers={"Connection": "close"})).status_code == 200
        assert (await client.get("/inboxes")).status_code == 200
    assert [request.status for request in fake.record.requests] == [200, 200, 200, 200, 404, 401, 200, 200]


@asynccontextmanager
async def in_memory_or_served(fake: FakeAgentMail, how: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with rest(fake) if how == "in memory" else served(fake) as client:
        yield client


@pytest.mark.parametrize("how", ["in memory", "on a port"])
async def test_a_head_is_answered_as_a_get_without_the_body(how: str) -> None:
    fake = FakeAgentMail()
    mail = await fake.deliver(inbox_id=INBOX, text="x" * 5000)
    async with in_memory_or_served(fake, how) as client:
        path = f"/inboxes/{INBOX}/messages/{quote(mail.message.message_id, safe='')}"
        download = (await get(client, f"{path}/raw"))["download_url"].replace("api.example", "fake")
        fake.faults.fail_requests(503, body=b"out of order", path="/broken", times=None)
        for url in (path, "/inboxes", "/inboxes/nobody", "/nothing", "/broken", download):
            whole = await client.get(url)
            head = await client.head(url)
            assert head.status_code == whole.status_code
            assert head.headers["Content-Length"] == whole.headers["Content-Length"] == str(len(whole.content))
            assert head.headers.get("Content-Type") == whole.headers.get("Content-Type")
            assert head.content == b""
        assert (await client.head("/inboxes", headers={"Authorization": ""})).status_code == 401
        assert (await client.get("/inboxes")).status_code == 200  # so the connection has no rest of a body
    assert [request.method for request in fake.record.requests][-4:] == ["GET", "HEAD", "HEAD", "GET"]


async def test_a_head_changes_nothing(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with rest(fake) as client:
        response = await client.head(f"/inboxes/{INBOX}/messages/send")
        assert response.status_code == 404
    assert fake.mail.messages(INBOX) == ()


async def test_a_lone_surrogate_in_a_request_is_repaired_as_in_the_stream(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with rest(fake) as client:
        body = rb'{"to": "jane@example.com", "subject": "\ud83d\ude00 \ud83d", "text": "\udc00", "labels": ["\ud800"]}'
        response = await client.post(f"/inboxes/{INBOX}/messages/send", content=body)
        assert response.status_code == 200
    [mail] = fake.mail.messages(INBOX)
    assert (mail.subject, mail.text, mail.labels[1]) == ("\U0001f600 \ufffd", "\ufffd", "\ufffd")


@pytest.mark.parametrize("body", [b"[]", b"7", b"{", b"\xff", b'{"a": ' * 10_000, b'"\\ud83d"', b"nul"])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes, autojump_clock: MockClock) -> None:
    async with rest(FakeAgentMail()) as client:
        response = await client.post("/inboxes", content=body)
        assert (response.status_code, response.json()["message"]) == (400, "the body is not a JSON object")


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer am_other"}], ids=str)
async def test_an_unsupported_call_that_needs_no_key_is_a_404_without_a_key(
    headers: dict[str, str], autojump_clock: MockClock
) -> None:
    async with rest(FakeAgentMail(api_keys={"am_key"})) as client:
        response = await client.post("/agent/sign-up", json={"username": "agent"}, headers=headers)
        assert response.status_code == 404
        assert response.json()["message"] == "FakeAgentMail has no POST /v0/agent/sign-up"
        for path in ("/agent/verify", "/agent/human", "/nothing"):
            response = await client.post(path, headers={"Authorization": ""})
            assert (response.status_code, response.json()["code"]) == (401, "missing_authorization")


async def test_the_rest_api_speaks_tls() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with fake.serve(ssl_context=server_context) as environment:
            assert environment.http.startswith("https://localhost:")
            url = environment.http + "/v0/inboxes"
            async with client_library.AsyncClient(verify=client_context) as client:
                with pytest.raises(client_library.ConnectError):
                    await client.get(url)
            authority.configure_trust(client_context)
            async with client_library.AsyncClient(verify=client_context, headers=BEARER) as client:
                assert (await client.get(url)).status_code == 200
                fake.faults.break_requests()
                with pytest.raises(client_library.TransportError):
                    await client.get(url)


async def test_request_faults_apply_on_a_port() -> None:
    fake = FakeAgentMail()
    fake.faults.fail_requests(503, headers=[("Retry-After", "1")])
    fake.faults.break_requests()
    fake.faults.hang_requests()
    async with served(fake, timeout=None) as client:
        response = await client.get("/inboxes")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["code"] == "internal_error"
        with pytest.raises(client_library.ReadError):
            await client.get("/inboxes")
        with pytest.raises(client_library.ReadTimeout):
            await client.get("/inboxes", timeout=client_library.Timeout(None, read=0.2))
        assert (await client.get("/inboxes")).status_code == 200
        fake.faults.hang_requests()
        async with await open_stream(client) as stream:
            # A request that is sent meanwhile gets no answer either.
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while len(fake.record.requests) < 5:
                await trio.lowlevel.checkpoint()
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await stream.send_eof()
            assert await stream.receive_some() == b""
    assert [request.status for request in fake.record.requests] == [503, None, None, 200, None]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\nHost: localhost\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v0 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, 431),
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_bytes_that_are_not_http_are_answered_with_the_reason(request_bytes: bytes, status: int) -> None:
    async with served(FakeAgentMail()) as client, await open_stream(client) as stream:
        await stream.send_all(request_bytes)
        head, _, body = (await stream.receive_some()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert json.loads(body)["message"].startswith("this is not an HTTP request: ")


async def test_a_request_target_may_be_an_absolute_url() -> None:
    async with served(FakeAgentMail()) as client, await open_stream(client) as stream:
        await stream.send_all(
            b"GET http://localhost/v0/pods HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_client_that_expects_100_continue_gets_it() -> None:
    fake = FakeAgentMail()
    async with served(fake) as client, await open_stream(client) as stream:
        head = b"POST /v0/pods HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
        await stream.send_all(head + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        await stream.send_all(b"{}")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
async def test_it_answers_on_ipv4_and_on_ipv6(host: str) -> None:
    fake = FakeAgentMail()
    async with fake.serve(host=host) as environment, client_library.AsyncClient(headers=BEARER) as client:
        assert (await client.get(environment.http + "/v0/inboxes")).status_code == 200


@contextmanager
def room_for_files(count: int) -> Iterator[None]:
    """Limit the number of further files that this process can open in the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1 + count, limits[1]))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which files are open")
@pytest.mark.parametrize("kind", ["http", "websockets"])
async def test_out_of_file_descriptors_a_new_connection_waits(kind: str) -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        port = int(getattr(environment, kind).rpartition(":")[2])
        with room_for_files(1):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await wait_all_tasks_blocked()
            assert fake.record.attempts == 0
        await stream.send_all(b"GET /v0/pods HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with trio.fail_after(10):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 4")
        await stream.aclose()


async def test_any_other_error_of_a_listener_is_raised() -> None:
    async def accept() -> trio.SocketStream:
        raise OSError(errno.ENETDOWN, "the network is down")

    with pytest.raises(OSError, match="down"):
        await accept_from(cast(trio.SocketListener, SimpleNamespace(accept=accept)))


@pytest.mark.parametrize("given", ["bearer am_key", "BEARER am_key", "Bearer", "Bearer  a", "Bearer a b", "Basic a"])
async def test_a_malformed_authorization_header_has_no_key(given: str) -> None:
    async with rest(FakeAgentMail(), headers={"Authorization": given}) as client:
        response = await client.get("/inboxes")
    assert (response.status_code, response.json()["code"]) == (401, "missing_authorization")


async def test_a_client_may_disconnect_in_the_middle_of_a_request() -> None:
    fake = FakeAgentMail()
    async with served(fake) as client:
        stream = await open_stream(client)
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)
        assert (await client.get("/inboxes")).status_code == 200


async def test_no_client_keeps_serve_from_ending() -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, message_id="1", text="x" * 2**24)
    fake.faults.hang_requests(path="/hang")
    with trio.fail_after(10):
        async with fake.serve() as environment:
            client = client_library.AsyncClient(base_url=environment.http + "/v0", headers=BEARER)
            assert (await client.get("/inboxes")).status_code == 200
            kept_alive = await open_stream(client)
            stopped_reading = await open_stream(client)
            request = (
                f"GET /v0/inboxes/{INBOX}/messages/1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\n\r\n"
            )
            await stopped_reading.send_all(request.encode())
            hanging = await open_stream(client)
            await hanging.send_all(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while len(fake.record.requests) < 3:
                await trio.lowlevel.checkpoint()
    await client.aclose()
    for stream in (kept_alive, stopped_reading, hanging):
        await trio.aclose_forcefully(stream)


async def test_a_bug_in_the_served_rest_api_comes_out_of_serve() -> None:
    class BrokenKeys(set[str]):
        def __contains__(self, key: object) -> bool:
            raise RuntimeError("a bug in the test's own set of keys")

    with pytest.raises(RuntimeError, match="a bug"):
        async with served(FakeAgentMail(api_keys=BrokenKeys())) as client:
            await client.get("/inboxes")


async def test_a_port_in_use_is_an_error_and_the_other_port_stays_free() -> None:
    fake = FakeAgentMail()
    with trio.fail_after(10):
        async with fake.serve() as environment:
            websocket_port = int(environment.websockets.rpartition(":")[2])
            http_port = int(environment.http.rpartition(":")[2])
            with pytest.raises(OSError, match="in use"):
                async with fake.serve(websocket_port):
                    pass
            with pytest.raises(OSError, match="in use"):
                async with fake.serve(http_port=http_port):
                    pass
        async with fake.serve(websocket_port, http_port=http_port) as again:
            assert again == environment


# To a client that is not httpx alone


async def test_the_official_sdk_reaches_the_fake_in_memory(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    await fake.deliver(inbox_id=INBOX, subject="Hello")
    async with httpx.AsyncClient(transport=fake.http_transport()) as http:
        client = AsyncAgentMail(api_key="am_key", httpx_client=http)
        # The retries of the SDK need asyncio.
        page = await client.inboxes.messages.list(INBOX, request_options={"max_retries": 0})
    assert [message.subject for message in page.messages] == ["Hello"]


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
async def test_a_request_that_is_too_large_is_refused_before_it_is_read(
    announced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_agentmail.testing._wire.http_server.MAX_BODY", 10_000)
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        port = int(environment.http.rpartition(":")[2])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            size = "Content-Length: 99999999999" if announced else "Transfer-Encoding: chunked"
            head = f"POST /v0/inboxes HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer am_x\r\n{size}\r\n\r\n"
            await stream.send_all(head.encode())
            if not announced:
                await stream.send_all(b"".join(b"3e8\r\n" + b"x" * 1_000 + b"\r\n" for _ in range(11)))
            answer = b""
            while data := await stream.receive_some():
                answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert fake.record.requests == []
