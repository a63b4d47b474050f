"""Chaos: faults of all kinds, mixed over time as a seed decides."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

from trio_agentmail.testing._wire.tasks import Spawn

__all__ = ["strike"]


async def strike(
    draw: Random,
    every: float,
    names: Sequence[str],
    one: Callable[[str, Random], Awaitable[None]],
    spawn: Spawn,
    happened: list[tuple[float, str]],
) -> None:
    """Have faults strike until cancelled, with exponentially distributed times between them.

    Args:
        every: The mean of these times, in seconds.
        names: The faults to draw from.
        one: Has the fault of a name strike, with a random generator for its arguments.
        happened: The time of each fault, in seconds since the beginning, and its name are added to it.
    """
    began, at = trio.current_time(), 0.0
    while True:
        # Each fault gets a generator of its own. If they shared this one, what comes later would depend on how much
        # the faults have drawn so far.
        at += draw.expovariate(1 / every)
        name, seed = draw.choice(names), draw.getrandbits(64)
        await trio.sleep_until(began + at)
        happened.append((at, name))
        spawn(one, name, Random(seed))
