"""What reliability costs: a journal, recovery that finds nothing, and recovery that finds much."""

from . import journaled, missed, sweeping
from .report import Results


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        journaled.measure(results)
        missed.measure(results)
    sweeping.measure(results)  # counts, on a clock of its own: the same in every round
