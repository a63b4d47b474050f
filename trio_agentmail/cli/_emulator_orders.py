"""`trio-agentmail trigger`, `fault` and `reset`: orders to an emulator that runs."""

import base64
import json
import math
import mimetypes
import random
from pathlib import Path
from typing import Any

import click
import httpx2
from click.shell_completion import CompletionItem

from trio_agentmail._settings import similar
from trio_agentmail.errors import printable
from trio_agentmail.testing._emulator.control import CONTROL_PATH, SERVER
from trio_agentmail.testing._emulator.faults import CLOSE_CODES, REFUSALS
from trio_agentmail.testing._emulator.trigger import EVENT_TYPES, FIELDS
from trio_agentmail.testing._fake_chaos import CHAOS

from ._emulate import DEFAULT_EMULATOR
from ._parameters import EventTypeChoice, Group, check_inbox, complete_list

__all__ = ["fault_commands", "reset_command", "trigger_command"]


TIMEOUT = 15.0
"""Seconds. A cut waits five for a client that does not read."""

emulator_option = click.option(
    "--emulator",
    metavar="URL",
    envvar="AGENTMAIL_EMULATOR",
    default=DEFAULT_EMULATOR,
    show_default=f"$AGENTMAIL_EMULATOR or {DEFAULT_EMULATOR}",
    help="Where it is: the address of its REST API.",
)


def order(emulator: str, method: str, path: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """Have the emulator do something, and return its answer.

    Raises:
        ClickException: there is none, or it refuses.
    """
    url = f"{emulator.rstrip('/').removesuffix('/v0')}{CONTROL_PATH}/{path}"
    shown = printable(emulator, 200)
    try:
        # A proxy knows nothing of this machine's loopback.
        with httpx2.Client(trust_env=False, timeout=TIMEOUT) as client:
            response = client.request(method, url, content=None if fields is None else json.dumps(fields))
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise click.ClickException(f"{shown} is no URL; write one like {DEFAULT_EMULATOR}") from None
    except httpx2.HTTPError as exc:
        raise click.ClickException(
            f"there is no emulator at {shown} ({printable(str(exc), 200)}): `trio-agentmail emulate` starts one, and "
            "--emulator or $AGENTMAIL_EMULATOR says where it is"
        ) from None
    if response.headers.get("Server") != SERVER:
        raise click.ClickException(f"what answers at {shown} is no emulator (status {response.status_code})")
    answer: dict[str, Any] = response.json()
    if response.is_error:
        raise click.ClickException(f"the emulator refuses: {printable(str(answer.get('message')), 1000)}")
    return answer


def _what_each_takes() -> str:
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


@click.command("trigger", epilog=_what_each_takes())
@click.argument("event_type", metavar="EVENT_TYPE", type=EventTypeChoice(EVENT_TYPES))
@click.option("--inbox", "inbox_id", metavar="INBOX", callback=_inbox, help="The inbox that it is about.")
@click.option("--from", "from_", metavar="ADDRESS", help="The sender of a mail that comes.")
@click.option("--to", multiple=True, metavar="ADDRESS", help="A recipient. May be repeated.")
@click.option("--subject", help="The subject of the mail.")
@click.option("--text", help="Its text.")
@click.option("--html", help="Its text as HTML.")
@click.option(
    "--attachments",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="A file that is attached to the mail. May be repeated.",
)
@click.option(
    "--eml",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A whole mail, as it crosses the Internet; -: from standard input. It comes to the inboxes in its To, Cc or "
    "Bcc, unless --inbox is given.",
)
@click.option("--message-id", metavar="ID", help="The mail that it is about, or the id of the new one.")
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
    """Have something happen at a running emulator: mail comes or is sent, bounces, is held, is released, …

    EVENT_TYPE is the type of the event that is pushed, for example message.received. A mail that comes or is sent is
    kept, and the REST API has it. What is not given has a sensible value.
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
    answer = order(emulator, "POST", "trigger", {name: value for name, value in body.items() if value is not None})
    if as_json:
        click.echo(json.dumps(answer))
        return
    ids = [f"{name}={printable(answer[name], 300)}" for name in ("event_id", "message_id") if answer.get(name)]
    click.echo("  ".join([event_type, *ids, f"pushed to {answer['receivers']}"]))
    if not answer["receivers"]:
        click.echo("nobody listens for it: no subscription matches, or a fault keeps it back", err=True)


@click.command("reset")
@emulator_option
def reset_command(emulator: str) -> None:
    """Have a running emulator be as it was when it was started: for each test of a suite, for example.

    All mail is gone, and inboxes and pods but those that it was started with. WebSockets are cut, faults end, and what
    was sent under an Idempotency-Key is forgotten.
    """
    order(emulator, "POST", "reset")
    click.echo("reset: all is as it was in the beginning")


@click.group("fault", cls=Group)
def fault_commands() -> None:
    """Break something at a running emulator.

    A fault is for the next connection, push or request, for more with --times, and until `fault clear` with --times
    all. `cut`, `close`, `silent` and `garbage` are for the WebSockets that are open now. `outage` and `chaos` last
    until `fault clear`, or for --seconds.
    """


def _times(_context: click.Context, _option: click.Parameter, value: str) -> int | str:
    if value == "all":
        return value
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 10**6):
        raise click.BadParameter('write a number from 1 to 1000000, or "all" for all that follow')
    return int(value)


def _a_number(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("write a number")
    return value


def _close_code(_context: click.Context, _option: click.Parameter, value: int) -> int:
    if value not in CLOSE_CODES:
        raise click.BadParameter("write a close code that may be sent, like 1001 or 4000")
    return value


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in CHAOS:
            raise click.BadParameter(f"there is no {name!r}{similar(name, CHAOS) or f'; there are {_ALL_CHAOS}'}")
    return names


_ALL_CHAOS = ", ".join(CHAOS)


def _complete_names(_context: click.Context, _option: click.Parameter, beginning: str) -> list[CompletionItem]:
    return complete_list(CHAOS, beginning)


def _seed(_context: click.Context, _option: click.Parameter, value: int | None) -> int:
    return random.randrange(2**32) if value is None else value


OF_PRESENT = ("cut", "close", "silent", "garbage")
"""Faults of the WebSockets that are open."""

ARGUMENTS = {
    "status": click.argument("status", type=click.IntRange(200, 599)),
    "refusal": click.argument("status", type=click.IntRange(*REFUSALS)),
    "rate": click.argument("rate", type=click.IntRange(1, 10**9)),
    "count": click.argument("count", type=click.IntRange(2, 1000)),
    "seconds": click.argument("seconds", type=click.FloatRange(0, 10**6), callback=_a_number),
}

OPTIONS = {
    "code": click.option(
        "--code", type=int, default=1001, show_default=True, callback=_close_code, help="The close code."
    ),
    "reason": click.option("--reason", help="What the close frame says."),
    "retry_after": click.option(
        "--retry-after", type=click.IntRange(0, 10**6), metavar="SECONDS", help="What the answer's Retry-After says."
    ),
    "copies": click.option("--copies", type=click.IntRange(1, 1000), help="How often it comes again. [default: 1]"),
    "lasting": click.option(
        "--seconds", type=click.FloatRange(0, 10**6), help="How long. [default: until `fault clear`]", metavar="SECONDS"
    ),
    "seed": click.option(
        "--seed",
        type=click.IntRange(0, 10**18),
        callback=_seed,
        metavar="N",
        help="The same one gives the same faults at the same times. [default: one is drawn, and printed]",
    ),
    "every": click.option(
        "--every",
        type=click.FloatRange(0.01, 10**6),
        metavar="SECONDS",
        help="Between two faults, in the mean. [default: 60]",
    ),
    "faults": click.option(
        "--faults",
        metavar="A,B,…",
        callback=_names,
        shell_complete=_complete_names,
        help=f"Only some of {_ALL_CHAOS}. [default: all of them]",
    ),
    "path": click.option("--path", metavar="TEXT", help="Only requests whose path contains this."),
    "times": click.option(
        "--times", metavar="N", default="1", show_default=True, callback=_times, help='How often; "all": from now on.'
    ),
}


def _what_comes(name: str, given: dict[str, Any]) -> str:
    """What an order to the emulator has brought about, in words."""
    if "seconds" in given and name in ("outage", "chaos"):
        until = f"for {given['seconds']:g} s"
    elif given.get("times", "all") == "all":
        until = "until `fault clear`"
    else:
        until = "for the next one" if given["times"] == 1 else f"for the next {given['times']}"
    if name == "reorder":
        until = f"for the next {given['count']} events"
    return until + (f", with the seed {given['seed']}" if "seed" in given else "")


def _add(name: str, help: str, *parameters: str) -> None:
    """Add a fault: its command is made of its name, and of the parameters that it takes."""

    @emulator_option
    def command(emulator: str, **fields: Any) -> None:
        given = {parameter: value for parameter, value in fields.items() if value is not None}
        answer = order(emulator, "POST", "faults", {"fault": name, **given})
        if name not in OF_PRESENT:
            click.echo(f"{name}: {_what_comes(name, given)}")
        elif connected := answer["connected"]:
            click.echo(f"{name}: {connected} WebSocket{'' if connected == 1 else 's'}")
        else:
            click.echo("no WebSocket is open", err=True)

    for parameter in reversed(parameters):
        command = (ARGUMENTS.get(parameter) or OPTIONS[parameter])(command)
    fault_commands.add_command(click.command(name, help=help)(command))


_add("cut", "Cut the WebSockets that are open, without a close frame.")
_add("close", "Close the WebSockets that are open, with a code.", "code", "reason")
_add("silent", "Leave the WebSockets that are open half-open: they neither read nor write any more.")
_add("garbage", "Send bytes that are no frame on the WebSockets that are open.")
_add("slow", "Send no more than so many bytes in a second on each WebSocket, until `fault clear`.", "rate")
_add("refuse", "Reset the next connection for a WebSocket.", "times")
_add("reject", "Answer the next request for a WebSocket with an HTTP status.", "refusal", "retry_after", "times")
_add("hang", "Never answer the next request for a WebSocket.", "times")
_add("withhold", "Never confirm the next connection's subscriptions, and push nothing to it.", "times")
_add("delay", "Push the next event so many seconds later.", "seconds", "times")
_add("duplicate", "Push the next event more than once.", "copies", "times")
_add("corrupt", "Push a part of the next event only, which is no JSON.", "times")
_add("reorder", "Hold the next COUNT events back, and then push the last one first.", "count")
_add("swallow", "Do not push the next event; the REST API has the mail all the same.", "times")
_add("rest-error", "Answer the next REST request with a status.", "status", "retry_after", "path", "times")
_add("rest-hang", "Never answer the next REST request.", "path", "times")
_add("rest-break", "Reset the connection of the next REST request.", "path", "times")
_add("outage", "Be gone: cut WebSockets, refuse new ones, and break off REST requests.", "lasting")
_add("chaos", "Have something go wrong now and then, as a seed decides.", "seed", "every", "faults", "lasting")


@fault_commands.command("clear")
@emulator_option
def clear_command(emulator: str) -> None:
    """Let everything go well from now on: end an outage and chaos, and push what `reorder` has held back."""
    order(emulator, "DELETE", "faults")
    click.echo("cleared: no faults from now on")
