"""Draws a schedule from a seed."""

import random
from collections.abc import Iterator

import attrs

from .faults import FAULTS
from .schedule import (
    LATEST_INDEX,
    NEWCOMERS,
    PODS,
    RECOVERY,
    SPAM,
    SUBSCRIPTIONS,
    Fault,
    Mail,
    Schedule,
    inbox_is_wanted,
)

__all__ = ["draw_schedule"]

BETWEEN_FAULTS = 180.0
"""Mean time between two faults in seconds, unless the duration of a run is given."""

BURSTS = (1, 1, 1, 2, 3, 5)
"""Numbers of mails that arrive at the same moment."""

LARGE_BURST = 300
"""Number of mails in a rare, large burst."""


def draw_schedule(
    seed: int,
    subscription: str,
    *,
    mails: int,
    faults: int,
    hours: float | None = None,
    deepest: float = RECOVERY.sweep_depth,
    furthest_ahead: float = 86_400.0,
) -> Schedule:
    """Draw a schedule. Every kind of fault occurs if there are at least as many faults as kinds.

    Args:
        hours: The duration; `None`: `BETWEEN_FAULTS` for each fault.
        deepest: The most seconds by which a mail is back-dated.
        furthest_ahead: The most seconds by which a mail is dated in the future.
    """
    draw = random.Random(f"{seed} {subscription}")
    duration = faults * BETWEEN_FAULTS if hours is None else hours * 3600
    threads = max(5, mails // 4_000)
    newcomers = {inbox_id: duration * (number + 1) / (len(NEWCOMERS) + 1) for number, inbox_id in enumerate(NEWCOMERS)}
    wanted_inboxes = [inbox_id for inbox_id in PODS if inbox_is_wanted(SUBSCRIPTIONS[subscription], inbox_id)]
    number = 0

    def draw_mail(at: float, *, wanted: bool = False, back_dated: float | None = None) -> Mail:
        nonlocal number
        number += 1
        inboxes = wanted_inboxes if wanted else [*PODS, *(inbox for inbox, since in newcomers.items() if since <= at)]
        spam = not wanted and draw.random() < 0.05
        if back_dated is None:
            kind = draw.random()
            back_dated = 0.0
            if kind < 0.05:
                back_dated = draw.uniform(0, deepest)
            elif kind < 0.07:
                back_dated = -draw.uniform(0, furthest_ahead)
        return Mail(
            number=number,
            inbox_id=draw.choice(inboxes),
            event_type=SPAM if spam else "message.received",
            back_dated=back_dated,
            # How AgentMail lists a thread that contains spam is not known, so spam begins threads of its own.
            thread=draw.randrange(threads) if not spam and draw.random() < 0.3 else None,
            body_in_push=draw.random() < 0.9,
        )

    kinds = [kind for _ in range(faults // len(FAULTS) + 1) for kind in draw.sample(sorted(FAULTS), len(FAULTS))]
    steps: list[tuple[float, Mail | Fault]] = []
    left = mails
    for kind in kinds[:faults]:
        at = draw.uniform(0, duration)
        # Usually few, and sometimes more than one page of a listing.
        most = max(1, min(150 if draw.random() < 0.03 else 12, left // 3))
        burst = [draw_mail(at, wanted=index == 0) for index in range(draw.randint(1, most))]
        before = [draw_mail(at) for _ in range(draw.randint(1, most))]
        if kind == "back_dated":
            depths = [draw.uniform(RECOVERY.overlap, deepest) for _ in burst]
            burst = [attrs.evolve(mail, back_dated=depth) for mail, depth in zip(burst, depths, strict=True)]
        left -= len(burst) + len(before)
        steps.append(
            (
                at,
                Fault(
                    kind=kind,
                    seconds=draw.choice([draw.uniform(0, 10), draw.uniform(0, LATEST_INDEX)]),
                    times=draw.choice([1, 2, 3, 8, 20]),
                    code=draw.choice([1000, 1001, 1006, 1011, 1012, 1013, 1008, 4000]),
                    before=tuple(before),
                    mails=tuple(burst),
                ),
            )
        )
    for size in _burst_sizes(draw, left):
        at = draw.uniform(0, duration)
        steps += [(at, draw_mail(at)) for _ in range(size)]
    steps.sort(key=lambda step: step[0])
    skew = draw.choice([0.0, draw.uniform(-600, 600)])
    return Schedule(seed, subscription, tuple(steps), skew, deepest)


def _burst_sizes(draw: random.Random, mails: int) -> Iterator[int]:
    """Split the mails into bursts, none of which is larger than a tenth of them."""
    left = mails
    while left:
        size = LARGE_BURST if draw.random() < 0.001 else draw.choice(BURSTS)
        size = min(size, left, mails // 10 + 1)
        left -= size
        yield size
