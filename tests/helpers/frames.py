"""Frames in pieces, and what the parser makes of them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from hypothesis import settings
from hypothesis import strategies as st

from tests.helpers.hypothesis_settings import repeatable
from tests.helpers.websocket_server import PING, TEXT, close_frame, frame
from trio_agentmail._frames import Close, Failure, Ping, Pong, Received, Receiver

CONTINUATION = 0
NO_LIMIT = 2**63

Item = bytes | tuple[str, bytes] | tuple[str, int, str] | tuple[str, int]
"""A result of a parser. The classes of the package are not used, because a `Ping` equals a `Pong`, as tuples do."""


def pinged(payload: bytes) -> Item:
    return "ping", payload


def ponged(payload: bytes) -> Item:
    return "pong", payload


def closed(code: int, reason: str) -> Item:
    return "close", code, reason


def failure(code: int) -> Item:
    return "failure", code


def plain(item: Received) -> Item:
    match item:
        case Ping(payload):
            return pinged(payload)
        case Pong(payload):
            return ponged(payload)
        case Close(code, reason):
            return closed(code, reason)
        case Failure(code, _):
            return failure(code)
        case _:
            return item


def received(pieces: Iterable[bytes], max_message_size: int = NO_LIMIT) -> list[Item]:
    """Return everything that a receiver parses from these pieces."""
    return [plain(item) for item in received_with_words(pieces, max_message_size)]


def received_with_words(pieces: Iterable[bytes], max_message_size: int) -> list[Received]:
    """Return the same with the reasons of failures. Check that the receiver ignores everything after its end."""
    receiver = Receiver(max_message_size)
    items = [item for piece in pieces for item in receiver.receive(piece)]
    ends = [isinstance(item, Close | Failure) for item in items]
    assert not any(ends[:-1])
    if any(ends):
        for more in (frame(TEXT, b"more"), frame(PING), close_frame(1000), bytes(range(256)), b""):
            assert receiver.receive(more) == []
    return items


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def octets(data: bytes) -> list[bytes]:
    return chopped(data, 1)


def fragments(opcode: int, parts: Sequence[bytes], *, between: bytes = b"") -> bytes:
    """Return a message in fragments, with `between` between each two of them."""
    opcodes = [opcode] + [CONTINUATION] * (len(parts) - 1)
    fins = [False] * (len(parts) - 1) + [True]
    return between.join(frame(op, part, fin=fin) for op, part, fin in zip(opcodes, parts, fins, strict=True))


def fragmented(opcode: int, message: bytes, size: int) -> bytes:
    return fragments(opcode, chopped(message, size) or [b""])


GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"

LONELY_STARTS = [(0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD)]
LAST_BYTE_MISSING = [
    *(b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
    *(b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"),
]
NO_CHARACTERS = [
    *(b"\xef\xbf\xbe", b"\xef\xbf\xbf"),
    *(
        bytes([first, second, 0xBF, last])
        for first, seconds in [
            (0xF0, b"\x9f\xaf\xbf"),
            *((n, b"\x8f\x9f\xaf\xbf") for n in (0xF1, 0xF2, 0xF3)),
            (0xF4, b"\x8f"),
        ]
        for second in seconds
        for last in (0xBE, 0xBF)
    ),
]

UTF_8 = [
    # Some valid sequences, and all beginnings of one of them
    (
        5,
        True,
        [b"hello\x24world", b"hello\xc2\xa2world", b"hello\xe2\x82\xacworld", b"hello\xf0\xa4\xad\xa2world", GREEK],
    ),
    *((6, size in (2, 5, 7, 9, 11), [GREEK[:size]]) for size in range(1, 12)),
    # The first and the last character of each length, and other boundaries
    (7, True, [b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
    (8, False, [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
    (9, True, [b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
    (10, False, [b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
    (11, True, [b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"]),
    (11, False, [b"\xf4\x90\x80\x80"]),
    # Continuation bytes without a start, sequences that are cut short, and impossible bytes
    (12, False, [b"\x80", b"\xbf", *(b"\x80\xbf\x80\xbf\x80\xbf"[:n] for n in range(2, 7)), bytes(range(0x80, 0xBF))]),
    (13, False, [b"".join(bytes([byte, 0x20]) for byte in range(*ends)) for ends in LONELY_STARTS]),
    (14, False, LAST_BYTE_MISSING),
    (15, False, [b"".join(LAST_BYTE_MISSING)]),
    (16, False, [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    # Overlong encodings: of "/", of the last character of each length, and of NUL
    (
        17,
        False,
        [b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"],
    ),
    (
        18,
        False,
        [b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"],
    ),
    (
        19,
        False,
        [b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"],
    ),
    # Surrogates, alone and in pairs
    (
        20,
        False,
        [
            b"\xed" + end
            for end in (b"\xa0\x80", b"\xad\xbf", b"\xae\x80", b"\xaf\xbf", b"\xb0\x80", b"\xbe\x80", b"\xbf\xbf")
        ],
    ),
    (
        21,
        False,
        [
            b"\xed" + high + b"\xed" + low
            for high in (b"\xa0\x80", b"\xad\xbf", b"\xae\x80", b"\xaf\xbf")
            for low in (b"\xb0\x80", b"\xbf\xbf")
        ],
    ),
    # Noncharacters, which are valid, and the block of the specials
    (22, True, NO_CHARACTERS),
    (23, True, [chr(code).encode() for code in range(0xFFF9, 0x10000)]),
]


def utf_8() -> Iterator[tuple[str, bytes, bool]]:
    for group, rows in itertools.groupby(UTF_8, key=lambda row: row[0]):
        sequences = [(sequence, valid) for _, valid, sequences in rows for sequence in sequences]
        for number, (sequence, valid) in enumerate(sequences, 1):
            yield f"6.{group}.{number}", sequence, valid


often = settings(repeatable, max_examples=150)


@st.composite
def parts_of(draw: st.DrawFn, message: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(message)), max_size=4)))
    return [message[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(message)])]


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces, as a stream may return it."""
    if len(data) <= 2000 and draw(st.booleans()):
        return octets(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return [data[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(data)]) if stop > start]
