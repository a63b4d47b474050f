"""The commands `trio-agentmail journal …`, which list, show, requeue and drop the dead letters of a journal file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from trio_agentmail._journal.entry import restored
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail._journal.store import DeadRecord, Drop, Requeue
from trio_agentmail._printable import printable
from trio_agentmail.errors import JournalError, JournalInUseError
from trio_agentmail.events import Event

from ._parameters import Group
from ._render import dumps, event_json, event_line

__all__ = ["journal_commands"]

FILE = click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
ID = click.argument("id", metavar="ID", type=click.IntRange(min=1))
ID_OR_ALL = click.argument("id", metavar="[ID]", type=click.IntRange(min=1), required=False)


@click.group("journal", cls=Group)
def journal_commands() -> None:
    """Inspect and resolve the dead letters of a journal.

    A dead letter is an event that was given up after too many delivery attempts. FILE is the path given to
    SQLiteJournal. ID is the number that `list` shows.
    """


@journal_commands.command("list")
@FILE
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per dead letter, in ASCII.")
def list_command(path: str, as_json: bool) -> None:
    """List the dead letters. The agent may be running.

    With --json, each line is an object with `id`, `died_at`, `attempts`, `error`, `origin`, and `event`. The latter is
    the object that `listen --json` writes. Nothing else is printed.
    """
    with _explained():
        pending, dead = read_journal(_real(path))
    if as_json:
        for row in dead:
            click.echo(_json_line(row))
        return
    for row in dead:
        attempts = f"{row.attempts} attempt{'s' if row.attempts > 1 else ''}"
        died = datetime.fromtimestamp(row.ended_at)
        click.echo(f"{row.id:>6}  {died:%Y-%m-%d}  {event_line(_event(row), died)}  {attempts}  {row.error}")
    click.echo(f"{len(dead)} dead, {pending} unacknowledged")


@journal_commands.command("show")
@FILE
@ID
def show_command(path: str, id: int) -> None:
    """Show a dead letter, with its text as received. The agent may be running.

    Unprintable characters are shown as escapes.
    """
    with _explained():
        row = _found(path, id)
    died = datetime.fromtimestamp(row.ended_at)
    click.echo(f"id:        {row.id}")
    click.echo(f"event:     {event_line(_event(row), died)}")
    click.echo(f"origin:    {row.origin}")
    click.echo(f"attempts:  {row.attempts}")
    click.echo(f"error:     {row.error}")
    click.echo(f"died at:   {died:%Y-%m-%d %H:%M:%S}")
    text = row.text.decode(errors="backslashreplace")
    click.echo("text:      " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


@journal_commands.command("requeue")
@FILE
@ID_OR_ALL
@click.option("--all", "all_of_them", is_flag=True, help="Requeue all dead letters.")
def requeue_command(path: str, id: int | None, all_of_them: bool) -> None:
    """Deliver a dead letter again, starting with its first attempt. No agent may have the journal open."""
    with _explained():
        ids = _chosen(path, id, all_of_them)
        with _store(path) as store:
            store.apply([Requeue(chosen) for chosen in ids])
    click.echo(f"{_counted(ids, id)} will be delivered again when the agent starts")


@journal_commands.command("drop")
@FILE
@ID_OR_ALL
@click.option("--all", "all_of_them", is_flag=True, help="Drop all dead letters, after asking.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(path: str, id: int | None, all_of_them: bool, yes: bool) -> None:
    """Delete a dead letter with its text. No agent may have the journal open."""
    with _explained():
        ids = _chosen(path, id, all_of_them)
        if ids and all_of_them and not yes:
            click.confirm(f"Delete {_counted(ids, id)} for good?", abort=True, err=True)
        with _store(path) as store:
            store.apply([Drop(chosen) for chosen in ids])
    click.echo(f"{_counted(ids, id)} dropped")


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


def _chosen(path: str, id: int | None, all_of_them: bool) -> list[int]:
    """Return the ids of the chosen dead letters."""
    if all_of_them == (id is not None):
        raise click.UsageError("give either an ID or --all")
    if id is not None:
        return [_found(path, id).id]
    return [row.id for row in read_journal(_real(path))[1]]


def _counted(ids: list[int], id: int | None) -> str:
    if id is not None:
        return f"dead letter {id}"
    return f"{len(ids)} dead letter{'' if len(ids) == 1 else 's'}"


def _json_line(row: DeadRecord) -> str:
    died_at = datetime.fromtimestamp(row.ended_at, UTC).isoformat()
    letter = {"id": row.id, "died_at": died_at, "attempts": row.attempts, "error": row.error, "origin": row.origin}
    return dumps(letter | {"event": json.loads(event_json(_event(row)))})


def _found(path: str, id: int) -> DeadRecord:
    _, dead = read_journal(_real(path))
    for row in dead:
        if row.id == id:
            return row
    raise click.ClickException(f"there is no dead letter {id}: `trio-agentmail journal list` shows all dead letters")


@contextmanager
def _store(path: str) -> Iterator[SQLiteStore]:
    store = SQLiteStore(_real(path), None)
    try:
        yield store
    finally:
        store.close()


def _event(row: DeadRecord) -> Event:
    return restored(row.text, origin=row.origin, attempt=row.attempts)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except JournalInUseError:
        raise click.ClickException(
            "an agent has the journal open: stop it, or have it call SQLiteJournal.requeue or drop itself"
        ) from None
    except JournalError as exc:
        raise click.ClickException(printable(str(exc), 1000)) from None
