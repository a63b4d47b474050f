"""How far each target has been scanned, and the encoding of that for a journal."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from trio_agentmail._codec import encode_object, parse_object
from trio_agentmail._settings import Subscribe
from trio_agentmail.errors import JournalError

from .source import Scan, Target, recovered_types, targets_of

__all__ = ["Progress", "decode_progress", "encode_progress", "follow"]

LONGEST = 1e12
"""Maximum distance of a stored time from the epoch, in seconds: 30,000 years."""


@attrs.define(eq=False)
class Progress:
    """How far a target has been scanned. Times are in seconds since the epoch, by AgentMail's clock
    unless stated otherwise.

    Attributes:
        wanted: See `Scan`.
        complete_until: All mail that AgentMail created before this time has been found, unless a gap is open.
        swept_until: Sweeps have covered mail that AgentMail created before this time. The next sweep reaches back from
            here.
        gap: The beginning of the gap that no scan covers yet; `math.inf` if there is none.
        gap_scan: The scan that closes an earlier gap. It is under way or will be retried.
        skipped_from: The time from which the scan of a gap has skipped mail, by the mails' own times; `math.inf` if it
            has skipped none.
        sweep: The sweep that has not reached its end.
        has_failed: Whether a `RecoveryFailed` has reported the open gap.
        failures: The number of scans of a gap that have failed since the last one that succeeded.
        not_before: When the scan of a gap may be retried, on Trio's clock.
    """

    wanted: dict[str, float]
    complete_until: float
    swept_until: float
    gap: float = math.inf
    gap_scan: Scan | None = None
    skipped_from: float = math.inf
    sweep: Scan | None = None
    has_failed: bool = False
    failures: int = 0
    not_before: float = -math.inf

    @property
    def open_since(self) -> float:
        """The time since which mail may be missing; `math.inf` if no gap is open."""
        return self.gap if self.gap_scan is None else min(self.gap, self.gap_scan.since)

    @property
    def covered_until(self) -> float:
        """The time before which all created mail has been found, except for mail that is listed very late."""
        return min(self.swept_until, self.open_since)

    def shift(self, ahead: float, given: float | None) -> None:
        """Convert the times that were read from this machine's clock to AgentMail's. Mail has its own times.

        Args:
            ahead: Seconds by which AgentMail's clock is ahead.
            given: `Recovery.since`, which stays unchanged.
        """

        def moved(at: float) -> float:
            return at if at == given else at + ahead

        self._change_times(moved)

    def clamp(self, now: float) -> None:
        """Move times in the future to `now`, and times before the epoch to the epoch.

        Times in the future were written when a clock was wrong.
        """
        self._change_times(lambda at: at if at == math.inf else min(max(at, 0.0), now))

    def _change_times(self, change: Callable[[float], float]) -> None:
        self.wanted = {event_type: change(at) for event_type, at in self.wanted.items()}
        self.complete_until = change(self.complete_until)
        self.swept_until = change(self.swept_until)
        self.gap = change(self.gap)
        for scan in (self.gap_scan, self.sweep):
            if scan is not None:
                scan.began = change(scan.began)
                scan.since = change(scan.since)


def follow(before: Mapping[Target, Progress], subscribe: Subscribe, begin: float) -> dict[Target, Progress]:
    """Return the progress for the targets and event_types of a subscription. New targets and types start at `begin`."""
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
    """Encode the progress for a journal.

    Args:
        unwritten_since: The time since which mail has come that the journal has no room for. The next run has to find
            that mail.
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
                its.skipped_from,  # the next run scans this part again, and may skip some of it again
                its.complete_until if its.gap_scan is None else its.gap_scan.began,
            ),
            "swept_until": min(unwritten_since, its.swept_until),
            "look": _encode_scan(its.gap_scan),  # the name in existing journals
            "sweep": _encode_scan(its.sweep),
        }
        for target, its in progress.items()
    ]
    return encode_object({"targets": targets, "clock_is_known": clock_is_known, "source": source})


def decode_progress(kept: bytes) -> tuple[dict[Target, Progress], bool, Any] | None:
    """Return the progress, `clock_is_known` and `source` of an earlier run. The time since that run is a gap.

    Returns `None`, as in a new journal, if `kept` is empty or not a JSON object.

    Raises:
        JournalError: `kept` is an object of another shape. To start anew would lose the gap silently.
    """
    state = parse_object(kept)
    if state is None:
        return None
    match state:
        case {"targets": list() as targets, "clock_is_known": bool() as clock_is_known, "source": source}:
            return dict(map(_decode_target, targets)), clock_is_known, source
    raise _damaged()


def _decode_target(kept: Any) -> tuple[Target, Progress]:
    match kept:
        case {
            "inbox_id": str() | None as inbox_id,
            "pod_id": str() | None as pod_id,
            "wanted": dict() as wanted,
            "missing_since": missing_since,
            "swept_until": swept_until,
            "look": look,
            "sweep": sweep,
        } if all(map(_is_time, (missing_since, swept_until, *wanted.values()))):
            target = Target(inbox_id=inbox_id, pod_id=pod_id)
            gap_scan, sweep_scan = (_decode_scan(target, wanted, scan) for scan in (look, sweep))
            return target, Progress(
                wanted, missing_since, swept_until, gap=missing_since, gap_scan=gap_scan, sweep=sweep_scan
            )
    raise _damaged()


def _encode_scan(scan: Scan | None) -> list[float | None] | None:
    if scan is None:
        return None
    return [scan.after, scan.began, None if scan.since == math.inf else scan.since, scan.position]


def _decode_scan(target: Target, wanted: Mapping[str, float], kept: Any) -> Scan | None:
    match kept:
        case None:
            return None
        case [after, began, since, position] if all(
            map(_is_time, (after, began, 0.0 if since is None else since, position))
        ):
            return Scan(target, wanted, after, began, math.inf if since is None else since, position)
    raise _damaged()


def _is_time(value: Any) -> bool:
    """Return whether a JSON value is a number of seconds since the epoch."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LONGEST


def _damaged() -> JournalError:
    return JournalError("the journal is damaged: its record of how far recovery has scanned cannot be read")
