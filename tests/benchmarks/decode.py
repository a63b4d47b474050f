"""Decoding alone, without a network: microseconds for an event."""

import json
import time
from collections.abc import Callable
from typing import Any

from .frames import CASES, numbered
from .processes import run_client, running
from .report import Results

SIZES = ("0.5 KB", "2.6 KB", "2.6 KB, not ASCII", "23 KB")
WAYS = (
    "orjson.loads(bytes)",
    "decode_event(bytes)",
    "decode_event(str)",
    "json.loads(bytes)",
    "SDK's models of a dict",
)
SECONDS = 0.2
"""Time for which each way is measured, in seconds."""


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for way in WAYS:
            with results.run("all sizes", way), running("decode", {"way": way}, {}) as process:
                for size, microseconds in process.answer().items():
                    results.note(size, way, "µs", microseconds)


def decoder(way: str) -> tuple[Callable[[Any], object], Callable[[bytes], Any]]:
    """Return the function to measure, and the one that makes its argument from an event's bytes."""
    if way == "orjson.loads(bytes)":
        import orjson

        return orjson.loads, bytes
    if way == "json.loads(bytes)":
        return json.loads, bytes
    if way.startswith("SDK"):
        from agentmail.core.unchecked_base_model import construct_type
        from agentmail.websockets.socket_client import WebsocketsSocketClientResponse

        # The SDK's clients call this with a frame that json.loads has parsed.
        union: Any = WebsocketsSocketClientResponse
        return lambda parsed: construct_type(type_=union, object_=parsed), json.loads
    from trio_agentmail import decode_event

    return decode_event, bytes if way == "decode_event(bytes)" else bytes.decode


def client(way: str) -> dict[str, float]:
    decode, prepare = decoder(way)
    return {size: microseconds(decode, prepare, CASES[size]()[0]) for size in SIZES}


def microseconds(decode: Callable[[Any], object], prepare: Callable[[bytes], Any], text: bytes) -> float:
    elapsed, done = 0.0, 0
    while elapsed < SECONDS:
        # New objects each time, because a `str` keeps its UTF-8 form once it has been requested.
        inputs = [prepare(numbered(text, number)) for number in range(done, done + 64)]
        began = time.perf_counter()
        for data in inputs:
            decode(data)
        elapsed += time.perf_counter() - began
        done += len(inputs)
    return elapsed / done * 1e6


if __name__ == "__main__":
    run_client(client)
