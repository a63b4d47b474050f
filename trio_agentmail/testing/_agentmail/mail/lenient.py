"""The standard library's parser of mail, kept from refusing any.

Asked for the whole of a mail, it raises on many that come: on headers of addresses, dates and parameters that are none,
on codecs that are not made for mail, on parts in parts in parts. So here it parses no header but those of addresses;
what it trips over is text as it stands, or not there; and a mail that is attached stays one part, whatever is in it.

It also takes time that grows with the square of what it parses, and parses a header anew each time it is asked for. So
each header is parsed once, addresses are parsed one by one, and what is beyond the limits below is text as it stands:
it has no addresses, no encoded words, and no parameters.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from email import policy
from email.headerregistry import Address, AddressHeader, Group, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.parser import BytesParser
from functools import partial
from typing import Any, TypeVar, cast

__all__ = [
    "MAX_ADDRESS",
    "MAX_PARSED",
    "MAX_PARSED_OF_MAIL",
    "NEVER_BYTES",
    "Part",
    "attempt",
    "harmless",
    "read_mail",
    "without_header",
    "without_mark",
]

T = TypeVar("T")

MAX_PARSED = 4 * 2**10
"""Characters of a header that is parsed: a hundred addresses have room there."""

MAX_PARSED_OF_MAIL = 16 * 2**10
"""Characters of all headers of a mail and its parts, together, in which addresses or encoded words are parsed."""

MAX_COMPARED = 10**6
"""Comparisons of a line with a boundary: each line is compared with those of all parts that it may be in."""

MIN_MULTIPARTS = 10
"""How many parts made of others a mail may have, however long it is."""

MAX_ADDRESS = 512
"""Characters of one address with its name."""

NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""Codecs of Python, by which no mail is written: some take time that grows with the square of the text's length."""

ENCODED_WORD = "=?"
"""How one begins."""

CLOSED_BY = {'"': '"', "<": ">", "[": "]"}

ADDRESSES = ("From", "Reply-To", "To", "Cc", "Bcc", "Delivered-To")

TOKEN = "[A-Za-z0-9!#$%&'*+.^_`|~-]+"
CONTENT_TYPE = re.compile(f"{TOKEN}/{TOKEN}")
HEADER_LINE = re.compile(rb"From |[!-9;-~]*:|[ \t]")
"""What the parser takes for a line of the headers."""

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

ADDRESS_TOKEN = re.compile(r"""\\.|[^][\\"(),:;<>]+|.""", re.DOTALL)

NEVER_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that do not stand for a byte which the parser could not decode."""


def attempt(read: Callable[[], T], otherwise: T) -> T:
    """What is read, or something else where the standard library raises."""
    try:
        return read()
    except Exception:  # noqa: BLE001  of many classes, which differ from one Python to the next
        return otherwise


def harmless(text: str) -> str:
    """Without lone surrogates, which have no encoding."""
    data = NEVER_BYTES.sub("\N{REPLACEMENT CHARACTER}", text).encode(errors="surrogateescape")
    return data.decode(errors="replace")


class AsItStands(UnstructuredHeader):
    """A header of which nothing is made."""

    addresses: tuple[Address, ...] = ()

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds |= {"parse_tree": None, "decoded": harmless(value)}


class Text(UnstructuredHeader):
    """Any header: encoded words are decoded, and nothing else is looked for."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds |= {"parse_tree": None, "decoded": value}
        if ENCODED_WORD in value:
            attempt(lambda: UnstructuredHeader.parse(value, kwds), None)
        kwds["decoded"] = harmless(kwds["decoded"])


class Addresses(AddressHeader):
    """Addresses as far as they are some."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        Text.parse(value, kwds)
        addresses = (one for one in _split_addresses(value) if one.strip() and len(one) <= MAX_ADDRESS)
        groups = [group for one in addresses for group in _parse_address(one)]
        kwds["groups"] = groups
        if groups:
            kwds["decoded"] = harmless(", ".join(map(str, groups)))


def _parse_address(address: str) -> list[Group]:
    kwds: dict[str, Any] = {"defects": [], "groups": []}
    attempt(lambda: AddressHeader.parse(address, kwds), None)
    return cast(list[Group], kwds["groups"])


def _split_addresses(value: str) -> Iterator[str]:
    """Each address of a header as it stands, those in groups as well (RFC 5322, 3.4)."""
    begin = 0
    inside: list[str] = []  # what ends the quoted strings, comments, brackets in which we are
    for match in ADDRESS_TOKEN.finditer(value):
        token = match[0]
        if inside and token == inside[-1]:
            inside.pop()
        elif token == "(" and inside[-1:] != ['"']:
            inside.append(")")
        elif inside:
            pass
        elif token in CLOSED_BY:
            inside.append(CLOSED_BY[token])
        elif token in ",:;":
            if token != ":":  # before which there is the name of a group
                yield value[begin : match.start()]
            begin = match.end()
    yield value[begin:]


class Registry(HeaderRegistry):
    """The standard library's makes a class for each header; this one makes one for each kind of header."""

    def __init__(self, default: object) -> None:
        super().__init__(default_class=cast(Any, default), use_default_map=False)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        kind = name.lower() if name.lower() in self.registry else ""
        if kind not in self._made:
            self._made[kind] = super().__getitem__(name)
        return self._made[kind]


def _registry(default: object, addresses: object) -> HeaderRegistry:
    registry = Registry(default)
    for name in ADDRESSES:
        registry.map_to_type(name, cast(Any, addresses))
    return registry


PARSED = _registry(Text, Addresses)
UNPARSED = _registry(AsItStands, AsItStands)


class Headers:
    """The headers of one mail and its parts, each parsed once.

    Args:
        lines: How many the mail has.
    """

    def __init__(self, lines: int) -> None:
        self._known: dict[tuple[str, str], Any] = {}
        self._left = MAX_PARSED_OF_MAIL
        self._multiparts_left = max(MIN_MULTIPARTS, MAX_COMPARED // (lines + 1))

    def count_multipart(self) -> bool:
        """Whether there may be one more part that is made of others."""
        self._multiparts_left -= 1
        return self._multiparts_left >= 0

    def __call__(self, name: str, value: str) -> Any:
        key = name.lower(), value
        if key not in self._known:
            self._known[key] = self._registry_for(*key)(name, value)
        return self._known[key]

    def _registry_for(self, name: str, value: str) -> HeaderRegistry:
        if len(value) > MAX_PARSED:
            return UNPARSED
        if ENCODED_WORD in value or name in PARSED.registry:
            self._left -= len(value)
        return PARSED if self._left >= 0 else UNPARSED


class Part(EmailMessage):
    """A mail, or a part of one."""

    @property
    def content_type(self) -> str:
        """In lower case, without parameters. Of many parts that cannot be told apart, it is that of one text."""
        match = CONTENT_TYPE.match(str(self.get("Content-Type", "")))
        kind = self.get_default_type() if match is None else match[0].lower()
        return "text/plain" if kind.startswith("multipart/") and isinstance(self.get_payload(), str) else kind

    def get_content_type(self) -> str:
        # The parser goes by this, and takes apart what is a message.
        return "application/octet-stream" if self.content_type.startswith("message/") else self.content_type

    def get_param(self, param: str, failobj: Any = None, header: str = "content-type", unquote: bool = True) -> Any:
        # By this, all other methods get at parameters.
        if len(str(self.get(header, ""))) > MAX_PARSED:
            return failobj
        return attempt(partial(super().get_param, param, failobj, header, unquote), failobj)

    def get_boundary(self, failobj: Any = None) -> Any:
        # By this alone the parser looks for parts, and asks once for each part that may be made of others.
        if not cast(Headers, cast(Any, self.policy).header_factory).count_multipart():
            return failobj
        return attempt(super().get_boundary, failobj)

    @property
    def filename(self) -> str | None:
        name = attempt(self.get_filename, None)
        return None if name is None else harmless(name)

    @property
    def is_attached(self) -> bool:
        return self.get_content_disposition() == "attachment"

    def leaves(self) -> Iterator["Part"]:
        """All parts that are not made of others."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            if part.get_content_maintype() != "multipart":
                yield part
            else:
                waiting += reversed(cast(list[Part], part.get_payload() or []))

    def content(self) -> bytes:
        return attempt(lambda: cast(bytes, self.get_payload(decode=True)), b"")

    def text(self) -> str:
        content = self.content()
        text = attempt(
            lambda: content.decode(self._charset_of_text(), errors="replace"), content.decode(errors="replace")
        )
        return harmless(text).replace("\r\n", "\n")

    def _charset_of_text(self) -> str:
        charset = codecs.lookup(str(self.get_content_charset("utf-8"))).name
        return "utf-8" if charset in NO_CHARSETS else charset


def without_mark(raw: bytes) -> bytes:
    """The mail without the byte order mark with which some programs begin a file; in UTF-8, if it is in UTF-16."""
    for mark, charset in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            text = raw.removeprefix(mark)
            return text if charset == "utf-8" else text.decode(charset, errors="replace").encode()
    return raw


def read_mail(raw: bytes) -> Part:
    """A mail with its parts; if the parser cannot make them out, with its headers alone."""
    parser = BytesParser(Part, policy=policy.SMTP.clone(header_factory=Headers(raw.count(b"\n") + raw.count(b"\r"))))
    parsed = attempt(lambda: parser.parsebytes(raw), None)
    if parsed is None:
        parsed = parser.parsebytes(raw, headersonly=True)
    assert isinstance(parsed, Part)
    return parsed


def without_header(raw: bytes, name: str) -> bytes:
    """The mail as it stands, without all headers of this name."""
    lines = raw.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not HEADER_LINE.match(line)), len(lines))
    kept, keep = [], True
    for line in lines[:end]:
        if line[:1] not in (b" ", b"\t"):  # by which a header goes on
            keep = line.partition(b":")[0].lower() != name.lower().encode()
        if keep:
            kept.append(line)
    if kept and kept[-1].endswith(b"\r") and lines[end:] and lines[end].startswith(b"\n"):
        kept.append(b"\n")  # or else the CR would make one end of a line with the LF, which is the empty line
    return b"".join([*kept, *lines[end:]])
