"""A mail parser that accepts any mail in a reasonable time, based on the standard library's.

The parser of the `email` package raises on much of the mail that occurs in practice, for example on malformed
addresses, dates and parameters, on codecs that are not meant for mail, and on deeply nested parts. So here it parses
only headers with addresses or encoded words. Text that it cannot parse is kept as plain text or left out. An attached
mail always stays one part.

The time of the parser grows with the square of the length of a header, and it parses a header again at each access. So
each header is parsed once, addresses are parsed one by one, and headers that exceed the limits below are plain text,
without addresses, encoded words and parameters.

This module is longer than others so that all departures from the standard library are in one place.
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
    "OTHER_SURROGATES",
    "Part",
    "or_default",
    "read_mail",
    "without_header",
    "without_mark",
    "without_surrogates",
]

T = TypeVar("T")

MAX_PARSED = 4 * 2**10
"""Maximum length of a header that is parsed, in characters. This is enough for a hundred addresses."""

MAX_PARSED_OF_MAIL = 16 * 2**10
"""Maximum total length, in characters, of the headers of a mail and its parts that are parsed for addresses or encoded
words."""

MAX_COMPARED = 10**6
"""Maximum number of comparisons between a line and a boundary. The parser compares each line with the boundaries of all
enclosing multiparts."""

MIN_MULTIPARTS = 10
"""Number of multiparts that are allowed in a mail of any length."""

MAX_ADDRESS = 512
"""Maximum length of an address with its name, in characters."""

NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""Codecs of Python that are not charsets of mail. The time of some grows with the square of the length of the text."""

ENCODED_WORD = "=?"
"""The beginning of an encoded word."""

CLOSED_BY = {'"': '"', "<": ">", "[": "]"}

ADDRESSES = ("From", "Reply-To", "To", "Cc", "Bcc", "Delivered-To")

TOKEN = "[A-Za-z0-9!#$%&'*+.^_`|~-]+"
CONTENT_TYPE = re.compile(f"{TOKEN}/{TOKEN}")
HEADER_LINE = re.compile(rb"From |[!-9;-~]*:|[ \t]")
"""The beginning of a line that the parser treats as part of the headers."""

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

ADDRESS_TOKEN = re.compile(r"""\\.|[^][\\"(),:;<>]+|.""", re.DOTALL)

OTHER_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates except for those that represent undecodable bytes (the error handler `surrogateescape`)."""


def or_default(read: Callable[[], T], default: T) -> T:
    """Return the result of `read`, or the default if the standard library raises."""
    try:
        return read()
    except Exception:  # noqa: BLE001  the classes are many and differ between versions of Python
        return default


def without_surrogates(text: str) -> str:
    """Decode escaped bytes as UTF-8, and replace other lone surrogates, which cannot be encoded."""
    data = OTHER_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text).encode(errors="surrogateescape")
    return data.decode(errors="replace")


class Unparsed(UnstructuredHeader):
    """A header that is not parsed."""

    addresses: tuple[Address, ...] = ()

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds |= {"parse_tree": None, "decoded": without_surrogates(value)}


class Text(UnstructuredHeader):
    """A header in which only encoded words are decoded."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds |= {"parse_tree": None, "decoded": value}
        if ENCODED_WORD in value:
            or_default(lambda: UnstructuredHeader.parse(value, kwds), None)
        kwds["decoded"] = without_surrogates(kwds["decoded"])


class Addresses(AddressHeader):
    """A header of addresses. Addresses that cannot be parsed are left out."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        Text.parse(value, kwds)
        addresses = (one for one in _split_addresses(value) if one.strip() and len(one) <= MAX_ADDRESS)
        groups = [group for one in addresses for group in _parse_address(one)]
        kwds["groups"] = groups
        if groups:
            kwds["decoded"] = without_surrogates(", ".join(map(str, groups)))


def _parse_address(address: str) -> list[Group]:
    kwds: dict[str, Any] = {"defects": [], "groups": []}
    or_default(lambda: AddressHeader.parse(address, kwds), None)
    return cast(list[Group], kwds["groups"])


def _split_addresses(value: str) -> Iterator[str]:
    """Yield the text of each address in a header, including those in groups (RFC 5322, 3.4)."""
    begin = 0
    inside: list[str] = []  # the characters that end the quoted strings, comments and brackets around this position
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
            if token != ":":  # a colon ends the name of a group
                yield value[begin : match.start()]
            begin = match.end()
    yield value[begin:]


class Registry(HeaderRegistry):
    """A registry that makes one class for each kind of header. The standard library's makes one for each header."""

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
UNPARSED = _registry(Unparsed, Unparsed)


class Headers:
    """The headers of a mail and its parts, each parsed once.

    Args:
        lines: The number of lines of the mail.
    """

    def __init__(self, lines: int) -> None:
        self._known: dict[tuple[str, str], Any] = {}
        self._left = MAX_PARSED_OF_MAIL
        self._multiparts_left = max(MIN_MULTIPARTS, MAX_COMPARED // (lines + 1))

    def count_multipart(self) -> bool:
        """Count a multipart, and return whether the mail may have it."""
        self._multiparts_left -= 1
        return self._multiparts_left >= 0

    def __call__(self, name: str, value: str) -> Any:
        """Return a parsed header. The parser calls this as its header factory."""
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
        """The content type in lower case and without parameters. A multipart that could not be split is plain text."""
        match = CONTENT_TYPE.match(str(self.get("Content-Type", "")))
        kind = self.get_default_type() if match is None else match[0].lower()
        return "text/plain" if kind.startswith("multipart/") and isinstance(self.get_payload(), str) else kind

    def get_content_type(self) -> str:
        # The parser uses this type to decide whether to parse an attached message.
        return "application/octet-stream" if self.content_type.startswith("message/") else self.content_type

    def get_param(self, param: str, failobj: Any = None, header: str = "content-type", unquote: bool = True) -> Any:
        # All other methods get parameters through this one.
        if len(str(self.get(header, ""))) > MAX_PARSED:
            return failobj
        return or_default(partial(super().get_param, param, failobj, header, unquote), failobj)

    def get_boundary(self, failobj: Any = None) -> Any:
        # The parser calls this once for each multipart, and uses only the result to find its parts.
        if not cast(Headers, cast(Any, self.policy).header_factory).count_multipart():
            return failobj
        return or_default(super().get_boundary, failobj)

    @property
    def filename(self) -> str | None:
        """The name of an attached file, if it has one."""
        name = or_default(self.get_filename, None)
        return None if name is None else without_surrogates(name)

    @property
    def is_attached(self) -> bool:
        """Whether the part is an attachment by its Content-Disposition."""
        return self.get_content_disposition() == "attachment"

    def leaves(self) -> Iterator["Part"]:
        """Yield all parts that are not multiparts."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            if part.get_content_maintype() != "multipart":
                yield part
            else:
                waiting += reversed(cast(list[Part], part.get_payload() or []))

    def content(self) -> bytes:
        """Return the content, decoded from Base64 or quoted-printable."""
        return or_default(lambda: cast(bytes, self.get_payload(decode=True)), b"")

    def text(self) -> str:
        """Return the content as text, with LF at the end of lines."""
        content = self.content()
        text = or_default(
            lambda: content.decode(self._charset_of_text(), errors="replace"), content.decode(errors="replace")
        )
        return without_surrogates(text).replace("\r\n", "\n")

    def _charset_of_text(self) -> str:
        charset = codecs.lookup(str(self.get_content_charset("utf-8"))).name
        return "utf-8" if charset in NO_CHARSETS else charset


def without_mark(raw: bytes) -> bytes:
    """Remove a byte order mark, which some programs write at the beginning of a file. Convert UTF-16 to UTF-8."""
    for mark, charset in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            text = raw.removeprefix(mark)
            return text if charset == "utf-8" else text.decode(charset, errors="replace").encode()
    return raw


def read_mail(raw: bytes) -> Part:
    """Parse a mail. If the parser fails on its parts, parse only its headers."""
    parser = BytesParser(Part, policy=policy.SMTP.clone(header_factory=Headers(raw.count(b"\n") + raw.count(b"\r"))))
    parsed = or_default(lambda: parser.parsebytes(raw), None)
    if parsed is None:
        parsed = parser.parsebytes(raw, headersonly=True)
    assert isinstance(parsed, Part)
    return parsed


def without_header(raw: bytes, name: str) -> bytes:
    """Remove all headers with this name from a mail. The rest of the mail stays unchanged."""
    lines = raw.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not HEADER_LINE.match(line)), len(lines))
    kept, keep = [], True
    for line in lines[:end]:
        if line[:1] not in (b" ", b"\t"):  # otherwise the line continues the previous header
            keep = line.partition(b":")[0].lower() != name.lower().encode()
        if keep:
            kept.append(line)
    if kept and kept[-1].endswith(b"\r") and lines[end:] and lines[end].startswith(b"\n"):
        kept.append(b"\n")  # otherwise the CR and the LF of the empty line would together be one line ending
    return b"".join([*kept, *lines[end:]])
