"""Faults of all kinds, mixed over time as a seed decides."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from random import Random

import trio

from ._checks import check_seconds
from ._fake_connection import fake_tasks
from ._fake_mail import FakeMail

__all__ = ["FakeChaos"]

CLOSE_CODES = (1000, 1001, 1008, 1011, 1012, 1013, 4000)
STATUSES = (408, 429, 500, 502, 503)
GARBAGE = b"\xff" * 16
"""No WebSocket frame, nor the beginning of one."""


class FakeChaos(FakeMail):
    """Chaos, for `FakeAgentMail`."""

    @asynccontextmanager
    async def chaos(
        self, seed: int, *, every: float = 60.0, faults: Collection[str] | None = None
    ) -> AsyncIterator[list[tuple[float, str]]]:
        """For the block, something goes wrong now and then. At its end all faults end that are left, as by
        `clear_faults`.

        Args:
            seed: What goes wrong, and when, is drawn from it: the same seed gives the same faults at the same times.
            every: Seconds between two faults, in the mean.
            faults: Which, of `CHAOS`; `None`: all of them.

        Yields:
            What has gone wrong so far: seconds since the beginning of the block, and the name of the fault.

        Raises:
            ValueError: There is no such fault, or `every` is not more than 0.
        """
        if isinstance(faults, str):
            faults = {faults}
        check_seconds("every", every)
        if not every:
            raise ValueError("every is more than 0 seconds")
        names = sorted(CHAOS if faults is None else set(faults))
        if not names or not CHAOS.keys() >= set(names):
            raise ValueError(f"faults are some of {', '.join(CHAOS)}, not {', '.join(names) or 'none'}")
        happened: list[tuple[float, str]] = []
        self._note(f"chaos begins, with the seed {seed}")
        try:
            async with fake_tasks() as spawn:
                spawn(self._strike, Random(seed), every, names, spawn, happened)
                yield happened
        finally:
            self.clear_faults()
            self._note("chaos ends")

    async def _strike(
        self,
        draw: Random,
        every: float,
        names: list[str],
        spawn: Callable[..., None],
        happened: list[tuple[float, str]],
    ) -> None:
        began, at = trio.current_time(), 0.0
        while True:
            # What comes later is drawn from no number that a fault has used, or it would depend on what that did.
            at += draw.expovariate(1 / every)
            name, seed = draw.choice(names), draw.getrandbits(64)
            await trio.sleep_until(began + at)
            happened.append((at, name))
            self._note(f"chaos: {name}")
            spawn(CHAOS[name], self, Random(seed))

    def _faults_left(self) -> list[str]:
        return [*self._connection_faults.left(), *self._push_faults.left(), *self._request_faults.left()]

    def clear_faults(self) -> None:
        """What comes from now on goes well, and what `reorder_pushes` holds back comes now."""
        self._connection_faults.clear()
        self._clear_push_faults(self._push_now)
        self._request_faults.clear()
        self.slow_down(None)
        self.delay_pongs(0)


# Those of connections to come cut the present one, or nobody would notice.


async def cut(fake: FakeChaos, _: Random) -> None:
    await fake.drop_connections()


async def close(fake: FakeChaos, draw: Random) -> None:
    await fake.drop_connections(draw.choice(CLOSE_CODES), "chaos")


async def garbage(fake: FakeChaos, _: Random) -> None:
    await fake.send_bytes(GARBAGE)


async def silence(fake: FakeChaos, _: Random) -> None:
    fake.go_silent()


async def slow(fake: FakeChaos, draw: Random) -> None:
    fake.slow_down(draw.uniform(20, 2000))
    await trio.sleep(draw.uniform(1, 60))
    fake.slow_down(None)


async def outage(fake: FakeChaos, draw: Random) -> None:
    async with fake.outage():
        await trio.sleep(draw.uniform(1, 600))


async def refuse(fake: FakeChaos, draw: Random) -> None:
    fake.refuse_connections(draw.randint(1, 5))
    await fake.drop_connections()


async def reject(fake: FakeChaos, draw: Random) -> None:
    headers = draw.choice([[], [("Retry-After", str(draw.randint(1, 60)))]])
    fake.reject_handshakes(draw.choice(STATUSES), headers=headers, times=draw.randint(1, 3))
    await fake.drop_connections()


async def hang(fake: FakeChaos, _: Random) -> None:
    fake.hang_handshakes()
    await fake.drop_connections()


async def withhold(fake: FakeChaos, _: Random) -> None:
    fake.withhold_confirmations()
    await fake.drop_connections()


async def flap(fake: FakeChaos, draw: Random) -> None:
    fake.drop_after_confirming(draw.randint(1, 3))
    await fake.drop_connections()


async def swallow(fake: FakeChaos, draw: Random) -> None:
    fake.swallow_pushes(draw.randint(1, 3))


async def corrupt(fake: FakeChaos, _: Random) -> None:
    fake.corrupt_pushes()


async def duplicate(fake: FakeChaos, draw: Random) -> None:
    fake.duplicate_pushes(draw.randint(1, 3))


async def delay(fake: FakeChaos, draw: Random) -> None:
    fake.delay_pushes(draw.uniform(1, 120), draw.randint(1, 3))


async def reorder(fake: FakeChaos, draw: Random) -> None:
    fake.reorder_pushes(draw.randint(2, 4))


async def fail_requests(fake: FakeChaos, draw: Random) -> None:
    fake.fail_requests(draw.choice(STATUSES), times=draw.randint(1, 3))


async def hang_requests(fake: FakeChaos, _: Random) -> None:
    fake.hang_requests()


async def break_requests(fake: FakeChaos, draw: Random) -> None:
    fake.break_requests(draw.randint(1, 3))


CHAOS: dict[str, Callable[[FakeChaos, Random], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        cut,
        close,
        garbage,
        silence,
        slow,
        outage,
        refuse,
        reject,
        hang,
        withhold,
        flap,
        swallow,
        corrupt,
        duplicate,
        delay,
        reorder,
        fail_requests,
        hang_requests,
        break_requests,
    )
}
