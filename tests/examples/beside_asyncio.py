"""An asyncio program and an agent in one thread: Trio runs as a guest of asyncio's event loop."""

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import outcome
import trio

from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    Message,
    MessageReceivedEvent,
    SQLiteJournal,
    Subscribe,
    open_agentmail_session,
)

MAIL = Subscribe(inbox_ids=["agent@agentmail.to"], event_types=["message.received"])

latest: deque[Message] = deque(maxlen=20)


# The bridge


async def run_trio(async_fn: Callable[[], Awaitable[None]]) -> None:
    """Called in asyncio: run a Trio function until it ends. Cancelling the call cancels the function."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[outcome.Outcome[None]] = loop.create_future()
    scope = trio.CancelScope()

    async def in_scope() -> None:
        with scope:
            await async_fn()

    trio.lowlevel.start_guest_run(
        in_scope,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=ended.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():  # asyncio must not end before Trio, however often the call is cancelled
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as exc:
            scope.cancel()
            cancelled = exc
    ended.result().unwrap()
    if cancelled is not None:
        raise cancelled


async def in_asyncio(coroutine: Coroutine[Any, Any, None]) -> None:
    """Called in Trio: run an asyncio coroutine until it ends. Cancelling the call cancels the coroutine."""
    task = asyncio.get_running_loop().create_task(coroutine)
    done = trio.Event()
    task.add_done_callback(lambda _: done.set())
    try:
        await done.wait()
    except trio.Cancelled:
        task.cancel()
        with trio.CancelScope(shield=True):
            await done.wait()
        raise
    task.result()


# In Trio


async def listen(environment: AgentMailEnvironment) -> None:
    journal = SQLiteJournal("agent.db")
    async with open_agentmail_session(MAIL, environment=environment, journal=journal) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, session, nursery.cancel_scope)
            async for event in session.events:
                async with journal.processing(event):
                    if isinstance(event, MessageReceivedEvent):
                        await in_asyncio(handle(event.message))


async def stop_on_signal(session: AgentMailSession, workers: trio.CancelScope) -> None:
    stopping = trio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    await stopping.wait()
    workers.deadline = trio.current_time() + 20  # unfinished work is cancelled then
    await session.stop()


# In asyncio


async def handle(message: Message) -> None:
    latest.appendleft(message)
    print("handled:", message.subject, flush=True)


async def show(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write("".join(f"{message.subject}\n" for message in latest).encode())
    writer.close()
    await writer.wait_closed()


async def serve(port: int) -> None:
    async with await asyncio.start_server(show, "127.0.0.1", port) as server:
        print("listening on port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def main(port: int = 8000, environment: AgentMailEnvironment = AgentMailEnvironment.PROD) -> None:
    async with asyncio.TaskGroup() as tasks:
        server = tasks.create_task(serve(port))
        await run_trio(partial(listen, environment))
        server.cancel()


if __name__ == "__main__":
    asyncio.run(main())
