"""The command line: `trio-agentmail`, from the extra `cli`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. This is the entry point of the script `trio-agentmail`."""
    try:
        from ._commands import commands
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.exit("trio-agentmail: the command line needs click and rich: pip install 'trio-agentmail[cli]'")
    commands(prog_name="trio-agentmail")
