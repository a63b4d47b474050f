"""Malformed mail is read as far as possible, and can be shown, downloaded and forwarded."""

from datetime import UTC, datetime
from email.headerregistry import AddressHeader, UnstructuredHeader
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._agentmail.mail.lenient import MAX_ADDRESS, MAX_PARSED, MAX_PARSED_OF_MAIL, Part
from trio_agentmail.testing._agentmail.mail.rfc5322 import ParsedMail, parse_mail
from trio_agentmail.testing._agentmail.mail.writing import write_mail
from trio_agentmail.testing._encode import encode_part

AGENT = "agent@agentmail.to"
NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)

CHARSETS = [
    b"utf-8",
    b"us-ascii",
    b"idna",
    b"undefined",
    b"unicode-escape",
    b"utf-7",
    b"utf-16",
    b"hex",
    b"x",
    b"\xff",
    b"",
]

ODD_VALUES = [
    *(b"a@", b"<", b'"', b"=?x?b?!!?=", b"<a@[", b"=?utf-8?q?a_?= <", b"@", b"<>", b"(((", b",;:", b"a@b.c" * 300),
    *(b"Mon, 1 Jan 99999999999999 00:00:00 +0000", b"Mon, 1 Jan 0001 00:00:00 +1400", b"1 Jan 2024 00:00:00 +9999"),
    *(b"attachment; filename*", b"attachment; filename*=idna''%ff", b"attachment; filename*=undefined''a"),
    *(b"attachment; filename*=unicode-escape''%5Cud800", b"attachment; filename*9999999999999999999999*=a"),
    *(b"inline; filename=\xfc", b"\xc3\xbc/x", b"text/plain; charset=", b"text", b"text/", b"message/rfc822"),
    *(b"multipart/mixed; boundary", b"multipart/mixed; boundary*=idna''%ff", b"message/delivery-status"),
    *(b"base64", b"quoted-printable", b"x-uuencode", b"=?unicode-escape?q?=5Cud800?=", b"=?utf-8?q?=0A?=", b"\x00"),
]

NAMES = [
    *(b"From", b"Sender", b"Reply-To", b"To", b"Cc", b"Bcc", b"Delivered-To", b"Subject", b"Date", b"Message-ID"),
    *(b"In-Reply-To", b"References", b"Resent-From", b"Resent-To", b"Resent-Sender", b"Resent-Date", b"X-Odd"),
    *(b"Content-Type", b"Content-Disposition", b"Content-Transfer-Encoding", b"Content-ID", b"MIME-Version"),
]


def encoded_word(charset: bytes, encoding: bytes, text: bytes) -> bytes:
    return b"=?%b?%b?%b?=" % (charset, encoding, text)


def parameter(value: bytes, name: bytes, content: bytes) -> bytes:
    return b"%b; %b=%b" % (value, name, content)


odd_values = st.recursive(
    st.one_of(
        st.sampled_from(ODD_VALUES),
        st.binary(max_size=20),
        st.builds(encoded_word, st.sampled_from(CHARSETS), st.sampled_from([b"b", b"q", b"z"]), st.binary(max_size=8)),
    ),
    lambda values: st.one_of(
        st.builds(bytes.__add__, values, values),
        st.builds(parameter, values, st.sampled_from([b"filename*", b"charset", b"boundary*0*", b"name"]), values),
    ),
    max_leaves=4,
)
types = st.one_of(
    st.builds(
        parameter, st.sampled_from([b"text/plain", b"text/html"]), st.just(b"charset"), st.sampled_from(CHARSETS)
    ),
    odd_values,
)
headers = st.lists(
    st.one_of(st.tuples(st.sampled_from(NAMES), odd_values), st.tuples(st.just(b"Content-Type"), types)), max_size=5
)


def part(fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n" + body


def multipart(fields: list[tuple[bytes, bytes]], subtype: bytes, parts: list[bytes]) -> bytes:
    kind = b"multipart/%b; boundary=b%d" % (subtype, len(parts))
    between = b"\r\n--b%d" % len(parts)
    body = b"".join(between + b"\r\n" + one for one in parts) + between + b"--\r\n"
    return part([(b"Content-Type", kind), *fields], body)


def attached(fields: list[tuple[bytes, bytes]], mail: bytes) -> bytes:
    return part([(b"Content-Type", b"message/rfc822"), *fields], mail)


mails = st.recursive(
    st.builds(part, headers, st.binary(max_size=50)),
    lambda parts: st.one_of(
        st.builds(multipart, headers, st.sampled_from([b"mixed", b"related", b"digest"]), st.lists(parts, max_size=3)),
        st.builds(attached, headers, parts),
    ),
    max_leaves=5,
)


def nested(kind: bytes, depth: int) -> bytes:
    if kind == b"message/rfc822":
        return b"Content-Type: message/rfc822\r\n\r\n" * depth
    return b"".join(b"Content-Type: %b; boundary=b%d\r\n\r\n--b%d\r\n" % (kind, n, n) for n in range(depth))


def check(mail: ParsedMail) -> None:
    """Check that all fields can be shown and that the mail can be written again."""
    message = mail.message(inbox_id=AGENT, thread_id="thread", labels=("received",), now=NOW)
    orjson.loads(encode_part(message))
    assert message.timestamp is not None
    message.timestamp.astimezone(UTC)
    for attachment in message.attachments:
        orjson.loads(encode_part(attachment))
        assert attachment.content_disposition in ("inline", "attachment")
        assert (attachment.content_type or "").isascii()
    parse_mail(write_mail(message, mail.contents))


@pytest.mark.timeout(600)
@given(mails)
@settings(max_examples=300)
def test_any_mail_can_be_read_shown_and_written_again(raw: bytes) -> None:
    check(parse_mail(raw))


@pytest.mark.parametrize("value", ODD_VALUES)
def test_no_header_makes_a_mail_unreadable(value: bytes) -> None:
    for name in NAMES:
        mail = parse_mail(b"%b: %b\nTo: agent@agentmail.to\nX-Last: seen\n\nHello" % (name, value))
        check(mail)
        assert "agent@agentmail.to" in mail.recipients
        assert mail.headers["X-Last"] == "seen"


@pytest.mark.parametrize("charset", CHARSETS)
def test_the_text_of_a_mail_survives_any_charset(charset: bytes) -> None:
    mail = parse_mail(b"Content-Type: text/plain; charset=%b\n\nHello \\ud800 \xff" % charset)
    check(mail)
    assert mail.text


def test_an_unreadable_part_does_not_cost_the_rest_of_the_mail() -> None:
    odd = part([(b"Content-Disposition", b"attachment; filename*=idna''%ff")], b"data")
    mail = parse_mail(multipart([], b"mixed", [part([], b"Hello"), odd]))
    [attachment] = mail.attachments
    assert (mail.text, attachment.filename, mail.contents[str(attachment.attachment_id)]) == ("Hello", None, b"data")


def test_an_attached_mail_is_not_taken_apart() -> None:
    inner = b"Subject: inner\r\nSender: a@\r\n\r\n" + nested(b"message/rfc822", 2000)
    mail = parse_mail(multipart([], b"mixed", [part([], b"Hello"), attached([], inner)]))
    check(mail)
    [attachment] = mail.attachments
    assert (mail.text, attachment.content_type) == ("Hello", "message/rfc822")
    assert mail.contents[str(attachment.attachment_id)] == inner


def test_the_headers_of_a_too_deeply_nested_mail_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(_: Part) -> None:
        raise RecursionError

    for _ in range(2):
        mail = parse_mail(b"Subject: deep\r\n" + nested(b"multipart/mixed", 2000))
        check(mail)
        assert (mail.subject, mail.attachments) == ("deep", ())
        assert mail.text
        # How much nesting the parser can handle differs between versions of Python.
        monkeypatch.setattr(Part, "get_boundary", give_up)


async def fetch_everything(raw: bytes) -> None:
    fake = FakeAgentMail()
    [event] = await fake.deliver(raw, inbox_id=AGENT)
    async with httpx2.AsyncClient(
        transport=fake.http_transport(), base_url="https://api.example/v0", headers={"Authorization": "Bearer am_key"}
    ) as client:

        async def get(path: str) -> Any:
            response = await client.get(path)
            assert response.status_code == 200, response.text
            return response

        inbox = f"/inboxes/{AGENT}"
        path = f"{inbox}/messages/{quote(event.message.message_id, safe='')}"
        message = (await get(path)).json()
        assert (await get(f"{inbox}/messages")).json()["count"] == 1
        assert (await get(f"{inbox}/threads/{message['thread_id']}")).json()["messages"] == [message]
        for file in ("raw", *(f"attachments/{one['attachment_id']}" for one in message["attachments"])):
            where = (await get(f"{path}/{file}")).json()
            assert len((await get(where["download_url"])).content) == where["size"]
        answer = await client.post(f"{path}/forward", json={"to": "jane@example.com", "text": "Look"})
        assert answer.status_code == 200, answer.text


@pytest.mark.timeout(600)
@given(mails)
@settings(max_examples=50)
def test_the_rest_api_shows_any_mail(raw: bytes) -> None:
    trio.run(fetch_everything, raw)


@pytest.mark.parametrize("name", [b"Content-Type", b"Content-Disposition", b"Subject", b"To", b"Date", b"Message-ID"])
@pytest.mark.parametrize("value", [b"a ", b"; a=b", b'"', b",", b"=?utf-8?q?a?= "])
def test_a_long_header_is_read_in_reasonable_time(name: bytes, value: bytes) -> None:
    # The standard library would parse most of these for minutes.
    mail = parse_mail(b"%b: text/plain %b\n\nHello" % (name, value * 100_000))
    assert (mail.text, mail.recipients) == ("Hello", ())


HOSTILE = [
    *(b'"', b"(", b")", b"<", b">", b"@", b",", b":", b";", b"[", b"]", b"\\", b".", b"a ", b"a.", b"@a,", b'"a" '),
    *(b"(a) ", b"a@b, ", b'"a" <a@b>, ', b"g:a@b;", b"=?utf-8?q?a?= ", b"=?utf-8?q? ", b"=?", b"\xff", b"\r\n "),
]


@pytest.mark.parametrize("name", ["From", "Reply-To", "Cc", "Subject", "References", "Content-Type"])
@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_the_standard_library_parses_a_limited_part_of_a_mail(
    name: str, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []

    def note(cls: Any) -> Any:
        original = cls.parse.__func__

        def parse(_: type, text: str, kwds: dict[str, Any]) -> None:
            parsed.append(len(text))
            original(cls, text, kwds)

        return classmethod(parse)

    monkeypatch.setattr(AddressHeader, "parse", note(AddressHeader))
    monkeypatch.setattr(UnstructuredHeader, "parse", note(UnstructuredHeader))
    # The time for some of these grows with the square of their length, and a mail may have any number of headers.
    header = name.encode() + b": " + (value * 4000)[:4000] + b"%d\r\n"
    parse_mail(b"".join(header % number for number in range(50)) + b"\r\nHello")
    assert sum(parsed) <= 2 * MAX_PARSED_OF_MAIL  # an address header is parsed as a whole and by address
    if name in ("From", "Reply-To", "Cc") and value == b'"':
        assert parsed == []


def test_lines_are_compared_with_a_limited_number_of_boundaries() -> None:
    depth, lines = 900, b"x\r\n" * 20_000  # without the limit, comparing these would take 10 s
    mail = parse_mail(nested(b"multipart/mixed", depth) + b"\r\n" + lines)
    assert mail.text is not None
    assert "x\nx\n" in mail.text
    # But a mail with many multiparts is read completely.
    part = b"--a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello\r\n--b--\r\n"
    mail = parse_mail(b"Content-Type: multipart/digest; boundary=a\r\n\r\n" + part * 300 + b"--a--")
    assert len(mail.attachments) == 299


def test_each_address_in_groups_and_quotes_is_found() -> None:
    to = (
        'friends: "Jane, \\"J\\"" <jane@example.com>, joe@example.com (not; a, group);, ,, "a:b" <c@example.com>,'
        "ipv6@[IPv6:::1], =?utf-8?q?Za=C5=BC?= <z@example.com>, nobody:;"
    )
    mail = parse_mail(f"To: {to}\n\n".encode())
    assert mail.recipients == (
        *("jane@example.com", "joe@example.com", "c@example.com", "ipv6@[ipv6:::1]", "z@example.com"),
    )
    assert mail.to[-1] == "Zaż <z@example.com>"


def test_an_address_that_is_too_long_does_not_cost_the_others() -> None:
    mail = parse_mail(b"To: a@example.com, " + b"x" * MAX_ADDRESS + b"@example.com, b@example.com\n\n")
    assert mail.recipients == ("a@example.com", "b@example.com")


@pytest.mark.parametrize("charset", ["utf-8-sig", "utf-16"])
def test_a_mail_may_begin_with_a_byte_order_mark(charset: str) -> None:
    mail = parse_mail("From: jane@example.com\r\nSubject: Zażółć\r\n\r\nHello".encode(charset))
    assert (mail.from_, mail.subject, mail.text) == ("jane@example.com", "Zażółć", "Hello")
    assert mail.raw.startswith(b"From: ")


def test_a_header_above_the_limit_is_plain_text() -> None:
    for length, recipients in ((MAX_PARSED, ("agent@agentmail.to",)), (MAX_PARSED + 1, ())):
        value = b"agent@agentmail.to, (" + b")".rjust(length - 21, b"a")
        assert parse_mail(b"To: " + value + b"\n\n").recipients == recipients
    many = ", ".join(f"agent{number}@agentmail.to" for number in range(100))
    assert len(parse_mail(f"To: {many}\n\n".encode()).recipients) == 100


@pytest.mark.parametrize("charset", [b"punycode", b"idna", b"unicode_escape", b"raw_unicode_escape"])
def test_codecs_that_are_not_for_mail_are_not_used(charset: bytes) -> None:
    text = "Hello \\u00fc " + "a" * 2_000_000
    assert parse_mail(b"Content-Type: text/plain; charset=%b\n\n%b" % (charset, text.encode())).text == text


@pytest.mark.parametrize("kind", [b"multipart/mixed", b"multipart/mixed; boundary=nowhere"])
def test_a_multipart_that_cannot_be_split_is_one_text(kind: bytes) -> None:
    broken = b"Content-Type: %b\r\n\r\nhello body" % kind
    assert parse_mail(broken).text == "hello body"
    mail = parse_mail(multipart([], b"mixed", [broken, part([], b"more")]))
    assert (mail.text, [one.content_type for one in mail.attachments]) == ("hello body", ["text/plain"])


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("text/plain; charset=foo", "\u00fc", "\u00fc"),
        ("text/plain", "\ud800 \udcff", "\ufffd \ufffd"),
        ("text/plain; charset=us-ascii", "\ud83d", "\ufffd" * 3),
    ],
)
def test_an_email_message_that_the_standard_library_cannot_write_is_read(kind: str, payload: str, text: str) -> None:
    mail = EmailMessage()
    mail["Content-Type"] = kind
    mail.set_payload(payload)
    with pytest.raises((LookupError, UnicodeError)):
        mail.as_bytes()
    parsed = parse_mail(mail)
    check(parsed)
    assert parsed.text == text


def test_a_mail_without_a_bcc_is_unchanged() -> None:
    for raw in (b"Subject: a\rb\nTo: c\r\r\nhello", b"To: a\rX: b\r\rhello", b"Subject: a\r"):
        assert parse_mail(raw).raw == raw
    assert parse_mail(b"X: a\rTo: b\rBcc: c\n\nhello").raw == b"X: a\rTo: b\r\n\nhello"


def test_parameters_that_the_standard_library_cannot_sort_are_ignored() -> None:
    mail = parse_mail(b"Content-Type: multipart/mixed; boundary*=idna''%ff; boundary*0*=a@\r\n\r\nHello")
    assert "Hello" in (mail.text or "")
