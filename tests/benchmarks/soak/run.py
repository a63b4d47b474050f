"""Runs one soak: a server and a client in processes of their own, and the judge in this one."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.benchmarks.memory import MIB
from tests.benchmarks.processes import Process, RunFailed, running

from .judge import Judge

SETTLING = 10.0
"""Seconds for which the client goes on when all mail is there. What recovery delivers twice may come then."""

START = 60.0
"""Seconds that may pass before the first mail is sent."""

SAMPLES = 120
"""How many samples are taken while mail comes; but there is one every 10 s at least."""


@attrs.frozen
class Load:
    """What the client has to bear, and with which settings.

    Args:
        seconds: How long mail comes.
        rate: Mails a second. A machine that is too slow for it sends fewer.
        policy: How the client reconnects, a name in `client.POLICIES`.
        recovery: The arguments of `Recovery`.
    """

    seconds: float
    rate: float = 300.0
    policy: str = "fast"
    recovery: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Outcome:
    """The verdict, with what the client and the server report at their end."""

    load: Load
    judge: Judge
    client: dict[str, Any]
    server: dict[str, Any]

    def report(self) -> str:
        width = max(map(len, figures := self._figures()))
        lines = [f"{name:<{width}}  {value}" for name, value in figures.items()]
        return "\n".join(lines + self.judge.diagnosis())

    def _figures(self) -> dict[str, str]:
        """The latency outside gaps is that of mail sent and delivered while no gap was open.

        With no gap open, a mail is delivered that may have been sent, and have waited, while one was.
        """
        judge, sent = self.judge, len(self.judge.sent)
        cuts = ", ".join(f"{number} by {how}" for how, number in judge.cuts.items())
        origins = ", ".join(f"{number:,} {origin}" for origin, number in judge.origins.most_common())
        middle, last = judge.samples[len(judge.samples) // 2], judge.samples[-1]
        return {
            "load": f"{self.load.rate:g} mails/s for {self.load.seconds:g} s, policy {self.load.policy}",
            "recovery": ", ".join(f"{name} {value:g}" for name, value in self.load.recovery.items()) or "default",
            "sent": f"{sent:,}, {sent / self.load.seconds:.0f}/s",
            "cuts": f"{judge.cuts.total()}: {cuts}",
            "delivered": f"{len(judge.got):,}: {origins}",
            "lost": f"{len(judge.lost):,}",
            "twice": f"{len(judge.twice):,}",
            "again after its ack": f"{len(judge.again_after_ack):,}",
            "all there" if judge.is_complete else "last new mail": f"{judge.complete_after:.1f} s after the end",
            "latency outside gaps": quantiles(judge.latencies(lambda sent, got: sent.at >= got.calm_since)),
            "latency, no gap open": quantiles(judge.latencies(lambda sent, got: not got.gap)),
            "latency, all live": quantiles(judge.latencies(lambda sent, got: True)),
            "ack": quantiles(judge.ack_times),
            "gaps": f"{len(judge.gaps)}, open {self._share_of_gaps():.0%} of the time",
            "memory": size(middle.memory, last.memory, judge.growth(lambda sample: sample.memory)),
            "journal": size(middle.file, last.file, judge.growth(lambda sample: sample.file)),
            "client's CPU": f"{self._share_of_cpu():.0%} of a core, {last.cpu / max(sent, 1) * 1e3:.2f} ms a mail",
            "server's CPU": f"{self.server['cpu']:.0%} of a core; at most {self.server['latest'] * 1e3:.0f} ms late",
            "notices": ", ".join(f"{number} {name}" for name, number in judge.notices.items()),
            "session": ", ".join(f"{name} {value}" for name, value in self.client.items() if value is not None),
        }

    def _share_of_gaps(self) -> float:
        first, last = self.judge.samples[0].at, self.judge.samples[-1].at
        return sum(min(closed, last) - opened for opened, closed in self.judge.gaps if opened < last) / (last - first)

    def _share_of_cpu(self) -> float:
        first, last = self.judge.samples[0], self.judge.samples[-1]
        return (last.cpu - first.cpu) / (last.at - first.at)


def size(middle: int, last: int, growth: float) -> str:
    return f"{middle / MIB:.1f} MiB at half-time, {last / MIB:.1f} MiB in the end; grows by {growth:,.0f} bytes a mail"


def quantiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    p50, p99 = (seconds[math.ceil(len(seconds) * share) - 1] * 1e3 for share in (0.5, 0.99))
    return f"{len(seconds):,} mails: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {seconds[-1] * 1e3:.0f} ms"


def soak(directory: Path, load: Load, patience: float, profile: Path | None = None) -> Outcome:
    """Run a soak in a directory, and judge it.

    Args:
        directory: Must be empty.
        patience: Seconds after the last mail. What has not come by then is lost.
        profile: Where to write a profile of the client.

    Raises:
        RunFailed: a process ended early, or the server did not finish.
    """
    judge = Judge(directory / "log", directory / "ledger")
    told_to_server = {"log": str(directory / "log"), "seconds": load.seconds, "rate": load.rate}
    told_to_client = {
        "directory": str(directory),
        "policy": load.policy,
        "recovery": load.recovery,
        "interval": min(10.0, load.seconds / SAMPLES),
        "profile": None if profile is None else str(profile.absolute()),
    }
    try:
        with (
            running("soak.server", told_to_server, {}) as server,
            running("soak.client", server.answer() | told_to_client, {}) as client,
        ):

            def until(is_so: Callable[[], bool], seconds: float) -> None:
                wait(judge, (server, client), is_so, seconds)

            until(lambda: judge.finished is not None, load.seconds + START)
            if judge.finished is None:
                raise RunFailed("the server did not finish")
            until(lambda: judge.is_complete, patience)
            until(lambda: False, SETTLING)
            said_by_client, said_by_server = client.last_answer(), server.last_answer()
            judge.read()
    finally:
        judge.close()
    return Outcome(load, judge, said_by_client, said_by_server)


def wait(judge: Judge, processes: Sequence[Process], is_so: Callable[[], bool], seconds: float) -> None:
    """Read the files until the condition holds or time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for process in processes:
            if process.process.poll() is not None:
                raise RunFailed("a process ended before it was told to")
        judge.read()
        if is_so():
            return
        time.sleep(0.5)
