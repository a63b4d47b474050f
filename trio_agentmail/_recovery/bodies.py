"""Fetches the bodies of pushed mail, which AgentMail leaves out when they are large."""

import logging

import trio

from trio_agentmail._codec import with_message
from trio_agentmail._printable import printable
from trio_agentmail.errors import ApiError, RequestFailedError
from trio_agentmail.events import MessageReceivedEvent

from .rest import Rest, segment

__all__ = ["with_body"]

logger = logging.getLogger("trio_agentmail")

BODY_TIMEOUT = 10.0
"""Maximum number of seconds that a pushed mail, and the events after it, wait for its body."""


async def with_body(rest: Rest, event: MessageReceivedEvent) -> MessageReceivedEvent:
    """Fetch the body of a mail that came without one. Return the mail unchanged if it has one or the request fails."""
    message = event.message
    if message.text is not None or message.html is not None:
        return event
    path = f"/inboxes/{segment(message.inbox_id)}/messages/{segment(message.message_id)}"
    why = f"not within {BODY_TIMEOUT:.0f} s"
    with trio.move_on_after(BODY_TIMEOUT):
        try:
            async with rest.connected():
                whole = with_message(event, await rest.get(path))
            if whole is not None:
                return whole
            why = "the REST API returned another message"
        except (ApiError, RequestFailedError) as exc:
            why = str(exc)
    logger.warning("a mail is delivered without its body, which could not be fetched: %s", printable(why, 500))
    return event
