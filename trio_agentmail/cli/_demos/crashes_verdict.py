"""The record of `trio-agentmail demo --crash`, and the check of its promises."""

import attrs

from .crash_agent import MAX_ATTEMPTS

__all__ = ["CrashRecord", "judge", "summary"]


@attrs.define
class CrashRecord:
    """What the demo did, and what the agent's processes reported.

    Mails are identified by their numbers.

    Attributes:
        sent: The mails that were sent.
        poisonous: The mail that kills the process that handles it.
        stuck: The mail after which the agent stopped, so that it was killed between handling it and acknowledging it.
        handled: The handled mails, in order.
        twice: The mails that were handled again and had not been acknowledged.
        after_ack: The mails that were handled again although they had been acknowledged.
        acked: The acknowledged mails.
        poisoned: The number of delivery attempts of the poisonous mail.
        kills: The number of processes that the demo or the poisonous mail killed.
        dead: The dead letters in the journal at the end.
        pending: The number of unacknowledged events in the journal at the end.
        status: The exit status of the last process, which was not killed.
        goodbye: The close code of the last connection.
        finished: Whether the story ended within the time limit.
    """

    sent: set[int] = attrs.field(factory=set)
    poisonous: int = 0
    stuck: int = 0
    handled: list[int] = attrs.field(factory=list)
    twice: set[int] = attrs.field(factory=set)
    after_ack: set[int] = attrs.field(factory=set)
    acked: set[int] = attrs.field(factory=set)
    poisoned: int = 0
    kills: int = 0
    dead: list[int] = attrs.field(factory=list)
    pending: int = 0
    status: int | None = None
    goodbye: int | None = None
    finished: bool = False

    @property
    def lost(self) -> set[int]:
        """The mails that were neither handled nor became dead letters."""
        return self.sent - set(self.handled) - set(self.dead)

    def note_handled(self, number: int) -> None:
        """Record that a mail was handled, perhaps not for the first time."""
        if number in self.acked:
            self.after_ack.add(number)
        elif number in self.handled:
            self.twice.add(number)
        self.handled.append(number)


def judge(record: CrashRecord) -> list[tuple[str, bool]]:
    """Return each promise, and whether it was kept."""
    return [
        ("every handled mail had been sent", record.sent >= set(record.handled)),
        ("every mail that was sent was handled, except for the poisonous one", not record.lost),
        ("no acknowledged mail was handled again", not record.after_ack),
        ("the mail that was handled but not acknowledged was handled again", record.stuck in record.twice),
        (
            f"only the poisonous mail became a dead letter, after {MAX_ATTEMPTS} delivery attempts",
            record.dead == [record.poisonous] and record.poisoned == MAX_ATTEMPTS,
        ),
        ("no unacknowledged event is left in the journal", record.pending == 0),
        (
            "the last process ended normally and closed its connection with code 1000",
            (record.status, record.goodbye) == (0, 1000),
        ),
        ("the demo ended within its time limit", record.finished),
    ]


def summary(record: CrashRecord, *, kept: bool) -> str:
    """Return the last line of the demo."""
    why = " (killed between handling and ack)" if record.twice else ""
    return (
        f"sent {len(record.sent)}, handled {len(set(record.handled))}, handled twice {len(record.twice)}{why}, "
        f"dead letters {len(record.dead)}, lost {len(record.lost)}, killed {record.kills} times: "
        f"the promises {'held' if kept else 'did NOT hold'}"
    )
