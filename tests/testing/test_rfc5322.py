"""Reading mail in the format of RFC 5322 as far as possible, and writing it so that it is read back unchanged."""

from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes
from email.message import EmailMessage
from email.message import Message as Part

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_agentmail import Message
from trio_agentmail.events import Attachment
from trio_agentmail.testing._agentmail.mail.rfc5322 import ParsedMail, parse_mail
from trio_agentmail.testing._agentmail.mail.writing import write_mail

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def in_inbox(mail: ParsedMail) -> Message:
    return mail.message(inbox_id="agent@agentmail.to", thread_id="thread", labels=("received",), now=NOW)


def letter() -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "Jané <jane@example.com>"
    mail["To"] = 'Agent@agentmail.to, "B, ob" <bob@example.com>'
    mail["Cc"] = "carol@example.com"
    mail["Bcc"] = "dave@example.com"
    mail["Reply-To"] = "office@example.com"
    mail["Delivered-To"] = "other@agentmail.to"
    mail["Subject"] = "Grüße"
    mail["Date"] = "Mon, 01 Jan 2024 00:00:00 +0100"
    mail["Message-ID"] = f"<{'long' * 40}@example.com>"
    mail["In-Reply-To"] = "<2@example.com>"
    mail["References"] = "<1@example.com> <2@example.com>"
    mail["X-Mailer"] = "mailer"
    mail.set_content("Hello, ü!\nBye.")
    return mail


def test_the_headers_of_a_mail_become_its_fields() -> None:
    mail = parse_mail(letter())
    message = in_inbox(mail)
    assert message.from_ == "Jané <jane@example.com>"
    assert message.to == ("Agent@agentmail.to", '"B, ob" <bob@example.com>')
    assert message.cc == ("carol@example.com",)
    assert message.reply_to == ("office@example.com",)
    assert message.subject == "Grüße"
    assert message.timestamp == datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert (message.created_at, message.size) == (NOW, len(mail.raw))
    assert message.message_id == f"<{'long' * 40}@example.com>"
    assert (message.text, message.html, message.preview) == ("Hello, ü!\nBye.\n", None, "Hello, ü! Bye.")
    assert message.headers["X-Mailer"] == "mailer"
    assert "Content-Type" not in message.headers


def test_each_address_in_the_headers_is_a_recipient_once() -> None:
    mail = letter()
    mail["Delivered-To"] = "agent@agentmail.to"
    assert parse_mail(mail).recipients == (
        "agent@agentmail.to",
        "bob@example.com",
        "carol@example.com",
        "dave@example.com",
        "other@agentmail.to",
    )


def test_a_mail_answers_the_nearest_mail_first() -> None:
    assert parse_mail(letter()).answers == ("<2@example.com>", "<1@example.com>")


def test_text_html_and_attachments_are_separated() -> None:
    inner = EmailMessage()
    inner["Subject"] = "inner"
    mail = letter()
    mail.add_alternative("<img src=cid:logo>", subtype="html")
    related = list(mail.iter_parts())[1]
    assert isinstance(related, EmailMessage)
    related.add_related(b"png", "image", "png", cid="<logo>")
    mail.add_attachment(b"\0\xff", maintype="application", subtype="pdf", filename="ä.pdf")
    mail.add_attachment(inner)
    parsed = parse_mail(mail)
    assert (parsed.text, parsed.html) == ("Hello, ü!\nBye.\n", "<img src=cid:logo>\n")
    logo, pdf, attached = parsed.attachments
    assert (logo.content_type, logo.content_disposition, logo.content_id) == ("image/png", "inline", "<logo>")
    assert (pdf.filename, pdf.size, pdf.content_disposition) == ("ä.pdf", 2, "attachment")
    assert attached.content_type == "message/rfc822"
    contents = [parsed.contents[str(attachment.attachment_id)] for attachment in parsed.attachments]
    assert contents[:2] == [b"png", b"\0\xff"]
    assert b"Subject: inner" in contents[2]


def test_a_mail_is_read_the_same_from_an_object_and_from_its_bytes() -> None:
    mail = letter()
    del mail["Bcc"]
    parsed = parse_mail(mail)
    assert parse_mail(parsed.raw) == parsed


def test_the_bcc_is_in_no_copy() -> None:
    mail = letter()
    del mail["Bcc"]
    mail["BCC"] = ", ".join(f"eve{number}@example.com" for number in range(100))  # so that the header is folded
    mail.add_attachment(b"Bcc: in the attachment", maintype="text", subtype="plain")
    parsed = parse_mail(mail)
    assert {"eve0@example.com", "eve99@example.com"} < set(parsed.recipients)
    message = in_inbox(parsed)
    assert message.bcc == ()
    [attachment] = message.attachments
    assert parsed.contents[str(attachment.attachment_id)] == b"Bcc: in the attachment"
    assert b"eve0@" not in parsed.raw
    assert "eve0@" not in str(attrs.asdict(message))
    assert message.size == len(parsed.raw) < len(mail.as_bytes())
    assert parse_mail(b"To: a\nFrom x\nBcc: b\n\nBcc: c").raw == b"To: a\nFrom x\n\nBcc: c"


NAMES = st.sampled_from([b"To", b"Bcc", b"bCC", b"X", b"Bcc ", b"", b" Bcc", b"\xff"])
BREAKS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n ", b"\r\t", b""])


def fields(mail: Part) -> list[tuple[str, list[str]]]:
    return [(name, str(value).split()) for name, value in mail.items()]


@given(st.lists(st.tuples(NAMES, st.binary(max_size=5), BREAKS), max_size=8))
@example([(b"To", b"a\r", b""), (b"Bcc", b"b", b"\n")])
def test_the_bcc_is_removed_whatever_the_line_endings(
    headers: list[tuple[bytes, bytes, bytes]],
) -> None:
    raw = b"".join(b"%b: %b%b" % header for header in headers)
    rest = message_from_bytes(parse_mail(raw).raw)
    assert rest["Bcc"] is None
    before = message_from_bytes(raw)
    assert fields(rest) == [field for field in fields(before) if field[0].lower() != "bcc"]
    assert rest.get_payload() == before.get_payload()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", {"from_": "", "subject": None, "text": "", "recipients": ()}),
        (b"Date: nope\n\n", {"timestamp": None}),
        (b"From: <\nTo: agent@agentmail.to\n\n", {"from_": "", "recipients": ("agent@agentmail.to",)}),
        (b"Date: Mon, 01 Jan 2024 00:00:00 -0000\n\n", {"timestamp": datetime(2024, 1, 1, tzinfo=UTC)}),
        (b"To: undisclosed-recipients:;\nFrom: <>\n\n", {"to": (), "from_": "", "recipients": ()}),
        (b"Content-Type: text/plain; charset=klingon\n\n\xc3\xbc\xff", {"text": "ü�"}),
        (b"Content-Type: multipart/mixed\n\nno parts", {"text": "no parts", "html": None, "attachments": ()}),
    ],
)
def test_a_malformed_mail_is_read_as_far_as_possible(raw: bytes, expected: dict[str, object]) -> None:
    parsed = parse_mail(raw)
    assert {name: getattr(parsed, name) for name in expected} == expected
    assert in_inbox(parsed).message_id


def test_a_mail_may_consist_of_one_attachment() -> None:
    parsed = parse_mail(b"Content-Type: application/pdf\n\n%PDF")
    assert (parsed.text, parsed.html) == (None, None)
    assert [parsed.contents[str(a.attachment_id)] for a in parsed.attachments] == [b"%PDF"]


def test_a_string_is_refused_as_a_mail() -> None:
    with pytest.raises(TypeError, match=r"EmailMessage or bytes, not str"):
        parse_mail("From: jane@example.com")  # type: ignore[arg-type]


def test_a_written_message_is_read_back_without_its_bcc() -> None:
    inner = b"Subject: inner\r\n\r\nHello\r\n"
    files = {"a": b"\0\xff", "b": b"a,b\r\n", "c": inner, "d": b"Action: failed\r\n", "e": b"?"}
    message = attrs.evolve(
        in_inbox(parse_mail(letter())),
        html="<p>ü</p>\n",
        attachments=(
            Attachment(attachment_id="a", filename="ä.pdf", content_type="application/pdf"),
            Attachment(attachment_id="b", content_type="text/csv", content_disposition="inline", content_id="<b>"),
            Attachment(attachment_id="c", filename="inner.eml", content_type="message/rfc822"),
            Attachment(attachment_id="d", content_type="message/delivery-status"),
            Attachment(attachment_id="e"),
            Attachment(attachment_id="missing", content_type="application/pdf"),
        ),
    )
    parsed = parse_mail(write_mail(message, files))
    again = in_inbox(parsed)
    same = {"from_", "reply_to", "to", "cc", "subject", "text", "html", "timestamp", "message_id", "references"}
    assert {name: getattr(again, name) for name in same} == {name: getattr(message, name) for name in same}
    assert again.bcc == ()
    assert [attachment.filename for attachment in again.attachments] == ["ä.pdf", None, "inner.eml", None, None, None]
    assert [attachment.content_type for attachment in again.attachments] == [
        "application/pdf",
        "text/csv",
        "message/rfc822",
        "application/octet-stream",
        "application/octet-stream",
        "application/pdf",
    ]
    contents = [parsed.contents[str(attachment.attachment_id)] for attachment in again.attachments]
    assert contents == [*files.values(), b""]


def test_an_html_only_message_is_written_as_html_only() -> None:
    message = Message(inbox_id="agent@agentmail.to", message_id="<1@example.com>", html="<p>Hi</p>\n")
    parsed = parse_mail(write_mail(message, {}))
    assert (parsed.text, parsed.html, parsed.timestamp) == (None, "<p>Hi</p>\n", None)


@given(st.text(), st.text(), st.text())
@example("<", "\x80", "\ud800")
def test_any_message_can_be_written(from_: str, subject: str, text: str) -> None:
    message = Message(inbox_id="a", message_id=f"<{subject}>", from_=from_, to=(from_,), subject=subject, text=text)
    parse_mail(write_mail(message, {}))


@given(st.binary())
def test_any_bytes_can_be_read(raw: bytes) -> None:
    in_inbox(parse_mail(raw))


@pytest.mark.parametrize("address", ["@" * 50_000 + " <x@y.z>", "a@" * 50_000 + "ü", "<@> " * 20_000])
def test_a_long_address_is_written_in_linear_time(address: str) -> None:
    # A search that begins at every character would take hours.
    assert write_mail(attrs.evolve(in_inbox(parse_mail(letter())), to=(address,)), {})
