"""What has become of the mails of a run, and of its faults."""

from collections import Counter

import attrs

from .schedule import Mail, Schedule

__all__ = ["Record", "Verdict"]


@attrs.define
class Record:
    """What has become of a mail."""

    mail: Mail
    held: bool = False
    deleted: bool = False
    in_gap: bool = False
    came: tuple[str, ...] = ()
    """The `origin` of each event by which it came. The events themselves would fill the memory in a long run."""
    is_whole: bool = True
    """Whether each of these had its text."""


@attrs.define(kw_only=True)
class Verdict:
    """What has become of a schedule."""

    schedule: Schedule
    lost: list[Mail]
    twice: list[Mail]
    unwanted: list[Mail]
    """Held, deleted before it could be found, or of no interest; or without its text."""
    came: list[int]
    """The numbers of the mails, in the order in which they came."""
    recovered: int
    in_gaps: int
    """Mails that came when there was nobody to push them to."""
    happened: Counter[str]
    """How often there was each fault,"""
    bit: Counter[str]
    """and how often it had an effect."""
    notices: Counter[str]
    requests: int
    statuses: Counter[int | None]
    """Of the requests; None: there was no answer."""
    connections: int
    seconds: float
    """On the mock clock."""

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
