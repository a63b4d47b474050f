"""The command `trio-agentmail demo`."""

import sys
from functools import partial

import click

from ._demos.crashes import crash_demo
from ._demos.outages import outage_demo
from ._output import Output
from ._run import run
from ._signals import Interrupted

__all__ = ["demo_command"]


@click.command("demo")
@click.option("--crash", is_flag=True, help="Kill and restart a process that has a journal.")
def demo_command(crash: bool) -> None:
    """Break the connection to a local AgentMail, and show that no mail is lost.

    The demo needs no API key and no network. It serves a fake AgentMail on 127.0.0.1, opens a real stream to it, and
    breaks the connection in several ways while mail is delivered. It takes about fifteen seconds. The exit status is 0
    if this package kept all its promises, and 1 otherwise.

    With --crash, the stream runs in a process of its own, with a journal in a temporary file. That process is killed
    several times while mail keeps arriving, and one of the mails kills every process that handles it.

    If Ctrl-C interrupts the demo, it has shown nothing, and the exit status is 130.
    """
    try:
        all_kept = run(partial(crash_demo if crash else outage_demo, Output()))
    except Interrupted as interrupted:
        click.echo("interrupted before the end: this run shows neither success nor failure", err=True)
        sys.exit(interrupted.status)
    if not all_kept:
        sys.exit(1)
