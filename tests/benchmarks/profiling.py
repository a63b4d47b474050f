"""The throughput clients under cProfile: the top ten functions by their own time."""

import cProfile
import pstats
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .processes import run_client, serve
from .throughput import PAUSE, Counter

TOP = 10
COUNT = 10_000
SIZES = ("0.5", "2.6", "23")


def profile(size: str) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for contender in ("stream", "loop"):
        with serve(f"{size} KB", COUNT, pause=PAUSE) as server:
            with server.client("profiling", contender=contender, count=COUNT) as client:
                found[contender] = client.answer()
    return found


def as_text(size: str, found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for contender, functions in found.items():
        lines += ["", f"{contender}, {size} KB: top {TOP} by own time, under cProfile, which makes calls look dearer"]
        lines.append(f"{'own':>5}  {'µs/event':>8}  {'calls/event':>11}  function")
        for function in functions:
            lines.append("{share:>5.1%}  {microseconds:>8.2f}  {calls:>11.2f}  {name}".format(**function))
    return "\n".join(lines[1:])


class Profiled(Counter):
    """Counts events, and profiles from the first one to the last."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.profile = cProfile.Profile()

    def take(self, event: Any) -> bool:
        if self._taken == 0:
            self.profile.enable()
        done = super().take(event)
        if done:
            self.profile.disable()
        return done


def client(url: str, contender: str, count: int) -> list[dict[str, Any]]:
    counter = Profiled(count)
    CONTENDERS[contender](url, counter)
    # (file, line, name) -> (calls without recursion, calls, own time, time with callees, callers)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(counter.profile).stats  # type: ignore[attr-defined]
    whole = sum(own for _, _, own, _, _ in stats.values())
    top = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)[:TOP]
    return [
        {
            "name": name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{line} {name}",
            "share": own / whole,
            "microseconds": own / count * 1e6,
            "calls": calls / count,
        }
        for (file, line, name), (_, calls, own, _, _) in top
    ]


if __name__ == "__main__":
    run_client(client)
