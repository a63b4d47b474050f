"""`python -m tests.benchmarks`: see `--help`."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import attrs

from . import (
    adversarial,
    decode,
    finding,
    first_stream,
    journal,
    journaled,
    latency,
    memory,
    profiling,
    reliability,
    start,
    storm,
    throughput,
)
from .processes import end_on_sigterm
from .report import Results, table

ABOUT = """\
Measures trio-agentmail beside other clients, on this machine alone. Each client runs in a fresh process and its server
in another one, over loopback, and the contenders take turns in each round. The table has the median, the spread over
the rounds, and the median of the rounds' multiples of the group's reference. All groups together take about half an
hour and need two idle cores. Linux only.
"""

GROUP_HELP = """\
groups, all by default:
  throughput  events/s, beside the hand-written loop (the reference), bare trio-websocket with nothing decoded,
              websockets' Trio client with the loop's decoding, and the official SDK       5 rounds of about 40 s
  latency     from the server's send to the consumer's hands; reference: the SDK           3 rounds of about 25 s
  decode      decode_event and others, without a network; reference: bare orjson           3 rounds of about 6 s
  memory      a stalled consumer, 1,000 idle streams                                       1 round  of about 40 s
  storm       1,000 streams lose their server                                              1 round  of about 35 s
  journal     10,000 events through a journal, without a network; reference: a commit for
              each event                                                                   3 rounds of about 20 s
  start       imports; reference: trio and trio_websocket                                  15 rounds of about 1 s
  first       how long the first stream of a process holds the event loop, over loopback   5 rounds of about 7 s
  adversarial the worst frames of up to 16 Mi characters; reference: bare orjson           1 round  of about 8 min
  reliability a journal, beside none (the reference) and a commit an event; recovery of    3 rounds of about 5 min
              10,000 mails; requests when idle
  finding     how soon mail is found that was not pushed, and requests, by mails a day     1 round  of about 15 min
alone:
  profile     the top ten functions by own time, of the stream and of the loop; see --size
by itself:
  python -m tests.benchmarks.soak     much mail, a connection that is cut all the time, and a judge; see its --help
"""


@attrs.frozen
class Group:
    measure: Callable[[Results, int], None]
    rounds: int
    reference: str | None = None  # the contender of which the others are given as multiples


GROUPS = {
    "throughput": Group(throughput.measure, 5, "loop"),
    "latency": Group(latency.measure, 3, "SDK async"),
    "decode": Group(decode.measure, 3, decode.WAYS[0]),
    "memory": Group(memory.measure, 1),
    "storm": Group(storm.measure, 1),
    "journal": Group(journal.measure, 3, journal.NAIVE),
    "start": Group(start.measure, 15, start.REFERENCE),
    "first": Group(first_stream.measure, 5),
    "adversarial": Group(adversarial.measure, 1, adversarial.WAYS[0]),
    "reliability": Group(reliability.measure, 3, journaled.REFERENCE),
    "finding": Group(finding.measure, 1),
}
PACKAGES = ("trio", "trio-websocket", "wsproto", "orjson", "attrs", "cattrs", "agentmail", "websockets")


def setting() -> dict[str, Any]:
    """Return the machine and the package versions of this measurement."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{package: version(package) for package in PACKAGES},
    }


def measure(names: list[str], rounds: int | None) -> tuple[list[Results], float]:
    measured = []
    began = time.monotonic()
    for name in names:
        group = GROUPS[name]
        results = Results(name, group.reference)
        group.measure(results, rounds or group.rounds)
        measured.append(results)
        print(f"\r{f'{name}: after {time.monotonic() - began:.0f} s':<70}", file=sys.stderr)
    return measured, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description=ABOUT,
        epilog=GROUP_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=" ".join(GROUPS) + ", or profile alone")
    parser.add_argument("--rounds", type=int, help="rounds of each group")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every single figure")
    parser.add_argument("--size", choices=profiling.SIZES, default="2.6", help="of the events, in KB, for profile")
    options = parser.parse_args()
    end_on_sigterm()
    if options.groups == ["profile"]:
        found = profiling.profile(options.size)
        print(json.dumps(found, indent=1) if options.json else profiling.as_text(options.size, found))
        return
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(unknown)}")
    where = setting()
    groups, seconds = measure(options.groups or list(GROUPS), options.rounds)
    if options.json:
        measured = {results.group: results.as_json() for results in groups}
        print(json.dumps({"setting": where, "seconds": seconds, "groups": measured}, indent=1))
    else:
        print(table(groups))
        print("\n" + ", ".join(f"{name} {value}" for name, value in where.items()) + f"; {seconds:.0f} s")
    if any(results.errors for results in groups):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
