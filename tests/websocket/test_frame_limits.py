"""The parser of frames limits the size of a message, and takes little more memory than that."""

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.frames import (
    CONTINUATION,
    Item,
    chopped,
    closed,
    failure,
    fragmented,
    fragments,
    octets,
    often,
    parts_of,
    pieces_of,
    pinged,
    plain,
    ponged,
    received,
)
from tests.helpers.websocket_server import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame
from trio_agentmail._frames import Receiver

# The largest message: counted in characters if it is text, and in bytes if it is binary

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
        # The receiver fails as soon as the message is certainly too large, so it may not receive all of the pings.
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
    payload = text + b"x" * (400 - len(text))  # by its size alone, it could be 100 characters of four bytes
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
