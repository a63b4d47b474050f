"""The command `trio-agentmail trigger`, which causes events at a running emulator."""

import base64
import json
import mimetypes
from pathlib import Path
from typing import Any

import click

from trio_agentmail._printable import printable
from trio_agentmail.testing._emulator.trigger import EVENT_TYPES, FIELDS

from ._emulator_client import emulator_option, send_command
from ._parameters import EventTypeChoice, check_inbox

__all__ = ["trigger_command"]


def _fields_by_event_type() -> str:
    by_fields: dict[tuple[str, ...], list[str]] = {}
    for event_type, fields in FIELDS.items():
        by_fields.setdefault(fields, []).append(event_type)
    lines = ["\b", "Options of each event type, besides --inbox:"]
    for fields, event_types in by_fields.items():
        lines += [*event_types, "    " + " ".join("--" + field.replace("_", "-") for field in fields)]
    return "\n".join(lines)


def _attached(file: Path) -> dict[str, str | None]:
    content = base64.b64encode(file.read_bytes()).decode()
    return {"filename": file.name, "content": content, "content_type": mimetypes.guess_type(file.name)[0]}


def _inbox(_context: click.Context, _option: click.Parameter, inbox_id: str | None) -> str | None:
    return None if inbox_id is None else check_inbox(inbox_id)


@click.command("trigger", epilog=_fields_by_event_type())
@click.argument("event_type", metavar="EVENT_TYPE", type=EventTypeChoice(EVENT_TYPES))
@click.option("--inbox", "inbox_id", metavar="INBOX", callback=_inbox, help="The inbox of the event.")
@click.option("--from", "from_", metavar="ADDRESS", help="The sender of a received mail.")
@click.option("--to", multiple=True, metavar="ADDRESS", help="A recipient. May be repeated.")
@click.option("--subject", help="The subject of the mail.")
@click.option("--text", help="The text of the mail.")
@click.option("--html", help="The text of the mail as HTML.")
@click.option(
    "--attachments",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="A file to attach to the mail. May be repeated.",
)
@click.option(
    "--eml",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A file with a complete mail, or - for standard input. The mail goes to the inboxes in its To, Cc, Bcc or "
    "Delivered-To, unless --inbox is given.",
)
@click.option("--message-id", metavar="ID", help="The id of the mail to which the event happens, or of the new mail.")
@click.option("--thread-id", metavar="ID", help="The thread of the mail.")
@click.option("--reason", help="Why a mail was rejected.")
@click.option("--title", help="The title of a calendar event.")
@click.option("--domain", help="The domain that is verified.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as a JSON object.")
@emulator_option
def trigger_command(
    emulator: str,
    as_json: bool,
    event_type: str,
    inbox_id: str | None,
    to: tuple[str, ...],
    from_: str | None,
    attachments: tuple[str, ...],
    eml: str | None,
    **fields: str | None,
) -> None:
    """Cause an event at a running emulator: mail is received or sent, bounces, is held, is released, …

    EVENT_TYPE is the type of the event to push, for example message.received. The emulator keeps mail that is received
    or sent, and its REST API lists it. Options that are not given have sensible defaults.
    """
    body: dict[str, Any] = {
        "event_type": event_type,
        "inbox_id": inbox_id,
        "from": from_,
        "to": list(to) or None,
        **fields,
    }
    if attachments:
        body["attachments"] = [_attached(Path(path)) for path in attachments]
    if eml is not None:
        with click.open_file(eml, "rb") as file:
            body["eml"] = base64.b64encode(file.read()).decode()
    given = {name: value for name, value in body.items() if value is not None}
    answer = send_command(emulator, "POST", "trigger", given)
    if as_json:
        click.echo(json.dumps(answer))
        return
    ids = [f"{name}={printable(answer[name], 300)}" for name in ("event_id", "message_id") if answer.get(name)]
    click.echo("  ".join([event_type, *ids, f"pushed to {answer['receivers']}"]))
    if not answer["receivers"]:
        click.echo("no connection received it: no subscription matches, or a fault keeps it back", err=True)
