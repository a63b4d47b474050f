"""The parser of frames agrees with two other parsers, and does not depend on how the bytes are cut."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import Protocol, Side, State
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from tests.helpers.frames import (
    CONTINUATION,
    NO_LIMIT,
    Item,
    closed,
    failure,
    octets,
    often,
    parts_of,
    pieces_of,
    pinged,
    plain,
    ponged,
    received,
    received_with_words,
    utf_8,
)
from tests.helpers.websocket_server import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame
from trio_agentmail._frames import Failure

# Other parsers: wsproto, which checks text as it arrives, and websockets, which does not check text. The test checks
# it for websockets when a message is complete.


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
                assert protocol.close_rcvd is not None  # websockets refuses a close frame inside a message
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


BOUNDARIES = (0, 1, 125, 126, 127, 65535, 65536, 65537)

small_texts = st.text(max_size=12).map(str.encode)
small_bytes = st.binary(max_size=12)
sizes = st.sampled_from(BOUNDARIES) | st.integers(0, 300)
cut_texts = st.builds(lambda size, character: (character * size).encode()[:size], sizes, st.sampled_from("aü中😀"))
text_messages = small_texts | cut_texts.map(lambda text: text.decode(errors="ignore").encode())
binary_messages = small_bytes | st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))
control_payloads = st.binary(max_size=12) | st.integers(0, 125).map(lambda size: b"\xfe" * size)
close_codes = st.sampled_from([1000, 1001, 1003, 1007, 1013, 3000, 4999])  # known to all three parsers
reasons = st.text(max_size=30)


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
    if draw(st.booleans()):  # a close frame, perhaps in the middle of a message
        if draw(st.booleans()):
            talk.frames.append(frame(draw(st.sampled_from([TEXT, BINARY])), draw(small_texts), fin=False))
        code, reason = draw(close_codes), draw(reasons)
        talk.frames.append(close_frame(code, reason))
        talk.expected.append(closed(code, reason))
    return talk


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
    """The data with some bytes changed, removed or inserted."""
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
    # For some invalid headers, wsproto needs more bytes than we do before it refuses them, and for others fewer. Enough
    # bytes for both follow.
    sent = data.draw(hostile) + bytes(20)
    mine = received(data.draw(pieces_of(sent)))
    theirs = read_by_wsproto([sent])
    if mine and mine[-1][:2] == ("close", 1014):
        mine[-1] = failure(1002)  # registered after RFC 6455, and unknown to wsproto
    if theirs and theirs[-1] == failure(1007) and mine != theirs:
        # wsproto fails at the first invalid character, and we when the message is complete. Until then, only the
        # control frames between its fragments can be received.
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
            assert theirs[:count] == mine[:count]  # websockets accepts it
        case [Failure(1002, "a close frame without a valid code")]:
            # websockets checks the reason first.
            assert theirs in (mine, [*mine[:count], failure(1007)])
        case [Failure(1002, _)]:
            # websockets reports an invalid first byte when the payload is complete, which may never be the case.
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
        # How many bytes each parser needs before it reports an error.
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
