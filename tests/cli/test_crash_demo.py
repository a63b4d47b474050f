"""`trio-agentmail demo --crash`: its story comes to a good end, it notices a bad one, and it leaves nothing behind."""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.cli.test_commands import read_rest, read_until, run, running
from tests.helpers.as_main import run_as_main
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.cli import _commands, _crash_consumer, _crash_demo
from trio_agentmail.cli._commands import commands
from trio_agentmail.cli._crash_verdict import CrashRecord, judge, summary
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.cli._signals import Interrupted
from trio_agentmail.cli._timeline import Timeline
from trio_agentmail.testing import FakeAgentMail


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(output: str) -> list[int]:
    return list(map(int, re.findall(r"process (\d+)", output)))


# Under load each of seven processes may take many seconds to start. The story goes on by what they say, so that it only
# takes longer then.
@pytest.mark.timeout(600)
async def test_the_agent_is_killed_again_and_again_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(_crash_demo, "CALM", 6)
    monkeypatch.setattr(_crash_demo, "DOWN", 4)
    assert await _crash_demo.crash_demo(Output())
    output = capsys.readouterr().out
    assert "BROKEN" not in output
    assert "recovered (" in output
    assert "redelivered (" in output
    assert output.count(": attempt ") == 3
    assert re.search(r"life 7 +mail \d+ is a dead letter: 3 attempts were its end", output)
    assert re.search(r"mail \d+ was handled once more: its ack had not come to be written\n", output)
    last = re.fullmatch(
        r"sent (\d+), handled (\d+), handled twice [1-9]\d* \(handled, and killed before the ack\), dead letters 1, "
        r"lost 0, killed 6 times: the promises held",
        output.splitlines()[-1],
    )
    assert last is not None
    assert int(last[1]) == int(last[2]) + 1
    assert len(pids(output)) == 7
    assert not any(map(is_running, pids(output)))
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_when_it_is_interrupted_neither_its_journal_nor_its_process_is_left(
    tmp_path: Path, signum: signal.Signals
) -> None:
    async with running("demo", "--crash", key="", TMPDIR=str(tmp_path)) as process:
        output = await read_until(process, b"subscribed")
        assert list(tmp_path.iterdir()) != []
        [pid] = pids(output.decode())
        assert is_running(pid)
        process.send_signal(signum)
        assert await process.wait() == 128 + signum
        assert (await read_rest(process.stderr)).startswith(b"interrupted before the end")
        assert b"promises" not in await read_rest(process.stdout)
    assert not is_running(pid)
    assert list(tmp_path.iterdir()) == []


async def test_an_agent_whose_demo_has_been_killed_does_not_live_on(tmp_path: Path) -> None:
    async with running("demo", "--crash", key="", TMPDIR=str(tmp_path)) as process:
        [pid] = pids((await read_until(process, b"subscribed")).decode())
        process.kill()
        await process.wait()
    with trio.fail_after(100):
        while is_running(pid):  # noqa: ASYNC110  a process that is not our child
            await trio.sleep(0.01)


async def test_it_can_be_interrupted_in_this_process_too(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def interrupt() -> None:
            await trio.sleep(0.2)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            await _crash_demo.crash_demo(Output())
    assert "promises" not in capsys.readouterr().out
    assert list(directory.iterdir()) == []


async def test_it_does_not_wait_for_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(_crash_demo, "TIME_LIMIT", 0.01)
    assert not await _crash_demo.crash_demo(Output())
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +all of this within the time allowed", output)
    assert output.endswith("the promises did NOT hold\n")
    assert list(directory.iterdir()) == []


async def test_an_agent_that_cannot_start_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(sys, "executable", false)
    assert not await _crash_demo.crash_demo(Output())
    output = capsys.readouterr().out
    assert "the agent has ended, and it was not its time" in output
    assert re.search(r"BROKEN +all mail that was sent|BROKEN +the mail that was handled", output)
    assert len(pids(output)) == 1


@pytest.mark.parametrize(("held", "status"), [(True, 0), (False, 1)])
def test_the_status_says_whether_the_promises_held(monkeypatch: pytest.MonkeyPatch, held: bool, status: int) -> None:
    async def crash_demo(_: Output) -> bool:
        return held

    monkeypatch.setattr(_commands, "crash_demo", crash_demo)
    assert run("demo", "--crash").exit_code == status


def test_nobody_watches_and_it_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash_demo(_: Output) -> bool:
        raise OutputClosed

    monkeypatch.setattr(_commands, "crash_demo", crash_demo)
    result = run("demo", "--crash")
    assert (result.exit_code, result.output) == (1, "")
    assert commands.commands["demo"].help


async def test_it_tells_what_is_handled_once_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    timeline = Timeline("handled")
    story = _crash_demo.Story(FakeAgentMail(), timeline, AgentMailEnvironment.PROD, tmp_path / "agent.db")
    for line in ("handled 1 live", "handled 1 redelivered"):
        story._hear(line, "life 2")
    timeline.verdict([], "the end")
    await timeline.print_to(Output(), trio.Event())
    output = capsys.readouterr().out
    assert re.search(r"life 2 +mail 1 was handled once more: its ack had not come to be written\n", output)
    assert output.endswith("the end\n")


# The verdict

GOOD = CrashRecord(
    sent={1, 2, 3, 4},
    poisonous=3,
    stuck=2,
    handled=[1, 2, 2, 4],
    twice={2},
    poisoned=3,
    kills=4,
    dead=[3],
    status=0,
    goodbye=1000,
    finished=True,
)


def test_the_verdict_on_a_run_that_went_well_is_that_it_did() -> None:
    assert all(kept for _, kept in judge(GOOD))
    assert summary(GOOD, held=True) == (
        "sent 4, handled 3, handled twice 1 (handled, and killed before the ack), dead letters 1, lost 0, "
        "killed 4 times: the promises held"
    )
    assert summary(CrashRecord(), held=False) == (
        "sent 0, handled 0, handled twice 0, dead letters 0, lost 0, killed 0 times: the promises did NOT hold"
    )


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"handled": [*GOOD.handled, 5]}, "what was handled had been sent"),
        ({"handled": [1, 2]}, "all mail that was sent was handled"),
        ({"after_ack": {1}}, "what had been acked was never handled again"),
        ({"twice": {1}}, "the mail that was handled, and not acked before the kill, was handled again"),
        ({"dead": [3, 4]}, "the mail that kills was given up after 3 attempts, and took nothing else with it"),
        ({"poisoned": 4}, "the mail that kills was given up after 3 attempts"),
        ({"pending": 1}, "nothing is left unhandled in the journal"),
        ({"status": 1}, "left in peace"),
        ({"goodbye": None}, "left in peace"),
        ({"finished": False}, "all of this within the time allowed"),
    ],
)
def test_the_verdict_names_the_promise_that_did_not_hold(changes: dict[str, Any], broken: str) -> None:
    [promise] = [promise for promise, kept in judge(attrs.evolve(GOOD, **changes)) if not kept]
    assert promise.startswith(broken)


def test_what_is_handled_again_is_told_apart_by_whether_it_had_been_acked() -> None:
    record = CrashRecord()
    record.note_handled(1)
    record.note_handled(2)
    record.acked.add(2)
    record.note_handled(1)
    record.note_handled(2)
    assert (record.twice, record.after_ack) == ({1}, {2})


# The agent, in this process


@contextmanager
def piped() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)


async def test_the_agent_says_what_it_does_and_leaves_at_the_end_of_its_input(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    killed: list[int] = []

    def survive(status: int) -> None:
        killed.append(status)
        raise RuntimeError("one that survives it")

    monkeypatch.setattr(os, "_exit", survive)
    monkeypatch.setattr(_crash_consumer, "MAX_ATTEMPTS", 1)

    async def live_until(marker: str, *subjects: str) -> list[str]:
        said = ""
        with piped() as (stdin, ours):
            async with trio.open_nursery() as nursery:
                main = _crash_consumer.main
                path = str(tmp_path / "agent.db")
                nursery.start_soon(partial(main, "ws://localhost", "http://localhost", path, stdin=stdin, backend=fake))
                await fake.wait_subscribed()
                for number, subject in enumerate(subjects, start=1):
                    await fake.deliver(
                        inbox_id=_crash_consumer.INBOX, subject=subject, message_id=f"<{number}@demo.example>"
                    )
                while marker not in said or not killed:
                    await trio.sleep(0.01)
                    said += capfd.readouterr().out
                os.close(ours)
        return said.splitlines()

    first = await live_until("trying 2\n", "Hello", _crash_consumer.POISON)
    assert first == ["starting", "subscribed", "trying 1", "handled 1 live", "acked 1", "trying 2"]
    assert killed == [_crash_consumer.DIED]
    assert await live_until("dead") == ["starting", "subscribed", "dead 2"]
    assert fake.close_codes == [1000, 1000]


async def test_an_agent_that_is_stuck_has_handled_its_mail_and_not_acked_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    said = ""

    async def live_until(marker: str) -> None:
        nonlocal said
        with piped() as (stdin, ours):
            async with trio.open_nursery() as nursery:
                path = str(tmp_path / "agent.db")
                arguments = ("ws://localhost", "http://localhost", path)
                nursery.start_soon(partial(_crash_consumer.main, *arguments, stdin=stdin, backend=fake))
                await fake.wait_subscribed()
                if not said:
                    await fake.deliver(
                        inbox_id=_crash_consumer.INBOX, subject=_crash_consumer.STUCK, message_id="<1@x>"
                    )
                while marker not in said:
                    await trio.sleep(0.01)
                    said += capfd.readouterr().out
                os.close(ours)

    await live_until("handled 1 live")
    monkeypatch.setattr(_crash_consumer, "STUCK", "another subject")  # a journal does not count a cancelled attempt
    await live_until("acked 1")
    assert said.splitlines() == [
        *("starting", "subscribed", "trying 1", "handled 1 live"),
        *("starting", "subscribed", "trying 1", "handled 1 redelivered", "acked 1"),
    ]


def test_the_agent_is_a_module_that_can_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(trio, "run", lambda main: called.append(main.args))
    monkeypatch.setattr(sys, "argv", ["agent", "ws://localhost:1", "http://localhost:1", "agent.db"])
    run_as_main(_crash_consumer.__name__)
    assert called == [("ws://localhost:1", "http://localhost:1", "agent.db")]
