"""A Quart application and an agent in one process: neither continues without the other."""

import signal
from collections import deque
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart_trio import QuartTrio

from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    Event,
    Message,
    MessageReceivedEvent,
    SQLiteJournal,
    Subscribe,
    open_agentmail_session,
)

MAIL = Subscribe(inbox_ids=["agent@agentmail.to"], event_types=["message.received"])

latest: deque[Message] = deque(maxlen=20)


async def handle(message: Message) -> None:
    latest.appendleft(message)
    print("handled:", message.subject, flush=True)


async def work(events: trio.MemoryReceiveChannel[Event], journal: SQLiteJournal) -> None:
    async with events:
        async for event in events:
            async with journal.processing(event):
                if isinstance(event, MessageReceivedEvent):
                    await handle(event.message)


async def stop_on_signal(session: AgentMailSession, workers: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            workers.deadline = trio.current_time() + 20  # unfinished work is cancelled then
            await session.stop()
            return


def make_app(session: AgentMailSession) -> QuartTrio:
    app = QuartTrio(__name__)

    @app.get("/health")
    async def health() -> tuple[dict[str, object], int]:
        statistics = session.statistics()
        return (
            {"stream": session.state, "delivered": statistics.delivered, "last_error": statistics.last_error},
            200 if session.state == "subscribed" else 503,
        )

    @app.get("/mail")
    async def mail() -> list[dict[str, object]]:
        return [{"from": message.from_, "subject": message.subject} for message in latest]

    return app


async def main(bind: str = "127.0.0.1:8000", environment: AgentMailEnvironment = AgentMailEnvironment.PROD) -> None:
    config = Config()
    config.bind = [bind]
    config.graceful_timeout = 3  # seconds for open requests, after the workers have ended
    journal = SQLiteJournal("agent.db")
    async with open_agentmail_session(MAIL, environment=environment, journal=journal) as session:
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            nursery.start_soon(partial(serve, make_app(session), config, shutdown_trigger=done.wait))
            async with trio.open_nursery() as workers:
                workers.start_soon(stop_on_signal, session, workers.cancel_scope)
                for _ in range(4):
                    workers.start_soon(work, session.events.clone(), journal)
            done.set()


if __name__ == "__main__":
    trio.run(main)
