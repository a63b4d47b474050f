"""CPU time of imports in fresh interpreters, with everything compiled, in milliseconds."""

import os
import subprocess
import sys
import tempfile

from .processes import ROOT
from .report import Results

REFERENCE = "trio, trio_websocket"
IMPORTS = {
    REFERENCE: "import trio, trio_websocket",
    "trio_agentmail": "import trio, trio_websocket; from trio_agentmail import open_agentmail_stream",
    "agentmail": "import agentmail",
    "agentmail, its WebSocket": "import agentmail.websockets.client",  # agentmail alone imports nothing yet
}
TIMED = "import time; began = time.process_time(); {}; print((time.process_time() - began) * 1e3)"


def measure(results: Results, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as compiled:
        for statement in IMPORTS.values():
            milliseconds(statement, compiled)  # once, to write the .pyc files
        for _ in range(rounds):
            taken = {name: milliseconds(statement, compiled) for name, statement in IMPORTS.items()}
            for name, value in taken.items():
                results.note("import", name, "ms", value)
            more = taken["trio_agentmail"] - taken[REFERENCE]
            results.note("import", f"trio_agentmail over {REFERENCE}", "ms more", more)
            results.note("import", f"trio_agentmail over {REFERENCE}, by those", "times", more / taken[REFERENCE])


def milliseconds(statement: str, compiled: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"PYTHONPYCACHEPREFIX": compiled},
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which kills the child
    )
    return float(done.stdout)
