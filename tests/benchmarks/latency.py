"""Latency from the server's send to the consumer, for events of 2.6 KB over plain TCP."""

import time
from typing import Any

from .contenders import CONTENDERS
from .frames import SENT
from .processes import RunFailed, run_client, serve
from .report import Results

RATES = {100: 400, 1_000: 3_000}
"""Events a second, and their number."""


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for rate, count in RATES.items():
            for contender in ("stream", "loop", "SDK async"):
                with (
                    results.run(f"{rate:,}/s", contender),
                    serve("2.6 KB", count, rate=rate, pause=0.5) as server,
                    server.client("latency", contender=contender, count=count) as client,
                ):
                    for which, microseconds in client.answer().items():
                        results.note(f"{rate:,}/s, {which}", contender, "µs", microseconds)


class Recorder:
    """Records the age of each event on arrival."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.nanoseconds: list[int] = []

    def take(self, event: Any) -> bool:
        self.nanoseconds.append(time.perf_counter_ns() - int(event.message.subject[-len(SENT) :]))
        return len(self.nanoseconds) == self._count


def client(url: str, contender: str, count: int) -> dict[str, float]:
    recorder = Recorder(count)
    CONTENDERS[contender](url, recorder)
    if len(recorder.nanoseconds) < count:
        raise RunFailed(f"{len(recorder.nanoseconds)} events came, of {count}")
    ordered = [nanoseconds / 1000 for nanoseconds in sorted(recorder.nanoseconds)]
    return {"p50": ordered[count // 2], "p99": ordered[count * 99 // 100], "max": ordered[-1]}


if __name__ == "__main__":
    run_client(client)
