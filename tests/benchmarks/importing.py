"""What `import trio_agentmail` costs beside its transport: `python -m tests.benchmarks.importing`.

Milliseconds in a fresh interpreter, median of several rounds that alternate.
"""

import statistics
import subprocess
import sys

ROUNDS = 11
IMPORTS = ("import trio, trio_websocket", "import trio_agentmail")


def milliseconds(statement: str) -> float:
    code = f"import time; began = time.perf_counter(); {statement}; print((time.perf_counter() - began) * 1e3)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def main() -> None:
    rounds = [[milliseconds(statement) for statement in IMPORTS] for _ in range(ROUNDS)]
    for statement, figures in zip(IMPORTS, zip(*rounds, strict=True), strict=True):
        print(f"{statement:<30} {statistics.median(figures):6.1f} ms ({min(figures):.1f} to {max(figures):.1f})")


if __name__ == "__main__":
    main()
