"""What can be said on the command line, and how it ends."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import click
import trio

from trio_agentmail._api_key import ApiKey
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe
from trio_agentmail.errors import AgentMailError

from ._crash_demo import crash_demo
from ._demo import demo
from ._emulate import emulate_command
from ._emulator_orders import fault_commands, reset_command, trigger_command
from ._journal import journal as journal_commands
from ._listen import explain, listen
from ._output import Output, OutputClosed
from ._parameters import Group, check_inbox, complete_event_type
from ._signals import Interrupted

__all__ = ["commands"]

T = TypeVar("T")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trio-agentmail")
def commands() -> None:
    """AgentMail's real-time events, on Trio."""


for command in (journal_commands, emulate_command, trigger_command, fault_commands, reset_command):
    commands.add_command(command)


PROD = AgentMailEnvironment.PROD
ENVIRONMENTS = {"prod": PROD, "eu": AgentMailEnvironment.EU_PROD}


def _url(_context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """Check a URL of another server, and return it as an `AgentMailEnvironment` takes it."""
    if url is None:
        return None
    url = url.rstrip("/").removesuffix("/v0")
    scheme = "ws" if option.name == "websocket_url" else "http"
    try:
        if scheme == "ws":
            AgentMailEnvironment(http=PROD.http, websockets=url)
        else:
            AgentMailEnvironment(http=url, websockets=PROD.websockets)
    except ValueError:
        # The URL is not shown: somebody may have put a key into it.
        raise click.BadParameter(
            f"write {scheme}s://host or {scheme}s://host:port, or {scheme}:// for this machine (the API key would "
            "cross a network unencrypted); without user name, query and fragment"
        ) from None
    return url


def _where(
    environment: str | None, websocket_url: str | None, http_url: str | None
) -> tuple[AgentMailEnvironment, Recovery | None]:
    """Whom to talk to, and whether to recover there: the API key goes to no host that was not asked for."""
    if websocket_url is None:
        if http_url is not None:
            raise click.UsageError("--http-url belongs to --websocket-url")
        return ENVIRONMENTS[environment or "prod"], Recovery()
    if environment is not None:
        raise click.UsageError("--environment and --websocket-url exclude each other")
    if http_url is None:
        # Nobody asks there: it is the same host, and no other.
        return AgentMailEnvironment(http=f"http{websocket_url.removeprefix('ws')}", websockets=websocket_url), None
    return AgentMailEnvironment(http=http_url, websockets=websocket_url), Recovery()


def _inboxes(_context: click.Context, _option: click.Parameter, items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_inbox, items))


def _journal(_context: click.Context, _option: click.Parameter, path: str | None) -> SQLiteJournal | None:
    try:
        return None if path is None else SQLiteJournal(path)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@commands.command("listen")
@click.option(
    "--inbox",
    "inbox_ids",
    metavar="INBOX",
    multiple=True,
    callback=_inboxes,
    help="Only this inbox, for example agent@agentmail.to. May be repeated.",
)
@click.option("--pod", "pod_ids", metavar="POD", multiple=True, help="Only this pod. May be repeated.")
@click.option(
    "--event-type",
    "event_types",
    metavar="TYPE",
    multiple=True,
    shell_complete=complete_event_type,
    help="Only this type, for example message.received. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object a line, in ASCII.")
@click.option("--environment", type=click.Choice(list(ENVIRONMENTS)), help="AgentMail's. [default: prod]")
@click.option(
    "--websocket-url",
    metavar="URL",
    callback=_url,
    help="Another server, for example ws://127.0.0.1:8000. Without --http-url, mail that was missed is not looked for.",
)
@click.option(
    "--http-url",
    metavar="URL",
    callback=_url,
    help="The REST API of that other server, for example http://127.0.0.1:8001.",
)
@click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    callback=_journal,
    help="Keep each event in this file until it is written. The next time it begins where this time has ended.",
)
@click.option("-v", "--verbose", is_flag=True, help="Tell on standard error how the connection fares.")
def listen_command(
    inbox_ids: tuple[str, ...],
    pod_ids: tuple[str, ...],
    event_types: tuple[str, ...],
    as_json: bool,
    environment: str | None,
    websocket_url: str | None,
    http_url: str | None,
    journal: SQLiteJournal | None,
    verbose: bool,
) -> None:
    """Print a line for every event that AgentMail pushes, and for mail that was missed and is found again.

    The API key is taken from $AGENTMAIL_API_KEY. Without --event-type, AgentMail leaves out spam, blocked and
    unauthenticated mail.

    With --journal, mail that comes while nobody listens is told at the next start, and so is what had come and had not
    been written. A line that was written just when the program was killed may be written once more. One program at a
    time can have the file, and always with the same options.

    With --json, the field `type` is "event", "subscribed" or "error" in AgentMail's own objects, "disconnected" where
    the connection was lost, "caught_up" where mail that was missed has been looked for, "recovery_failed" where that
    was not possible, and "unknown" around what this program does not know. The field `origin` is "live" for what was
    pushed, "recovered" for mail that was missed and found, and "redelivered" for what the journal had kept.

    An attempt to connect that failed is told on standard error, with the reason and with when the next one comes.

    Ctrl-C or SIGTERM closes the connection and ends with status 0, as does the end of whoever reads the output. The
    status is 1 when AgentMail cannot be reached or refuses, and 2 when the options make no sense.
    """
    where, recovery = _where(environment, websocket_url, http_url)
    if not os.environ.get("AGENTMAIL_API_KEY"):
        raise click.ClickException("no API key: set the environment variable AGENTMAIL_API_KEY")
    try:
        ApiKey(None).check()
    except ValueError as exc:
        raise click.ClickException(str(exc)) from None
    try:
        with warnings.catch_warnings(record=True, action="always") as unknown:
            subscribe = Subscribe(inbox_ids=inbox_ids or None, pod_ids=pod_ids or None, event_types=event_types or None)
    except TypeError as exc:
        raise click.UsageError(str(exc)) from None
    for warning in unknown:
        click.echo(f"Warning: {warning.message}", err=True)
    with _log_on_stderr(verbose=verbose):
        _run(partial(listen, Output(), subscribe, where, as_json=as_json, recovery=recovery, journal=journal))


@commands.command("demo")
@click.option("--crash", is_flag=True, help="Kill a process that has a journal, again and again.")
def demo_command(crash: bool) -> None:
    """Break the connection to an AgentMail on this machine, and watch.

    It needs no API key and no network: it serves an AgentMail of its own on 127.0.0.1, opens a real stream to it, and
    has mail delivered while it breaks the connection in different ways. It takes about fifteen seconds, and ends with
    status 0 if everything that this package promises held, else 1.

    With --crash, the stream is in a process of its own, with a journal in a temporary file, and that process is killed
    while mail goes on; one mail kills whoever handles it.

    Interrupted by Ctrl-C it has shown nothing, and ends with status 130.
    """
    try:
        held = _run(partial(crash_demo if crash else demo, Output()))
    except Interrupted as interrupted:
        click.echo("interrupted before the end: nothing has been shown, neither good nor bad", err=True)
        sys.exit(interrupted.status)
    if not held:
        sys.exit(1)


def _run(main: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Run something on Trio; None: nobody read what it wrote."""
    try:
        return trio.run(main)
    except OutputClosed:
        return None
    except (AgentMailError, OSError) as exc:
        raise click.ClickException(explain(exc)) from None


@contextmanager
def _log_on_stderr(*, verbose: bool) -> Iterator[None]:
    logger = logging.getLogger("trio_agentmail")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    if not verbose:
        handler.addFilter(Trouble())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class Trouble(logging.Filter):
    """Lets warnings pass, and attempts that failed: what the library says when it waits for the next one.

    It waits as well after a loss, which standard output has already.
    """

    def __init__(self) -> None:
        super().__init__()
        self._was_subscribed = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in ("connecting", "subscribed"):
            self._was_subscribed = message == "subscribed"
        return record.levelno >= logging.WARNING or (message.startswith("waiting ") and not self._was_subscribed)
