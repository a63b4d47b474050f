"""Chaos: random faults at random times, drawn from a seed."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

from trio_agentmail.testing._wire.tasks import Spawn

__all__ = ["cause_faults"]


async def cause_faults(
    draw: Random,
    every: float,
    names: Sequence[str],
    one: Callable[[str, Random], Awaitable[None]],
    spawn: Spawn,
    happened: list[tuple[float, str]],
) -> None:
    """Cause random faults until cancelled. The intervals between them are exponentially distributed.

    Args:
        every: The mean interval, in seconds.
        names: The faults to draw from.
        one: Causes the fault of this name, with arguments from this random generator.
        happened: A list to which the time of each fault, in seconds since the start, and its name are appended.
    """
    began, at = trio.current_time(), 0.0
    while True:
        # Each fault gets a random generator of its own. With a shared one, the later faults would depend on how many
        # numbers the earlier ones had drawn.
        at += draw.expovariate(1 / every)
        name, seed = draw.choice(names), draw.getrandbits(64)
        await trio.sleep_until(began + at)
        happened.append((at, name))
        spawn(one, name, Random(seed))
