"""The record of `trio-agentmail demo`, and the check of its promises."""

from itertools import pairwise

import attrs

from trio_agentmail.events import CaughtUp, Disconnected, Event, MessageReceivedEvent, Subscribed, UnknownEvent

from .mail_numbers import mail_number

__all__ = ["OutageRecord", "judge", "summary"]


@attrs.define
class OutageRecord:
    """What the demo did, and what it observed.

    Attributes:
        sent: For each mail number, whether the mail can have been pushed. It cannot if there was no subscription at its
            arrival, if its push was swallowed, or if the mail was held.
        seen: The events from the stream, in order.
        released: For each mail that was held, the number of events seen when it was released.
        broken_with: For each connection that the demo broke, the code that the stream should report.
        replacements: The number of times that the subscription was replaced.
        oddities: The number of frames with unknown or invalid content that were pushed.
        patient: For each `Retry-After`, whether the stream respected it.
        goodbye: The close code of the last connection.
        finished: Whether the story ended within the time limit.
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
        """The received mails, in order."""
        return [event for event in self.seen if isinstance(event, MessageReceivedEvent)]

    @property
    def delivered(self) -> list[int]:
        """The numbers of the received mails, in order."""
        return [mail_number(mail) for mail in self.mails]

    @property
    def recovered(self) -> set[int]:
        """The numbers of the mails that recovery found."""
        return {mail_number(mail) for mail in self.mails if mail.origin == "recovered"}

    @property
    def lost(self) -> set[int]:
        """The numbers of the mails that were sent and not received."""
        return self.sent.keys() - set(self.delivered)

    @property
    def gaps(self) -> list[int | None]:
        """The codes of the reported losses, in order."""
        return [event.code for event in self.seen if isinstance(event, Disconnected)]

    @property
    def reconnected(self) -> int:
        """The number of losses with a `Subscribed` before the next pushed event."""
        pushed = [event for event in self.seen if not isinstance(event, MessageReceivedEvent) or event.origin == "live"]
        return sum(isinstance(a, Disconnected) and isinstance(b, Subscribed) for a, b in pairwise(pushed))

    @property
    def caught_up(self) -> int:
        """The number of gaps that were closed before the next one began."""
        kinds = [type(event) for event in self.seen if isinstance(event, Disconnected | CaughtUp)]
        return sum(a is Disconnected and b is CaughtUp for a, b in pairwise(kinds))

    @property
    def mended(self) -> bool:
        """Whether the stream has reported and overcome every loss that the demo caused."""
        return len(self.broken_with) <= len(self.gaps) == self.reconnected == self.caught_up

    @property
    def in_order(self) -> bool:
        """Whether the mails that each connection pushed arrived in order."""
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
        """Whether every held mail arrived only after its release."""
        return all(
            self.released.get(mail_number(event), 0) <= index
            for index, event in enumerate(self.seen)
            if isinstance(event, MessageReceivedEvent)
        )


def judge(record: OutageRecord) -> list[tuple[str, bool]]:
    """Return each promise, and whether it was kept."""
    delivered, gaps = record.delivered, record.gaps
    confirmations = sum(isinstance(event, Subscribed) for event in record.seen)
    unknown = sum(isinstance(event, UnknownEvent) for event in record.seen)
    unpushed = {number for number, pushed in record.sent.items() if not pushed}
    return [
        ("every delivered mail had been sent", record.sent.keys() >= set(delivered)),
        ("every mail that was sent was delivered", not record.lost),
        ("nothing was delivered twice", len(delivered) == len(set(delivered))),
        ("each connection's mail was delivered in the order in which it was pushed", record.in_order),
        ("mail that was not pushed was delivered as recovered", unpushed - record.lost <= record.recovered),
        ("no mail was delivered while it was held", record.held_back),
        ("each loss was reported once, with its code", gaps == record.broken_with),
        ("each loss was followed by a new confirmation before anything was pushed", record.reconnected == len(gaps)),
        ("each gap was closed, with a CaughtUp", record.caught_up == len(gaps)),
        ("a new subscription took over without a gap", confirmations == 1 + len(gaps) + record.replacements),
        ("every unknown or invalid frame became an UnknownEvent", unknown == record.oddities),
        ("each Retry-After was respected", bool(record.patient) and all(record.patient)),
        ("the last connection was closed with code 1000", record.goodbye == 1000),
        ("the demo ended within its time limit", record.finished),
    ]


def summary(record: OutageRecord, *, kept: bool) -> str:
    """Return the last line of the demo."""
    delivered = record.delivered
    return (
        f"sent {len(record.sent)}, delivered {len(set(delivered))}, recovered {len(record.recovered)}, "
        f"lost {len(record.lost)}, duplicated {len(delivered) - len(set(delivered))}, "
        f"reconnected {record.reconnected}: the promises {'held' if kept else 'did NOT hold'}"
    )
