"""The processes of a benchmark: each is started anew, answers in JSON, and is gone when its block is left."""

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
    """A run that gave no figure, or whose count was not right."""


class Process:
    """A module of this package, run in a fresh interpreter with its arguments as JSON."""

    def __init__(self, module: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        self._name = module
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{module}", json.dumps(arguments)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us alone: we kill it
        )

    def answer(self, patience: float = 90.0) -> Any:
        """The next thing that it says; it is killed if that takes longer than so many seconds."""
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
        """Tell it to end, and return what it then says."""
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
    """Since when, by `time.perf_counter`."""

    @contextmanager
    def client(self, module: str, **arguments: Any) -> Iterator[Process]:
        """A process that runs the `client` function of a module, with the server's URL and these arguments."""
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
        case: What it sends, of `frames.CASES`; None: nothing.
        count: How many events it sends on each connection.
        tls: Over TLS.
        rate: Events a second; None: as fast as they are taken.
        pause: Seconds between the confirmation and the first event.
        port: 0: any.
        stays_open: Once the events are sent, the connection stays open.
    """
    arguments = {"case": case, "count": count, "rate": rate, "pause": pause, "port": port, "stays_open": stays_open}
    arguments["certificate"] = f"{certificates().name}/server.pem" if tls else None
    with running("server", arguments, {}) as process:
        hello = process.answer()
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{hello['port']}"
        yield Server(process, url, hello["port"], hello["listening"])


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    """A server's certificate and that of its authority. The directory is removed when this process ends."""
    import trustme  # here, since the children import this module as well

    directory = tempfile.TemporaryDirectory()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{directory.name}/ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(f"{directory.name}/server.pem")
    return directory


def end_on_sigterm() -> None:
    """SIGTERM raises SystemExit in this process, so that no process is left behind."""

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)


# In the child


def answer(result: Any) -> None:
    print(json.dumps(result), flush=True)


def run_client(client: Callable[..., Any]) -> None:
    """The main program of a module that is started as a client."""
    die_with_parent()
    answer(client(**json.loads(sys.argv[1])))


def die_with_parent() -> None:
    """Even if the parent is killed, and can't tell us any more. This is Linux, as `/proc` in `memory.py` is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
