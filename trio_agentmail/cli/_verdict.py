"""What the demo watches over, and whether it held."""

from itertools import pairwise

import attrs

from trio_agentmail.events import Disconnected, Event, MessageReceivedEvent, Subscribed, UnknownEvent

__all__ = ["Record", "judge", "mail_number", "summary"]


def mail_number(event: MessageReceivedEvent) -> int:
    """The number that the demo gave to a mail: `<7@demo.example>` is 7."""
    return int(event.message.message_id.strip("<>").partition("@")[0])


@attrs.define
class Record:
    """What the demo did, and what it saw of that.

    Attributes:
        sent: The mails by their numbers, 1, 2, 3, …; and of each whether it is owed: pushed under a subscription in
            force, by a server that had not been made to break the connection.
        seen: What came out of the stream, in order.
        broken_with: For each time that the connection was broken: the code that the stream is to report.
        replacements: How often the subscription was replaced.
        oddities: How many frames were pushed that nobody can know.
        patient: Whether `Retry-After` was respected.
        goodbye: The code with which the connection was closed in the end.
        finished: Whether the story came to its end in time.
    """

    sent: dict[int, bool] = attrs.field(factory=dict)
    seen: list[Event] = attrs.field(factory=list)
    broken_with: list[int] = attrs.field(factory=list)
    replacements: int = 0
    oddities: int = 0
    patient: bool = False
    goodbye: int | None = None
    finished: bool = False

    @property
    def delivered(self) -> list[int]:
        """The mails that came, in order."""
        return [mail_number(event) for event in self.seen if isinstance(event, MessageReceivedEvent)]

    @property
    def last_delivered(self) -> int:
        """The mail that came last; 0: none came."""
        return ([0, *self.delivered])[-1]

    @property
    def lost(self) -> list[int]:
        """The mails that did not come."""
        return sorted(self.sent.keys() - set(self.delivered))

    @property
    def gaps(self) -> list[int | None]:
        """The codes of the losses that were reported."""
        return [event.code for event in self.seen if isinstance(event, Disconnected)]

    @property
    def reconnected(self) -> int:
        """How many losses were followed by a `Subscribed` before anything else."""
        return sum(isinstance(a, Disconnected) and isinstance(b, Subscribed) for a, b in pairwise(self.seen))

    @property
    def mended(self) -> bool:
        """Whether every loss that was brought about has been reported, and is over."""
        return len(self.broken_with) <= len(self.gaps) == self.reconnected


def judge(record: Record) -> list[tuple[str, bool]]:
    """Each promise, and whether it held."""
    delivered, gaps = record.delivered, record.gaps
    confirmations = sum(isinstance(event, Subscribed) for event in record.seen)
    unknown = sum(isinstance(event, UnknownEvent) for event in record.seen)
    return [
        ("what was delivered had been sent", record.sent.keys() >= set(delivered)),
        ("nothing was delivered twice", len(delivered) == len(set(delivered))),
        ("mail came in the order in which it was sent", delivered == sorted(delivered)),
        (
            "all mail was delivered that was pushed over a working connection",
            not any(record.sent[number] for number in record.lost),
        ),
        ("each loss was reported once, with its code", gaps == record.broken_with),
        ("after each loss came a new confirmation, and no mail before it", record.reconnected == len(gaps)),
        ("a new subscription took over without a gap", confirmations == 1 + len(gaps) + record.replacements),
        ("what the server pushed and nobody knows came as UnknownEvent", unknown == record.oddities),
        ("a Retry-After was respected", record.patient),
        ("left in peace, the connection was closed with code 1000", record.goodbye == 1000),
        ("all of this within the time allowed", record.finished),
    ]


def summary(record: Record, *, held: bool) -> str:
    """The last line."""
    delivered, lost = record.delivered, record.lost
    why = "sent while the connection was broken"
    if owed := sum(record.sent[number] for number in lost):
        why = f"{owed} of them over a working connection"
    return (
        f"sent {len(record.sent)}, delivered {len(set(delivered))}, lost {len(lost)}{f' ({why})' if lost else ''}, "
        f"duplicated {len(delivered) - len(set(delivered))}, reconnected {record.reconnected}: "
        f"the promises {'held' if held else 'did NOT hold'}"
    )
