"""An agent that finishes its work when it is told to stop."""

import signal

import trio

from trio_agentmail import AgentMailSession, Event, SQLiteJournal, open_agentmail_session


async def stop_on_signal(session: AgentMailSession, workers: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            workers.deadline = trio.current_time() + 25  # unfinished work is cancelled then
            await session.stop()
            return


async def work(events: trio.MemoryReceiveChannel[Event], journal: SQLiteJournal) -> None:
    async with events:
        async for event in events:
            async with journal.processing(event):
                print(event)


async def main() -> None:
    journal = SQLiteJournal("agent.db")
    async with open_agentmail_session(journal=journal) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, session, nursery.cancel_scope)
            for _ in range(4):
                nursery.start_soon(work, session.events.clone(), journal)


if __name__ == "__main__":
    trio.run(main)
