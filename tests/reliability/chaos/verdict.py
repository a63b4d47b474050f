"""The outcome of a run: its mails and its faults."""

from collections import Counter

import attrs

from .schedule import Mail, Schedule

__all__ = ["Record", "Verdict"]


@attrs.define
class Record:
    """What happened to a mail."""

    mail: Mail
    held: bool = False
    deleted: bool = False
    in_gap: bool = False
    came: tuple[str, ...] = ()
    """The `origin` of each of its deliveries. The events themselves would fill the memory in a long run."""
    is_whole: bool = True
    """Whether each delivery had its text."""


@attrs.define(kw_only=True)
class Verdict:
    """The outcome of a schedule."""

    schedule: Schedule
    lost: list[Mail]
    twice: list[Mail]
    unwanted: list[Mail]
    """Mails that came although they are held or not subscribed to, or that came without their text."""
    came: list[int]
    """The numbers of the mails, in the order of their deliveries."""
    recovered: int
    in_gaps: int
    """The number of mails that arrived while no connection could receive a push."""
    happened: Counter[str]
    """How often each fault happened."""
    bit: Counter[str]
    """How often each fault had an effect."""
    notices: Counter[str]
    requests: int
    statuses: Counter[int | None]
    """The statuses of the answers; None: no answer."""
    connections: int
    seconds: float
    """The duration, on the mock clock."""

    def __str__(self) -> str:
        s = self.schedule
        kinds = ", ".join(f"{kind} {self.bit[kind]}/{self.happened[kind]}" for kind in sorted(self.happened))
        return (
            f"seed {s.seed}, subscription {s.subscription}: {s.mails} mails, {s.faults} faults in "
            f"{self.seconds / 3600:.1f} h\n"
            f"  lost {len(self.lost)}, twice {len(self.twice)}, unwanted {len(self.unwanted)}; "
            f"recovered {self.recovered}, came in gaps {self.in_gaps}, connections {self.connections}\n"
            f"  REST requests {self.requests}, per fault {self.requests / max(1, s.faults):.1f}; "
            f"by status {dict(self.statuses)}\n"
            f"  notices {dict(self.notices)}\n"
            f"  faults that had an effect, of all: {kinds}"
        )
