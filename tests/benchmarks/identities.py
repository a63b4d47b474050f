"""Memory that a stream keeps for each delivered mail. Run it by hand: `python -m tests.benchmarks.identities`."""

import argparse
import gc
import math
import time
import tracemalloc
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from trio.testing import MockClock

import trio_agentmail
import trio_agentmail.testing
from trio_agentmail import MessageReceivedEvent, Recovery, SQLiteJournal, Subscribe, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail, encode_event, make_event

PACKAGE = str(Path(trio_agentmail.__file__).parent)
KIT = str(Path(trio_agentmail.testing.__file__).parent)

INBOXES = [f"agent{number}@agentmail.to" for number in range(10)]
SUBSCRIPTIONS = {"key": Subscribe(), "inboxes": Subscribe(inbox_ids=INBOXES)}

NUMBER = "##########"

BURST = 100
"""Number of mails that arrive at the same moment, so that the clock takes little of the time."""

WORKERS = 64
"""Number of tasks that handle events concurrently with a journal, so that they share commits."""


async def handle_all(
    scope: str, mails: int, minutes: float, depth: float, kept: bool, journal: SQLiteJournal | None
) -> int:
    """Push mails to a stream and handle all of them. Returns the bytes that the package then uses, if traced.

    Args:
        kept: Whether the fake keeps the mails and lists them. Under `tracemalloc` this takes far longer.
    """
    fake = FakeAgentMail()
    for inbox_id in INBOXES:
        fake.mail.add_inbox(inbox_id)
    handled = 0

    async def handle(events: trio.MemoryReceiveChannel[trio_agentmail.Event]) -> None:
        nonlocal handled
        async for event in events:
            if journal is not None:
                await journal.ack(event)
            handled += isinstance(event, MessageReceivedEvent)

    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(
            open_agentmail_stream(
                SUBSCRIPTIONS[scope], backend=fake, recovery=Recovery(sweep_depth=depth), journal=journal
            )
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _ in range(1 if journal is None else WORKERS):
            nursery.start_soon(handle, events.clone())
        for first in range(0, mails, BURST):
            await trio.sleep(minutes * 60 * BURST / mails)
            if kept:
                for number in range(first, min(first + BURST, mails)):
                    await fake.deliver(inbox_id=INBOXES[number % len(INBOXES)])
            else:
                frame = received(datetime.fromtimestamp(fake.now(), UTC))
                for number in range(first, min(first + BURST, mails)):
                    await fake.send_raw(frame.replace(NUMBER, f"{number:0{len(NUMBER)}}"))
        while handled < mails:  # noqa: ASYNC110  no event for it
            await trio.sleep(1)
        await trio.sleep(60)  # the second scan after the start is over
        size = traced() if tracemalloc.is_tracing() else 0
        nursery.cancel_scope.cancel()
    assert handled == mails, f"{handled} of {mails} mails were handled"
    return size


def received(now: datetime) -> str:
    """Return the frame of a mail, with `NUMBER` where mails differ."""
    inbox_id = INBOXES[0]
    return encode_event(
        make_event(
            MessageReceivedEvent,
            inbox_id=inbox_id,
            event_id=f"event-{NUMBER}-4e5f-a6b7-c8d9e0f1a2b3",
            message_id=f"<{NUMBER}.CAF9sQ2r8kLmX4n@mail.example.com>",
            thread_id=f"thread-{NUMBER}-4e5f-a6b7-c8d9e0f1a2b3",
            timestamp=now,
            created_at=now,
            updated_at=now,
        )
    )


def traced() -> int:
    """Return the bytes in use that the package, without its test kit, has allocated."""
    gc.collect()
    files = tracemalloc.take_snapshot().statistics("filename")
    return sum(statistic.size for statistic in files if is_ours(statistic.traceback[0].filename))


def is_ours(filename: str) -> bool:
    # Generated code: attrs names it `<attrs generated methods trio_agentmail.…>`, and `_class_hook` `<structure …>`.
    if filename.startswith("<"):
        return ".testing." not in filename and ("trio_agentmail" in filename or filename.startswith("<structure"))
    return filename.startswith(PACKAGE) and not filename.startswith(KIT)


def run(scope: str, mails: int, minutes: float, depth: float, kept: bool, journal: SQLiteJournal | None = None) -> int:
    clock = MockClock(autojump_threshold=0)
    return trio.run(handle_all, scope, mails, minutes, depth, kept, journal, clock=clock)


def file_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.identities", description=__doc__)
    parser.add_argument("--mails", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--journaled", type=int, default=10_000, help="mails with a journal; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=12.0, help="in which they arrive; default: %(default)s")
    parser.add_argument("--sweep-depth", type=float, default=Recovery().sweep_depth, help="default: %(default)s")
    parser.add_argument("--subscription", choices=SUBSCRIPTIONS, default="inboxes", help="default: %(default)s")
    parser.add_argument("--kept", action="store_true", help="the fake keeps the mails, and lists them: slow")
    options = parser.parse_args()
    load = options.minutes, options.sweep_depth, options.kept
    few = math.ceil(options.mails / 100)

    began = time.monotonic()
    tracemalloc.start()
    idle = run(options.subscription, few, *load)  # the part that does not depend on the number of mails
    size = run(options.subscription, options.mails, *load)
    tracemalloc.stop()
    each = (size - idle) / (options.mails - few)
    print(f"memory: {each:.0f} bytes a mail, by {options.mails:,} mails; a million: {each * 1e6 / 2**20:.0f} MiB")
    print(f"  {time.monotonic() - began:.0f} s")

    if options.journaled:
        began = time.monotonic()
        with TemporaryDirectory() as directory:
            sizes = []
            for mails in (few, options.journaled):
                path = Path(directory) / f"{mails}.journal"
                run(options.subscription, mails, *load, journal=SQLiteJournal(path))
                sizes.append(file_size(path))
        each = (sizes[1] - sizes[0]) / (options.journaled - few)
        print(f"journal: {each:.0f} bytes of its file a handled mail, by {options.journaled:,} mails")
        print(f"  {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
