"""Sending commands to a running emulator, and `trio-agentmail reset`."""

import json
from typing import Any

import click
import httpx2

from trio_agentmail._printable import printable
from trio_agentmail.testing._emulator.control import CONTROL_PATH, SERVER

from ._emulate import DEFAULT_EMULATOR

__all__ = ["emulator_option", "reset_command", "send_command"]

TIMEOUT = 15.0
"""The time-out of a command, in seconds. Cutting connections may take five, for clients that do not read."""

emulator_option = click.option(
    "--emulator",
    metavar="URL",
    envvar="AGENTMAIL_EMULATOR",
    default=DEFAULT_EMULATOR,
    show_default=f"$AGENTMAIL_EMULATOR or {DEFAULT_EMULATOR}",
    help="The URL of the emulator's REST API.",
)


def send_command(emulator: str, method: str, path: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a command to the control API, and return the answer.

    Raises:
        ClickException: There is no emulator, or it refuses the command.
    """
    url = f"{emulator.rstrip('/').removesuffix('/v0')}{CONTROL_PATH}/{path}"
    shown = printable(emulator, 200)
    try:
        # A proxy cannot reach the loopback address of this machine.
        with httpx2.Client(trust_env=False, timeout=TIMEOUT) as client:
            response = client.request(method, url, content=None if fields is None else json.dumps(fields))
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise click.ClickException(f"{shown} is not a URL; write one like {DEFAULT_EMULATOR}") from None
    except httpx2.HTTPError as exc:
        raise click.ClickException(
            f"there is no emulator at {shown} ({printable(str(exc), 200)}): start one with `trio-agentmail emulate`, "
            "or set --emulator or $AGENTMAIL_EMULATOR to its URL"
        ) from None
    if response.headers.get("Server") != SERVER:
        raise click.ClickException(f"the server at {shown} is not an emulator (status {response.status_code})")
    answer: dict[str, Any] = response.json()
    if response.is_error:
        raise click.ClickException(f"the emulator refused: {printable(str(answer.get('message')), 1000)}")
    return answer


@click.command("reset")
@emulator_option
def reset_command(emulator: str) -> None:
    """Restore the initial state of a running emulator, for example before each test of a suite.

    This removes all mail, and all inboxes and pods except those that the emulator was started with. It also cuts all
    WebSockets, clears all faults, and forgets all Idempotency-Keys.
    """
    send_command(emulator, "POST", "reset")
    click.echo("reset: back to the initial state")
