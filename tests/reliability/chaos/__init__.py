"""Chaos: mail flows through faults on a schedule that is drawn from a seed, and is judged by the server's own record.

A schedule is data, drawn before anything runs. `run` plays it to a stream from a `FakeAgentMail` on the mock clock, and
returns a verdict: which mails were lost, which came twice, and which should not have come; how often each fault
happened, and how often it had an effect, since a fault without one tests nothing. The same seed gives the same run,
down to the order in which Trio runs its tasks.

A mail counts as lost if it is wanted, is not held at the end, and was dated at most `sweep_depth` before it was listed.
All wanted mails of a schedule are like this, except for those that stay held.
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
