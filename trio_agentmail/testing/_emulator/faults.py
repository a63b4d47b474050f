"""The command that starts or queues a fault, by its name in the table of faults."""

import math
import re
from collections.abc import Mapping
from inspect import isawaitable
from typing import Any

from trio_agentmail.testing._faults.entry import Entry, Kind
from trio_agentmail.testing._faults.table import FAULTS

from .emulator import Emulator
from .invalid import InvalidCommand

__all__ = ["REMOTE_FAULTS", "fault"]

REMOTE_FAULTS: Mapping[str, Entry] = {name: entry for name, entry in FAULTS.items() if entry.parameters is not None}
"""The faults that the command accepts: those whose required arguments can be written in JSON."""


async def fault(emulator: Emulator, fields: Mapping[str, Any]) -> None:
    """Start or queue a fault.

    Args:
        fields: The name of the fault in the field `fault`, and its arguments in the other fields.

    Raises:
        InvalidCommand: There is no such fault, an argument is missing or invalid, or the fault is active already and
            can be active only once.
    """
    arguments = dict(fields)
    name = arguments.pop("fault", None)
    entry = REMOTE_FAULTS.get(name) if isinstance(name, str) else None
    if entry is None or entry.parameters is None:
        raise InvalidCommand(400, f"fault is one of {', '.join(REMOTE_FAULTS)}")
    required = [parameter for parameter in entry.parameters if entry.parameters[parameter].is_required]
    for argument in dict.fromkeys((*required, *arguments)):
        if argument not in entry.parameters:
            raise InvalidCommand(400, f"the fault {entry.name} has no argument {_printable(argument)}")
        kind = entry.parameters[argument].argument
        if not kind.accepts(arguments.get(argument)):
            raise InvalidCommand(400, f"{argument} is {kind}")
    if arguments.get("times") == "all":
        arguments["times"] = None
    seconds = arguments.pop("seconds", math.inf) if entry.kind is Kind.BLOCK else math.inf
    if entry.kind is Kind.BLOCK and entry.name in emulator.blocks:
        raise InvalidCommand(
            409, f"the fault {entry.name} is active already; it ends when its time is over or the faults are cleared"
        )
    result = getattr(emulator.fake.faults, entry.name)(**arguments)
    if entry.kind is Kind.BLOCK:
        await emulator.blocks.begin(entry.name, result, seconds)
    elif isawaitable(result):
        await result


def _printable(name: str) -> str:
    return re.sub(r"\W", "?", name)[:40]
