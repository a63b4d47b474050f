"""Standard output for a program that has something better to do than wait for it."""

import os
import sys

import click
import trio
from rich.console import Console
from rich.text import Text

__all__ = ["Output", "OutputClosed"]

INDENT = "    "


class OutputClosed(Exception):
    """Whoever read our output has gone, like the `head -1` in a pipe."""


class Output:
    """Standard output.

    A reader that pauses, like a pager or a terminal after Ctrl-S, makes a write block, and with it all of Trio: no
    heartbeat, no Ctrl-C. Waiting until poll() says "writable" is not enough: a terminal says so when it has room for
    one byte, and a write of more then blocks. Nor is making the file non-blocking, which would make it so for the
    shell as well. So each write blocks a thread, which is left behind when nobody waits for it any more.
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
            data = memoryview(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
            while data := await trio.to_thread.run_sync(_write, self._fd, data, abandon_on_cancel=True):
                await trio.lowlevel.wait_writable(self._fd)
        except BrokenPipeError:
            raise OutputClosed from None


def _write(fd: int, data: memoryview) -> memoryview:
    """Write, and return what is left: something only if somebody made the file non-blocking, and it has no room."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    return data
