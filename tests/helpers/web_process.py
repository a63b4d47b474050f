"""`python -m tests.helpers.web_process NAME WEBSOCKETS HTTP`: a program of docs/web.md, with a fake in another process.

Handling a mail with the subject "slow" takes until a line arrives on standard input. Web applications have another
path, `/hang`, which never answers.
"""

import asyncio
import importlib
import sys
from functools import partial
from typing import Any

import trio

from trio_agentmail import AgentMailEnvironment, AgentMailSession, Message


def wait_for_a_line(example: Any, in_thread: Any) -> None:
    """in the handler, for mail that is called slow."""
    handle = example.handle

    async def handle_slowly(message: Message) -> None:
        if message.subject == "slow":
            print("begun:", message.subject, flush=True)
            await in_thread(sys.stdin.readline)
        await handle(message)

    example.handle = handle_slowly


def add_path(example: Any, name: str) -> None:
    make_app = example.make_app

    async def hang(*request: Any) -> None:
        print("hanging", flush=True)
        await trio.sleep_forever()

    def make_app_that_hangs(session: AgentMailSession) -> Any:
        app = make_app(session)
        if name == "quart_app":
            app.add_url_rule("/hang", view_func=hang)
        else:
            app.router.add_route("/hang", hang)
        return app

    example.make_app = make_app_that_hangs


def main(name: str, websockets: str, http: str) -> None:
    example = importlib.import_module(f"tests.examples.{name}")
    environment = AgentMailEnvironment(http=http, websockets=websockets)
    if name == "beside_asyncio":
        wait_for_a_line(example, asyncio.to_thread)
        asyncio.run(example.main(0, environment))
    else:
        wait_for_a_line(example, trio.to_thread.run_sync)
        add_path(example, name)
        trio.run(partial(example.main, "127.0.0.1:0", environment))


if __name__ == "__main__":
    main(*sys.argv[1:])
