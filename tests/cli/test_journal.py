"""`trio-agentmail journal`: dead letters are listed, shown, requeued, dropped, and none can control the terminal."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers.journals import begin, crashing, mail, opened, take
from trio_agentmail import decode_event
from trio_agentmail._journal.sqlite_store import read_journal
from trio_agentmail._journal.stored_journal import StoredJournal
from trio_agentmail.cli._commands import commands

NASTY = decode_event(
    '{"type": "event", "event_type": "message.received", "event_id": "e", "message": {"inbox_id": "a@agentmail.to", '
    '"message_id": "<9@x>", "from": "\\u001b[31mJane", "subject": "\\u202e\\u0007 Hello"}, '
    '"and\x7f\u202e": "so on"}'
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(commands, ["journal", *map(str, arguments)], input=input)


async def fill(journal: StoredJournal) -> None:
    """Two dead letters, numbers 1 and 2, and one unacknowledged event."""
    await journal.record(NASTY)
    await journal.record(mail(2))
    await journal.record(mail(3))
    for event in (await take(journal, 3))[:2]:
        async with journal.processing(event):
            raise ValueError("no \x1b[31m")


async def test_dead_letters_are_listed_while_the_agent_runs_and_when_it_does_not(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
        running = run("list", path)
    stopped = run("list", path)
    assert running.output == stopped.output
    first, second, last = running.output.splitlines()
    assert first.split()[0] == "1"
    assert "message.received" in first
    assert "a@agentmail.to" in first
    assert first.endswith("1 attempt  ValueError: no [31m")
    assert second.split()[0] == "2"
    assert last == "2 dead, 1 unacknowledged"
    assert running.output.replace("\n", "").isprintable()


async def test_the_number_of_attempts_is_in_the_singular_or_plural(path: Path) -> None:
    for _ in range(2):
        async with crashing(path, max_attempts=2) as journal:
            await journal.record(mail(1))
            await begin(journal, (await take(journal, 1))[0])
    async with opened(path, max_attempts=2):
        pass
    assert "2 attempts  the process ended during the attempt" in run("list", path).output


async def test_a_dead_letter_is_shown_as_received_and_cannot_control_the_terminal(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
        shown = run("show", path, 1)
    assert shown.exit_code == 0
    assert shown.output.replace("\n", "").isprintable()
    lines = dict(line.split(": ", 1) for line in shown.output.splitlines())
    assert lines["id"].strip() == "1"
    assert lines["origin"].strip() == "live"
    assert lines["attempts"].strip() == "1"
    assert lines["error"].strip() == "ValueError: no [31m"
    assert lines["text"].strip().startswith('{"type": "event"')
    assert '"and\\x7f\\u202e": "so on"}' in lines["text"]


async def test_a_dead_letter_is_requeued_or_dropped_only_while_no_agent_runs(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
        for command in ("requeue", "drop"):
            refused = run(command, path, 1)
            assert refused.exit_code == 1
            assert "an agent has the journal open: stop it, or" in refused.output
    assert run("requeue", path, 1).output == "dead letter 1 will be delivered again when the agent starts\n"
    assert run("drop", path, 2).output == "dead letter 2 dropped\n"
    assert read_journal(path) == (2, [])
    async with opened(path) as journal:
        assert [event.event_id for event in await take(journal, 2)] == ["e", "event 3"]  # type: ignore[union-attr]


async def test_dead_letters_are_listed_as_one_json_object_per_line(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
        listed = run("list", path, "--json")
    assert listed.exit_code == 0
    assert re.fullmatch(r"[ -~\n]*", listed.output)
    first, second = map(json.loads, listed.output.splitlines())
    assert (first["id"], first["attempts"], first["origin"]) == (1, 1, "live")
    assert first["error"] == "ValueError: no [31m"
    assert datetime.fromisoformat(first["died_at"]).tzinfo is not None
    assert first["event"] == json.loads(NASTY.raw) | {"origin": "live"}  # type: ignore[union-attr]
    assert (second["id"], second["event"]["event_id"]) == (2, "event 2")


async def test_without_dead_letters_the_json_output_is_empty(path: Path) -> None:
    async with opened(path):
        pass
    listed = run("list", path, "--json")
    assert (listed.exit_code, listed.output) == (0, "")


async def test_all_dead_letters_are_requeued_once(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
    assert run("requeue", path, "--all").output == "2 dead letters will be delivered again when the agent starts\n"
    assert read_journal(path) == (3, [])
    assert run("requeue", path, "--all").output == "0 dead letters will be delivered again when the agent starts\n"


async def test_all_dead_letters_are_dropped_after_a_confirmation(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
    for answer in ("n\n", ""):
        refused = run("drop", path, "--all", input=answer)
        assert refused.exit_code == 1
        assert "Delete 2 dead letters for good? [y/N]" in refused.stderr
        assert len(read_journal(path)[1]) == 2
    dropped = run("drop", path, "--all", input="y\n")
    assert (dropped.exit_code, dropped.stdout) == (0, "2 dead letters dropped\n")
    assert read_journal(path) == (1, [])
    assert run("drop", path, "--all").stdout == "0 dead letters dropped\n"


async def test_with_yes_there_is_no_question(path: Path) -> None:
    async with opened(path, max_attempts=1) as journal:
        await journal.record(mail(1))
        async with journal.processing((await take(journal, 1))[0]):
            raise ValueError
    dropped = run("drop", path, "--all", "--yes")
    assert (dropped.exit_code, dropped.output) == (0, "1 dead letter dropped\n")
    assert read_journal(path) == (0, [])


@pytest.mark.parametrize("command", ["requeue", "drop"])
async def test_either_an_id_or_all_must_be_given(path: Path, command: str) -> None:
    async with opened(path):
        pass
    for arguments in ((), (1, "--all")):
        refused = run(command, path, *arguments)
        assert refused.exit_code == 2
        assert "give either an ID or --all" in refused.stderr


@pytest.mark.parametrize("command", ["show", "requeue", "drop"])
async def test_an_unknown_id_is_a_clear_error(path: Path, command: str) -> None:
    async with opened(path, max_attempts=1) as journal:
        await fill(journal)
    refused = run(command, path, 3)
    assert refused.exit_code == 1
    assert "there is no dead letter 3" in refused.output
    assert read_journal(path)[0] == 1


@pytest.mark.parametrize("command", [("list",), ("show", 1), ("requeue", 1), ("drop", 1)])
def test_a_file_that_is_not_a_journal_is_a_clear_error_and_no_journal_is_created(
    path: Path, command: tuple[object, ...]
) -> None:
    missing = run(command[0], path, *command[1:])
    assert missing.exit_code == 2
    assert "does not exist" in missing.output
    assert list(path.parent.iterdir()) == []
    path.write_bytes(b"a letter to my aunt " * 1000)
    refused = run(command[0], path, *command[1:])
    assert refused.exit_code == 1
    assert "is not an SQLite database" in " ".join(refused.output.split())
