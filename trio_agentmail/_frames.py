"""A sans-I/O parser of WebSocket frames: the receiving half of RFC 6455, for a client.

A frame is a header of 2 to 10 bytes and a payload. A message is one or more frames, with control frames between them.
TCP splits these bytes anywhere: one read may return a hundred frames, or one byte of a header.

The obvious parser is a state machine that consumes each piece as it arrives: it joins fragments, decodes the text
incrementally, and counts its characters. wsproto and others work like this. It is correct, but every event pays for
the general case, although nearly every event is one unfragmented text frame that is complete within one read. A parser
that waits for a complete frame in one growing `bytes` object is simple as well, but it copies a large message that
arrives in small pieces again for each piece, which takes quadratic time.

So the loop in `Receiver._receive` has a short path for a frame that is complete within one read: the payload is one
slice, and it is checked for UTF-8 at once. Everything else takes the long path. The payload of an incomplete frame, and
the fragments of a message, are collected in one `bytearray`, which grows in amortized linear time. A message is not
processed before it is complete, with one exception: the characters of a text with more than `max_message_size` bytes
are counted while it arrives, so that a message that is too large is rejected before all of it is in memory.

No extension is negotiated, so a reserved bit is an error.
"""

from codecs import utf_8_decode
from typing import NamedTuple, NoReturn

__all__ = ["Close", "Failure", "Ping", "Pong", "Received", "Receiver"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
MAX_CONTROL_SIZE = 125

NO_CODE = 1005
"""The code that stands for a close frame without a code (RFC 6455, 7.1.5)."""

_INSIDE_A_CHARACTER = bytes(range(0x80, 0xC0))
"""The UTF-8 bytes that are not the first byte of a character."""


class Ping(NamedTuple):
    payload: bytes


class Pong(NamedTuple):
    payload: bytes


class Close(NamedTuple):
    code: int
    reason: str


class Failure(NamedTuple):
    """A violation of the protocol by the server, with the close code to send. Nothing follows it."""

    code: int
    reason: str


Received = bytes | Ping | Pong | Close | Failure
"""A message is `bytes`. A text message is valid UTF-8."""


class _Invalid(Exception):
    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.failure = Failure(code, reason)


class Receiver:
    """Parses the bytes that a server sends, as they arrive.

    Args:
        max_message_size: Characters of a text message, bytes of a binary one. A larger message is a `Failure`.
    """

    def __init__(self, max_message_size: int) -> None:
        self._max_message_size = max_message_size
        self._failed = False
        self._rest = b""
        """An incomplete header."""
        # The frame with an incomplete payload: its first byte, the number of missing bytes, and the buffer for them.
        self._first = 0
        self._missing = 0
        self._payload = bytearray()
        # The incomplete message.
        self._opcode: int | None = None
        self._message = bytearray()
        self._characters: int | None = None
        """The number of its characters, once it has more bytes than `max_message_size`; otherwise `None`."""

    def receive(self, data: bytes) -> list[Received]:
        """Return the messages and control frames that the bytes complete; nothing after a `Failure` or a `Close`."""
        received: list[Received] = []
        if not self._failed:
            try:
                self._receive(data, received)
            except _Invalid as exc:
                self._failed = True
                received.append(exc.failure)
        return received

    def _receive(self, data: bytes, received: list[Received]) -> None:
        position = 0
        if self._missing:
            position = min(self._missing, len(data))
            self._gather(data[:position])
            if self._missing:
                return
            if self._first & 0x0F >= CLOSE:
                received.append(self._control(self._first, bytes(self._payload)))
            else:
                self._end_data_frame(self._first, received)
        elif self._rest:
            data = self._rest + data
        end = len(data)
        # The following steps are taken for every event. See the module's docstring.
        while end - position >= 2 and not self._failed:
            first = data[position]
            size = data[position + 1]
            start = position + 2
            if size >= 126:
                if size > 127:
                    raise _Invalid("a masked frame from a server")
                start += 2 if size == 126 else 8
                if start > end:
                    break
                size = _extended_size(int.from_bytes(data[position + 2 : start]), size)
            if first != FIN | TEXT or self._opcode is not None or size > self._max_message_size:
                self._check_header(first, size)
            position = start + size
            if first == FIN | TEXT and position <= end and self._characters is None:
                received.append(self._text(data[start:position]))
            elif first & 0x0F >= CLOSE and position <= end:
                received.append(self._control(first, data[start:position]))
            else:
                self._first, self._missing = first, size
                self._payload = bytearray() if first & 0x0F >= CLOSE else self._message
                self._gather(data[start:position])
                if not self._missing:
                    self._end_data_frame(first, received)
        self._rest = data[position:]

    def _gather(self, piece: bytes) -> None:
        self._payload += piece
        self._missing -= len(piece)
        if self._characters is not None and self._payload is self._message:
            self._count(piece)

    def _end_data_frame(self, first: int, received: list[Received]) -> None:
        opcode = first & 0x0F
        if opcode != CONTINUATION:
            self._opcode = opcode
        if first & FIN:
            message = bytes(self._message)
            self._message = self._payload = bytearray()
            received.append(self._text(message) if self._opcode == TEXT else message)
            self._opcode = None

    def _text(self, message: bytes) -> bytes:
        self._characters = None
        if not message.isascii() and not _is_utf8(message):
            raise _Invalid("a text message that is not UTF-8", 1007)
        return message

    def _control(self, first: int, payload: bytes) -> Received:
        if first == FIN | PING:
            return Ping(payload)
        if first == FIN | PONG:
            return Pong(payload)
        self._failed = True
        if not payload:
            return Close(NO_CODE, "")
        code = int.from_bytes(payload[:2])
        if len(payload) < 2 or not _may_be_sent(code):
            raise _Invalid("a close frame without a valid code")
        try:
            return Close(code, payload[2:].decode())
        except UnicodeDecodeError:
            raise _Invalid("a close frame whose reason is not UTF-8", 1007) from None

    def _check_header(self, first: int, size: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise _Invalid("a reserved bit is set")
        if BINARY < opcode < CLOSE or opcode > PONG:
            raise _Invalid(f"an unknown opcode: {opcode:#x}")
        if opcode >= CLOSE:
            if size > MAX_CONTROL_SIZE or not first & FIN:
                raise _Invalid("a control frame that is too large or fragmented")
            return
        if (opcode == CONTINUATION) == (self._opcode is None):
            raise _Invalid("a continuation frame without a message, or a message inside another one")
        bytes_so_far = len(self._message) + size
        if bytes_so_far <= self._max_message_size:
            return
        if TEXT not in (opcode, self._opcode) or bytes_so_far > 4 * self._max_message_size:
            self._refuse_size()
        if self._characters is None:
            self._count(self._message)

    def _count(self, piece: bytes | bytearray) -> None:
        self._characters = (self._characters or 0) + len(piece.translate(None, _INSIDE_A_CHARACTER))
        if self._characters > self._max_message_size:
            self._refuse_size()

    def _refuse_size(self) -> NoReturn:
        raise _Invalid(f"a message of more than {self._max_message_size} characters (max_message_size)", 1009)


def _is_utf8(message: bytes) -> bool:
    # The text is decoded in steps, because it may take four times as much memory as its UTF-8.
    position = 0
    try:
        while position < len(message):
            step = message[position : position + 2**16]
            position += utf_8_decode(step, "strict", position + len(step) == len(message))[1]
    except UnicodeDecodeError:
        return False
    return True


def _extended_size(size: int, marker: int) -> int:
    """Validate and return an extended payload length. `marker` is the second byte of the header: 126 or 127."""
    if size <= (MAX_CONTROL_SIZE if marker == 126 else 0xFFFF) or size >> 63:
        raise _Invalid("a payload length that is too large or not in its shortest form")
    return size


def _may_be_sent(code: int) -> bool:
    """Return whether a close frame may have this code (RFC 6455, 7.4, and IANA's registry, which ends at 1014)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
