"""The output of the demos: a line for each thing that the demo did or observed."""

import math

import trio
from rich.text import Text

from trio_agentmail._printable import printable
from trio_agentmail.cli._output import Output

from .mail_numbers import ranges

__all__ = ["Timeline"]

STYLES = {
    "demo": "yellow",
    "stream": "green",
    "life": "green",
    "lost": "red",
    "mail": "dim",
    "found": "cyan",
    "kept": "green",
    "BROKEN": "bold red",
}


class Timeline:
    """The lines of a demo. Adding a line never waits, since a separate task prints the lines.

    Args:
        done: The verb for mail that was pushed, such as "delivered".
    """

    def __init__(self, done: str = "delivered") -> None:
        self._done = done
        self._began = trio.current_time()
        self._put, self._lines = trio.open_memory_channel[Text](math.inf)
        self._mails: dict[str, list[int]] = {}

    def note(self, who: str, what: str) -> None:
        """Add a line, preceded by lines for the mail that was received since the last note.

        Args:
            who: A key of `STYLES`, which a number may follow.
        """
        mails, self._mails = self._mails, {}
        for origin, numbers in mails.items():
            how = self._done if origin == "live" else origin
            self._line("mail" if origin == "live" else "found", f"{ranges(numbers)} {how} ({len(numbers)})")
        self._line(who, what)

    def mail(self, number: int, origin: str) -> None:
        """Add a received mail. The next note prints all mail since the last one as ranges."""
        self._mails.setdefault(origin, []).append(number)

    def _line(self, who: str, what: str) -> None:
        seconds = trio.current_time() - self._began
        style = STYLES[who.split()[0]]
        self._put.send_nowait(
            Text.assemble((f"{seconds:6.2f} s  ", "dim"), (f"{who:<8}", style), (printable(what, 200), style))
        )

    def verdict(self, promises: list[tuple[str, bool]], last: str) -> None:
        """Add a line for each promise, and the last line."""
        all_kept = all(kept for _, kept in promises)
        self._put.send_nowait(Text())
        for promise, kept in promises:
            self.note("kept" if kept else "BROKEN", promise)
        self._put.send_nowait(Text())
        self._put.send_nowait(Text(last, style="bold green" if all_kept else "bold red"))
        self._put.close()

    async def print_to(self, output: Output, printed: trio.Event) -> None:
        """Print lines until the last one has been printed, then set the event."""
        async for line in self._lines:
            await output.print(line)
        printed.set()
