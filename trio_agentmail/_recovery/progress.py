"""How far each inbox, pod or key has been looked through, and how a journal keeps that from one run to the next."""

import math
from collections.abc import Mapping
from typing import Any

import attrs

from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._settings import Subscribe

from .source import Target, recovered_types, targets_of

__all__ = ["Progress", "decode_progress", "encode_progress", "follow"]


@attrs.define
class Progress:
    """How far a target has been looked through, in seconds since the epoch by AgentMail's clock.

    Attributes:
        floors: See `Floors`.
        complete_until: Before that, nothing is missing.
        swept_until: A sweep has looked for what came before that, so that the next one reaches back from there.
        gap: Since when something may be missing; infinity: nothing is.
        is_told: Whether a `RecoveryFailed` has told of that.
    """

    floors: dict[str, float]
    complete_until: float
    swept_until: float
    gap: float = math.inf
    is_told: bool = False

    @property
    def has_gap(self) -> bool:
        return self.gap < math.inf

    @property
    def missing_since(self) -> float:
        """Where the next look must begin."""
        return self.gap if self.has_gap else self.complete_until

    def set_clock(self, ahead: float, given: float | None) -> None:
        """The times so far were by our clock, and AgentMail's is so many seconds ahead.

        Args:
            given: A time that is right as it is.
        """

        def moved(at: float) -> float:
            return at if at == given else at + ahead

        self.floors = {event_type: moved(at) for event_type, at in self.floors.items()}
        self.complete_until = moved(self.complete_until)
        self.swept_until = moved(self.swept_until)
        self.gap = moved(self.gap)


def follow(before: Mapping[Target, Progress], subscribe: Subscribe, begin: float) -> dict[Target, Progress]:
    """The progress with the targets and event_types of a subscription: what is new in it begins then."""
    types = recovered_types(subscribe)
    following = {}
    for target in targets_of(subscribe) if types else ():
        progress = before.get(target, Progress({}, complete_until=begin, swept_until=begin))
        floors = {event_type: progress.floors.get(event_type, begin) for event_type in types}
        following[target] = attrs.evolve(progress, floors=floors)
    return following


def encode_progress(progress: Mapping[Target, Progress], unwritten_since: float, source: Any) -> bytes:
    """For a journal.

    Args:
        unwritten_since: Since when there is mail that the journal has no room for: it is missing, for the next run.
        source: The state of the `Source`.
    """
    targets = [
        [
            target.inbox_id,
            target.pod_id,
            its.floors,
            min(unwritten_since, its.missing_since),
            min(unwritten_since, its.swept_until),
        ]
        for target, its in progress.items()
    ]
    return encode_object({"targets": targets, "source": source})


def decode_progress(kept: bytes) -> tuple[dict[Target, Progress], Any] | None:
    """What `encode_progress` was given, in an earlier run; all of the time since then is a gap. `None`: nothing."""
    state = parse_object(kept)
    if state is None:
        return None
    progress = {
        Target(inbox_id=inbox_id, pod_id=pod_id): Progress(floors, missing_since, swept_until, gap=missing_since)
        for inbox_id, pod_id, floors, missing_since, swept_until in state["targets"]
    }
    return progress, state["source"]
