"""The judge of the soak: compares the server's log with the client's ledger."""

import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from .mails import inbox_of

DESCRIBED = 10
"""How many mails are described for each kind of fault."""


class Tail:
    """The lines that are added to a file, each split into words."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._line = ""

    def __iter__(self) -> Iterator[list[str]]:
        while part := self._file.readline():
            self._line += part
            if self._line.endswith("\n"):
                yield self._line.split()
                self._line = ""

    def close(self) -> None:
        self._file.close()


@attrs.frozen
class Sent:
    at: float
    dated: float
    """Seconds by which its own time is earlier."""


@attrs.frozen
class Got:
    at: float
    origin: str
    gap: int
    """The number of the gap that was open, counting from 1; 0 if none was."""
    calm_since: float
    """When the last gap was closed; infinity if one is open."""


@attrs.define
class Connection:
    confirmed: float
    ended: float | None = None
    how: str = "open"
    first: int = 0
    end: int = 0


@attrs.define
class Sample:
    delivered: int
    memory: int
    file: int
    cpu: float
    at: float


class Judge:
    """Reads both files while they grow. At any moment it knows what is missing and what came too often."""

    def __init__(self, log: Path, ledger: Path) -> None:
        self._log, self._ledger = Tail(log), Tail(ledger)
        self.sent: dict[int, Sent] = {}
        self.connections: dict[int, Connection] = {}
        self.finished: float | None = None
        """When the server sent its last mail."""
        self.got: defaultdict[int, list[Got]] = defaultdict(list)
        self.acked: dict[int, float] = {}
        self.again_after_ack: set[int] = set()
        self.wrong: set[int] = set()
        self.gaps: list[tuple[float, float]] = []
        """When each opened and closed: from a `Disconnected` to a `CaughtUp` without failures."""
        self.notices: Counter[str] = Counter()
        self.failures: list[str] = []
        """The reason of each `RecoveryFailed`."""
        self.samples: list[Sample] = []
        self._gap_is_open = False

    def close(self) -> None:
        self._log.close()
        self._ledger.close()

    def read(self) -> None:
        """Read what has been added to the files."""
        for kind, at, *words in self._ledger:
            self._read_of_client(kind, float(at), words)
        # The log comes second: what the client has got is in it by then.
        for words in self._log:
            self._read_of_server(words)

    def _read_of_server(self, words: list[str]) -> None:
        match words:
            case ["mail", number, at, dated]:
                self.sent[int(number)] = Sent(float(at), float(dated))
            case ["confirmed", number, at]:
                self.connections[int(number)] = Connection(float(at))
            case ["ended", number, at, how, first, end]:
                confirmed = self.connections[int(number)].confirmed
                self.connections[int(number)] = Connection(confirmed, float(at), how, int(first), int(end))
            case ["finished", at]:
                self.finished = float(at)

    def _read_of_client(self, kind: str, at: float, words: list[str]) -> None:
        match kind, words:
            case "got", [text, origin]:
                number = int(text)
                if number in self.acked:
                    self.again_after_ack.add(number)
                _, calm_since = self.gaps[-1] if self.gaps else (0.0, 0.0)
                self.got[number].append(Got(at, origin, len(self.gaps) if self._gap_is_open else 0, calm_since))
            case "acked", [number]:
                self.acked[int(number)] = at
            case "wrong", [number]:
                self.wrong.add(int(number))
            case "sample", [memory, file, cpu]:
                self.samples.append(Sample(len(self.got), int(memory), int(file), float(cpu), at))
            case _:
                self.notices[kind] += 1
                self._read_notice(kind, at, words)

    def _read_notice(self, kind: str, at: float, words: list[str]) -> None:
        if kind == "disconnected" and not self._gap_is_open:
            self._gap_is_open = True
            self.gaps.append((at, float("inf")))
        elif kind == "caught-up" and words[0] == "0" and self._gap_is_open:
            self._gap_is_open = False
            self.gaps[-1] = (self.gaps[-1][0], at)
        elif kind == "recovery-failed":
            self.failures.append(" ".join(words))

    # The verdict

    @property
    def lost(self) -> list[int]:
        """The mails that were sent and have not been delivered."""
        return [number for number in self.sent if number not in self.got]

    @property
    def is_complete(self) -> bool:
        return self.finished is not None and len(self.got) >= len(self.sent) and not self.lost

    @property
    def twice(self) -> list[int]:
        return [number for number, times in self.got.items() if len(times) > 1]

    @property
    def invented(self) -> list[int]:
        return [number for number in self.got if number not in self.sent]

    @property
    def holds(self) -> bool:
        return not (self.lost or self.twice or self.again_after_ack or self.invented or self.wrong)

    @property
    def cuts(self) -> Counter[str]:
        """How many connections the server has cut, by the way in which it did."""
        return Counter(each.how for each in self.connections.values() if each.how not in ("open", "lost"))

    @property
    def origins(self) -> Counter[str]:
        return Counter(times[0].origin for times in self.got.values())

    @property
    def complete_after(self) -> float:
        """Seconds from when the server sent its last mail until the last first delivery."""
        return max((times[0].at for times in self.got.values()), default=0.0) - (self.finished or 0.0)

    def latencies(self, is_counted: Callable[[Sent, Got], bool]) -> list[float]:
        """Seconds from a mail's arrival at the server to a worker, of live mail, in ascending order."""
        return sorted(
            got.at - self.sent[number].at
            for number, [got, *_] in self.got.items()
            if got.origin == "live" and number in self.sent and is_counted(self.sent[number], got)
        )

    @property
    def ack_times(self) -> list[float]:
        """Seconds from a delivery until its ack returned, in ascending order."""
        return sorted(at - self.got[number][-1].at for number, at in self.acked.items())

    def growth(self, of: Callable[[Sample], int]) -> float:
        """Bytes for each mail delivered: a linear fit through the second half of the samples taken while mail came."""
        taken = [sample for sample in self.samples if sample.at <= (self.finished or sample.at)]
        half = [(sample.delivered, of(sample)) for sample in taken[len(taken) // 2 :]]
        if len({delivered for delivered, _ in half}) < 2:
            return float("nan")
        return statistics.linear_regression(*zip(*half, strict=True)).slope

    # Diagnosis

    def describe(self, number: int) -> str:
        """All that is known about a mail, in seconds since the first mail was sent."""
        began = self.sent[0].at
        if number not in self.sent:
            return f"mail {number} was never sent"
        sent = self.sent[number]
        dated = f", dated {sent.dated:.0f} s before that" if sent.dated else ""
        acked = f"; acked at {self.acked[number] - began:.3f}" if number in self.acked else ""
        came = [
            f"{got.origin} at {got.at - began:.3f}" + (f" in gap {got.gap}" if got.gap else "")
            for got in self.got.get(number, [])
        ]
        pushed = self._pushes(number) or [self._gap_at_server(number)]
        return (
            f"mail {number} to {inbox_of(number)}: came at {sent.at - began:.3f} s{dated}; {', '.join(pushed)}; "
            f"the client got it {', '.join(came) or 'never'}{acked}"
        )

    def _pushes(self, number: int) -> list[str]:
        return [
            f"pushed on connection {connection}, {each.ended - self.sent[number].at:.3f} s before its end ({each.how})"
            for connection, each in self.connections.items()
            if each.first <= number < each.end and each.ended is not None
        ]

    def _gap_at_server(self, number: int) -> str:
        at = self.sent[number].at
        before = max((each.ended for each in self.connections.values() if each.ended and each.ended <= at), default=at)
        after = min((each.confirmed for each in self.connections.values() if each.confirmed >= at), default=at)
        return f"not pushed, {at - before:.3f} s after a connection and {after - at:.3f} s before the next"

    def diagnosis(self) -> list[str]:
        """For each kind of fault: what happened to how many mails, and all about some of them."""
        lines = []
        faults: dict[str, Sequence[int]] = {
            "lost": self.lost,
            "twice": self.twice,
            "again after its ack": sorted(self.again_after_ack),
            "never sent": self.invented,
            "with another text": sorted(self.wrong),
        }
        for name, numbers in faults.items():
            if numbers:
                lines.append(f"{name}: {len(numbers):,}")
                stories = Counter(map(self._story, numbers)).most_common(DESCRIBED)
                lines += [f"  {times:,} {story}" for story, times in stories]
                lines += [f"  {self.describe(number)}" for number in numbers[:: -(-len(numbers) // DESCRIBED)]]
        lines += [f"recovery failed: {times} times: {reason}" for reason, times in Counter(self.failures).most_common()]
        return lines

    def _story(self, number: int) -> str:
        """The same text for all mails that fared alike."""
        if number not in self.sent:
            return "never sent"
        came = " and ".join(got.origin for got in self.got.get(number, [])) or "never"
        # Connections are counted in the order of their confirmations.
        last = bisect_right([each.confirmed for each in self.connections.values()], self.sent[number].at)
        if last and self.connections[last].first <= number < self.connections[last].end:
            return f"pushed on connection {last}, came {came}"
        return f"not pushed, after connection {last}, came {came}"
