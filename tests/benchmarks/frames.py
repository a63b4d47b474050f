"""The events that the server sends. They are realistic, and differ from each other only in a number."""

import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

NUMBER = "##########"
"""Stands in an event for its number: ten digits that make it differ from all others."""

SENT = "$" * 19
"""Stands in a subject for the time of sending, in nanoseconds of `time.perf_counter_ns`, which all processes share."""

CHUNK_BYTES = 2**18

INBOX = "support@agentmail.to"
THREAD = "b9e0fd3c-0f6c-4a0f-9e4c-5d2f6f0f3c11"
MESSAGE = f"<{NUMBER}.CAF9sQ2r8kLmX4n@mail.example.com>"
TIME = "2026-02-03T04:05:06.789000Z"

ASCII = "The figures for the quarter are attached; please tell us by Friday whether they match yours. "
GERMAN = "Anbei die Zahlen für das Quartal; bitte prüfen Sie bis übermorgen, ob sie mit Ihren übereinstimmen. "
CHINESE = "附件是本季度的数据。请在星期五之前告诉我们是否与您的数据一致。"


def delivered() -> dict[str, Any]:
    return {
        "type": "event",
        "event_type": "message.delivered",
        "event_id": f"evt_{NUMBER}",
        "delivery": {
            "inbox_id": INBOX,
            "thread_id": THREAD,
            "message_id": f"<{NUMBER}.0100018f2b1c9d3e-7c1f5a52-1b3d-4c53-9f0e@email.amazonses.com>",
            "timestamp": TIME,
            "recipients": [
                "Jane Doe <jane.doe@example.com>",
                "Accounts payable <accounts.payable@example.com>",
                "Bob Roe <bob.roe@example.org>",
                "carol@example.net",
            ],
        },
    }


def received(sentences: str, length: int, filling: int = 0) -> dict[str, Any]:
    """A received mail.

    Args:
        length: How often its text repeats the sentences. Its HTML repeats them as often.
        filling: Number of bytes added to the text.
    """
    text = "\r\n".join([sentences] * length) + "." * filling
    html = "".join([f'<p style="margin:0 0 1em">{sentences}</p>\n'] * length)
    subject = f"Re: Figures of the quarter {SENT}"
    sender, recipients = "Jane Doe <jane.doe@example.com>", [f"Support <{INBOX}>", "Accounts <accounts@example.com>"]
    times = {"timestamp": TIME, "updated_at": TIME, "created_at": TIME}
    return {
        "type": "event",
        "event_type": "message.received",
        "event_id": f"evt_{NUMBER}",
        "message": {
            "inbox_id": INBOX,
            "thread_id": THREAD,
            "message_id": MESSAGE,
            "labels": ["received", "unread"],
            "from": sender,
            "to": recipients,
            "cc": ["bob@example.org"],
            "subject": subject,
            "preview": sentences[:60],
            "text": text,
            "html": html,
            "extracted_text": sentences,
            "in_reply_to": "<0001.AbCdEf@agentmail.to>",
            "references": ["<0000.AbCdEf@agentmail.to>", "<0001.AbCdEf@agentmail.to>"],
            "headers": {
                "message-id": MESSAGE,
                "date": "Tue, 3 Feb 2026 04:05:06 +0000",
                "mime-version": "1.0",
                "content-type": 'multipart/alternative; boundary="b1"',
                "return-path": "<jane.doe@example.com>",
                "dkim-signature": "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=s1; bh=2jUSOH9NhtVGCQ==",
            },
            "size": 4096,
            **times,
        },
        "thread": {
            "inbox_id": INBOX,
            "thread_id": THREAD,
            "labels": ["received", "unread"],
            "senders": [sender],
            "recipients": recipients,
            "subject": subject,
            "preview": sentences[:60],
            "last_message_id": MESSAGE,
            "message_count": 3,
            "size": 12288,
            "received_timestamp": TIME,
            **times,
        },
    }


def encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def received_of(size: int, sentences: str) -> bytes:
    """Return the text of a received mail, with `size` bytes."""
    one, two = len(encode(received(sentences, 1))), len(encode(received(sentences, 2)))
    length = 1 + (size - one) // (two - one)
    return encode(received(sentences, length, filling=(size - one) % (two - one)))


def mix() -> list[bytes]:
    """Return a mix: 50 % of 0.5 KB, 40 % of 2.6 KB, 10 % of 23 KB."""
    small, medium, large = encode(delivered()), received_of(2_600, ASCII), received_of(23_000, ASCII)
    return [small, medium] * 4 + [small, large]


CASES: dict[str, Callable[[], list[bytes]]] = {
    "0.5 KB": lambda: [encode(delivered())],
    "2.6 KB": lambda: [received_of(2_600, ASCII)],
    "2.6 KB, not ASCII": lambda: [received_of(2_600, GERMAN + CHINESE)],
    "23 KB": lambda: [received_of(23_000, ASCII)],
    "mix": mix,
    "100 KB": lambda: [received_of(100_000, ASCII)],
    "100 KB, CJK": lambda: [received_of(100_000, CHINESE)],
    "8 MiB": lambda: [received_of(8 * 2**20, ASCII)],
}
"""The texts of each case, which are sent in turn."""


def numbered(text: bytes, number: int) -> bytes:
    return text.replace(NUMBER.encode(), b"%010d" % number)


def number_of(event: Any) -> int:
    """Return the number of an event, from its text or from the object of any client."""
    event_id = event.event_id if hasattr(event, "event_id") else event[event.index("evt_") :]
    return int(event_id[4:14])


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """Return a WebSocket frame as a server sends it."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 2**16:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


class Chunk:
    """Consecutive frames that are encoded once. Only their numbers and times of sending are overwritten."""

    def __init__(self, texts: Sequence[bytes], size: int = CHUNK_BYTES) -> None:
        pattern = [frame(text) for text in texts]
        frames = pattern * max(1, size // sum(map(len, pattern)))
        self._buffer = bytearray(b"".join(frames))
        self._ends: list[int] = []
        self._numbers: list[list[int]] = []
        self._times: list[list[int]] = []
        start = 0
        for data in frames:
            self._numbers.append([start + found.start() for found in re.finditer(re.escape(NUMBER).encode(), data)])
            self._times.append([start + found.start() for found in re.finditer(re.escape(SENT).encode(), data)])
            start += len(data)
            self._ends.append(start)

    def __len__(self) -> int:
        return len(self._ends)

    def numbered(self, first: int, count: int, sent: int | None = None) -> memoryview:
        """Return the bytes of `count` frames, numbered from `first`. The next call overwrites them."""
        for index in range(count):
            digits = b"%010d" % (first + index)
            for offset in self._numbers[index]:
                self._buffer[offset : offset + 10] = digits
            if sent is not None:
                for offset in self._times[index]:
                    self._buffer[offset : offset + 19] = b"%019d" % sent
        return memoryview(self._buffer)[: self._ends[count - 1]]
