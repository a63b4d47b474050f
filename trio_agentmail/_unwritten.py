"""Received mail that waits for room in the journal."""

import math

from .events import Event, MessageReceivedEvent

__all__ = ["Unwritten"]


class Unwritten:
    """The mail that waits for room in the journal. Without a journal, it stays empty.

    Recovery does not treat this mail as missed, since it will be delivered. But if the process dies before the mail is
    in the journal, recovery in the next run must find it.
    """

    def __init__(self) -> None:
        self._mails: list[MessageReceivedEvent] = []

    def add(self, event: Event) -> None:
        """Add an event that is about to be written to the journal. Events other than received mail are ignored."""
        if isinstance(event, MessageReceivedEvent):
            self._mails.append(event)

    def remove(self, event: Event) -> None:
        """Remove an event that was added."""
        if isinstance(event, MessageReceivedEvent):
            self._mails.remove(event)

    @property
    def since(self) -> float:
        """When AgentMail created the oldest of these mails, in seconds since the epoch; `math.inf` if there is none."""
        arrivals = [mail.message.created_at or mail.message.timestamp for mail in self._mails]
        return min((0.0 if at is None else at.timestamp() for at in arrivals), default=math.inf)
