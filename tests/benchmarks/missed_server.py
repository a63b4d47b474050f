"""The server of `missed.py`: a `FakeAgentMail` that drops its clients, receives much mail, and accepts them again.

A request for `/go` starts this. From then on, another inbox receives mail 20 times a second, which is pushed.
"""

import json
import sys
import time

import trio

from trio_agentmail.testing import FakeAgentMail

from .frames import ASCII
from .processes import answer, die_with_parent

COUNT = 10_000
INBOX = "missed@agentmail.to"
LIVE_INBOX = "live@agentmail.to"
LIVE_INTERVAL = 0.05
TEXT = "\r\n".join([ASCII] * 11)
HTML = "".join([f'<p style="margin:0 0 1em">{ASCII}</p>\n'] * 11)
"""Together with the other fields, a mail has 2.6 KB."""


async def main(thread_size: int) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.mail.add_inbox(LIVE_INBOX)
    async with fake.serve() as environment:
        answer({"http": environment.http, "websockets": environment.websockets})
        while not any(request.path == "/go" for request in fake.record.requests):  # noqa: ASYNC110  the fake has no event for it
            await trio.sleep(0.1)
        fake.faults.refuse_connections(times=None)
        await fake.drop_connections()
        for number in range(COUNT):
            await fake.deliver(
                inbox_id=INBOX, subject="Figures", text=TEXT, html=HTML, thread_id=f"thread-{number // thread_size}"
            )
        fake.faults.clear()
        while True:
            await trio.sleep(LIVE_INTERVAL)
            await fake.deliver(inbox_id=LIVE_INBOX, subject=repr(time.perf_counter()), text=TEXT, html=HTML)


if __name__ == "__main__":
    die_with_parent()
    trio.run(main, *json.loads(sys.argv[1]).values())
