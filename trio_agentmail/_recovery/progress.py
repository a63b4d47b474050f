"""How far each inbox, pod or key has been looked through, and how a journal keeps that from one run to the next."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._settings import Subscribe

from .source import Look, Target, recovered_types, targets_of

__all__ = ["Progress", "decode_progress", "encode_progress", "follow"]


@attrs.define(eq=False)
class Progress:
    """How far a target has been looked through. All times are in seconds since the epoch, by AgentMail's clock.

    Attributes:
        wanted: See `Look`.
        complete_until: Nothing is missing that AgentMail created before, unless a gap is open.
        swept_until: A sweep has looked for what AgentMail created before, so that the next one reaches back from there.
        gap: Since when something may be missing that no look looks for yet; `math.inf`: nothing is.
        look: The look that closes an earlier gap; it is under way, or will be tried again.
        skipped_from: From where on, by the mail's own time, the look after a gap has skipped mail; `math.inf`: it has
            not.
        sweep: The sweep that has not come to its end.
        has_failed: Whether a `RecoveryFailed` has told of the open gap.
        failures: Looks that have failed since the last one that did not.
        not_before: When the look may be tried again, on Trio's clock.
    """

    wanted: dict[str, float]
    complete_until: float
    swept_until: float
    gap: float = math.inf
    look: Look | None = None
    skipped_from: float = math.inf
    sweep: Look | None = None
    has_failed: bool = False
    failures: int = 0
    not_before: float = -math.inf

    @property
    def open_since(self) -> float:
        """Since when something may be missing; `math.inf`: nothing is."""
        return self.gap if self.look is None else min(self.gap, self.look.since)

    @property
    def covered_until(self) -> float:
        """No look will find anything new that AgentMail created before, but for what becomes visible very late."""
        return min(self.swept_until, self.open_since)

    def shift(self, ahead: float, given: float | None) -> None:
        """Set all times to AgentMail's clock, when they were by ours.

        Args:
            ahead: Seconds by which AgentMail's clock is ahead.
            given: A time that is right as it is.
        """

        def moved(at: float) -> float:
            return at if at == given else at + ahead

        self._change_times(moved)

    def clamp(self, now: float) -> None:
        """Repair times that lie in the future: a clock was wrong when they were written."""
        self._change_times(lambda at: at if at == math.inf else min(at, now))

    def _change_times(self, change: Callable[[float], float]) -> None:
        self.wanted = {event_type: change(at) for event_type, at in self.wanted.items()}
        self.complete_until = change(self.complete_until)
        self.swept_until = change(self.swept_until)
        self.gap = change(self.gap)
        for look in (self.look, self.sweep):
            if look is not None:
                look.began = change(look.began)
                look.since = change(look.since)


def follow(before: Mapping[Target, Progress], subscribe: Subscribe, begin: float) -> dict[Target, Progress]:
    """The progress with the targets and event_types of a subscription: what is new in it begins then."""
    types = recovered_types(subscribe)
    following = {}
    for target in targets_of(subscribe) if types else ():
        progress = before.get(target, Progress({}, complete_until=begin, swept_until=begin))
        wanted = {event_type: progress.wanted.get(event_type, begin) for event_type in types}
        following[target] = attrs.evolve(progress, wanted=wanted)
    return following


def encode_progress(
    progress: Mapping[Target, Progress], *, unwritten_since: float, clock_is_known: bool, source: Any
) -> bytes:
    """The progress as a journal keeps it.

    Args:
        unwritten_since: Since when there is mail that the journal has no room for: to the next run, it is missing.
        clock_is_known: Whether the times are by AgentMail's clock.
        source: The state of the `Source`.
    """
    targets = [
        {
            "inbox_id": target.inbox_id,
            "pod_id": target.pod_id,
            "wanted": its.wanted,
            "missing_since": min(
                unwritten_since,
                its.gap,
                its.skipped_from,  # the next run skips nothing of that, unless it is as much again
                its.complete_until if its.look is None else its.look.began,
            ),
            "swept_until": min(unwritten_since, its.swept_until),
            "look": _encode_look(its.look),
            "sweep": _encode_look(its.sweep),
        }
        for target, its in progress.items()
    ]
    return encode_object({"targets": targets, "clock_is_known": clock_is_known, "source": source})


def decode_progress(kept: bytes) -> tuple[dict[Target, Progress], bool, Any] | None:
    """What `encode_progress` was given in an earlier run; all of the time since then is a gap. `None`: nothing."""
    state = parse_object(kept)
    if state is None:
        return None
    progress = {}
    for its in state["targets"]:
        target = Target(inbox_id=its["inbox_id"], pod_id=its["pod_id"])
        missing_since = its["missing_since"]
        look, sweep = (_decode_look(target, its["wanted"], its[name]) for name in ("look", "sweep"))
        progress[target] = Progress(
            its["wanted"], missing_since, its["swept_until"], gap=missing_since, look=look, sweep=sweep
        )
    return progress, state["clock_is_known"], state["source"]


def _encode_look(look: Look | None) -> list[float | None] | None:
    if look is None:
        return None
    return [look.after, look.began, None if look.since == math.inf else look.since, look.place]


def _decode_look(target: Target, wanted: Mapping[str, float], kept: list[Any] | None) -> Look | None:
    if kept is None:
        return None
    after, began, since, place = kept
    return Look(target, wanted, after, began, math.inf if since is None else since, place)
