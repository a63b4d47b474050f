"""`trio-agentmail journal`: the dead letters of a journal, looked at and dealt with where no stream has it open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click

from trio_agentmail._journal.entry import DeadRow, restored
from trio_agentmail._journal.sqlite_store import SQLiteStore, read_journal
from trio_agentmail.errors import JournalError, JournalInUseError, printable
from trio_agentmail.events import Event

from ._render import event_line

__all__ = ["journal"]

FILE = click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
ID = click.argument("id", metavar="ID", type=click.IntRange(min=1))


@click.group("journal")
def journal() -> None:
    """The dead letters of a journal: events that are not tried again.

    FILE is what SQLiteJournal was given, ID the number that `list` shows.
    """


@journal.command("list")
@FILE
def list_command(path: str) -> None:
    """List the dead letters; the agent may be running."""
    with _explained():
        pending, dead = read_journal(_real(path))
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
@ID
def requeue_command(path: str, id: int) -> None:
    """Have a dead letter tried again, as if it never had been. Not while an agent has the journal open."""
    with _explained():
        _found(path, id)
        with _store(path) as store:
            store.apply([lambda: store.requeue(id)])
    click.echo(f"{id} will be tried again when the agent starts")


@journal.command("drop")
@FILE
@ID
def drop_command(path: str, id: int) -> None:
    """Give a dead letter up, and delete its text. Not while an agent has the journal open."""
    with _explained():
        _found(path, id)
        with _store(path) as store:
            store.apply([lambda: store.drop(id)])
    click.echo(f"{id} is dropped")


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


def _found(path: str, id: int) -> DeadRow:
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


def _event(row: DeadRow) -> Event:
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
