"""Requests a minute that recovery makes if no mail is missed, counted over simulated time on the mock clock."""

import json
import sys
from itertools import count

import attrs
import trio
from trio.testing import MockClock

from trio_agentmail import Subscribe, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

from .processes import answer, die_with_parent, running
from .report import Results

DAY = 86_400.0
POD = "customers"


@attrs.frozen
class Case:
    """A load. `hours` are measured, after a day of the same load.

    Attributes:
        mails: Number of mails a day for each inbox.
        replies: One in this many mails is a reply in an existing thread.
    """

    inboxes: int
    scope: str
    mails: int
    hours: float
    replies: int = 4

    def __str__(self) -> str:
        return f"{self.scope}, {self.mails or 'no'} mails a day each"


CASES = (
    Case(1, "1 inbox given", 0, 24),
    Case(1, "1 inbox given", 50, 24),
    Case(1, "1 inbox given", 450, 24),
    Case(10, "10 inboxes given", 0, 24),
    Case(10, "10 inboxes given", 50, 24),
    Case(1_000, "1,000 inboxes given", 0, 1),
    Case(1_000, "1,000 inboxes given", 50, 0.25),
    Case(1_000, "a pod of 1,000 inboxes", 0, 24),
    Case(1_000, "a key with 1,000 inboxes", 0, 24),
    Case(1_000, "a key with 1,000 inboxes", 10, 0.5),
    Case(1_000, "a key with 1,000 inboxes", 50, 0.25),
)


def measure(results: Results) -> None:
    for case in CASES:
        with (
            results.run("idle, requests a minute", str(case), "") as note,
            running("sweeping", attrs.asdict(case), {}) as process,
        ):
            note(process.answer(400.0))


async def main(case: Case) -> float:
    fake = FakeAgentMail()
    inboxes = [f"agent{number}@agentmail.to" for number in range(case.inboxes)]
    for inbox in inboxes:
        fake.mail.add_inbox(inbox, pod_id=POD)
    subscribe = Subscribe()
    if case.scope.endswith("given"):
        subscribe = Subscribe(inbox_ids=inboxes)
    elif case.scope.startswith("a pod"):
        subscribe = Subscribe(pod_ids=[POD])
    numbers = count()
    interval = DAY / (case.mails * case.inboxes) if case.mails else DAY

    async def mail_comes(seconds: float) -> None:
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            await trio.sleep(interval)
            if case.mails:
                number = next(numbers)
                turn, index = divmod(number, len(inboxes))
                # One in this many consecutive mails of an inbox is a reply, at a different position in each inbox.
                is_reply = (turn + index) % case.replies == case.replies - 1
                thread = turn - case.replies + 1 if is_reply else turn
                await fake.deliver(inbox_id=inboxes[index], thread_id=f"thread-{index}-{thread}")

    async def take() -> None:
        async for _ in events:
            pass

    await mail_comes(DAY)
    async with open_agentmail_stream(subscribe, backend=fake) as events, trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await mail_comes(750)  # the requests of the start are over, and it is midway between two sweeps
        before = len(fake.record.requests)
        began = trio.current_time()
        await mail_comes(case.hours * 3600)
        made = len(fake.record.requests) - before
        minutes = (trio.current_time() - began) / 60
        nursery.cancel_scope.cancel()
    return made / minutes


if __name__ == "__main__":
    die_with_parent()
    answer(trio.run(main, Case(**json.loads(sys.argv[1])), clock=MockClock(autojump_threshold=0)))
