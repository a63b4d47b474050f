"""Running a command on Trio."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
import trio

from trio_agentmail.errors import AgentMailError

from ._listen import explain
from ._output import OutputClosed

__all__ = ["run"]

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Run an async function, and return its result, or `None` if the reader of the output has gone.

    Raises:
        ClickException: AgentMail cannot be reached or refuses the connection, or a system call has failed.
    """
    try:
        return trio.run(main)
    except OutputClosed:
        return None
    except (AgentMailError, OSError) as exc:
        raise click.ClickException(explain(exc)) from None
