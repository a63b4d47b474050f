"""Extracting the new part of a mail that quotes earlier mails, by a simple rule of our own."""

import time
from email.message import EmailMessage
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import MessageReceivedEvent
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._agentmail.mail.extraction import extract_html, extract_text

AGENT = "agent@agentmail.to"
OTHER = "other@agentmail.to"

# The example of AgentMail's documentation.
REPLY = """\
Thursday at 2pm works. I'll send an invite.
Sent from my iPhone
On Tue, Sep 22, 2026 at 9:14 AM Priya Shah <priya@acme.com> wrote:
> Can we move the demo to Thursday?
> Anything after 1pm works for us.
"""

HTML_REPLY = '<div dir="ltr">Thursday works.</div><br><div class="gmail_quote">On Tue, Priya wrote:</div>'


@pytest.mark.parametrize(
    ("text", "new"),
    [
        (REPLY, "Thursday at 2pm works. I'll send an invite."),
        (REPLY.replace("\n", "\r\n"), "Thursday at 2pm works. I'll send an invite."),
        (
            "Yes.\n\nOn Tue, Sep 22, 2026 at 9:14 AM Priya Shah with\na long name\n<priya@acme.com> wrote:\n\nNo?",
            "Yes.",
        ),
        ("Yes.\n\n-----Original Message-----\nFrom: Priya", "Yes."),
        ("Look.\n\n---------- Forwarded message ---------\nFrom: Priya", "Look."),
        ("Yes.\n\n________________________________\nFrom: Priya\nSent: Tuesday\nTo: Jane\nSubject: Hi\n\nNo?", "Yes."),
        ("Yes.\n\n*From:* Priya\n*Sent:* Tuesday\n\nNo?", "Yes."),
        ("Yes.\n> No?\n>> Perhaps?\n\n", "Yes."),
        ("> Thursday?\nYes.\n> Friday?\nNo.\n", "> Thursday?\nYes.\n> Friday?\nNo."),
        (
            "On Monday I wrote to you.\nFrom: here on, all is new.\n",
            "On Monday I wrote to you.\nFrom: here on, all is new.",
        ),
        ("On Tue, Priya wrote:\n> No?\n\nYes.", "On Tue, Priya wrote:\n> No?\n\nYes."),
        ("> nothing but a quote\n", "> nothing but a quote"),
        ("", ""),
        (None, None),
    ],
)
def test_the_text_above_the_history_is_extracted(text: str | None, new: str | None) -> None:
    assert extract_text(text) == new


@pytest.mark.parametrize(
    ("html", "new"),
    [
        (HTML_REPLY, '<div dir="ltr">Thursday works.</div><br>'),
        ("<p>Yes.</p>\n<blockquote type=cite>No?</blockquote>", "<p>Yes.</p>"),
        ('<p>Yes.</p><DIV ID="appendonsend"></DIV><hr>From: Priya', "<p>Yes.</p>"),
        ('<p>Yes.</p><hr><div id="divRplyFwdMsg">From: Priya', "<p>Yes.</p><hr>"),
        ('<p>Yes.</p><div class="x moz-cite-prefix">On Tue', "<p>Yes.</p>"),
        ("<html><body><blockquote>No?</blockquote>Yes.</body></html>\n",) * 2,
        ("<p>Hello</p>",) * 2,
        ("",) * 2,
        (None,) * 2,
    ],
)
def test_the_html_above_the_history_is_extracted(html: str | None, new: str | None) -> None:
    assert extract_html(html) == (new if new is None else new.strip())


@given(st.text(), st.lists(st.sampled_from(["On ", "wrote:", "\n", ">", "From:", "Sent:", "<div", "<", "blockquote>"])))
def test_the_extracted_text_is_part_of_the_mail(text: str, words: list[str]) -> None:
    mail = (text + "".join(words)).replace("\r\n", "\n")
    for new in (extract_text(mail), extract_html(mail)):
        assert new is not None
        assert new in mail
        assert bool(new) == bool(mail.strip())


@pytest.mark.parametrize(
    "piece", ["On \n", "wrote: ", "On wrote: ", ">\n", "From:\n", "_____\n", "<div ", "<", "---", "\n"]
)
def test_extraction_takes_linear_time(piece: str) -> None:
    mail = "On " + piece * 200_000 + "x"
    start = time.perf_counter()
    extract_text(mail)
    extract_html(mail)
    assert time.perf_counter() - start < 5


async def test_extracted_text_is_shown_wherever_the_text_is(autojump_clock: MockClock) -> None:
    mail = EmailMessage()
    mail["To"], mail["Message-ID"] = AGENT, "<1@example.com>"
    mail.set_content(REPLY)
    mail.add_alternative(HTML_REPLY, subtype="html")
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    fake.mail.add_inbox(OTHER)
    new = {
        "extracted_text": "Thursday at 2pm works. I'll send an invite.",
        "extracted_html": '<div dir="ltr">Thursday works.</div><br>',
    }
    transport = fake.http_transport()
    headers = {"Authorization": "Bearer am_key"}
    async with (
        open_agentmail_stream(backend=fake) as events,
        httpx2.AsyncClient(transport=transport, base_url="https://api.example/v0", headers=headers) as client,
    ):
        await events.receive()

        async def check(inbox_id: str, message_id: str) -> None:
            event = await events.receive()
            while not isinstance(event, MessageReceivedEvent):
                event = await events.receive()
            assert {name: getattr(event.message, name) for name in new} == new
            path = f"/inboxes/{inbox_id}/messages"
            message: dict[str, Any] = (await client.get(f"{path}/{message_id}")).json()
            thread = (await client.get(f"/threads/{message['thread_id']}")).json()
            assert {name: message[name] for name in new} == {name: thread["messages"][-1][name] for name in new} == new
            [item] = (await client.get(path)).json()["messages"]
            [part] = (await client.post(f"{path}/batch-get", json={"message_ids": [message_id]})).json()["messages"]
            assert new.keys().isdisjoint(item.keys() | part.keys())

        await fake.deliver(mail)
        await check(AGENT, "<1@example.com>")
        body = {"to": OTHER, "text": REPLY, "html": HTML_REPLY}
        sent = (await client.post(f"/inboxes/{AGENT}/messages/send", json=body)).json()
        await check(OTHER, sent["message_id"])
        [kept] = fake.mail.messages(AGENT, "sent")
        assert (kept.extracted_text, kept.extracted_html) == tuple(new.values())


async def test_a_push_without_the_text_lacks_the_extracted_text(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    event = await fake.deliver(inbox_id=AGENT, text=REPLY, html=HTML_REPLY, body_in_push=False)
    assert (event.message.extracted_text, event.message.extracted_html) == (None, None)
    [kept] = fake.mail.messages(AGENT)
    assert kept.extracted_text == "Thursday at 2pm works. I'll send an invite."
