"""The parser of frames: the cases of the Autobahn test suite, comparison with two other parsers, limits, memory."""

import itertools
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from websockets.frames import Frame
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import Protocol, Side, State
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from tests.websocket.test_websocket import BINARY, CLOSE, PING, PONG, TEXT, Server, close_frame, connected_to, frame
from trio_agentmail._frames import Close, Failure, Ping, Pong, Received, Receiver
from trio_agentmail._websocket import RECEIVE_BYTES
from trio_agentmail.errors import ConnectionLostError

CONTINUATION = 0
NO_LIMIT = 2**63


Item = bytes | tuple[str, bytes] | tuple[str, int, str] | tuple[str, int]
"""The result of a parser. Not in the classes of the package, because a `Ping` equals a `Pong`, as tuples do."""


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
    """Return the same, with our words for what is wrong. Check that nothing after the end changes it."""
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
    """Return a message in fragments, with something between each two of them."""
    opcodes = [opcode] + [CONTINUATION] * (len(parts) - 1)
    fins = [False] * (len(parts) - 1) + [True]
    return between.join(frame(op, part, fin=fin) for op, part, fin in zip(opcodes, parts, fins, strict=True))


def fragmented(opcode: int, message: bytes, size: int) -> bytes:
    return fragments(opcode, chopped(message, size) or [b""])


# Cases of the Autobahn test suite (https://github.com/crossbario/autobahn-testsuite, Apache License 2.0), under its
# numbers. They are written for a client that echoes; this one does not, so instead of an echo the message itself is
# looked at, and the server says goodbye in the same breath, or says nothing more where it is the client who must fail
# the connection. Left out: 9.7 and 9.8, which time the echoes; 12 and 13, since compression is never asked for.


class Case(NamedTuple):
    number: str
    sent: tuple[bytes | float, ...]
    """By the server; the numbers are seconds in which it waits."""
    messages: list[bytes]
    answers: list[bytes | float]
    """Of the client: what is in its pongs, and the code of its close frame; and where in between the server waited."""
    code: int
    """That the client tells its caller."""


def passes(
    number: str, *sent: bytes | float, messages: Sequence[bytes] = (), answers: Sequence[bytes | float] = ()
) -> Case:
    return Case(number, (*sent, close_frame(1000)), list(messages), [*answers, 1000], 1000)


def fails(
    number: str,
    *sent: bytes | float,
    messages: Sequence[bytes] = (),
    answers: Sequence[bytes | float] = (),
    code: int = 1002,
) -> Case:
    return Case(number, sent, list(messages), [*answers, code], code)


def closes(number: str, *sent: bytes, messages: Sequence[bytes] = (), code: int = 1000, answer: int = 1000) -> Case:
    return Case(number, sent, list(messages), [answer], code)


def with_bits(rsv: int, whole: bytes) -> bytes:
    return bytes([whole[0] | rsv << 4]) + whole[1:]


def framing() -> Iterator[Case]:
    for group, opcode, character in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
            message = character * size
            yield passes(f"1.{group}.{number}", frame(opcode, message), messages=[message])
        yield passes(f"1.{group}.8", *chopped(frame(opcode, message), 997), messages=[message])


def pings_and_pongs() -> Iterator[Case]:
    for number, payload in enumerate((b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125), 1):
        yield passes(f"2.{number}", frame(PING, payload), answers=[payload])
    yield fails("2.5", frame(PING, b"\xfe" * 126))
    yield passes("2.6", *octets(frame(PING, b"\xfe" * 125)), answers=[b"\xfe" * 125])
    yield passes("2.7", frame(PONG))
    yield passes("2.8", frame(PONG, b"unsolicited pong payload"))
    yield passes("2.9", frame(PONG, b"unsolicited"), frame(PING, b"ping payload"), answers=[b"ping payload"])
    payloads = [f"payload-{n}".encode() for n in range(10)]
    pings = b"".join(frame(PING, payload) for payload in payloads)
    yield passes("2.10", pings, answers=payloads)
    yield passes("2.11", *octets(pings), answers=payloads)


def reserved_bits() -> Iterator[Case]:
    hello, ping, binary = frame(TEXT, b"Hello, world!"), frame(PING), frame(BINARY, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")
    one = [b"Hello, world!"]
    yield fails("3.1", with_bits(1, hello))
    yield fails("3.2", hello + with_bits(2, hello) + ping, messages=one)
    yield fails("3.3", hello, with_bits(3, hello), ping, messages=one)
    yield fails("3.4", *octets(hello + with_bits(4, hello) + ping), messages=one)
    yield fails("3.5", with_bits(5, binary))
    yield fails("3.6", with_bits(6, frame(PING, b"Hello, world!")))
    yield fails("3.7", with_bits(7, frame(CLOSE)))


def opcodes() -> Iterator[Case]:
    hello, ping = frame(TEXT, b"Hello, world!"), frame(PING)
    for group, first in ((1, 3), (2, 11)):
        yield fails(f"4.{group}.1", frame(first))
        yield fails(f"4.{group}.2", frame(first + 1, b"reserved opcode payload"))
        for number, opcode, payload in ((3, first + 2, b""), (4, first + 3, b"Hello, world!")):
            yield fails(f"4.{group}.{number}", hello + frame(opcode, payload) + ping, messages=[b"Hello, world!"])
        sent = octets(hello + frame(first + 4, b"Hello, world!") + ping)
        yield fails(f"4.{group}.5", *sent, messages=[b"Hello, world!"])


def fragmentation() -> Iterator[Case]:
    one, two = frame(TEXT, b"fragment1", fin=False), frame(CONTINUATION, b"fragment2")
    both = [b"fragment1fragment2"]
    ping, pong = frame(PING, b"ping payload"), [b"ping payload"]
    yield fails("5.1", frame(PING, b"fragment1", fin=False) + two)
    yield fails("5.2", frame(PONG, b"fragment1", fin=False) + two)
    yield passes("5.3", one + two, messages=both)
    yield passes("5.4", one, two, messages=both)
    yield passes("5.5", *octets(one + two), messages=both)
    yield passes("5.6", one + ping + two, messages=both, answers=pong)
    yield passes("5.7", one, ping, two, messages=both, answers=pong)
    yield passes("5.8", *octets(one + ping + two), messages=both, answers=pong)
    hello = frame(TEXT, b"Hello, world!")
    for number, fin in ((9, True), (12, False)):
        alone = frame(CONTINUATION, b"non-continuation payload", fin=fin)
        yield fails(f"5.{number}", alone + hello)
        yield fails(f"5.{number + 1}", alone, hello)
        yield fails(f"5.{number + 2}", *octets(alone + hello))
    three, four = frame(CONTINUATION, b"fragment3", fin=False), frame(TEXT, b"fragment4")
    yield fails("5.15", one + two + three + four, messages=both)
    for number, fin in ((16, False), (17, True)):
        alone = frame(CONTINUATION, b"fragment1", fin=fin)
        yield fails(f"5.{number}", (alone + fragments(TEXT, [b"fragment2", b"fragment3"])) * 2)
    yield fails("5.18", one + frame(TEXT, b"fragment2"))
    parts = [frame(CONTINUATION if n > 1 else TEXT, f"fragment{n}".encode(), fin=n == 5) for n in range(1, 6)]
    pings = [frame(PING, b"pongme 1!"), frame(PING, b"pongme 2!")]
    first, second = [*parts[:2], pings[0]], [*parts[2:4], pings[1], parts[4]]
    message = b"fragment1fragment2fragment3fragment4fragment5"
    answers: list[bytes | float] = [b"pongme 1!", 1.0, b"pongme 2!"]
    yield passes("5.19", b"".join(first), 1.0, b"".join(second), messages=[message], answers=answers)
    yield passes("5.20", *first, 1.0, *second, messages=[message], answers=answers)


GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"
SURROGATE_WITHIN = GREEK + b"\xed\xa0\x80edited"
TOO_HIGH_WITHIN = GREEK + b"\xf4\x90\x80\x80edited"


def text_in_parts() -> Iterator[Case]:
    yield passes("6.1.1", frame(TEXT), messages=[b""])
    yield passes("6.1.2", fragments(TEXT, [b"", b"", b""]), messages=[b""])
    yield passes("6.1.3", fragments(TEXT, [b"", b"middle frame payload", b""]), messages=[b"middle frame payload"])
    text = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    yield passes("6.2.1", frame(TEXT, text), messages=[text])
    yield passes("6.2.2", fragments(TEXT, ["Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()]), messages=[text])
    yield passes("6.2.3", fragmented(TEXT, text, 1), messages=[text])
    yield passes("6.2.4", fragmented(TEXT, GREEK, 1), messages=[GREEK])
    yield fails("6.3.1", frame(TEXT, SURROGATE_WITHIN), code=1007)
    yield fails("6.3.2", fragmented(TEXT, SURROGATE_WITHIN, 1), code=1007)
    # The strict outcome of 6.4 is to fail before the second wait. To fail when the text is complete is allowed too.
    for number, cuts in ((1, (11, 15)), (2, (12, 13))):
        parts = [TOO_HIGH_WITHIN[i:j] for i, j in itertools.pairwise((0, *cuts, len(TOO_HIGH_WITHIN)))]
        frames = [frame(TEXT, parts[0], fin=False), frame(0, parts[1], fin=False), frame(0, parts[2])]
        yield fails(f"6.4.{number}", frames[0], 1.0, frames[1], 1.0, frames[2], answers=[1.0, 1.0], code=1007)
        header = frame(TEXT, TOO_HIGH_WITHIN)[:2]
        sent = (header + parts[0], 1.0, parts[1], 1.0, parts[2])
        yield fails(f"6.4.{number + 2}", *sent, answers=[1.0, 1.0], code=1007)


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
    # The first and the last that is possible of each length, and other boundaries
    (7, True, [b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
    (8, False, [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
    (9, True, [b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
    (10, False, [b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
    (11, True, [b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"]),
    (11, False, [b"\xf4\x90\x80\x80"]),
    # Bytes that continue nothing, that are not continued, or not enough, and that are impossible
    (12, False, [b"\x80", b"\xbf", *(b"\x80\xbf\x80\xbf\x80\xbf"[:n] for n in range(2, 7)), bytes(range(0x80, 0xBF))]),
    (13, False, [b"".join(bytes([byte, 0x20]) for byte in range(*ends)) for ends in LONELY_STARTS]),
    (14, False, LAST_BYTE_MISSING),
    (15, False, [b"".join(LAST_BYTE_MISSING)]),
    (16, False, [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    # Written longer than need be: "/", the last of each length, NUL
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
    # What is valid, though no character, and the block of the specials
    (22, True, NO_CHARACTERS),
    (23, True, [chr(code).encode() for code in range(0xFFF9, 0x10000)]),
]


def utf_8() -> Iterator[tuple[str, bytes, bool]]:
    for group, rows in itertools.groupby(UTF_8, key=lambda row: row[0]):
        sequences = [(sequence, valid) for _, valid, sequences in rows for sequence in sequences]
        for number, (sequence, valid) in enumerate(sequences, 1):
            yield f"6.{group}.{number}", sequence, valid


def texts() -> Iterator[Case]:
    for number, text, valid in utf_8():
        yield (
            passes(number, frame(TEXT, text), messages=[text]) if valid else fails(number, frame(TEXT, text), code=1007)
        )


def closing() -> Iterator[Case]:
    hello, end, half = frame(TEXT, b"Hello World!"), close_frame(1000), frame(TEXT, b"fragment1", fin=False)
    yield closes("7.1.1", hello + end, messages=[b"Hello World!"])
    yield closes("7.1.2", end + frame(CLOSE))
    yield closes("7.1.3", end + frame(PING))
    yield closes("7.1.4", end + hello)
    yield closes("7.1.5", half + end + frame(CONTINUATION, b"fragment2"))
    large = b"BAsd7&jh23" * 2**18
    large = large[: 2**18]
    yield closes("7.1.6", frame(TEXT, large) + hello + end + frame(PING), messages=[large, b"Hello World!"])
    yield closes("7.3.1", frame(CLOSE), code=1005)
    yield fails("7.3.2", frame(CLOSE, b"a"))
    yield closes("7.3.3", end)
    yield closes("7.3.4", close_frame(1000, "Hello World!"))
    yield closes("7.3.5", close_frame(1000, "*" * 123))
    yield fails("7.3.6", close_frame(1000, "*" * 124))
    yield fails("7.5.1", frame(CLOSE, b"\x03\xe8" + SURROGATE_WITHIN), code=1007)
    for number, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1):
        yield closes(f"7.7.{number}", close_frame(code), code=code, answer=code)
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield fails(f"7.9.{number}", close_frame(code))
    yield fails("7.13.1", close_frame(5000))
    yield fails("7.13.2", close_frame(65535))


def fragments_by_themselves() -> Iterator[Case]:
    yield passes("10.1.1", fragmented(TEXT, b"*" * 65536, 1300), messages=[b"*" * 65536])


CASES = [
    *framing(),
    *pings_and_pongs(),
    *reserved_bits(),
    *opcodes(),
    *fragmentation(),
    *text_in_parts(),
    *texts(),
    *closing(),
    *fragments_by_themselves(),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
async def test_a_case_of_the_autobahn_test_suite_comes_out_as_it_should(case: Case, autojump_clock: MockClock) -> None:
    answers: list[bytes | float] = []

    async def talk(server: Server) -> None:
        await server.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, server)
            for part in case.sent:
                if isinstance(part, bytes):
                    await server.send(part)
                else:
                    await trio.sleep(part)
                    answers.append(part)

    async def listen(server: Server) -> None:
        async for data in server.stream:
            answers.extend(in_frames_of_the_client(data))

    messages = []
    async with connected_to(talk, max_message_size=2**20) as websocket:
        with pytest.raises(ConnectionLostError) as caught:
            while True:
                messages.append(await websocket.receive())
        await wait_all_tasks_blocked()
    assert messages == case.messages
    assert answers == case.answers
    assert caught.value.code == case.code


def in_frames_of_the_client(data: bytes | bytearray) -> Iterator[bytes | int]:
    """What is in its pongs, and the code of its close frame."""
    while data:
        assert data[1] & 0x80, "a client masks its frames"
        size = data[1] & 0x7F
        payload = bytes(byte ^ data[2 + i % 4] for i, byte in enumerate(data[6 : 6 + size]))
        assert data[0] in (0x80 | PONG, 0x80 | CLOSE)
        yield payload if data[0] & 0x0F == PONG else int.from_bytes(payload)
        data = data[6 + size :]


LARGE_TEXT, LARGE_BINARY = b"BAsd7&jh23", b"\x00\xfe\x23\xfa\xf0"
LARGE = [
    *(
        (f"9.1.{n}", TEXT, LARGE_TEXT, size, None, RECEIVE_BYTES)
        for n, size in enumerate((64, 256, 1024, 4096, 8192, 16384), 1)
    ),
    *(
        (f"9.2.{n}", BINARY, LARGE_BINARY, size, None, RECEIVE_BYTES)
        for n, size in enumerate((64, 256, 1024, 4096, 8192, 16384), 1)
    ),
    *(
        (f"9.3.{n}", TEXT, b"*", 4096, 2**exponent, RECEIVE_BYTES)
        for n, exponent in enumerate((6, 8, 10, 12, 14, 16, 18, 20, 22), 1)
    ),
    *(
        (f"9.4.{n}", BINARY, b"\xfe", 4096, 2**exponent, RECEIVE_BYTES)
        for n, exponent in enumerate((6, 8, 10, 12, 14, 16, 18, 20, 22), 1)
    ),
    *((f"9.5.{n}", TEXT, LARGE_TEXT, 1024, None, 2**exponent) for n, exponent in enumerate((6, 7, 8, 9, 10, 11), 1)),
    *(
        (f"9.6.{n}", BINARY, LARGE_BINARY, 1024, None, 2**exponent)
        for n, exponent in enumerate((6, 7, 8, 9, 10, 11), 1)
    ),
]


@pytest.mark.parametrize(
    ("opcode", "pattern", "kibibytes", "fragment_size", "chop_size"),
    [row[1:] for row in LARGE],
    ids=[row[0] for row in LARGE],
)
def test_a_large_message_of_the_autobahn_test_suite_comes_whole(
    opcode: int, pattern: bytes, kibibytes: int, fragment_size: int | None, chop_size: int
) -> None:
    size = kibibytes * 2**10
    message = (pattern * (size // len(pattern) + 1))[:size]
    data = frame(opcode, message) if fragment_size is None else fragmented(opcode, message, fragment_size)
    items = received(chopped(data, chop_size), max_message_size=16 * 2**20)
    assert len(items) == 1
    assert items[0] == message


@pytest.mark.parametrize(("text", "valid"), [row[1:] for row in utf_8()], ids=[row[0] for row in utf_8()])
def test_text_is_checked_wherever_it_is_cut(text: bytes, valid: bool) -> None:
    expected: list[Item] = [text, b"next"] if valid else [failure(1007)]
    whole, after = frame(TEXT, text), frame(TEXT, b"next")
    assert received([*octets(whole), after]) == expected
    assert received([fragmented(TEXT, text, 1) + after]) == expected
    for cut in range(len(text) + 1):
        assert received([whole[: 2 + cut], whole[2 + cut :] + after]) == expected
        in_two = fragments(TEXT, [text[:cut], text[cut:]], between=frame(PING, b"\xff"))
        with_ping = [pinged(b"\xff"), *expected]
        assert received([in_two + after]) == with_ping
        assert received(octets(in_two + after)) == with_ping


@pytest.mark.parametrize("offset", range(-4, 2))
def test_a_long_text_is_checked_where_it_is_cut_for_that_too(offset: int) -> None:
    # It is checked in steps of 64 KiB.
    for number, text, valid in utf_8():
        for behind in (b"", b"y", b"y" * 2**16):
            message = b"x" * (2**16 + offset) + text + behind
            expected = message if valid else failure(1007)
            assert received([frame(TEXT, message)]) == [expected], number


def test_of_all_close_codes_those_may_come_that_the_registry_has_or_leaves_to_others() -> None:
    may_come = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(2**16):
        items = [plain(item) for item in Receiver(NO_LIMIT).receive(close_frame(code, "why"))]
        assert items == [closed(code, "why") if code in may_come else failure(1002)]


# Other parsers: wsproto, which checks text as it arrives, and websockets, which does not check text. The test checks it
# for websockets when a message is complete.


def read_by_wsproto(pieces: Iterable[bytes]) -> list[Item]:
    protocol = FrameProtocol(client=True, extensions=[])
    items: list[Item] = []
    message = b""
    try:
        for piece in pieces:
            protocol.receive_bytes(piece)
            for item in protocol.received_frames():
                payload = item.payload
                if item.opcode is Opcode.CLOSE:
                    assert isinstance(payload, tuple)
                    items.append(closed(*payload))
                elif item.opcode is Opcode.PING or item.opcode is Opcode.PONG:
                    assert isinstance(payload, bytes)
                    items.append(pinged(payload) if item.opcode is Opcode.PING else ponged(payload))
                else:
                    assert isinstance(payload, bytes | str)
                    message += payload.encode() if isinstance(payload, str) else payload
                    if item.message_finished:
                        items.append(message)
                        message = b""
    except ParseFailed as exc:
        items.append(failure(exc.code))
    return items


def read_by_websockets(pieces: Iterable[bytes]) -> list[Item]:
    protocol = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)
    items: list[Item] = []
    message, is_text = b"", False
    for piece in pieces:
        protocol.receive_data(piece)
        for item in protocol.events_received():
            assert isinstance(item, Frame)
            payload = bytes(item.data)
            if item.opcode is WebsocketsOpcode.CLOSE:
                assert protocol.close_rcvd is not None
                items.append(closed(protocol.close_rcvd.code, protocol.close_rcvd.reason))
            elif item.opcode in (WebsocketsOpcode.PING, WebsocketsOpcode.PONG):
                items.append(pinged(payload) if item.opcode is WebsocketsOpcode.PING else ponged(payload))
            else:
                is_text = item.opcode is WebsocketsOpcode.TEXT or (is_text and item.opcode is WebsocketsOpcode.CONT)
                message += payload
                if item.fin:
                    if is_text and not is_utf_8(message):
                        return [*items, failure(1007)]
                    items.append(message)
                    message = b""
        if protocol.parser_exc is not None:
            if str(protocol.parser_exc) == "incomplete fragmented message":
                assert protocol.close_rcvd is not None  # it does not let a close frame come inside a message
                return [*items, closed(protocol.close_rcvd.code, protocol.close_rcvd.reason)]
            assert protocol.close_sent is not None
            return [*items, failure(protocol.close_sent.code)]
    return items


def is_utf_8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# The same examples in every run: a failure here is never news about the machine.
repeatable = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
often = settings(repeatable, max_examples=150)

BOUNDARIES = (0, 1, 125, 126, 127, 65535, 65536, 65537)

small_texts = st.text(max_size=12).map(str.encode)
small_bytes = st.binary(max_size=12)
sizes = st.sampled_from(BOUNDARIES) | st.integers(0, 300)
cut_texts = st.builds(lambda size, character: (character * size).encode()[:size], sizes, st.sampled_from("aü中😀"))
text_messages = small_texts | cut_texts.map(lambda text: text.decode(errors="ignore").encode())
binary_messages = small_bytes | st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))
control_payloads = st.binary(max_size=12) | st.integers(0, 125).map(lambda size: b"\xfe" * size)
close_codes = st.sampled_from([1000, 1001, 1003, 1007, 1013, 3000, 4999])  # that all three know
reasons = st.text(max_size=30)


@st.composite
def parts_of(draw: st.DrawFn, message: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(message)), max_size=4)))
    return [message[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(message)])]


class Talk(NamedTuple):
    frames: list[bytes]
    expected: list[Item]


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Frames that a server may send, and their contents."""
    talk = Talk([], [])

    def control_frames() -> None:
        for opcode, payload in draw(st.lists(st.tuples(st.sampled_from([PING, PONG]), control_payloads), max_size=2)):
            talk.frames.append(frame(opcode, payload))
            talk.expected.append(pinged(payload) if opcode == PING else ponged(payload))

    for _ in range(draw(st.integers(0, 4))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        message = draw(text_messages if opcode == TEXT else binary_messages)
        parts = draw(parts_of(message))
        control_frames()
        for number, part in enumerate(parts):
            if number:
                control_frames()
            talk.frames.append(frame(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1))
        talk.expected.append(message)
    control_frames()
    if draw(st.booleans()):  # to close, maybe in the middle of a message
        if draw(st.booleans()):
            talk.frames.append(frame(draw(st.sampled_from([TEXT, BINARY])), draw(small_texts), fin=False))
        code, reason = draw(close_codes), draw(reasons)
        talk.frames.append(close_frame(code, reason))
        talk.expected.append(closed(code, reason))
    return talk


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces, as a stream may return it."""
    if len(data) <= 2000 and draw(st.booleans()):
        return octets(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return [data[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(data)]) if stop > start]


@often
@given(st.data())
def test_valid_frames_come_out_in_order_in_any_pieces(data: st.DataObject) -> None:
    talk = data.draw(talks())
    pieces = data.draw(pieces_of(b"".join(talk.frames)))
    assert received(pieces) == talk.expected
    assert read_by_wsproto(pieces) == talk.expected
    assert read_by_websockets(pieces) == talk.expected


firsts = st.sampled_from([0x81, 0x81, 0x81, 0x01, 0x00, 0x80, 0x82, 0x02, 0x88, 0x89, 0x8A]) | st.integers(0, 255)
hard_texts = st.sampled_from([text for _, text, _ in utf_8()])


@st.composite
def hostile_frames(draw: st.DrawFn) -> bytes:
    """A frame that may be valid or wrong in any way. Most are nearly valid."""
    first = draw(firsts)
    payload = draw(small_texts | hard_texts | small_bytes | cut_texts)
    if first & 0x0F == CLOSE and draw(st.booleans()):
        payload = draw(st.integers(995, 1020) | st.integers(0, 65535)).to_bytes(2) + draw(small_texts | hard_texts)
    size = len(payload) if draw(st.integers(0, 9)) else draw(st.integers(0, 2**64 - 1) | sizes)
    shortest = 0 if size < 126 else 2 if size < 2**16 else 8
    width = shortest if draw(st.integers(0, 9)) else draw(st.sampled_from([n for n in (2, 8) if n >= shortest]))
    masked = 0 if draw(st.integers(0, 19)) else 0x80
    header = bytes([masked | {0: size & 0x7F, 2: 126, 8: 127}[width]]) + (size.to_bytes(width) if width else b"")
    return bytes([first]) + header + payload


@st.composite
def distorted(draw: st.DrawFn, data: bytes) -> bytes:
    """The same with some bytes changed, taken out, or put in."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 3)))
        data = data[:start] + draw(st.binary(max_size=3)) + data[stop:]
    return data


hostile = st.one_of(
    st.lists(hostile_frames(), max_size=6).map(b"".join),
    talks().flatmap(lambda talk: distorted(b"".join(talk.frames))),
    st.binary(max_size=60),
)


@often
@given(st.data())
def test_wsproto_accepts_and_refuses_the_same_bytes(data: st.DataObject) -> None:
    # A frame whose header is wrong already is refused at once by us, and by wsproto when the header is complete, or
    # the other way round: so there is always enough behind it.
    sent = data.draw(hostile) + bytes(20)
    mine = received(data.draw(pieces_of(sent)))
    theirs = read_by_wsproto([sent])
    if mine and mine[-1][:2] == ("close", 1014):
        mine[-1] = failure(1002)  # registered after RFC 6455: wsproto does not know it
    if theirs and theirs[-1] == failure(1007) and mine != theirs:
        # It fails at the first wrong character, we when the message is complete: until then there can only be what
        # stands between its fragments.
        count = len(theirs) - 1
        assert mine[:count] == theirs[:count]
        assert not [item for item in mine[count:] if isinstance(item, bytes)]
    else:
        assert mine == theirs


@often
@given(st.data())
def test_websockets_accepts_and_refuses_the_same_bytes(data: st.DataObject) -> None:
    sent = data.draw(hostile) + bytes(20)
    items = received_with_words(data.draw(pieces_of(sent)), NO_LIMIT)
    mine = [plain(item) for item in items]
    theirs = read_by_websockets([sent])
    count = len(mine) - 1
    match items[-1:]:
        case [Failure(1002, "a payload length that is too large or not in its shortest form")]:
            assert theirs[:count] == mine[:count]  # it does not mind
        case [Failure(1002, "a close frame without a valid code")]:
            # It looks at the reason first.
            assert theirs in (mine, [*mine[:count], failure(1007)])
        case [Failure(1002, _)]:
            # What is wrong in the first byte it says when the payload is complete, which may not come.
            assert theirs in (mine, mine[:count])
        case _:
            assert mine == theirs


@often
@given(st.data(), st.sampled_from([1, 4, 100, 1000, NO_LIMIT]))
def test_any_bytes_give_the_same_result_in_any_pieces(data: st.DataObject, max_message_size: int) -> None:
    sent = data.draw(hostile)
    whole = received([sent], max_message_size)
    assert received(data.draw(pieces_of(sent)), max_message_size) == whole


@pytest.mark.parametrize(
    ("sent", "ours", "wsprotos", "websocketses"),
    [
        # Registered after RFC 6455.
        (close_frame(1014), [closed(1014, "")], [failure(1002)], [closed(1014, "")]),
        # RFC 6455, 5.2: the shortest way MUST be used, and the highest bit MUST be 0.
        (b"\x81\x7e\x00\x01x", [failure(1002)], [failure(1002)], [b"x"]),
        (b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00", [failure(1002)], [failure(1002)], []),
        # How much must be there before it is said that something is wrong.
        (b"\x81\x80", [failure(1002)], [failure(1002)], [failure(1002)]),
        (b"\x81\xfe", [failure(1002)], [], [failure(1002)]),
        (b"\x83\x7e", [], [failure(1002)], [failure(1002)]),
        (b"\xc1\x05", [failure(1002)], [failure(1002)], []),
        (frame(TEXT, b"\xff", fin=False), [], [failure(1007)], []),
        # Which of two errors is reported.
        (frame(CLOSE, b"\x03\xe7\xff"), [failure(1002)], [failure(1002)], [failure(1007)]),
    ],
    ids=["1014", "long", "too long", "mask", "mask first", "opcode first", "header first", "early text", "two faults"],
)
def test_the_readers_differ_only_in_this(
    sent: bytes, ours: list[Item], wsprotos: list[Item], websocketses: list[Item]
) -> None:
    assert received([sent]) == ours
    assert read_by_wsproto([sent]) == wsprotos
    assert read_by_websockets([sent]) == websocketses


@pytest.mark.parametrize(
    ("size", "width", "allowed"),
    [
        *((size, 2, size >= 126) for size in (0, 1, 125, 126, 127, 65535)),
        *((size, 8, 2**16 <= size < 2**63) for size in (0, 125, 126, 65535, 65536, 2**32, 2**62, 2**63 - 1, 2**63)),
    ],
)
def test_a_size_is_written_in_the_shortest_way_and_has_63_bits(size: int, width: int, allowed: bool) -> None:
    header = bytes([0x80 | BINARY, 126 if width == 2 else 127]) + size.to_bytes(width)
    assert received([header]) == ([] if allowed else [failure(1002)])
    assert received(octets(header)) == ([] if allowed else [failure(1002)])


@pytest.mark.parametrize("inside", [b"", frame(TEXT, b"x", fin=False)], ids=["between messages", "inside a message"])
@pytest.mark.parametrize("control", [frame(PING), frame(PONG), frame(CLOSE), frame(PING, b"x"), close_frame(1000)])
def test_a_control_frame_is_never_in_parts(control: bytes, inside: bytes) -> None:
    in_parts = bytes([control[0] & 0x7F]) + control[1:]
    assert received([inside + in_parts]) == [failure(1002)]
    assert received(octets(inside + in_parts)) == [failure(1002)]


# The largest message: characters of a text, bytes of what is binary

LIMIT = 40


@st.composite
def messages_near_the_limit(draw: st.DrawFn) -> tuple[int, bytes, bool]:
    """Opcode, message, and whether it is small enough."""
    if draw(st.booleans()):
        text = draw(
            st.text("x\x7f\x80ü\u07ff\u0800中\uffff\U00010000😀\U0010ffff", min_size=LIMIT - 9, max_size=LIMIT + 9)
        )
        return TEXT, text.encode(), len(text) <= LIMIT
    data = draw(st.binary(min_size=LIMIT - 9, max_size=LIMIT + 9))
    return BINARY, data, len(data) <= LIMIT


@often
@given(st.data())
def test_a_message_passes_if_it_is_not_larger_than_allowed_and_all_before_it_does(data: st.DataObject) -> None:
    sent = b""
    expected: list[Item] = []
    for opcode, message, small_enough in data.draw(st.lists(messages_near_the_limit(), min_size=1, max_size=3)):
        parts = data.draw(parts_of(message))
        ping = data.draw(st.sampled_from([b"", frame(PING, b"\xfe" * 125)]))
        sent += fragments(opcode, parts, between=ping)
        pings = [pinged(b"\xfe" * 125)] * (len(parts) - 1 if ping else 0)
        expected += [*pings, message if small_enough else failure(1009)]
        if not small_enough:
            break
    items = received(data.draw(pieces_of(sent)), LIMIT)
    if expected[-1] == failure(1009):
        # It fails as soon as that is certain: of the pings inside the message, some may come behind that.
        assert items[-1] == failure(1009)
        assert items[:-1] == expected[: len(items) - 1]
        assert [item for item in items if isinstance(item, bytes)] == [
            item for item in expected if isinstance(item, bytes)
        ]
    else:
        assert items == expected


@pytest.mark.parametrize("character", ["x", "ü", "中", "😀"])
@pytest.mark.parametrize("fragment_size", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("chop_size", [1, 2, 3, 7, 64, 10_000])
def test_a_text_of_the_largest_size_passes_and_one_more_character_does_not(
    character: str, fragment_size: int, chop_size: int
) -> None:
    largest, larger = (character * 200).encode(), (character * 201).encode()
    sent = fragmented(TEXT, largest, fragment_size) * 2 + fragmented(TEXT, larger, fragment_size)
    assert received(chopped(sent, chop_size), 200) == [largest, largest, failure(1009)]


@pytest.mark.parametrize("fragment_size", [1, 7, 1000])
@pytest.mark.parametrize("chop_size", [1, 7, 10_000])
def test_of_what_is_binary_bytes_are_counted(fragment_size: int, chop_size: int) -> None:
    largest, larger = b"\x80" * 200, b"\x80" * 201
    sent = fragmented(BINARY, largest, fragment_size) * 2 + fragmented(BINARY, larger, fragment_size)
    assert received(chopped(sent, chop_size), 200) == [largest, largest, failure(1009)]


@pytest.mark.parametrize(
    ("before", "header", "refused"),
    [
        (b"", frame(TEXT, b"x" * 401)[:4], True),
        (b"", frame(TEXT, b"x" * 400)[:4], False),
        (b"", frame(TEXT, b"x" * 401, fin=False)[:4], True),
        (b"", frame(TEXT, b"x" * 2**16)[:10], True),
        (frame(TEXT, b"x", fin=False), frame(CONTINUATION, b"x" * 400)[:4], True),
        (frame(TEXT, b"x", fin=False), frame(CONTINUATION, b"x" * 399)[:4], False),
        (b"", frame(BINARY, b"x" * 101)[:2], True),
        (b"", frame(BINARY, b"x" * 100)[:2], False),
        (frame(BINARY, b"x", fin=False), frame(CONTINUATION, b"x" * 100)[:2], True),
        (frame(BINARY, b"x", fin=False), frame(CONTINUATION, b"x" * 99)[:2], False),
        (frame(TEXT, b"x", fin=False), frame(PING, b"x" * 101)[:2], False),
    ],
)
def test_what_is_certainly_too_large_is_refused_before_its_payload_comes(
    before: bytes, header: bytes, refused: bool
) -> None:
    for pieces in ([before + header], [before, header], octets(before + header)):
        assert received(pieces, 100) == ([failure(1009)] if refused else [])


@pytest.mark.parametrize("character", ["x", "ü", "中"])
def test_a_text_is_refused_with_the_first_byte_of_the_character_that_is_too_much(character: str) -> None:
    width = len(character.encode())
    text = (character * 101).encode()
    payload = text + b"x" * (400 - len(text))  # from its size alone it might be 100 characters of four bytes
    in_one = frame(TEXT, payload)
    first_fragment = frame(TEXT, payload[:1], fin=False)
    in_two = first_fragment + frame(CONTINUATION, payload[1:])
    for data, header_size in ((in_one, 4), (in_two, len(first_fragment) - 1 + 4)):
        certain = header_size + 100 * width
        assert received([data[:certain]], 100) == []
        assert received(octets(data[:certain]), 100) == []
        for pieces in ([data[: certain + 1]], octets(data[: certain + 1])):
            assert received(pieces, 100) == [failure(1009)]
    many = [frame(0 if n else TEXT, payload[n : n + 1], fin=False) for n in range(100 * width + 1)]
    assert received(many[:-1], 100) == []
    assert received(many, 100) == [failure(1009)]


def test_what_comes_before_a_message_that_is_too_large_is_received() -> None:
    small, ping, large = frame(TEXT, b"small"), frame(PING, b"?"), frame(TEXT, b"x" * 101)
    expected: list[Item] = [b"small", pinged(b"?"), failure(1009)]
    for pieces in ([small + ping + large + small], octets(small + ping + large + small)):
        assert received(pieces, 100) == expected


def test_pings_inside_a_message_come_at_once_and_do_not_count() -> None:
    ping = frame(PING, b"\xfe" * 125)
    text = "😀" * 100
    for parts in ([text.encode()[:1], text.encode()[1:]], chopped(text.encode(), 7), octets(text.encode())):
        receiver = Receiver(100)
        for number, part in enumerate(parts[:-1]):
            assert receiver.receive(frame(CONTINUATION if number else TEXT, part, fin=False)) == []
            [item] = [item for octet in octets(ping) for item in receiver.receive(octet)]
            assert plain(item) == pinged(b"\xfe" * 125)
        message, item = receiver.receive(frame(CONTINUATION, parts[-1]) + ping)
        assert (message, plain(item)) == (text.encode(), pinged(b"\xfe" * 125))


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (frame(PING, b"\xff"), pinged(b"\xff")),
        (frame(PONG, b"\xff"), ponged(b"\xff")),
        (close_frame(1001, "why"), closed(1001, "why")),
        (frame(CLOSE), closed(1005, "")),
    ],
)
def test_a_control_frame_inside_a_message_is_not_mixed_up_with_it(control: bytes, expected: Item) -> None:
    before = frame(TEXT, b"\xc3", fin=False)
    assert received([before + control]) == [expected]
    assert received(octets(before + control)) == [expected]


@pytest.mark.parametrize("max_message_size", [1, 2, 124, 125])
def test_the_limit_does_not_hold_for_control_frames(max_message_size: int) -> None:
    sent = frame(PING, b"p" * 125) + frame(PONG, b"p" * 125) + frame(TEXT, b"x") + close_frame(1000, "r" * 123)
    expected: list[Item] = [pinged(b"p" * 125), ponged(b"p" * 125), b"x", closed(1000, "r" * 123)]
    assert received([sent], max_message_size) == expected
    assert received(octets(sent), max_message_size) == expected


# Memory


@pytest.mark.parametrize(
    "text", ["x" * 2**20, "中" * (2**20 // 3), "😀" + "x" * 2**20], ids=["ASCII", "CJK", "an emoji"]
)
@pytest.mark.parametrize("how", ["pieces", "fragments", "two fragments"])
def test_a_large_message_that_trickles_in_costs_little_more_than_itself_and_a_copy(text: str, how: str) -> None:
    message = text.encode()
    if how == "pieces":
        pieces: Iterable[bytes] = iter(chopped(frame(TEXT, message), 64))
    elif how == "fragments":
        pieces = iter(chopped(fragmented(TEXT, message, 64), 2**16))
    else:
        pieces = iter(chopped(fragmented(TEXT, message, len(message) - 1), 2**16))
    receiver = Receiver(2**21)
    tracemalloc.start()
    try:
        items = [item for piece in pieces for item in receiver.receive(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items == [message]
    assert peak < 2.5 * len(message)
