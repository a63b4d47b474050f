"""Parsing and decoding, side by side: `python -m tests.benchmarks.decoding`.

Microseconds a frame, the best of several rounds: json (the standard library), orjson, and `decode_event`.
"""

import json
import timeit
from collections.abc import Callable

import orjson

from trio_agentmail import Event, decode_event
from trio_agentmail.testing import encode_event
from trio_agentmail.testing._fake_events import received_event

ROUNDS = 7


def microseconds(function: Callable[[], object]) -> float:
    timer = timeit.Timer(function)
    number, _ = timer.autorange()
    return min(timer.repeat(ROUNDS, max(1, number // 4))) / max(1, number // 4) * 1e6


def received(text: str, html: str | None = None) -> Event:
    return received_event(
        inbox_id="agent@agentmail.to",
        from_="Jane Doe <jane@example.com>",
        subject="Quarterly figures",
        text=text,
        html=html,
        to=["agent@agentmail.to", "team@example.com"],
        event_type="message.received",
        message_id=None,
        thread_id=None,
        event_id=None,
        timestamp=None,
    )


def main() -> None:
    words = "The figures for the quarter are attached; please answer by Friday. "
    events = {
        "small": received("Hi!"),
        "ASCII": received(words * 10),
        "non-ASCII": received("Die Zahlen für das Quartal hängen an, bitte bis Freitag. " * 10),
        "large": received(words * 150, f"<p>{words}</p>" * 150),
    }
    print(f"{'frame':<10} {'bytes':>7} {'json':>7} {'orjson':>7} {'decode_event':>13}")
    for name, event in events.items():
        text = encode_event(event)
        data = text.encode()
        figures = (
            microseconds(lambda data=data: json.loads(data)),  # type: ignore[misc]
            microseconds(lambda data=data: orjson.loads(data)),  # type: ignore[misc]
            microseconds(lambda text=text: decode_event(text)),  # type: ignore[misc]
        )
        print(f"{name:<10} {len(data):>7} {figures[0]:>7.1f} {figures[1]:>7.1f} {figures[2]:>13.1f}")


if __name__ == "__main__":
    main()
