"""Throughput: events a second, from the first event to the last."""

import time
from typing import Any

from .contenders import CONTENDERS
from .frames import number_of
from .processes import RunFailed, run_client, serve
from .report import Results

CASES = [
    ("0.5 KB", False, 20_000),
    ("2.6 KB", False, 16_000),
    ("2.6 KB, not ASCII", False, 12_000),
    ("23 KB", False, 6_000),
    ("mix", False, 16_000),
    ("0.5 KB", True, 20_000),
    ("2.6 KB", True, 16_000),
    ("23 KB", True, 6_000),
    ("mix", True, 16_000),
]
"""The events, whether over TLS, and their number: about half a second for the loop."""

SDK_SHARE = 10
"""The SDK is slower, so it gets only this fraction of the events."""

PAUSE = 0.05
"""Pause before the first event, in seconds, so that no event is decoded before the clock runs."""


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for case, tls, count in CASES:
            for contender in CONTENDERS:
                number = count // SDK_SHARE if contender.startswith("SDK") else count
                with (
                    results.run(f"{case}, {'TLS' if tls else 'TCP'}", contender, "events/s") as note,
                    serve(case, number, tls=tls, pause=PAUSE) as server,
                    server.client("throughput", contender=contender, count=number) as client,
                ):
                    note(client.answer())


class Counter:
    """Counts events and measures the time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0
        self._began = 0.0
        self.rate = 0.0

    def take(self, event: Any) -> bool:
        self._taken += 1
        if 1 < self._taken < self._count:
            return False
        if self._taken == 1:
            self._began = time.perf_counter()
            return False
        self.rate = (self._count - 1) / (time.perf_counter() - self._began)
        check_last(event, self._count)
        return True


def check_last(event: Any, count: int) -> None:
    """Check that event number `count` on arrival is the last one sent, so that none was lost or delivered twice.

    Raises:
        RunFailed: It is another event, or not an event of a known kind.
    """
    kind = type(event).__name__
    if number_of(event) != count - 1 or kind not in ("str", "MessageReceivedEvent", "MessageDeliveredEvent"):
        raise RunFailed(f"event {count - 1} was a {kind} with number {number_of(event)}")


def client(url: str, contender: str, count: int) -> float:
    counter = Counter(count)
    CONTENDERS[contender](url, counter)
    if not counter.rate:
        raise RunFailed(f"fewer than {count} events came")
    return counter.rate


if __name__ == "__main__":
    run_client(client)
