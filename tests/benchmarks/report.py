"""The figures and their table."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from .processes import RunFailed


@attrs.define
class Row:
    group: str
    case: str
    contender: str
    unit: str
    samples: list[float] = attrs.field(factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@attrs.define
class Results:
    """The results of one group.

    Args:
        reference: The contender of which the others of the same case are given as multiples.
    """

    group: str
    reference: str | None = None
    rows: dict[tuple[str, str], Row] = attrs.field(factory=dict)
    errors: list[str] = attrs.field(factory=list)
    charts: list[str] = attrs.field(factory=list)
    """Notes below the table."""
    details: dict[str, Any] = attrs.field(factory=dict)
    """The data of charts, for programs."""

    def note(self, case: str, contender: str, unit: str, value: float) -> None:
        self.rows.setdefault((case, contender), Row(self.group, case, contender, unit)).samples.append(value)

    @contextmanager
    def run(self, case: str, contender: str, unit: str = "") -> Iterator[Callable[[float], None]]:
        """One run, which has one figure or more. If it fails, the others continue, and the failure is in the report."""
        if sys.stderr.isatty():
            print(f"\r{f'{self.group}: {case}: {contender}':<70}", end="", file=sys.stderr, flush=True)
        try:
            yield lambda value: self.note(case, contender, unit, value)
        except RunFailed as exc:
            self.errors.append(f"{self.group}: {case}: {contender}: {exc}")

    def multiple(self, row: Row) -> float | None:
        """Return the median of the rounds' multiples, because the load of the machine changes from round to round."""
        reference = self.rows.get((row.case, self.reference or ""))
        if reference is None or reference.unit != row.unit:
            return None
        if len(row.samples) != len(reference.samples):  # a run failed, so the samples cannot be matched by round
            return row.median / reference.median
        return statistics.median(ours / theirs for ours, theirs in zip(row.samples, reference.samples, strict=True))

    def as_json(self) -> dict[str, Any]:
        rows = [
            attrs.asdict(row)
            | {"median": row.median, "min": min(row.samples), "max": max(row.samples), "multiple": self.multiple(row)}
            for row in self.rows.values()
        ]
        return {"reference": self.reference, "rows": rows, "errors": self.errors, "details": self.details}


def table(groups: list[Results]) -> str:
    """Return all figures as text. A multiple refers to the row without one in the same case."""
    lines = [("group", "case", "contender", "median", "min .. max", "unit", "multiple")]
    for results in groups:
        # By case, in the order of their first results.
        cases = list(dict.fromkeys(row.case for row in results.rows.values()))
        for row in sorted(results.rows.values(), key=lambda row: cases.index(row.case)):
            multiple = results.multiple(row)
            shown = "" if multiple is None else "1" if row.contender == results.reference else f"{multiple:.2f}"
            spread = f"{number(min(row.samples))} .. {number(max(row.samples))}" if len(row.samples) > 1 else ""
            lines.append((row.group, row.case, row.contender, number(row.median), spread, row.unit, shown))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.rjust(width) if index in (3, 6) else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    for results in groups:
        text += results.charts
        text += [f"ERROR {error}" for error in results.errors]
    return "\n".join(text)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
