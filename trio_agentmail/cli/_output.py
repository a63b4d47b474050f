"""Standard output that never blocks the event loop."""

import os
import sys

import click
import trio
from rich.console import Console
from rich.text import Text

__all__ = ["Output", "OutputClosed"]

INDENT = "    "


class OutputClosed(Exception):
    """The reader of standard output has gone, like `head -1` in a pipeline."""


class Output:
    """Standard output.

    A write blocks while the reader pauses, for example a pager, or a terminal after Ctrl-S. It would block the whole
    event loop, including the heartbeat and Ctrl-C. Waiting until poll() reports "writable" does not help: a terminal
    reports this when it has room for one byte, and a longer write then blocks. A non-blocking file would affect the
    shell, which shares it. So each write runs in a thread, which is abandoned on cancellation.
    """

    def __init__(self) -> None:
        self._console = Console(markup=False, emoji=False, highlight=False)
        try:
            self._fd = None if os.name == "nt" else sys.stdout.fileno()
        except (AttributeError, OSError):
            self._fd = None  # not a real file: replaced by a test, or closed

    async def print(self, line: Text) -> None:
        """Write a line, in colour on a terminal.

        On a terminal, a line that is too long for one row continues with an indent, so that a long subject cannot look
        like a line of its own.

        Raises:
            OutputClosed: The reader has gone.
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
        """Write text unchanged.

        Raises:
            OutputClosed: The reader has gone.
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
    """Write data, and return the rest, which is empty unless another program made the file non-blocking.

    An abandoned write stops after the system call that blocks. By then, the file may be closed, and its descriptor may
    belong to another file.
    """
    try:
        while data:
            trio.from_thread.check_cancelled()
            data = data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    return data
