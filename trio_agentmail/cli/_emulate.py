"""The command `trio-agentmail emulate`: a local AgentMail, for developing and testing programs."""

import errno
import ipaddress
import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import click
import trio
from rich.text import Text

from trio_agentmail._printable import printable
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.testing._agentmail.permissions import check_permissions
from trio_agentmail.testing._emulator.emulator import Emulator
from trio_agentmail.testing._emulator.server import serve
from trio_agentmail.testing._wire.access import check_hosts

from ._output import Output, OutputClosed
from ._parameters import check_inbox
from ._signals import stop_signals

__all__ = ["DEFAULT_EMULATOR", "emulate", "emulate_command"]

HTTP_PORT, WEBSOCKET_PORT = 8490, 8491
"""The default ports. They are not registered, and are below the range for outgoing connections."""

DEFAULT_EMULATOR = f"http://127.0.0.1:{HTTP_PORT}"

OPEN = """
Anyone who can reach this machine can read and send mail here, unencrypted.
"""

LIMIT = 300
"""Maximum number of characters in a line."""

MAX_WAITING = 1000
"""Maximum number of lines that wait while the terminal is paused. Further lines are dropped."""


def _address(_context: click.Context, _option: click.Parameter, host: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise click.BadParameter("write an IP address of this machine, or 0.0.0.0 for all of them") from None


def _hosts(_context: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        check_hosts(names)
    except ValueError as exc:
        raise click.BadParameter(printable(str(exc), 300)) from None
    return names


def _no_empty(_context: click.Context, _option: click.Parameter, items: tuple[str, ...]) -> tuple[str, ...]:
    if not all(items):
        raise click.BadParameter("it must not be empty")
    return items


def _inboxes(_context: click.Context, _option: click.Parameter, items: tuple[str, ...]) -> list[tuple[str, str | None]]:
    inboxes = [item.partition("=") for item in items]
    if not all(inbox_id for inbox_id, _, _ in inboxes):
        raise click.BadParameter("an inbox must not be empty")
    return [(check_inbox(inbox_id), pod_id or None) for inbox_id, _, pod_id in inboxes]


def _known(context: click.Context, option: click.Parameter, permissions: tuple[str, ...]) -> tuple[str, ...]:
    _no_empty(context, option, permissions)
    try:
        check_permissions(permissions)
    except ValueError as exc:
        raise click.BadParameter(printable(str(exc), 2000)) from None
    return permissions


@click.command("emulate")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=HTTP_PORT,
    show_default=True,
    metavar="PORT",
    help="The port of the REST API, or 0 for any free port.",
)
@click.option(
    "--websocket-port",
    type=click.IntRange(0, 65535),
    default=WEBSOCKET_PORT,
    show_default=True,
    metavar="PORT",
    help="The port of the WebSocket, or 0 for any free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=_address,
    metavar="ADDRESS",
    help="The IP address to listen on; :: is IPv6 only. With another address than the default, anyone who can reach "
    "this machine can read and send mail here, unencrypted. trigger, fault and reset only work on this machine.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    metavar="NAME",
    multiple=True,
    callback=_hosts,
    help="A name or address to accept in the Host header, such as the name of a container. May be repeated. "
    "[default: localhost, loopback addresses, and the address that clients connect to]",
)
@click.option(
    "--api-key",
    "api_keys",
    metavar="KEY",
    multiple=True,
    callback=_no_empty,
    help="Accept this key only. May be repeated. [default: any]",
)
@click.option(
    "--permission",
    "permissions",
    metavar="PERMISSION",
    multiple=True,
    callback=_known,
    help="Give the keys only this permission, for example message_read. May be repeated. [default: all permissions]",
)
@click.option(
    "--inbox",
    "inboxes",
    metavar="INBOX[=POD]",
    multiple=True,
    callback=_inboxes,
    help="An inbox to start with, in the given pod or in the pod `default`. May be repeated.",
)
@click.option(
    "--pod",
    "pods",
    metavar="POD",
    multiple=True,
    callback=_no_empty,
    help="A pod to start with. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Write only a line with a JSON object of the URLs.")
def emulate_command(
    http_port: int,
    websocket_port: int,
    host: str,
    allow_hosts: tuple[str, ...],
    api_keys: tuple[str, ...],
    permissions: tuple[str, ...],
    inboxes: list[tuple[str, str | None]],
    pods: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run an emulator of AgentMail, with its WebSocket and its REST API on local ports.

    The emulator needs no API key and no network. This package, the official SDKs and curl can connect to it. `trigger`
    makes mail arrive or causes any other event, `fault` causes a failure, and `reset` restores the initial state. Mail
    is kept in memory until the emulator ends.

    Ctrl-C or SIGTERM ends the emulator, with status 0. The status is 1 if a port is in use.
    """
    if http_port == websocket_port != 0:
        raise click.UsageError("--http-port and --websocket-port must be different")
    log = None if as_json else Log()
    emulator = Emulator(
        silence if log is None else log.tell,
        api_keys=api_keys or None,
        permissions=permissions or None,
        inboxes=inboxes,
        pods=pods,
    )
    try:
        trio.run(partial(emulate, Output(), emulator, log, host, http_port, websocket_port, allow_hosts))
    except OutputClosed:
        return
    except OSError as exc:
        advice = "; choose other ports with --http-port and --websocket-port, or 0 for any free port"
        ports = exc.errno in (errno.EADDRINUSE, errno.EACCES)
        raise click.ClickException(printable(exc.strerror or str(exc), 200) + (advice if ports else "")) from None


async def emulate(
    output: Output,
    emulator: Emulator,
    log: "Log | None",
    host: str,
    http_port: int,
    websocket_port: int,
    allow_hosts: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM comes.

    Args:
        log: The lines to print, or `None` to print a line of JSON only.

    Raises:
        OutputClosed: The reader of the output has gone.
        OSError: A port is in use.
    """
    async with (
        stop_signals(),
        serve(emulator, websocket_port, http_port=http_port, host=host, allow_hosts=allow_hosts) as environment,
    ):
        if log is None:
            # The ports are open before this line is printed.
            where = {"http": environment.http, "websockets": environment.websockets}
            await output.write(json.dumps(where) + "\n")
            await trio.sleep_forever()
        else:
            await output.write(greeting(environment, sorted(emulator.fake.api_keys or ()), is_open=host != "127.0.0.1"))
            await log.print_to(output)


class Log:
    """The lines to print, one for each thing that happens. Adding a line never waits."""

    def __init__(self) -> None:
        self._put, self._lines = trio.open_memory_channel[Text](MAX_WAITING)
        self._dropped = 0

    def tell(self, text: str) -> None:
        """Add a line about something that has just happened."""
        if self._dropped:
            text = f"({self._dropped} lines before this one were dropped) {text}"
        line = Text.assemble((f"{datetime.now():%H:%M:%S}", "dim"), "  ", printable(text, LIMIT))
        try:
            self._put.send_nowait(line)
            self._dropped = 0
        except trio.WouldBlock:
            self._dropped += 1

    async def print_to(self, output: Output) -> None:
        async for line in self._lines:
            await output.print(line)


def silence(_text: str) -> None:
    pass


def greeting(environment: AgentMailEnvironment, api_keys: Sequence[str], *, is_open: bool) -> str:
    """Return instructions for connecting to the emulator and for its commands."""
    http, websockets = environment.http, environment.websockets
    key = api_keys[0] if api_keys else "am_any"
    both = f'AgentMailEnvironment(http="{http}", websockets="{websockets}")'
    where = "" if http == DEFAULT_EMULATOR else f"export AGENTMAIL_EMULATOR={http}\n  "
    return f"""\
An emulator of AgentMail, in memory:

  REST API   {http}
  WebSocket  {websockets}
  API key    {", ".join(api_keys) or "any"}
{OPEN if is_open else ""}
trio-agentmail:
  open_agentmail_stream(api_key="{key}", environment={both})
the official Python SDK:
  AgentMail(api_key="{key}", environment={both})
the official Node SDK:
  new AgentMailClient({{ apiKey: "{key}", environment: {{ http: "{http}", websockets: "{websockets}" }} }})
another terminal:
  {where}trio-agentmail trigger message.received --inbox agent@agentmail.to
  trio-agentmail fault drop_connections

Ctrl-C ends it.

"""
