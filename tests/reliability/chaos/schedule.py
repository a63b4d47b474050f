"""The schedule of a run, as data."""

import attrs

from trio_agentmail import Recovery, Subscribe

__all__ = [
    "LATEST_INDEX",
    "NEWCOMERS",
    "PODS",
    "RECOVERY",
    "SPAM",
    "SUBSCRIPTIONS",
    "Fault",
    "Mail",
    "Schedule",
    "inbox_is_wanted",
]

RECOVERY = Recovery(sweep_depth=3600.0)
"""The default, except for `sweep_depth`, which must be short compared to a run."""

LATEST_INDEX = 600.0
"""The most seconds from the arrival of a mail until it is listed."""

SPAM = "message.received.spam"

SUBSCRIPTIONS = {
    "key": Subscribe(),
    "pod": Subscribe(pod_ids=["pod-a"]),
    "inboxes": Subscribe(inbox_ids=["a0", "a1", "b0", "late"], event_types=["message.received", SPAM]),
    "pod-and-inbox": Subscribe(pod_ids=["pod-b"], inbox_ids=["a0"]),
}
PODS = {"a0": "pod-a", "a1": "pod-a", "a2": "pod-a", "b0": "pod-b", "b1": "pod-b"}
NEWCOMERS = {"late": "pod-a", "a3": "pod-a", "b2": "pod-b", "a4": "pod-a", "b3": "pod-b"}
"""Inboxes that are created one after the other, by their first mail, in pods that exist."""


@attrs.frozen(kw_only=True)
class Mail:
    """A mail that will arrive.

    Attributes:
        back_dated: Seconds; negative if it is dated in the future.
        thread: The number of its thread in its inbox; None: a thread of its own.
    """

    number: int
    inbox_id: str
    event_type: str = "message.received"
    back_dated: float = 0.0
    thread: int | None = None
    body_in_push: bool = True

    @property
    def message_id(self) -> str:
        # A Message-ID may contain anything.
        return f"<{self.number}/ä?#%2F@chaos.example>" if self.number % 10 == 0 else f"<{self.number}@chaos.example>"

    @property
    def text(self) -> str:
        return f"text of {self.number}"


@attrs.frozen(kw_only=True)
class Fault:
    """A fault that will happen.

    Attributes:
        kind: The name of its function in `faults.py`.
        seconds: How long it lasts, or how late something is.
        times: How often something fails.
        code: A close code.
        before: Mails that arrive just before it.
        mails: Mails that arrive at its worst moment. The first of them is wanted.
    """

    kind: str
    seconds: float
    times: int
    code: int
    before: tuple[Mail, ...]
    mails: tuple[Mail, ...]


@attrs.frozen
class Schedule:
    """All mails and faults of a run, with their times in seconds from its beginning."""

    seed: int
    subscription: str
    steps: tuple[tuple[float, Mail | Fault], ...]
    skew: float
    """Seconds by which our clock is ahead of AgentMail's."""
    deepest: float
    """The most seconds by which a mail is back-dated."""

    @property
    def mails(self) -> int:
        return sum(1 if isinstance(step, Mail) else len(step.before) + len(step.mails) for _, step in self.steps)

    @property
    def faults(self) -> int:
        return sum(isinstance(step, Fault) for _, step in self.steps)


def inbox_is_wanted(subscribe: Subscribe, inbox_id: str) -> bool:
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return True
    return inbox_id in (subscribe.inbox_ids or ()) or (PODS | NEWCOMERS)[inbox_id] in (subscribe.pod_ids or ())
