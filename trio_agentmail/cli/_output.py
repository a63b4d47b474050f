"""Standard output for a program that has something better to do than wait for it."""

import os
import sys
from contextlib import suppress

import click
import trio
from rich.console import Console
from rich.text import Text

__all__ = ["Output", "OutputClosed"]

CHUNK = 512
"""How many bytes are written at once: what poll() calls writable takes PIPE_BUF bytes, and POSIX says that is at least
so many."""

INDENT = "    "


class OutputClosed(Exception):
    """Whoever read our output has gone, like the `head -1` in a pipe."""


class Output:
    """Standard output.

    A reader that pauses, like a pager, makes a `print` block, and with it all of Trio: no heartbeat, no Ctrl-C. So
    what is written waits until there is room, as a task, and without making the terminal non-blocking, which would
    make it so for the shell as well.
    """

    def __init__(self) -> None:
        self._console = Console(markup=False, emoji=False, highlight=False)
        try:
            self._fd = None if os.name == "nt" else sys.stdout.fileno()
        except (AttributeError, OSError):
            self._fd = None  # no real file: replaced by a test, or closed

    async def print(self, line: Text) -> None:
        """Write a line; on a terminal in colour, and continued with an indent where it is too long for a row.

        So a long subject cannot pass for a line of its own.

        Raises:
            OutputClosed: Nobody reads.
        """
        with self._console.capture() as capture:
            if self._console.is_terminal:
                first, *rest = line.wrap(self._console, max(self._console.width - len(INDENT), 1))
                self._console.print(first, soft_wrap=True)
                for row in rest:
                    self._console.print(Text(INDENT).append_text(row), soft_wrap=True)
            else:
                self._console.print(line, soft_wrap=True)
        await self.write(capture.get())

    async def write(self, text: str) -> None:
        """Write text as it is.

        Raises:
            OutputClosed: Nobody reads.
        """
        try:
            if self._fd is None:
                click.echo(text, nl=False)
                await trio.lowlevel.checkpoint()
                return
            data = text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")
            while data:
                with suppress(OSError):  # a file always has room, and the operating system refuses to wait for it
                    await trio.lowlevel.wait_writable(self._fd)
                data = data[os.write(self._fd, data[:CHUNK]) :]
        except BrokenPipeError:
            raise OutputClosed from None
