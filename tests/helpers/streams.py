"""Streams without recovery, which has tests of its own."""

from collections.abc import Iterable
from functools import partial

import trio_agentmail
from trio_agentmail import Event, MessageReceivedEvent

__all__ = ["open_agentmail_session", "open_agentmail_stream", "subjects"]

open_agentmail_stream = partial(trio_agentmail.open_agentmail_stream, recovery=None)
open_agentmail_session = partial(trio_agentmail.open_agentmail_session, recovery=None)


def subjects(events: Iterable[Event]) -> list[str | None]:
    """Return the subjects of the received mails among these events."""
    return [event.message.subject for event in events if isinstance(event, MessageReceivedEvent)]
