"""Chaos at scale on the mock clock. Run it by hand: `python -m tests.benchmarks.scale`.

By default, a million mails pass through 1,000 faults in 24 simulated hours. The verdict says how many were lost or
delivered twice. The server is in the same process, and takes about 5 KB of memory for each mail.
"""

import argparse
import logging
import re
import sys
import time
from pathlib import Path

import attrs

from tests.reliability.chaos import SUBSCRIPTIONS, Chaos, draw_schedule, run
from trio_agentmail import Recovery

from .sizing import client_size

FURTHEST_AHEAD = 600.0
"""How far a mail may be dated in the future, in seconds. Every scan lists all such mail, and with a day there would be
far more of it than real senders' wrong clocks produce."""


@attrs.define
class Watch:
    """Shows the progress of a run, and measures the client."""

    began: float = attrs.field(factory=time.monotonic)
    peak: int = 0
    calls: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def __call__(self, chaos: Chaos) -> None:
        self.peak = max(self.peak, client_size(chaos.session))
        print(
            f"after {self.seconds:.0f} s: {self.calls / 4:g} h, {len(chaos.records):,} mails, "
            f"{len(chaos.missing):,} missing, {chaos.backend.statuses.total():,} requests, "
            f"the client has had {self.peak / 2**20:.1f} MiB",
            file=sys.stderr,
        )
        self.calls += 1


def play(options: argparse.Namespace, subscription: str) -> bool:
    """Play one schedule, print the result, and return whether it was correct."""
    schedule = draw_schedule(
        options.seed,
        subscription,
        mails=options.mails,
        faults=options.faults,
        hours=options.hours,
        deepest=options.sweep_depth,
        furthest_ahead=FURTHEST_AHEAD,
    )
    watch = Watch()
    verdict = run(
        schedule,
        recovery=Recovery(sweep_depth=options.sweep_depth),
        patience=options.patience * 3600,
        aftermath=options.aftermath * 3600,
        watch=watch,
    )
    print(verdict)
    print(
        f"  real time {watch.seconds:.0f} s, client at most {watch.peak / 2**20:.1f} MiB, "
        f"process at most {process_peak() / 2**20:,.0f} MiB",
        flush=True,
    )
    return not (verdict.lost or verdict.twice or verdict.unwanted)


def process_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mails", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--faults", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument("--hours", type=float, default=24.0, help="of the mock clock; default: %(default)s")
    parser.add_argument("--sweep-depth", type=float, default=3600.0, help="in seconds; default: %(default)s")
    parser.add_argument("--subscription", choices=[*SUBSCRIPTIONS, "all"], default="inboxes", help="default: inboxes")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--patience", type=float, default=4.0, help="hours that mail may be missing at the end; default: %(default)s"
    )
    parser.add_argument(
        "--aftermath", type=float, default=1.0, help="hours that the run then goes on; default: %(default)s"
    )
    options = parser.parse_args()
    logging.getLogger("trio_agentmail").setLevel(logging.CRITICAL)  # the verdict has the failures
    subscriptions = list(SUBSCRIPTIONS) if options.subscription == "all" else [options.subscription]
    results = [play(options, subscription) for subscription in subscriptions]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
