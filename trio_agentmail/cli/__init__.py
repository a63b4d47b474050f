"""The command `trio-agentmail`: `demo`, `listen`, `journal`, `emulate`, `trigger`, `fault` and `reset`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line: the entry point of `trio-agentmail`."""
    try:
        from ._commands import commands
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.exit("trio-agentmail: the command line needs click and rich: pip install 'trio-agentmail[cli]'")
    commands(prog_name="trio-agentmail")
