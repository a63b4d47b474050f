"""The cost of reliability: a journal, recovery that finds nothing, and recovery that finds much."""

from . import journaled, missed, sweeping
from .report import Results


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        journaled.measure(results)
        missed.measure(results)
    sweeping.measure(results)  # counts on a mock clock, so they are the same in every round
