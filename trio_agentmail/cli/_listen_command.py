"""The command `trio-agentmail listen`: its options, and the settings that they stand for."""

import os
import warnings
from functools import partial

import click

from trio_agentmail._api_key import ApiKey
from trio_agentmail._journal.sqlite_journal import SQLiteJournal
from trio_agentmail._settings import AgentMailEnvironment, Recovery, Subscribe

from ._listen import listen
from ._log import log_on_stderr
from ._output import Output
from ._parameters import check_inbox, complete_event_type
from ._run import run

__all__ = ["listen_command"]

PROD = AgentMailEnvironment.PROD
ENVIRONMENTS = {"prod": PROD, "eu": AgentMailEnvironment.EU_PROD}


def _url(_context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """Check the URL of another server, and return it in the form that `AgentMailEnvironment` takes."""
    if url is None:
        return None
    url = url.rstrip("/").removesuffix("/v0")
    scheme = "ws" if option.name == "websocket_url" else "http"
    try:
        if scheme == "ws":
            AgentMailEnvironment(http=PROD.http, websockets=url)
        else:
            AgentMailEnvironment(http=url, websockets=PROD.websockets)
    except ValueError:
        # The URL is not shown, since it may contain a key.
        raise click.BadParameter(
            f"write {scheme}s://host or {scheme}s://host:port, without user name, query and fragment; {scheme}:// is "
            "accepted for this machine only, since the API key would cross a network unencrypted"
        ) from None
    return url


def _server(
    environment: str | None, websocket_url: str | None, http_url: str | None
) -> tuple[AgentMailEnvironment, Recovery | None]:
    """Return the server, and the settings of recovery. The API key is sent to the given hosts only."""
    if websocket_url is None:
        if http_url is not None:
            raise click.UsageError("--http-url needs --websocket-url")
        return ENVIRONMENTS[environment or "prod"], Recovery()
    if environment is not None:
        raise click.UsageError("--environment and --websocket-url exclude each other")
    if http_url is None:
        # Without recovery there are no requests, so this URL is not used. It has the same host to be safe.
        return AgentMailEnvironment(http=f"http{websocket_url.removeprefix('ws')}", websockets=websocket_url), None
    return AgentMailEnvironment(http=http_url, websockets=websocket_url), Recovery()


def _inboxes(_context: click.Context, _option: click.Parameter, items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_inbox, items))


def _journal(_context: click.Context, _option: click.Parameter, path: str | None) -> SQLiteJournal | None:
    try:
        return None if path is None else SQLiteJournal(path)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command("listen")
@click.option(
    "--inbox",
    "inbox_ids",
    metavar="INBOX",
    multiple=True,
    callback=_inboxes,
    help="Only this inbox, for example agent@agentmail.to. May be repeated.",
)
@click.option("--pod", "pod_ids", metavar="POD", multiple=True, help="Only this pod. May be repeated.")
@click.option(
    "--event-type",
    "event_types",
    metavar="TYPE",
    multiple=True,
    shell_complete=complete_event_type,
    help="Only this type, for example message.received. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line, in ASCII.")
@click.option("--environment", type=click.Choice(list(ENVIRONMENTS)), help="AgentMail's region. [default: prod]")
@click.option(
    "--websocket-url",
    metavar="URL",
    callback=_url,
    help="Another server, for example ws://127.0.0.1:8000. Without --http-url, missed mail is not recovered.",
)
@click.option(
    "--http-url",
    metavar="URL",
    callback=_url,
    help="The REST API of that other server, for example http://127.0.0.1:8001.",
)
@click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    callback=_journal,
    help="Keep each event in this file until its line is written. The next run continues where this one ends.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log the state of the connection on standard error.")
def listen_command(
    inbox_ids: tuple[str, ...],
    pod_ids: tuple[str, ...],
    event_types: tuple[str, ...],
    as_json: bool,
    environment: str | None,
    websocket_url: str | None,
    http_url: str | None,
    journal: SQLiteJournal | None,
    verbose: bool,
) -> None:
    """Print a line for each event that AgentMail pushes, and for missed mail that recovery finds.

    The API key comes from $AGENTMAIL_API_KEY. Without --event-type, AgentMail leaves out spam, blocked and
    unauthenticated mail.

    With --journal, the next run prints mail that arrived while no program listened, and events that were received and
    not yet written. If the program is killed just after writing a line, that line may be written again. One program at
    a time can use the file, and always with the same options.

    With --json, the field `type` is "event", "subscribed" or "error" in AgentMail's own objects, "disconnected" when
    the connection was lost, "caught_up" when recovery has looked for missed mail, "recovery_failed" when it could not,
    and "unknown" for anything that this program does not know. The field `origin` is "live" for pushed events,
    "recovered" for missed mail that was found, and "redelivered" for events from the journal.

    Each failed attempt to connect is logged on standard error, with the reason and the delay until the next one.

    Ctrl-C or SIGTERM closes the connection, and the exit status is 0, as it is when the reader of the output goes away.
    The status is 1 if AgentMail cannot be reached or refuses the connection, and 2 if the options are invalid.
    """
    server, recovery = _server(environment, websocket_url, http_url)
    if not os.environ.get("AGENTMAIL_API_KEY"):
        raise click.ClickException("no API key: set the environment variable AGENTMAIL_API_KEY")
    try:
        ApiKey(None).check()
    except ValueError as exc:
        raise click.ClickException(str(exc)) from None
    try:
        with warnings.catch_warnings(record=True, action="always") as unknown:
            subscribe = Subscribe(inbox_ids=inbox_ids or None, pod_ids=pod_ids or None, event_types=event_types or None)
    except TypeError as exc:
        raise click.UsageError(str(exc)) from None
    for warning in unknown:
        click.echo(f"Warning: {warning.message}", err=True)
    with log_on_stderr(verbose=verbose):
        run(partial(listen, Output(), subscribe, server, as_json=as_json, recovery=recovery, journal=journal))
