"""Building blocks of the commands: groups with full help texts, and parameters with suggestions and completion."""

import re
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from trio_agentmail._event_types import EVENT_TYPES
from trio_agentmail._settings import similar

__all__ = ["EventTypeChoice", "Group", "check_inbox", "complete_event_type", "complete_list"]

NO_LIMIT = 10_000


class Group(click.Group):
    """A group whose help shows the full first sentence of each command. By default, click shortens it to one row."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(NO_LIMIT)) for name in self.list_commands(ctx)]
            )


class EventTypeChoice(click.Choice[str]):
    """A choice of event types whose error message suggests the closest one."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        suggestion = similar(str(value), self.choices) or f"; there are {', '.join(self.choices)}"
        return f"there is no event type {value!r}{suggestion}"


def complete_event_type(_context: click.Context, _parameter: click.Parameter, beginning: str) -> list[CompletionItem]:
    """Return the event types with this beginning."""
    return [CompletionItem(event_type) for event_type in EVENT_TYPES if event_type.startswith(beginning)]


def complete_list(names: Iterable[str], beginning: str) -> list[CompletionItem]:
    """Complete the last name of a comma-separated list."""
    before, comma, last = beginning.rpartition(",")
    given = before.split(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last) and name not in given]


def check_inbox(inbox_id: str) -> str:
    """Return the inbox id unchanged.

    Raises:
        BadParameter: It is not an e-mail address.
    """
    if not re.fullmatch(r"[^\s@]+@[^\s@]+", inbox_id):
        raise click.BadParameter(f"{inbox_id!r} is not an inbox; write its address, like agent@agentmail.to")
    return inbox_id
