"""The lists of faults in the documentation, made from the table of faults.

`python -m tests.helpers.fault_lists` writes them into `docs/testing.md` and `docs/emulator.md`.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import click

from trio_agentmail.cli._fault import fault_commands
from trio_agentmail.testing._emulator.faults import REMOTE_FAULTS
from trio_agentmail.testing._faults.entry import Entry, Kind
from trio_agentmail.testing._faults.table import CHAOS, FAULTS, Faults

DOCS = Path(__file__).parents[2] / "docs"

LIST = re.compile(r"(?<=<!-- faults: .{4} -->\n).*?(?=<!-- end of faults -->)", re.DOTALL)
"""A list between its comments: `<!-- faults: code -->` or `<!-- faults: args -->`, and `<!-- end of faults -->`."""


def rows(faults: dict[str, Entry], call: Callable[[Entry], str]) -> str:
    lines = ["| fault | what it does |", "|---|---|"]
    for kind in Kind:
        lines.append(f"| **{kind.value}** | |")
        lines += [f"| `{call(entry)}` | {entry.help} |" for entry in faults.values() if entry.kind is kind]
    return "\n".join(lines) + "\n"


def call_in_python(entry: Entry) -> str:
    method = getattr(Faults, entry.name)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    shown = [f"*{one.name}" if one.kind is one.VAR_POSITIONAL else one.name for one in parameters]
    given = [
        name if one.default is one.empty and one.kind is not one.KEYWORD_ONLY else f"{name}=…"
        for name, one in zip(shown, parameters, strict=True)
    ]
    before = "async with " if entry.kind is Kind.BLOCK else "await " if inspect.iscoroutinefunction(method) else ""
    return f"{before}{entry.name}({', '.join(given)})"


def call_on_the_command_line(entry: Entry) -> str:
    words = [entry.name]
    for parameter in fault_commands.commands[entry.name].params:
        if isinstance(parameter, click.Argument):
            words.append((parameter.name or "").upper())
        elif parameter.name not in ("emulator", "help"):
            words.append(f"[{parameter.opts[0]}]")
    return " ".join(words)


def lists() -> dict[str, str]:
    """Return the list of each document."""
    chaos = ", ".join(f"`{name}`" for name in CHAOS)
    return {
        "testing.md": rows(dict(FAULTS), call_in_python) + f"\nChaos draws from {chaos}.\n",
        "emulator.md": rows(dict(REMOTE_FAULTS), call_on_the_command_line),
    }


def main() -> None:
    for name, text in lists().items():
        document = (DOCS / name).read_text()
        (DOCS / name).write_text(LIST.sub(lambda _, text=text: text, document))  # type: ignore[misc]


if __name__ == "__main__":
    main()
