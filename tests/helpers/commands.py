"""Running `trio-agentmail`, in a process of its own or in this one."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio
from click.testing import CliRunner, Result

from trio_agentmail.cli._commands import commands

__all__ = ["HOSTILE", "INBOX", "KEY", "NOON", "environment_for", "read_rest", "read_until", "run", "running"]

INBOX = "agent@agentmail.to"
KEY = "am_a_key_that_nobody_may_see"
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)

# An escape sequence that clears the screen, Rich markup, a change of the writing direction, the C1 control character
# CSI, a forged line, DEL, a zero-width space, a line separator and Rich's name for an emoji.
HOSTILE = "\x1b[2J[red]r[/red]\u202etxt.exe\x9b31m\r\n12:00:00 forged\x7f\u200b\u2028:smile:"


def environment_for(**variables: str) -> dict[str, str]:
    """Return an environment with these variables, and otherwise without a key and without settings for colours."""
    inherited = ("PATH", "HOME", "LANG", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: os.environ[name] for name in inherited if name in os.environ} | variables


@asynccontextmanager
async def running(*arguments: str, key: str = KEY, **variables: str) -> AsyncIterator[trio.Process]:
    """Run the command in a process of its own, with pipes to its output."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "trio_agentmail.cli", *arguments],
                env=environment_for(AGENTMAIL_API_KEY=key, **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdout, process.stderr:
            with trio.fail_after(100):  # generous, since it is only for a process that hangs
                yield process
                await process.wait()
        nursery.cancel_scope.cancel()


async def read_until(process: trio.Process, marker: bytes) -> bytes:
    """Read the output of the process up to a marker."""
    assert process.stdout is not None
    data = b""
    while marker not in data:
        received = await process.stdout.receive_some()
        assert received, data
        data += received
    return data


async def read_rest(stream: Any) -> bytes:
    return b"".join([bytes(data) async for data in stream])


def run(*arguments: str, key: str | None = KEY) -> Result:
    return CliRunner().invoke(commands, arguments, env={"AGENTMAIL_API_KEY": key})
