"""`trio-agentmail trigger`: make something happen at an emulator that runs."""

import base64
import json
import mimetypes
from pathlib import Path
from typing import Any

import click

from trio_agentmail.errors import printable
from trio_agentmail.testing._emulator.trigger import EVENT_TYPES, FIELDS

from ._emulator_client import emulator_option, send_command
from ._parameters import EventTypeChoice, check_inbox

__all__ = ["trigger_command"]


def _fields_by_event_type() -> str:
    by_fields: dict[tuple[str, ...], list[str]] = {}
    for event_type, fields in FIELDS.items():
        by_fields.setdefault(fields, []).append(event_type)
    lines = ["\b", "Besides --inbox, each takes:"]
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
@click.option("--inbox", "inbox_id", metavar="INBOX", callback=_inbox, help="The inbox in which it happens.")
@click.option("--from", "from_", metavar="ADDRESS", help="The sender of a mail that is received.")
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
    help="A whole mail, as it crosses the Internet; -: read it from standard input. It goes to the inboxes in its To, "
    "Cc or Bcc, unless --inbox is given.",
)
@click.option("--message-id", metavar="ID", help="The mail to which it happens, or the id of the new one.")
@click.option("--thread-id", metavar="ID", help="The thread of the mail.")
@click.option("--reason", help="Why a mail was rejected.")
@click.option("--title", help="The title of a calendar event.")
@click.option("--domain", help="The domain that is verified.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it is, a JSON object.")
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
    """Make something happen at a running emulator: mail is received or sent, bounces, is held, is released, …

    EVENT_TYPE is the type of the event that is pushed, for example message.received. Mail that is received or sent is
    kept, and the REST API has it. What is not given has a sensible default.
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
        click.echo("nobody listens for it: no subscription matches, or a fault keeps it back", err=True)
