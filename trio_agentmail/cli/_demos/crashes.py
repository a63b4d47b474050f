"""`trio-agentmail demo --crash`: an agent with a journal is killed and restarted while mail keeps arriving.

The server is a fake AgentMail in this process. The agent (`crash_agent`) runs in a process of its own. Its reports go
into a `CrashRecord`, which `crashes_verdict` judges at the end, together with the contents of the journal.

The reports and the number of mails, not the time, decide when the story continues. On a slow machine it takes longer,
but its result is the same.
"""

import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from trio_agentmail._journal.entry import restored
from trio_agentmail._journal.sqlite_store import read_journal
from trio_agentmail._nursery import background_nursery
from trio_agentmail._settings import AgentMailEnvironment
from trio_agentmail.cli._output import Output
from trio_agentmail.cli._signals import interruptible
from trio_agentmail.events import MessageReceivedEvent
from trio_agentmail.testing import FakeAgentMail

from . import crash_agent
from .crash_agent import API_KEY, INBOX, MAX_ATTEMPTS, POISON, STUCK
from .crashes_verdict import CrashRecord, judge, summary
from .mail_numbers import mail_number
from .timeline import Timeline

__all__ = ["crash_demo"]

MAIL_INTERVAL = 0.05
CALM = 15
"""The approximate number of mails that each process handles undisturbed."""
DOWN = 10
"""The number of mails that arrive while no agent runs."""
TIME_LIMIT = 300.0
"""The time limit in seconds, for a demo that hangs. A demo usually takes fifteen seconds."""


async def crash_demo(output: Output) -> bool:
    """Run the demo on loopback ports, and return whether all promises were kept.

    Raises:
        Interrupted: SIGINT or SIGTERM came before the end. The demo has shown nothing.
        OutputClosed: The reader of the output has gone.
        OSError: A port cannot be opened, or a process cannot be started.
    """
    fake = FakeAgentMail(api_keys=[API_KEY])
    with TemporaryDirectory(prefix="trio-agentmail-demo-") as directory:
        async with interruptible(), fake.serve() as environment:
            return await _perform(output, fake, environment, Path(directory).resolve() / "agent.db")


async def _perform(output: Output, fake: FakeAgentMail, environment: AgentMailEnvironment, path: Path) -> bool:
    timeline = Timeline("handled")
    story = Story(fake, timeline, environment, path)
    async with background_nursery() as nursery:
        printed = trio.Event()
        nursery.start_soon(timeline.print_to, output, printed)
        timeline.note("demo", f"our own AgentMail listens on {environment.websockets}")
        with trio.move_on_after(TIME_LIMIT):
            try:
                await story.run()
            except DiedUnexpectedly:
                timeline.note("demo", "the agent has ended unexpectedly, so the demo cannot continue")
        story.read_journal()
        story.record.goodbye = [None, *fake.record.close_codes][-1]
        promises = judge(story.record)
        all_kept = all(kept for _, kept in promises)
        timeline.verdict(promises, summary(story.record, kept=all_kept))
        await printed.wait()
    return all_kept


class DiedUnexpectedly(Exception):
    """The agent's process has ended while it should be running."""


class Story:
    """The course of events: `run` starts and kills agents while `_send_mail` keeps sending."""

    def __init__(self, fake: FakeAgentMail, timeline: Timeline, environment: AgentMailEnvironment, path: Path) -> None:
        self.record = CrashRecord()
        self._fake = fake
        self._timeline = timeline
        self._environment = environment
        self._path = path
        self._lives = 0
        self._reports: list[str] = []
        """The lines that the current process has written."""
        self._has_ended = False
        self._changed = trio.Event()

    async def run(self) -> None:
        async with background_nursery() as nursery:
            sending = trio.CancelScope()
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._reports)
                nursery.start_soon(self._send_mail, sending)
                await self._calm()
                self._kill(agent)
            await self._stay_down()
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._reports)
                await self._calm()
                # A kill between handling and ack is the only way in which a mail can be handled twice.
                await self._send_stuck()
                await self._until(lambda: self.record.stuck in self.record.handled)
                self._kill(agent, ", between handling and ack")
            async with self._life() as agent:
                await self._until(lambda: "starting" in self._reports)
                await trio.sleep(random.uniform(0, 0.1))
                self._kill(agent, ", while it starts")
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._reports)
                await self._calm()
                await self._send_poison()
                await self._until(lambda: self._has_ended)
            while self.record.poisoned < MAX_ATTEMPTS:
                async with self._life():
                    await self._until(lambda: self._has_ended)
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._reports)
                await self._calm()
                sending.cancel()
                await self._until(lambda: not self.record.lost - {self.record.poisonous})
                self._timeline.note("demo", "no more mail; the agent is asked to exit")
                assert agent.stdin is not None
                await agent.stdin.aclose()
                self.record.status = await agent.wait()
            self.record.finished = True

    def read_journal(self) -> None:
        """Record the contents of the journal after the last agent has ended."""
        if not self._path.exists():
            return  # the time limit came before the first agent created the journal
        self.record.pending, letters = read_journal(self._path)
        for letter in letters:
            event = restored(letter.text, origin=letter.origin, attempt=letter.attempts)
            assert isinstance(event, MessageReceivedEvent)
            self.record.dead.append(mail_number(event))

    async def _send_mail(self, sending: trio.CancelScope) -> None:
        with sending:
            while True:
                await self._deliver("Hello")
                await trio.sleep(MAIL_INTERVAL)

    async def _send_stuck(self) -> None:
        self.record.stuck = len(self.record.sent) + 1
        self._timeline.note("demo", f"mail {self.record.stuck} arrives; its agent will handle it and then hang")
        await self._deliver(STUCK)

    async def _send_poison(self) -> None:
        self.record.poisonous = len(self.record.sent) + 1
        self._timeline.note("demo", f"mail {self.record.poisonous} arrives, which kills any agent that handles it")
        await self._deliver(POISON)

    async def _deliver(self, subject: str) -> None:
        number = len(self.record.sent) + 1
        self.record.sent.add(number)
        await self._fake.deliver(inbox_id=INBOX, subject=subject, message_id=f"<{number}@demo.example>")
        self._notify()

    # The agent's processes

    @asynccontextmanager
    async def _life(self) -> AsyncIterator[trio.Process]:
        """Run an agent process, which the block or a mail ends."""
        self._lives += 1
        name = f"life {self._lives}"
        self._reports = []
        self._has_ended = False
        # The agent runs in a session of its own, so that Ctrl-C only reaches this process, which then ends the agent.
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                crash_agent.__name__,
                self._environment.websockets,
                self._environment.http,
                str(self._path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with process.stdin, process.stdout:
                self._timeline.note(name, f"the agent starts with its journal: process {process.pid}")
                async with background_nursery() as nursery:
                    nursery.start_soon(self._read_reports, process.stdout, name)
                    yield process
                    await self._until(lambda: self._has_ended)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
        self._has_ended = False
        self.record.kills += process.returncode != 0
        handled = sum(line.startswith("handled") for line in self._reports)
        self._timeline.note(name, f"has ended after handling {handled} mail{'' if handled == 1 else 's'}")

    async def _read_reports(self, stdout: trio.abc.ReceiveStream, name: str) -> None:
        beginning = b""
        async for data in stdout:
            *lines, beginning = (beginning + bytes(data)).split(b"\n")
            for line in lines:
                self._take_report(line.decode(), name)
        self._has_ended = True
        self._notify()

    def _take_report(self, line: str, name: str) -> None:
        match line.split():
            case ["subscribed"]:
                self._timeline.note(name, "subscribed")
            case ["dead", number]:
                self._timeline.note(name, f"mail {number} is a dead letter, after {MAX_ATTEMPTS} delivery attempts")
            case ["trying", number] if int(number) == self.record.poisonous:
                self.record.poisoned += 1
                self._timeline.note(name, f"mail {number}: delivery attempt {self.record.poisoned} of {MAX_ATTEMPTS}")
            case ["handled", number, origin]:
                twice = len(self.record.twice)
                self.record.note_handled(int(number))
                self._timeline.mail(int(number), origin)
                if len(self.record.twice) > twice:
                    self._timeline.note(name, f"mail {number} was handled again, since it had not been acknowledged")
            case ["acked", number]:
                self.record.acked.add(int(number))
        self._reports.append(line)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._has_ended:
                raise DiedUnexpectedly
            await self._changed.wait()

    async def _calm(self) -> None:
        enough = len(self.record.handled) + round(CALM * random.uniform(0.7, 1.3))
        await self._until(lambda: len(self.record.handled) >= enough)

    async def _stay_down(self) -> None:
        self._timeline.note("demo", f"no agent runs while {DOWN} more mails arrive")
        enough = len(self.record.sent) + DOWN
        await self._until(lambda: len(self.record.sent) >= enough)

    def _kill(self, agent: trio.Process, when: str = "") -> None:
        self._timeline.note("demo", f"the agent is killed{when}")
        agent.kill()
