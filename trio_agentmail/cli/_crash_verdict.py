"""What the demo with crashes watches over, and whether it held."""

import attrs

from ._crash_consumer import MAX_ATTEMPTS

__all__ = ["CrashRecord", "judge", "summary"]


@attrs.define
class CrashRecord:
    """What was sent, and what the agent's processes said of it.

    Attributes:
        sent: The mails by their numbers.
        poisonous: The one that kills whoever handles it.
        stuck: The one after which its process was stuck, and was killed: it was handled, and not acked.
        handled: What was handled, in order.
        twice: Those of them that had been handled before, and not acked.
        after_ack: Those that had been handled before, and acked.
        acked: What was acknowledged.
        poisoned: How often the poisonous mail was tried.
        kills: How many processes were killed, whether by us or by the poisonous mail.
        dead: The dead letters that the journal has in the end.
        pending: How many events it has then that are not handled.
        status: The exit status of the last process, which was left in peace.
        goodbye: The code with which its connection was closed.
        finished: Whether the story came to its end in time.
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
        """Mails that were neither handled nor given up."""
        return self.sent - set(self.handled) - set(self.dead)

    def note_handled(self, number: int) -> None:
        if number in self.acked:
            self.after_ack.add(number)
        elif number in self.handled:
            self.twice.add(number)
        self.handled.append(number)


def judge(record: CrashRecord) -> list[tuple[str, bool]]:
    """Each promise, and whether it held."""
    return [
        ("what was handled had been sent", record.sent >= set(record.handled)),
        ("all mail that was sent was handled, but for the one that kills", not record.lost),
        ("what had been acked was never handled again", not record.after_ack),
        ("the mail that was handled, and not acked before the kill, was handled again", record.stuck in record.twice),
        (
            f"the mail that kills was given up after {MAX_ATTEMPTS} attempts, and took nothing else with it",
            record.dead == [record.poisonous] and record.poisoned == MAX_ATTEMPTS,
        ),
        ("nothing is left unhandled in the journal", record.pending == 0),
        (
            "left in peace, the last process closed its connection with code 1000",
            (record.status, record.goodbye) == (0, 1000),
        ),
        ("all of this within the time allowed", record.finished),
    ]


def summary(record: CrashRecord, *, held: bool) -> str:
    """The last line."""
    why = " (handled, and killed before the ack)" if record.twice else ""
    return (
        f"sent {len(record.sent)}, handled {len(set(record.handled))}, handled twice {len(record.twice)}{why}, "
        f"dead letters {len(record.dead)}, lost {len(record.lost)}, killed {record.kills} times: "
        f"the promises {'held' if held else 'did NOT hold'}"
    )
