"""`python -m tests.helpers.crash_server LOG SEED`: an AgentMail that receives mail, in a process of its own.

It writes its URLs to standard output, and the number of each mail to LOG before the mail arrives; the judge reads LOG.
Mail begins to arrive when the first subscription has been confirmed. Some of it is back-dated, and some is held and
released later. A line on standard input stops the mail and releases what is still held; the end of standard input ends
the process.
"""

import random
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_agentmail.testing import FakeAgentMail

from .crash_consumer import INBOX, KEY


async def send_mail(fake: FakeAgentMail, log_path: str, seed: int, stop: trio.CancelScope) -> None:
    rng = random.Random(seed)
    held: list[str] = []
    number = 0
    with open(log_path, "a", buffering=1) as log:
        await fake.wait_subscribed()
        with stop:
            while True:
                for _ in range(rng.choice([1, 1, 1, 2, 5, 12])):
                    number += 1
                    message_id = f"<{number}@crash.example>"
                    kind = rng.random()
                    log.write(f"{number}\n")
                    await fake.deliver(
                        inbox_id=INBOX,
                        message_id=message_id,
                        timestamp=datetime.now(UTC) - timedelta(hours=rng.uniform(1, 20)) if kind < 0.05 else None,
                        held=kind > 0.97,
                    )
                    if kind > 0.97:
                        held.append(message_id)
                if held and rng.random() < 0.2:
                    await fake.mail.release(INBOX, held.pop(0))
                await trio.sleep(rng.choice([0.02, 0.05, 0.1, 0.4]))
        for message_id in held:
            await fake.mail.release(INBOX, message_id)
        print("stopped", flush=True)


async def main(log_path: str, seed: str) -> None:
    fake = FakeAgentMail(api_keys=[KEY])
    stop = trio.CancelScope()
    async with fake.serve() as environment, trio.open_nursery() as nursery:
        print(environment.websockets, environment.http, flush=True)
        nursery.start_soon(send_mail, fake, log_path, int(seed), stop)
        await trio.to_thread.run_sync(sys.stdin.readline)
        stop.cancel()
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
