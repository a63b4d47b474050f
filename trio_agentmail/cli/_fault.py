"""The commands `trio-agentmail fault …`, which cause failures at a running emulator.

Each command is made from an entry of the table of faults, with its name, help and parameters.
"""

import math
import random
from collections.abc import Collection
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem

from trio_agentmail._settings import similar
from trio_agentmail.testing._emulator.faults import REMOTE_FAULTS
from trio_agentmail.testing._faults.arguments import Argument, CloseCode, FaultNames, Number, Repetitions, Seed, Whole
from trio_agentmail.testing._faults.entry import Entry, Kind, Parameter

from ._emulator_client import emulator_option, send_command
from ._parameters import Group, complete_list

__all__ = ["command", "fault_commands"]


class FaultGroup(Group):
    """A group that also accepts names with hyphens: `reject-handshakes`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name.replace("-", "_"))


@click.group("fault", cls=FaultGroup)
def fault_commands() -> None:
    """Cause a failure at a running emulator.

    A fault applies to the open WebSockets, or to the next connection, event or request. It applies to several of them
    with --times N, and to all until `fault clear` with --times all. `outage` and `chaos` last until `fault clear`, or
    for --seconds.
    """


def _times(_context: click.Context, _option: click.Parameter, value: str) -> int | str:
    if value == "all":
        return value
    if not (value.isascii() and value.isdigit() and Repetitions().accepts(int(value))):
        raise click.BadParameter(f"write {Repetitions()}")
    return int(value)


def _number(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("write a number")
    return value


def _close_code(_context: click.Context, _option: click.Parameter, value: int | None) -> int | None:
    if value is not None and not CloseCode().accepts(value):
        raise click.BadParameter(f"write {CloseCode()}")
    return value


def _seed(_context: click.Context, _option: click.Parameter, value: int | None) -> int:
    return random.randrange(2**32) if value is None else value


def _names(
    known: Collection[str], _context: click.Context, _option: click.Parameter, value: str | None
) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip().replace("-", "_") for name in value.split(",")]
    for name in names:
        if name not in known:
            suggestion = similar(name, known) or f"; there are {', '.join(known)}"
            raise click.BadParameter(f"there is no {name!r}{suggestion}")
    return names


def _complete_names(
    known: Collection[str], _context: click.Context, _option: click.Parameter, beginning: str
) -> list[CompletionItem]:
    return complete_list(known, beginning)


def _settings(argument: Argument) -> dict[str, Any]:
    """Return the settings of the click parameter for a kind of argument."""
    match argument:
        case Whole(low=low, high=high):
            return {"type": click.IntRange(low, high)}
        case Number(low=low, high=high):
            return {"type": click.FloatRange(low, high), "callback": _number}
        case CloseCode():
            return {"type": int, "callback": _close_code}
        case Seed(low=low, high=high):
            return {"type": click.IntRange(low, high), "callback": _seed, "metavar": "N"}
        case FaultNames(names=names):
            known = names()
            complete = partial(_complete_names, known)
            return {"metavar": "A,B,…", "callback": partial(_names, known), "shell_complete": complete}
        case Repetitions():
            return {"metavar": "N", "default": "1", "show_default": True, "callback": _times}
        case _:
            return {}


def _click_parameter(name: str, parameter: Parameter) -> click.Parameter:
    argument = parameter.argument
    settings = _settings(argument)
    if parameter.is_required and not isinstance(argument, Seed):
        return click.Argument([name], **settings)
    if "seconds" in str(argument):
        settings["metavar"] = "SECONDS"
    is_shown = "default" not in settings and isinstance(parameter.default, int | float)
    default = f" [default: {parameter.default:g}]" if is_shown else ""
    return click.Option([f"--{name.replace('_', '-')}"], help=argument.help + default, **settings)


def command(entry: Entry) -> click.Command:
    assert entry.parameters is not None

    @emulator_option
    def send(emulator: str, **fields: Any) -> None:
        given = {parameter: value for parameter, value in fields.items() if value is not None}
        answer = send_command(emulator, "POST", "faults", {"fault": entry.name, **given})
        if entry.kind is not Kind.PRESENT:
            click.echo(f"{entry.name}: {_until(entry, given)}")
        elif connected := answer["connected"]:
            click.echo(f"{entry.name}: {connected} WebSocket{'' if connected == 1 else 's'}")
        else:
            click.echo("no WebSocket is open", err=True)

    made = click.command(entry.name, help=entry.help)(send)
    made.params = [*(_click_parameter(name, one) for name, one in entry.parameters.items()), *made.params]
    return made


def _until(entry: Entry, given: dict[str, Any]) -> str:
    """Describe how long a fault lasts."""
    if entry.kind is Kind.BLOCK and "seconds" in given:
        until = f"for {given['seconds']:g} s"
    elif given.get("times", "all") == "all":
        until = "until `fault clear`"
    else:
        until = "for the next one" if given["times"] == 1 else f"for the next {given['times']}"
    return until + (f", with the seed {given['seed']}" if "seed" in given else "")


for _entry in REMOTE_FAULTS.values():
    fault_commands.add_command(command(_entry))


@fault_commands.command("clear")
@emulator_option
def clear_command(emulator: str) -> None:
    """Clear all faults: end an outage and chaos, and push the events that `reorder_pushes` keeps back."""
    send_command(emulator, "DELETE", "faults")
    click.echo("all faults are cleared")
