"""`python -m tests.benchmarks.soak`: see `--help`."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.processes import RunFailed, end_on_sigterm

from .client import POLICIES
from .run import Load, soak

ABOUT = """\
Soaks trio-agentmail. A server in another process, which is not built on our kit, pushes mail and cuts each connection
4 s after its confirmation: by a reset, a close frame and the end of TCP in turn. A client with a journal and 8 workers
acknowledges every mail. A mail is lost if it has not come within --patience seconds after the last mail was sent. The
exit code is 1 if a mail is lost, comes twice, or comes again after its ack. Linux only.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.soak", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long mail comes (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=300.0, help="mails a second (default: %(default)g)")
    parser.add_argument("--policy", choices=POLICIES, default="fast", help="how to reconnect (default: %(default)s)")
    parser.add_argument("--overlap", type=float, help="of Recovery (default: 300, or sweep-depth if that is less)")
    parser.add_argument("--sweep-interval", type=float, default=300.0, help="of Recovery (default: %(default)g)")
    parser.add_argument("--sweep-depth", type=float, default=86_400.0, help="of Recovery (default: %(default)g)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds, see above (default: %(default)g)")
    parser.add_argument("--directory", type=Path, help="an empty one, for journal and logs (default: temporary)")
    parser.add_argument("--profile", type=Path, help="where to write a cProfile of the client, which slows it down")
    options = parser.parse_args()
    end_on_sigterm()
    recovery = {
        "overlap": min(300.0, options.sweep_depth) if options.overlap is None else options.overlap,
        "sweep_interval": options.sweep_interval,
        "sweep_depth": options.sweep_depth,
    }
    load = Load(options.minutes * 60, options.rate, options.policy, recovery)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            parser.error(f"{directory} is not empty: a journal in it would know mails of the same names")
        try:
            outcome = soak(directory, load, options.patience, options.profile)
        except RunFailed as exc:
            sys.exit(f"ERROR {exc}")
    print(outcome.report())
    if not outcome.judge.holds:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
