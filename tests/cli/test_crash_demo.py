"""`trio-agentmail demo --crash`: its story, its verdict, its agent, and that it leaves nothing behind."""

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

from tests.helpers.commands import read_rest, read_until, run, running
from tests.helpers.modules import run_as_main
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.cli import _demo
from trio_agentmail.cli._commands import commands
from trio_agentmail.cli._demos import crash_agent, crashes
from trio_agentmail.cli._demos.crashes_verdict import CrashRecord, judge, summary
from trio_agentmail.cli._demos.timeline import Timeline
from trio_agentmail.cli._output import Output, OutputClosed
from trio_agentmail.cli._signals import Interrupted
from trio_agentmail.testing import FakeAgentMail


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files."""
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


# Under load, each of the seven processes may take many seconds to start. The story then only takes longer, since it
# advances by what they report.
@pytest.mark.timeout(600)
async def test_the_agent_is_killed_several_times_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(crashes, "CALM", 6)
    monkeypatch.setattr(crashes, "DOWN", 4)
    assert await crashes.crash_demo(Output())
    output = capsys.readouterr().out
    assert "BROKEN" not in output
    assert "recovered (" in output
    assert "redelivered (" in output
    assert output.count(": delivery attempt ") == 3
    assert re.search(r"life 7 +mail \d+ is a dead letter, after 3 delivery attempts", output)
    assert re.search(r"mail \d+ was handled again, since it had not been acknowledged\n", output)
    last = re.fullmatch(
        r"sent (\d+), handled (\d+), handled twice [1-9]\d* \(killed between handling and ack\), dead letters 1, "
        r"lost 0, killed 6 times: the promises held",
        output.splitlines()[-1],
    )
    assert last is not None
    assert int(last[1]) == int(last[2]) + 1
    assert len(pids(output)) == 7
    assert not any(map(is_running, pids(output)))
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_no_journal_and_no_process(tmp_path: Path, signum: signal.Signals) -> None:
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


async def test_the_agent_does_not_outlive_a_demo_that_was_killed(tmp_path: Path) -> None:
    async with running("demo", "--crash", key="", TMPDIR=str(tmp_path)) as process:
        [pid] = pids((await read_until(process, b"subscribed")).decode())
        process.kill()
        await process.wait()
    with trio.fail_after(100):
        while is_running(pid):  # noqa: ASYNC110  the process is not our child
            await trio.sleep(0.01)


async def test_the_demo_can_be_interrupted_in_this_process_too(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def interrupt() -> None:
            await trio.sleep(0.2)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            await crashes.crash_demo(Output())
    assert "promises" not in capsys.readouterr().out
    assert list(directory.iterdir()) == []


async def test_the_demo_has_a_time_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr(crashes, "TIME_LIMIT", 0.01)
    assert not await crashes.crash_demo(Output())
    output = capsys.readouterr().out
    assert re.search(r"BROKEN +the demo ended within its time limit", output)
    assert output.endswith("the promises did NOT hold\n")
    assert list(directory.iterdir()) == []


async def test_the_demo_ends_if_its_agent_cannot_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(sys, "executable", false)
    assert not await crashes.crash_demo(Output())
    output = capsys.readouterr().out
    assert "the agent has ended unexpectedly" in output
    assert re.search(r"BROKEN +every mail that was sent|BROKEN +the mail that was handled", output)
    assert len(pids(output)) == 1


@pytest.mark.parametrize(("kept", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_says_whether_all_promises_were_kept(
    monkeypatch: pytest.MonkeyPatch, kept: bool, status: int
) -> None:
    async def crash_demo(_: Output) -> bool:
        return kept

    monkeypatch.setattr(_demo, "crash_demo", crash_demo)
    assert run("demo", "--crash").exit_code == status


def test_a_demo_whose_reader_has_gone_ends_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash_demo(_: Output) -> bool:
        raise OutputClosed

    monkeypatch.setattr(_demo, "crash_demo", crash_demo)
    result = run("demo", "--crash")
    assert (result.exit_code, result.output) == (1, "")
    assert commands.commands["demo"].help


async def test_a_mail_that_is_handled_again_has_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    timeline = Timeline("handled")
    story = crashes.Story(FakeAgentMail(), timeline, AgentMailEnvironment.PROD, tmp_path / "agent.db")
    for line in ("handled 1 live", "handled 1 redelivered"):
        story._take_report(line, "life 2")
    timeline.verdict([], "the end")
    await timeline.print_to(Output(), trio.Event())
    output = capsys.readouterr().out
    assert re.search(r"life 2 +mail 1 was handled again, since it had not been acknowledged\n", output)
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


def test_a_good_run_has_a_good_verdict() -> None:
    assert all(kept for _, kept in judge(GOOD))
    assert summary(GOOD, kept=True) == (
        "sent 4, handled 3, handled twice 1 (killed between handling and ack), dead letters 1, lost 0, "
        "killed 4 times: the promises held"
    )
    assert summary(CrashRecord(), kept=False) == (
        "sent 0, handled 0, handled twice 0, dead letters 0, lost 0, killed 0 times: the promises did NOT hold"
    )


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"handled": [*GOOD.handled, 5]}, "every handled mail had been sent"),
        ({"handled": [1, 2]}, "every mail that was sent was handled"),
        ({"after_ack": {1}}, "no acknowledged mail was handled again"),
        ({"twice": {1}}, "the mail that was handled but not acknowledged was handled again"),
        ({"dead": [3, 4]}, "only the poisonous mail became a dead letter, after 3 delivery attempts"),
        ({"poisoned": 4}, "only the poisonous mail became a dead letter"),
        ({"pending": 1}, "no unacknowledged event is left in the journal"),
        ({"status": 1}, "the last process ended normally"),
        ({"goodbye": None}, "the last process ended normally"),
        ({"finished": False}, "the demo ended within its time limit"),
    ],
)
def test_the_verdict_names_the_broken_promise(changes: dict[str, Any], broken: str) -> None:
    [promise] = [promise for promise, kept in judge(attrs.evolve(GOOD, **changes)) if not kept]
    assert promise.startswith(broken)


def test_a_mail_may_be_handled_again_only_before_its_ack() -> None:
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


async def test_the_agent_reports_each_step_and_leaves_when_its_input_ends(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeAgentMail()
    killed: list[int] = []

    def survive(status: int) -> None:
        killed.append(status)
        raise RuntimeError("one that survives it")

    monkeypatch.setattr(os, "_exit", survive)
    monkeypatch.setattr(crash_agent, "MAX_ATTEMPTS", 1)

    async def live_until(marker: str, *subjects: str) -> list[str]:
        said = ""
        with piped() as (stdin, ours):
            async with trio.open_nursery() as nursery:
                main = crash_agent.main
                path = str(tmp_path / "agent.db")
                nursery.start_soon(partial(main, "ws://localhost", "http://localhost", path, stdin=stdin, backend=fake))
                await fake.wait_subscribed()
                for number, subject in enumerate(subjects, start=1):
                    await fake.deliver(
                        inbox_id=crash_agent.INBOX, subject=subject, message_id=f"<{number}@demo.example>"
                    )
                while marker not in said or not killed:
                    await trio.sleep(0.01)
                    said += capfd.readouterr().out
                os.close(ours)
        return said.splitlines()

    first = await live_until("trying 2\n", "Hello", crash_agent.POISON)
    assert first == ["starting", "subscribed", "trying 1", "handled 1 live", "acked 1", "trying 2"]
    assert killed == [crash_agent.DIED]
    assert await live_until("dead") == ["starting", "subscribed", "dead 2"]
    assert fake.record.close_codes == [1000, 1000]


async def test_a_stuck_agent_has_handled_its_mail_and_not_acknowledged_it(
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
                nursery.start_soon(partial(crash_agent.main, *arguments, stdin=stdin, backend=fake))
                await fake.wait_subscribed()
                if not said:
                    await fake.deliver(inbox_id=crash_agent.INBOX, subject=crash_agent.STUCK, message_id="<1@x>")
                while marker not in said:
                    await trio.sleep(0.01)
                    said += capfd.readouterr().out
                os.close(ours)

    await live_until("handled 1 live")
    monkeypatch.setattr(crash_agent, "STUCK", "another subject")  # a journal does not count a cancelled attempt
    await live_until("acked 1")
    assert said.splitlines() == [
        *("starting", "subscribed", "trying 1", "handled 1 live"),
        *("starting", "subscribed", "trying 1", "handled 1 redelivered", "acked 1"),
    ]


def test_the_agent_can_be_run_as_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(trio, "run", lambda main: called.append(main.args))
    monkeypatch.setattr(sys, "argv", ["agent", "ws://localhost:1", "http://localhost:1", "agent.db"])
    run_as_main(crash_agent.__name__)
    assert called == [("ws://localhost:1", "http://localhost:1", "agent.db")]
