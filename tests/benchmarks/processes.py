"""The processes of a benchmark. Each is fresh, answers in JSON, and ends when its block is left."""

import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

ROOT = Path(__file__).parents[2]
PR_SET_PDEATHSIG = 1


class RunFailed(Exception):
    """A run had no result, or the wrong number of events."""


class Process:
    """A module of this package in a fresh interpreter, with its arguments as JSON."""

    def __init__(self, module: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        self._name = module
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{module}", json.dumps(arguments)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which kills the child
        )

    def answer(self, patience: float = 90.0) -> Any:
        """Return its next answer. It is killed if that takes longer than this many seconds."""
        assert self.process.stdout is not None
        timer = threading.Timer(patience, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RunFailed(f"{self._name} ended without an answer, or took longer than {patience:.0f} s for it")
        return json.loads(line)

    def last_answer(self) -> Any:
        """Tell it to end, and return its last answer."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.answer()


@contextmanager
def running(module: str, arguments: dict[str, Any], environment: dict[str, str]) -> Iterator[Process]:
    process = Process(module, arguments, environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
        for pipe in (process.process.stdin, process.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@attrs.frozen
class Server:
    process: Process
    url: str
    port: int
    listening: float
    """The start, by `time.perf_counter`."""

    @contextmanager
    def client(self, module: str, **arguments: Any) -> Iterator[Process]:
        """Run the `client` function of a module in a process, with the server's URL and these arguments."""
        trusted = {"SSL_CERT_FILE": f"{certificates().name}/ca.pem"}
        with running(module, {"url": self.url} | arguments, trusted) as process:
            yield process


@contextmanager
def serve(
    case: str | None = None,
    count: int = 0,
    *,
    tls: bool = False,
    rate: float | None = None,
    pause: float = 0.0,
    port: int = 0,
    stays_open: bool = False,
) -> Iterator[Server]:
    """Run a server.

    Args:
        case: The events to send, a key of `frames.CASES`. `None` sends nothing.
        count: Number of events on each connection.
        tls: Whether to use TLS.
        rate: Events a second. `None` sends as fast as they are taken.
        pause: Time between the confirmation and the first event, in seconds.
        port: The port; 0 for any.
        stays_open: Whether the connection stays open after the events.
    """
    arguments = {"case": case, "count": count, "rate": rate, "pause": pause, "port": port, "stays_open": stays_open}
    arguments["certificate"] = f"{certificates().name}/server.pem" if tls else None
    with running("server", arguments, {}) as process:
        hello = process.answer()
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{hello['port']}"
        yield Server(process, url, hello["port"], hello["listening"])


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    """Make a server's certificate and that of its authority, in a directory that is removed when this process ends."""
    import trustme  # imported here because the children import this module as well

    directory = tempfile.TemporaryDirectory()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{directory.name}/ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(f"{directory.name}/server.pem")
    return directory


def end_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit in this process, so that no child process is left behind."""

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)


# In the child process


def answer(result: Any) -> None:
    print(json.dumps(result), flush=True)


def run_client(client: Callable[..., Any]) -> None:
    """Run the main program of a module that is started as a client."""
    die_with_parent()
    answer(client(**json.loads(sys.argv[1])))


def die_with_parent() -> None:
    """End this process when its parent ends, even if that is killed. Linux only, like `/proc` in `memory.py`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
