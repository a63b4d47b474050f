"""The worst frames that a server could send: how long decoding one blocks the event loop, beside bare orjson."""

import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import orjson

from .processes import run_client, running
from .report import Results

SIZES = (1, 4, 16)
"""Sizes of the frames, in Mi characters. The largest is the default of `max_message_size`."""

WAYS = ("orjson.loads", "decode_event")

HEAD = b'{"type":"event","event_type":"%s","event_id":"evt_1","%s":{"inbox_id":"a@x","message_id":"<1@x>","%s":'
TAIL = b"}}"


def _frame(
    value: bytes, field: str = "unknown", event_type: str = "message.received", payload: str = "message"
) -> bytes:
    return HEAD % (event_type.encode(), payload.encode(), field.encode()) + value + TAIL


def _times(item: bytes, size: int) -> bytes:
    """Return an array with as many copies of an item as fit."""
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def _each(items: Iterable[bytes], size: int) -> bytes:
    """Join items with commas, up to this size."""
    taken: list[bytes] = []
    for item in items:
        size -= len(item) + 1
        if size < 0:
            break
        taken.append(item)
    return b",".join(taken)


def _text(piece: bytes, size: int) -> bytes:
    return b'"' + piece * (size // len(piece)) + b'"'


def _array(item: bytes, field: str, *event: str) -> Callable[[int], bytes]:
    return lambda size: _frame(_times(item, size), field, *event)


def _string(piece: bytes, field: str = "text") -> Callable[[int], bytes]:
    return lambda size: _frame(_text(piece, size), field)


def _object(item: bytes, field: str, *event: str) -> Callable[[int], bytes]:
    """Return an object whose members come from a pattern that contains a number."""
    return lambda size: _frame(b"{" + _each((item % n for n in count()), size) + b"}", field, *event)


def _name(piece: bytes) -> Callable[[int], bytes]:
    return lambda size: _frame(b'[{"name":' + _text(piece, size) + b',"email":"a@x"}]', "to")


KINDS: dict[str, Callable[[int], bytes]] = {
    "text": _string(b"a"),
    "text of escapes": _string(rb"\n"),
    "text of \\u0001": _string(rb"\u0001"),
    "text of lone surrogates": _string(rb"\ud800"),
    "one lone surrogate behind escapes": lambda size: _frame(_text(rb"\n", size - 6)[:-1] + rb'\ud800"', "text"),
    "one lone surrogate behind pairs": lambda size: _frame(
        _text(rb"\ud83d\ude00", size - 6)[:-1] + rb'\ud800"', "text"
    ),
    "one lone surrogate behind \\\\": lambda size: _frame(_text(rb"\\", size - 6)[:-1] + rb'\ud800"', "text"),
    "one lone surrogate, many objects": lambda size: _frame(b'["\\ud800",' + _times(b"{}", size)[1:], "attachments"),
    "a lone surrogate each": _array(rb'{"filename":"\ud800"}', "attachments"),
    "text of UTF-8": _string("é".encode()),
    "text of emoji": _string("😀".encode()),
    "bytes not UTF-8 at the end": lambda size: _frame(_text(b"a", size)[:-1] + b'\xff"', "text"),
    "not JSON, a lone surrogate": lambda size: _frame(_text(rb"\ud800", size) + b"]", "text"),
    "not JSON, escapes": lambda size: _frame(_text(rb"\n", size) + b"]", "text"),
    "not JSON": lambda size: b"x" * size,
    "attachments {}": _array(b"{}", "attachments"),
    "attachments 1": _array(b"1", "attachments"),
    "attachments []": _array(b"[]", "attachments"),
    "attachments with a size": _array(b'{"size":1}', "attachments"),
    "attachments with other fields": _array(b'{"a":1}', "attachments"),
    "attachments of wrong types": _array(b'{"size":{},"filename":[]}', "attachments"),
    "to strings": _array(b'"a"', "to"),
    "to empty strings": _array(b'""', "to"),
    "to {}": _array(b"{}", "to"),
    "to 1": _array(b"1", "to"),
    "to addresses": _array(b'{"email":"a"}', "to"),
    "to names": _array(b'{"name":"a","email":"a"}', "to"),
    "to names in quotes": _array(b'{"name":",","email":"a"}', "to"),
    "to names of \\": _array(rb'{"name":"\\","email":"a"}', "to"),
    "from addresses": _array(b'{"name":",","email":"a"}', "from"),
    'one name of "': _name(rb"\""),
    "one name of \\": _name(rb"\\"),
    "one name of é": _name("é".encode()),
    "labels, different": lambda size: _frame(b"[" + _each((b'"%d"' % n for n in count()), size) + b"]", "labels"),
    "headers": _object(b'"%d":""', "headers"),
    "headers of wrong types": _object(b'"%d":1', "headers"),
    "headers, one wrong at the end": lambda size: _frame(
        b"{" + _each((b'"%d":""' % n for n in count()), size) + b',"x":1}', "headers"
    ),
    "headers of one name": lambda size: _frame(b"{" + _each((b'"a":""' for _ in count()), size) + b"}", "headers"),
    "unknown field of {}": _array(b"{}", "unknown"),
    "unknown field of []": _array(b"[]", "unknown"),
    "unknown field of numbers": _array(b"0.5", "unknown"),
    "unknown field of nulls": _array(b"null", "unknown"),
    "unknown fields": _object(b'"%d":0', "unknown"),
    "huge integer": lambda size: _frame(b"1" * size, "size"),
    "huge float": lambda size: _frame(b"1." + b"1" * size, "size"),
    "huge exponent": lambda size: _frame(b"1e" + b"1" * size, "size"),
    "times": lambda size: _frame(_text(b"2", size), "timestamp"),
    "a time with many digits": lambda size: _frame(b'"2026-02-03T04:05:06.' + _text(b"1", size)[1:], "timestamp"),
    "deep": lambda size: _frame(b"[" * (size // 2) + b"]" * (size // 2)),
    "1,000 deep, many": _array(b"[" * 1000 + b"]" * 1000, "unknown"),
    "an unknown type of {}": _array(b"{}", "unknown", "a.new.type"),
    "an unknown type, long": lambda size: b'{"type":"event","event_type":' + _text(b"a", size) + b"}",
    "an unknown type, escapes": lambda size: b'{"type":"event","event_type":' + _text(rb"\u0001", size) + b"}",
    "a message_id that is all": lambda size: _frame(_text(b"a", size), "message_id"),
    "bounce recipients {}": _array(b"{}", "recipients", "message.bounced", "bounce"),
    "delivery recipients": _array(b'{"name":",","email":"a"}', "recipients", "message.delivered", "delivery"),
    "domain records {}": _array(b"{}", "records", "domain.verified", "domain"),
    "domain records with status": _array(b'{"status":"a"}', "records", "domain.verified", "domain"),
    "attendees {}": _array(b"{}", "attendees", "calendar.event.created", "calendar_event"),
    "attendees with a time": _array(
        b'{"responded_at":"20260203"}', "attendees", "calendar.event.created", "calendar_event"
    ),
    "metadata of {}": _array(b"{}", "metadata", "calendar.event.created", "calendar_event"),
    "rdates {}": lambda size: _frame(
        b'{"rdates":' + _times(b"{}", size) + b"}", "recurrence", "calendar.event.created", "calendar_event"
    ),
    "subscribed": lambda size: b'{"type":"subscribed","inbox_ids":' + _times(b'{"name":",","email":"a"}', size) + b"}",
}


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for kind in KINDS:
            for way in WAYS:
                with results.run(kind, way), running("adversarial", {"kind": kind, "way": way}, {}) as process:
                    for size, seconds in zip(SIZES, process.answer(), strict=True):
                        results.note(f"{size:2} MiB: {kind}", way, "ms", seconds * 1e3)


def client(kind: str, way: str) -> list[float]:
    return [seconds(KINDS[kind](size * 2**20), way) for size in SIZES]


def seconds(frame: bytes, way: str) -> float:
    from trio_agentmail import decode_event

    decode_event(KINDS["text"](0))  # the first event generates the function of its class

    def parse(data: bytes) -> Any:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            return None

    decode = parse if way == WAYS[0] else decode_event
    began = time.thread_time()
    kept = decode(frame)
    elapsed = time.thread_time() - began
    del kept
    return elapsed


if __name__ == "__main__":
    run_client(client)
