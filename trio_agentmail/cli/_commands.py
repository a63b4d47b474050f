"""The group of all commands."""

import click

from ._demo import demo_command
from ._emulate import emulate_command
from ._emulator_client import reset_command
from ._fault import fault_commands
from ._journal import journal_commands
from ._listen_command import listen_command
from ._parameters import Group
from ._trigger import trigger_command

__all__ = ["commands"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trio-agentmail")
def commands() -> None:
    """AgentMail's real-time events, on Trio."""


for command in (
    listen_command,
    demo_command,
    journal_commands,
    emulate_command,
    trigger_command,
    fault_commands,
    reset_command,
):
    commands.add_command(command)
