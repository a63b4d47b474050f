"""Imports, in fresh interpreters: milliseconds."""

import subprocess
import sys

from .processes import ROOT
from .report import Results

REFERENCE = "trio, trio_websocket"
IMPORTS = {
    REFERENCE: "import trio, trio_websocket",
    "trio_agentmail": "import trio_agentmail",
    "agentmail": "import agentmail",
    "agentmail, its WebSocket": "import agentmail.websockets.client",  # the first imports nothing until it is used
}
TIMED = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1e3)"


def measure(results: Results, rounds: int) -> None:
    milliseconds(IMPORTS["trio_agentmail"])  # once for the .pyc files
    for _ in range(rounds):
        taken = {name: milliseconds(statement) for name, statement in IMPORTS.items()}
        for name, value in taken.items():
            results.note("import", name, "ms", value)
        results.note(
            "import", f"trio_agentmail over {REFERENCE}", "ms more", taken["trio_agentmail"] - taken[REFERENCE]
        )


def milliseconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    done = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=60, start_new_session=True
    )  # Ctrl-C is for us alone, and then it is killed
    return float(done.stdout)
