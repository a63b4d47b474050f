"""The delay until recovery finds a mail that was not pushed, and the requests for it, by the number of mails a day.

The time is simulated on the mock clock. Each case runs in a process of its own. The server has a day of mail before the
stream begins.
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from math import inf

import attrs
import trio
from trio.testing import MockClock

from trio_agentmail import MessageReceivedEvent, Subscribe, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

from .processes import answer, die_with_parent, running
from .report import Results

DAY = 86_400.0
REPLIES = 4
"""One in this many mails is a reply."""

SWALLOWED = 4
"""Number of mails of each kind that are not pushed. They arrive at different times between two sweeps."""

BETWEEN_SWALLOWED = 97.0
BACK_DATED = DAY / 2
LONGEST = 8 * 3600.0
"""Time after which a mail that has not been found counts as lost, in seconds."""


@attrs.frozen
class Case:
    """A load and a subscription.

    Attributes:
        mails: Number of mails a day.
        inboxes: Number of inboxes that they are spread over. With 1, the subscription names it; with more, it covers
            the whole key.
        hours: Time for which requests are counted before anything goes wrong.
    """

    mails: int
    inboxes: int
    hours: float

    def __str__(self) -> str:
        scope = "1 inbox given" if self.inboxes == 1 else f"a key with {self.inboxes} inboxes"
        return f"{scope}, {self.mails:,} mails a day"


CASES = [
    Case(mails, inboxes, hours) for mails, hours in ((100, 24), (10_000, 6), (1_000_000, 1)) for inboxes in (1, 10)
]


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for case in CASES:
            measure_case(results, case)


def measure_case(results: Results, case: Case) -> None:
    with results.run(str(case), "all"), running("finding", attrs.asdict(case), {}) as process:
        for what, (unit, value) in process.answer(3600.0).items():
            results.note(str(case), what, unit, value)


@attrs.define
class Traffic:
    """The mail of a case, as it arrives at the server and as the stream delivers it."""

    case: Case
    fake: FakeAgentMail = attrs.field(factory=FakeAgentMail)
    arrived: dict[str, float] = attrs.field(factory=dict)
    """The arrival of each mail that was not pushed, by the mock clock."""
    delays: dict[str, float] = attrs.field(factory=dict)
    """The delay until its delivery, in seconds."""
    _numbers: "count[int]" = attrs.field(factory=count)

    async def deliver(self, back_dated: float = 0.0) -> str:
        number = next(self._numbers)
        conversation, turn = divmod(number, REPLIES)
        thread = number - turn if turn == REPLIES - 1 else number
        message_id = f"<{number}@mail.example>"
        await self.fake.deliver(
            inbox_id=f"agent{conversation % self.case.inboxes}@agentmail.to",
            message_id=message_id,
            thread_id=f"thread-{thread}",
            timestamp=datetime.fromtimestamp(self.fake.now(), UTC) - timedelta(seconds=back_dated),
        )
        return message_id

    async def fill(self) -> None:
        """Let a day of mail arrive."""
        for number in range(self.case.mails):
            await self.deliver(DAY * (1 - number / self.case.mails))

    async def flow(self) -> None:
        """Let mail arrive, several at a time if there is much."""
        burst = max(1, self.case.mails // 100_000)
        while True:
            await trio.sleep(DAY * burst / self.case.mails)
            for _ in range(burst):
                await self.deliver()

    async def swallow(self, back_dated: float) -> tuple[float, float]:
        """Return the mean and the longest delay of mails that are not pushed. Infinity if one was not found."""
        ids = []
        for _ in range(SWALLOWED):
            await trio.sleep(BETWEEN_SWALLOWED)
            self.fake.faults.swallow_pushes(1)
            at = trio.current_time()
            message_id = await self.deliver(back_dated)
            self.arrived[message_id] = at
            ids.append(message_id)
        with trio.move_on_after(LONGEST):
            while not self.delays.keys() >= set(ids):  # noqa: ASYNC110  no event for it
                await trio.sleep(1)
        delays = [self.delays.get(message_id, inf) for message_id in ids]
        return sum(delays) / len(delays), max(delays)

    async def take(self, events: trio.MemoryReceiveChannel[object]) -> None:
        async for event in events:
            if isinstance(event, MessageReceivedEvent) and event.message.message_id in self.arrived:
                message_id = event.message.message_id
                self.delays[message_id] = trio.current_time() - self.arrived[message_id]

    async def count_requests(self, seconds: float) -> float:
        """Return the requests a minute."""
        self.fake.record.requests.clear()
        await trio.sleep(seconds)
        return len(self.fake.record.requests) / seconds * 60


async def main(case: Case) -> dict[str, tuple[str, float]]:
    traffic = Traffic(case)
    for number in range(case.inboxes):
        traffic.fake.mail.add_inbox(f"agent{number}@agentmail.to")
    subscribe = Subscribe(inbox_ids=["agent0@agentmail.to"]) if case.inboxes == 1 else Subscribe()
    await traffic.fill()
    began = time.process_time()
    async with open_agentmail_stream(subscribe, backend=traffic.fake) as events, trio.open_nursery() as nursery:
        nursery.start_soon(traffic.take, events)
        nursery.start_soon(traffic.flow)
        await trio.sleep(750)  # the requests of the start are over
        idle = await traffic.count_requests(case.hours * 3600)
        mean, longest = await traffic.swallow(0.0)
        old_mean, old_longest = await traffic.swallow(BACK_DATED)
        nursery.cancel_scope.cancel()
    return {
        "idle: requests": ("a minute", idle),
        "not pushed: found after, mean": ("s", mean),
        "not pushed: found after, longest": ("s", longest),
        "not pushed, 12 h old: found after, mean": ("s", old_mean),
        "not pushed, 12 h old: found after, longest": ("s", old_longest),
        "CPU time, server included": ("s", time.process_time() - began),
    }


if __name__ == "__main__":
    die_with_parent()
    answer(trio.run(main, Case(**json.loads(sys.argv[1])), clock=MockClock(autojump_threshold=0)))
