"""Standard output: it never blocks the event loop, and it is written completely."""

import os
import pty
import re
import sys
import threading
from pathlib import Path

import pytest
import trio
from rich.text import Text
from trio.testing import wait_all_tasks_blocked

from tests.helpers.commands import KEY, NOON, environment_for
from trio_agentmail.cli import _output
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.cli._render import event_line
from trio_agentmail.events import (
    ErrorEvent,
)
from trio_agentmail.testing import FakeAgentMail


async def test_on_a_terminal_lines_have_colours_and_a_long_one_has_an_indent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        await Output().print(event_line(ErrorEvent(name="x" * 20, message="12:00:00 forged " * 3), NOON))
        shown = terminal.read(10_000).decode()
    assert "\x1b[1;31merror\x1b[0m" in shown
    first, *rest = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert first.startswith("12:00:00  error")
    assert rest
    assert all(row.startswith("    ") for row in rest)


async def test_output_to_a_file_has_its_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        output = Output()
        await output.print(Text("ü " + "x" * 1000))
    assert (tmp_path / "out").read_text() == "\\xfc " + "x" * 1000 + "\n"


async def test_output_to_a_pipe_without_a_reader_raises_output_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        os.close(reader)
        with pytest.raises(OutputClosed):
            await Output().write("Hello")


async def test_a_full_pipe_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Output().write, "x" * 1_000_000)
            await trio.lowlevel.wait_readable(reader)
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        assert pipe.read(10) == b"x" * 10


async def test_an_abandoned_write_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # By then its file may be closed, and its file descriptor that of another file.
    began, goes_on, ended = trio.Event(), threading.Event(), threading.Event()
    writes = []
    write_all = _output._write

    def write_one_byte(fd: int, data: memoryview) -> int:
        writes.append(fd)
        trio.from_thread.run_sync(began.set)
        goes_on.wait()
        return 1

    def write_until_it_ends(fd: int, data: memoryview) -> memoryview:
        try:
            return write_all(fd, data)
        finally:
            ended.set()

    with open(os.devnull, "w") as stdout, monkeypatch.context() as patching:
        patching.setattr(sys, "stdout", stdout)
        patching.setattr(os, "write", write_one_byte)
        patching.setattr(_output, "_write", write_until_it_ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Output().write, "xyz")
            await began.wait()
            nursery.cancel_scope.cancel()
        goes_on.set()
        await trio.to_thread.run_sync(ended.wait)
    assert len(writes) == 1


async def test_a_large_text_is_written_completely_in_few_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Copying the rest of the text after each write would take quadratic time.
    text = "many lines, zażółć, \U0001f600\n" * 100_000
    writes = 0
    write = os.write
    reader, writer = os.pipe()

    def count(fd: int, data: bytes) -> int:
        nonlocal writes
        writes += fd == writer
        return write(fd, data)

    monkeypatch.setattr(os, "write", count)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(reader) as pipe:
            nursery.start_soon(Output().write, text)
            received = b""
            while len(received) < len(text.encode()):
                received += bytes(await pipe.receive_some())
    assert received.decode() == text
    assert writes < 10


async def test_output_to_a_non_blocking_pipe_waits_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(reader) as pipe:
            nursery.start_soon(Output().write, "x" * 1_000_000)
            await wait_all_tasks_blocked(0.05)
            received = 0
            while received < 1_000_000:
                received += len(await pipe.receive_some())
    assert received == 1_000_000


async def test_a_paused_terminal_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with trio.open_nursery() as nursery:
            # A terminal writes two bytes per line end, so it needs more room than the length of the text.
            nursery.start_soon(Output().write, "a line\n" * 100_000)
            await trio.lowlevel.wait_readable(ours)
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        assert terminal.read(8) == b"a line\r\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
async def test_a_full_disk_is_one_clear_line_and_status_1() -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        with open("/dev/full", "wb") as full:
            process = await trio.run_process(
                [sys.executable, "-m", "trio_agentmail.cli", "listen", "--websocket-url", environment.websockets],
                env=environment_for(AGENTMAIL_API_KEY=KEY),
                stdout=full,
                capture_stderr=True,
                check=False,
            )
    assert process.returncode == 1
    [line] = process.stderr.decode().splitlines()
    assert line.startswith("Error: ")
    assert "No space left on device" in line
