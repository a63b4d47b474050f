"""Help, completion, signals and the entry point of `trio-agentmail`."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
import trio
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.commands import read_rest, running
from tests.helpers.modules import run_as_main
from trio_agentmail import cli
from trio_agentmail.cli._commands import commands
from trio_agentmail.cli._signals import stop_signals
from trio_agentmail.events import EventType


def test_only_signals_that_windows_has_are_used() -> None:
    sources = Path(trio_agentmail.__file__).parent.rglob("*.py")
    named = {name for source in sources for name in re.findall(r"\bsignal\.(SIG\w+)", source.read_text("utf-8"))}
    assert named <= {"SIGINT", "SIGTERM"}


# Help and completion


def every_command(command: click.Command = commands, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from every_command(below, *path, name)


COMMANDS = [path for path, _ in every_command()]


@pytest.mark.parametrize("width", ["80", "50"])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_help_text_is_cut(path: tuple[str, ...], width: str) -> None:
    result = CliRunner().invoke(commands, [*path, "--help"], env={"COLUMNS": width})
    assert result.exit_code == 0
    # The dots of `[OPTIONS] COMMAND [ARGS]...` are part of the usage line.
    assert "..." not in result.stdout.replace("]...", "")
    shown = " ".join(result.stdout.split())
    command = dict(every_command())[path]
    for below in getattr(command, "commands", {}).values():
        [sentence] = re.findall(r"^.*?(?:\.(?= |$)|$)", " ".join(below.help.split("\n\n")[0].split()))
        assert sentence.rstrip(".") in shown


def completed(*words: str) -> list[str]:
    """Return the completions that a shell offers for the last word."""
    *before, last = words
    completion = ShellComplete(commands, {}, "trio-agentmail", "_TRIO_AGENTMAIL_COMPLETE")
    return [item.value for item in completion.get_completions(before, last)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lis"], ["listen"]),
        (["listen", "--event-type", "message.b"], ["message.bounced"]),
        (["listen", "--event-type", ""], [*get_args(EventType)]),
        (
            ["trigger", "message.received."],
            [f"message.received.{kind}" for kind in ("spam", "blocked", "unauthenticated")],
        ),
        (
            ["fault", "re"],
            ["refuse_connections", "refuse_subscriptions", "reject_handshakes", "reorder_pushes"],
        ),
        (["fault", "chaos", "--faults", "dela"], ["delay_pushes"]),
        (["fault", "chaos", "--faults", "outage,rej"], ["outage,reject_handshakes"]),
        (["fault", "chaos", "--faults", "outage,out"], []),
        (["journal", ""], ["drop", "list", "requeue", "show"]),
    ],
)
def test_a_shell_can_complete_words(words: list[str], expected: list[str]) -> None:
    assert sorted(completed(*words)) == sorted(expected)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    async with running("--version", _TRIO_AGENTMAIL_COMPLETE=f"{shell}_source") as process:
        script = (await read_rest(process.stdout)).decode()
        assert await process.wait() == 0
    assert f"_TRIO_AGENTMAIL_COMPLETE={shell}_complete" in script
    assert "trio-agentmail" in script


# The entry point


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("trio_agentmail.cli._", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r"pip install 'trio-agentmail\[cli\]'"):
        cli.main()


def test_a_missing_module_of_our_own_is_not_blamed_on_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_agentmail.cli._commands", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_the_package_can_be_run_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trio-agentmail", "--version"])
    with pytest.raises(SystemExit) as caught:
        run_as_main("trio_agentmail.cli.__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("trio-agentmail, version ")


async def test_each_signal_cancels_the_next_outer_scope(autojump_clock: MockClock) -> None:
    cancelled = []
    async with stop_signals() as scopes:
        with trio.CancelScope() as reading, trio.CancelScope(shield=True):
            scopes.append(reading)
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                await wait_all_tasks_blocked()
                cancelled.append((reading.cancel_called, len(scopes)))
    assert cancelled == [(True, 1), (True, 0)]
