"""A sent message has the same content in its raw form, as any mail program reads it."""

import base64
from email import message_from_bytes, policy
from email.headerregistry import AddressHeader
from email.message import EmailMessage
from email.utils import unquote
from typing import Any

import httpx2
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from trio_agentmail.testing import FakeAgentMail

AGENT = "agent@agentmail.to"
OTHER = "other@agentmail.to"

texts = st.text(st.characters(exclude_categories=["Cs"]))
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>"))
atoms = st.text("abcXYZ019_+-", min_size=1, max_size=20)
bare = st.builds("{}@{}.example".format, atoms, st.text("abc09", min_size=1, max_size=20))


@st.composite
def recipients(draw: st.DrawFn) -> list[str]:
    addresses = draw(st.lists(bare, max_size=5))
    return [f"{name} <{address}>" if (name := draw(names)) else address for address in addresses]


files = st.fixed_dictionaries(
    {"content": st.binary(max_size=300).map(lambda data: base64.b64encode(data).decode())},
    optional={
        "filename": lines.map(str.strip).filter(bool),  # the parser strips it, too
        "content_type": st.sampled_from(["text/plain", "text/html", "application/pdf", "image/png"]),
        "content_disposition": st.sampled_from(["inline", "attachment"]),
    },
)

bodies = st.fixed_dictionaries(
    {"to": recipients().map(lambda others: [OTHER, *others])},
    optional={
        "cc": recipients(),
        "bcc": recipients(),
        "reply_to": recipients(),
        "subject": lines,
        "text": texts,
        "html": texts,
        "headers": st.dictionaries(atoms.map("X-{}".format), lines, max_size=3),
        "attachments": st.lists(files, max_size=3),
    },
)


def plain(text: str | None) -> str:
    """Return a text without what a mail does not preserve: the kind of line endings, and the one at the end."""
    return "\n".join((text or "").replace("\r\n", "\n").replace("\r", "\n").split("\n")).rstrip("\n")


def header(mail: EmailMessage, name: str) -> str:
    return " ".join(str(mail.get(name, "")).split())


def addresses(mail: EmailMessage, name: str) -> list[tuple[str, str]]:
    found = mail.get(name)
    assert found is None or isinstance(found, AddressHeader)
    # Spaces are removed: the parser adds some between encoded words, which are not in the names that we compare.
    return [] if found is None else [("".join(one.display_name.split()), one.addr_spec) for one in found.addresses]


def given_addresses(body: dict[str, Any], name: str) -> list[tuple[str, str]]:
    parts = [address.rpartition(" ") for address in body.get(name, [])]
    return [("".join(unquote(" ".join(label.split())).split()), address.strip("<>")) for label, _, address in parts]


def body_part(mail: EmailMessage, content_type: str) -> str:
    [*found] = (
        one for one in mail.walk() if one.get_content_type() == content_type and not one.get_content_disposition()
    )
    return plain(found[0].get_content()) if found else ""


async def sent(body: dict[str, Any]) -> tuple[Any, EmailMessage]:
    """Send a message, and return what the recipient sees and its raw form."""
    fake = FakeAgentMail()
    fake.mail.add_inbox(AGENT)
    fake.mail.add_inbox(OTHER)
    async with httpx2.AsyncClient(
        transport=fake.http_transport(), base_url="https://api.example/v0", headers={"Authorization": "Bearer am_key"}
    ) as client:
        response = await client.post(f"/inboxes/{AGENT}/messages/send", json=body)
        assert response.status_code == 200, response.text
        path = f"/inboxes/{OTHER}/messages/{response.json()['message_id']}"
        message = (await client.get(path)).json()
        url = (await client.get(path + "/raw")).json()["download_url"]
        mail = message_from_bytes((await client.get(url)).content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    assert not mail.defects
    return message, mail


@pytest.mark.timeout(600)
@given(bodies)
@example({"to": [OTHER], "subject": "é" * 200, "text": "x" * 2000})
@example({"to": [OTHER], "subject": "a " * 600})
@example({"to": [OTHER], "text": "From here\n.\n", "html": "<p>ü\r\n"})
def test_any_send_round_trips_through_its_raw_form(body: dict[str, Any]) -> None:
    message, mail = trio.run(sent, body)
    for field in ("subject", "text", "html"):
        assert message.get(field) == body.get(field)
    assert header(mail, "Subject") == " ".join(body.get("subject", "").split())
    for field in ("to", "cc", "reply_to"):
        assert addresses(mail, field.replace("_", "-")) == given_addresses(body, field)
    assert mail["Bcc"] is None
    for name, value in body.get("headers", {}).items():
        assert header(mail, name) == " ".join(value.split())
    assert body_part(mail, "text/plain") == plain(body.get("text"))
    assert body_part(mail, "text/html") == plain(body.get("html"))
    attached = body.get("attachments", [])
    found = [
        (item.get_filename(), item.get_content_type(), item.get_content_disposition(), item.get_payload(decode=True))
        for item in mail.walk()
        if item.get_content_disposition() is not None
    ]
    assert found == [
        (
            file.get("filename"),
            file.get("content_type", "application/octet-stream"),
            file.get("content_disposition", "attachment"),
            base64.b64decode(file["content"]),
        )
        for file in attached
    ]
