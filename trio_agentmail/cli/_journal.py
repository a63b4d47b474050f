"""`trio-agentmail journal`: the dead letters of a journal, looked at and dealt with where no stream has it open."""

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
from trio_agentmail.errors import JournalError, JournalInUseError, printable
from trio_agentmail.events import Event

from ._parameters import Group
from ._render import dumps, event_json, event_line

__all__ = ["journal"]

FILE = click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
ID = click.argument("id", metavar="ID", type=click.IntRange(min=1))
ID_OR_ALL = click.argument("id", metavar="[ID]", type=click.IntRange(min=1), required=False)


@click.group("journal", cls=Group)
def journal() -> None:
    """The dead letters of a journal: events that are not tried again.

    FILE is what SQLiteJournal was given, ID the number that `list` shows.
    """


@journal.command("list")
@FILE
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object a dead letter, in ASCII.")
def list_command(path: str, as_json: bool) -> None:
    """List the dead letters; the agent may be running.

    With --json there is nothing else: a line for each, with its `id`, `died_at`, `attempts`, `error` and `origin`, and
    as `event` the object that `listen --json` writes.
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
    click.echo(f"{len(dead)} dead, {pending} not handled")


@journal.command("show")
@FILE
@ID
def show_command(path: str, id: int) -> None:
    """Show one dead letter, with its text as it was received; the agent may be running.

    What cannot be printed is shown as an escape.
    """
    with _explained():
        row = _found(path, id)
    died = datetime.fromtimestamp(row.ended_at)
    click.echo(f"id:        {row.id}")
    click.echo(f"event:     {event_line(_event(row), died)}")
    click.echo(f"came:      {row.origin}")
    click.echo(f"attempts:  {row.attempts}")
    click.echo(f"error:     {row.error}")
    click.echo(f"died at:   {died:%Y-%m-%d %H:%M:%S}")
    text = row.text.decode(errors="backslashreplace")
    click.echo("text:      " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


@journal.command("requeue")
@FILE
@ID_OR_ALL
@click.option("--all", "all_of_them", is_flag=True, help="All dead letters, in place of an ID.")
def requeue_command(path: str, id: int | None, all_of_them: bool) -> None:
    """Have a dead letter tried again, as if it never had been. Not while an agent has the journal open."""
    with _explained():
        ids = _chosen(path, id, all_of_them)
        with _store(path) as store:
            store.apply([Requeue(chosen) for chosen in ids])
    click.echo(f"{_counted(ids, id)} will be tried again when the agent starts")


@journal.command("drop")
@FILE
@ID_OR_ALL
@click.option("--all", "all_of_them", is_flag=True, help="All dead letters, in place of an ID. Asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(path: str, id: int | None, all_of_them: bool, yes: bool) -> None:
    """Give a dead letter up, and delete its text. Not while an agent has the journal open."""
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
    """The dead letters that somebody asks for: one, or all."""
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
    raise click.ClickException(
        f"there is no dead letter {id}: `trio-agentmail journal list` shows those that there are"
    )


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
            "an agent has the journal open: stop it first, or let it do this itself, with SQLiteJournal.requeue or drop"
        ) from None
    except JournalError as exc:
        raise click.ClickException(printable(str(exc), 1000)) from None
