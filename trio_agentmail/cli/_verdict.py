"""What the demo watches over, and whether it held."""

from itertools import pairwise

import attrs

from trio_agentmail.events import CaughtUp, Disconnected, Event, MessageReceivedEvent, Subscribed, UnknownEvent

__all__ = ["Record", "judge", "mail_number", "number_of", "ranges", "summary"]


def number_of(message_id: str) -> int:
    """The number that the demo gave to a mail: `<7@demo.example>` is 7."""
    return int(message_id.strip("<>").partition("@")[0])


def mail_number(event: MessageReceivedEvent) -> int:
    """The number of a mail that came."""
    return number_of(event.message.message_id)


def ranges(numbers: list[int]) -> str:
    """Numbers for people: `1 to 3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@attrs.define
class Record:
    """What the demo did, and what it saw of that.

    Attributes:
        sent: The mails by their numbers, 1, 2, 3, …; and of each whether it may have been pushed: False if nobody was
            subscribed when it came, or the push was swallowed, or it was held.
        seen: What came out of the stream, in order.
        released: The mails that had been held; and of each how many events had been seen when it was released.
        broken_with: For each time that the connection was broken: the code that the stream is to report.
        replacements: How often the subscription was replaced.
        oddities: How many frames were pushed that nobody can know.
        patient: For each `Retry-After`: whether it was respected.
        goodbye: The code with which the connection was closed in the end.
        finished: Whether the story came to its end in time.
    """

    sent: dict[int, bool] = attrs.field(factory=dict)
    seen: list[Event] = attrs.field(factory=list)
    released: dict[int, int] = attrs.field(factory=dict)
    broken_with: list[int] = attrs.field(factory=list)
    replacements: int = 0
    oddities: int = 0
    patient: list[bool] = attrs.field(factory=list)
    goodbye: int | None = None
    finished: bool = False

    @property
    def mails(self) -> list[MessageReceivedEvent]:
        """The mails that came, in order."""
        return [event for event in self.seen if isinstance(event, MessageReceivedEvent)]

    @property
    def delivered(self) -> list[int]:
        """Their numbers."""
        return [mail_number(mail) for mail in self.mails]

    @property
    def recovered(self) -> set[int]:
        """Those that were found through the REST API."""
        return {mail_number(mail) for mail in self.mails if mail.origin == "recovered"}

    @property
    def lost(self) -> set[int]:
        """The mails that did not come."""
        return self.sent.keys() - set(self.delivered)

    @property
    def gaps(self) -> list[int | None]:
        """The codes of the losses that were reported."""
        return [event.code for event in self.seen if isinstance(event, Disconnected)]

    @property
    def reconnected(self) -> int:
        """How many losses were followed by a `Subscribed` before anything else that was pushed."""
        came = [event for event in self.seen if not isinstance(event, MessageReceivedEvent) or event.origin == "live"]
        return sum(isinstance(a, Disconnected) and isinstance(b, Subscribed) for a, b in pairwise(came))

    @property
    def caught_up(self) -> int:
        """How many gaps were closed before the next one began."""
        kinds = [type(event) for event in self.seen if isinstance(event, Disconnected | CaughtUp)]
        return sum(a is Disconnected and b is CaughtUp for a, b in pairwise(kinds))

    @property
    def mended(self) -> bool:
        """Whether every loss that was brought about has been reported, and is over."""
        return len(self.broken_with) <= len(self.gaps) == self.reconnected == self.caught_up

    @property
    def in_order(self) -> bool:
        """Whether what was pushed came in order, from each connection."""
        pushed = 0
        for event in self.seen:
            if isinstance(event, Subscribed):
                pushed = 0
            elif isinstance(event, MessageReceivedEvent) and event.origin == "live":
                if mail_number(event) < pushed:
                    return False
                pushed = mail_number(event)
        return True

    @property
    def held_back(self) -> bool:
        """Whether no held mail was seen before it was released."""
        return all(
            self.released.get(mail_number(event), 0) <= index
            for index, event in enumerate(self.seen)
            if isinstance(event, MessageReceivedEvent)
        )


def judge(record: Record) -> list[tuple[str, bool]]:
    """Each promise, and whether it held."""
    delivered, gaps = record.delivered, record.gaps
    confirmations = sum(isinstance(event, Subscribed) for event in record.seen)
    unknown = sum(isinstance(event, UnknownEvent) for event in record.seen)
    unpushed = {number for number, pushed in record.sent.items() if not pushed}
    return [
        ("what was delivered had been sent", record.sent.keys() >= set(delivered)),
        ("all mail that was sent was delivered", not record.lost),
        ("nothing was delivered twice", len(delivered) == len(set(delivered))),
        ("what a connection pushed came in the order in which it was sent", record.in_order),
        ("mail that was not pushed came as recovered", unpushed - record.lost <= record.recovered),
        ("no mail came while it was held", record.held_back),
        ("each loss was reported once, with its code", gaps == record.broken_with),
        ("after each loss came a new confirmation, and nothing was pushed before it", record.reconnected == len(gaps)),
        ("each gap was closed, with a CaughtUp", record.caught_up == len(gaps)),
        ("a new subscription took over without a gap", confirmations == 1 + len(gaps) + record.replacements),
        ("what the server pushed and nobody knows came as UnknownEvent", unknown == record.oddities),
        ("each Retry-After was respected", bool(record.patient) and all(record.patient)),
        ("left in peace, the connection was closed with code 1000", record.goodbye == 1000),
        ("all of this within the time allowed", record.finished),
    ]


def summary(record: Record, *, held: bool) -> str:
    """The last line."""
    delivered = record.delivered
    return (
        f"sent {len(record.sent)}, delivered {len(set(delivered))}, recovered {len(record.recovered)}, "
        f"lost {len(record.lost)}, duplicated {len(delivered) - len(set(delivered))}, "
        f"reconnected {record.reconnected}: the promises {'held' if held else 'did NOT hold'}"
    )
