"""Chaos: mail that flows through faults, on a schedule that a seed decides, and a judge who knows what the server did.

A schedule is data, drawn before anything runs. `run` plays it to a stream from a `FakeAgentMail` on the mock clock, and
returns a verdict: which mails were lost, which came twice, which came and should not have; how often there was each
fault, and how often it had an effect, since a fault without one shows nothing. The same seed gives the same run, down
to the order in which Trio runs its tasks.

What is promised, and so what counts as lost: a mail that is wanted, that is not held at the end, and that was dated at
most `sweep_depth` before it could be listed. No schedule has others that are wanted, but for those that stay held.
"""

from .drawing import draw_schedule
from .faults import FAULTS
from .playing import Chaos, run
from .schedule import RECOVERY, SUBSCRIPTIONS, Fault, Mail, Schedule
from .verdict import Verdict

__all__ = [
    "FAULTS",
    "RECOVERY",
    "SUBSCRIPTIONS",
    "Chaos",
    "Fault",
    "Mail",
    "Schedule",
    "Verdict",
    "draw_schedule",
    "run",
]
