"""The parser of frames passes the cases of the Autobahn test suite."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.frames import (
    CONTINUATION,
    GREEK,
    NO_LIMIT,
    Item,
    chopped,
    closed,
    failure,
    fragmented,
    fragments,
    octets,
    pinged,
    plain,
    received,
    utf_8,
)
from tests.helpers.websocket_server import BINARY, CLOSE, PING, PONG, TEXT, Server, close_frame, connected_to, frame
from trio_agentmail._frames import Receiver
from trio_agentmail._websocket import RECEIVE_BYTES
from trio_agentmail.errors import ConnectionLostError

# The cases of the Autobahn test suite (https://github.com/crossbario/autobahn-testsuite, Apache License 2.0), under its
# numbers. The suite expects a client that echoes every message. This client does not, so the tests check the received
# messages instead. The server sends a close frame right behind its messages, or nothing more where the client has to
# fail the connection. Left out are 9.7 and 9.8, which measure the time of echoes, and 12 and 13, since the client never
# asks for compression.


class Case(NamedTuple):
    number: str
    sent: tuple[bytes | float, ...]
    """What the server sends. A number is a wait, in seconds."""
    messages: list[bytes]
    answers: list[bytes | float]
    """The payloads of the client's pongs, the waits of the server, and the code of the client's close frame."""
    code: int
    """The code that the client reports to its caller."""


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
    """Yield the payload of each pong, and the code of the close frame."""
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
    # Text is checked in steps of 64 KiB.
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
