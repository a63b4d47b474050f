"""`trio-agentmail demo --crash`: an agent with a journal is killed and started again, while mail goes on.

The server is a fake AgentMail in this process; the agent is a process of its own (`_crash_consumer`), and what it says
is written down in a `CrashRecord`. When the story is over, `_crash_verdict` compares, and looks into the journal.

The story goes on by what the agent says and by the mail that has been sent, and not by time: a slow machine takes
longer for it, and comes to the same end.
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
from trio_agentmail.events import MessageReceivedEvent
from trio_agentmail.testing import FakeAgentMail

from ._crash_consumer import API_KEY, INBOX, MAX_ATTEMPTS, POISON, STUCK
from ._crash_verdict import CrashRecord, judge, summary
from ._output import Output
from ._signals import interruptible
from ._timeline import Timeline
from ._verdict import mail_number

__all__ = ["crash_demo"]

MAIL_INTERVAL = 0.05
CALM = 15
"""Mails, more or less, that are handled undisturbed in a life."""
DOWN = 10
"""Mails that come while nobody runs."""
TIME_LIMIT = 300.0
"""Seconds, where it usually takes fifteen: for what never comes, and not for what is slow."""


async def crash_demo(output: Output) -> bool:
    """Perform on loopback ports; return whether the promises held.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM; nothing has been shown then.
        OutputClosed: Nobody reads any more.
        OSError: There is no loopback port to be had, or no process.
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
        timeline.note("demo", f"an AgentMail of our own listens on {environment.websockets}")
        with trio.move_on_after(TIME_LIMIT):
            try:
                await story.run()
            except DiedUnexpectedly:
                timeline.note("demo", "the agent has ended, and it was not its time: the story cannot go on")
        story.look_into_the_journal()
        story.record.goodbye = [None, *fake.close_codes][-1]
        promises = judge(story.record)
        held = all(kept for _, kept in promises)
        timeline.verdict(promises, summary(story.record, held=held))
        await printed.wait()
    return held


class DiedUnexpectedly(Exception):
    """The agent's process has ended, and it was not its time: the story cannot go on."""


class Story:
    """What happens: `run` starts and kills the agent, while `_send_mail` goes on."""

    def __init__(self, fake: FakeAgentMail, timeline: Timeline, environment: AgentMailEnvironment, path: Path) -> None:
        self.record = CrashRecord()
        self._fake = fake
        self._timeline = timeline
        self._environment = environment
        self._path = path
        self._lives = 0
        self._said: list[str] = []
        """What the present process has said."""
        self._has_ended = False
        self._something_happened = trio.Event()

    async def run(self) -> None:
        async with background_nursery() as nursery:
            sending = trio.CancelScope()
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._said)
                nursery.start_soon(self._send_mail, sending)
                await self._calm()
                self._kill(agent)
            await self._stay_down()
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._said)
                await self._calm()
                # This is the one moment in which a mail can come to be handled twice.
                await self._send_stuck()
                await self._until(lambda: self.record.stuck in self.record.handled)
                self._kill(agent, ", between the handling and the ack")
            async with self._life() as agent:
                await self._until(lambda: "starting" in self._said)
                await trio.sleep(random.uniform(0, 0.1))
                self._kill(agent, ", while it starts")
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._said)
                await self._calm()
                await self._send_poison()
                await self._until(lambda: self._has_ended)
            while self.record.poisoned < MAX_ATTEMPTS:
                async with self._life():
                    await self._until(lambda: self._has_ended)
            async with self._life() as agent:
                await self._until(lambda: "subscribed" in self._said)
                await self._calm()
                sending.cancel()
                await self._until(lambda: not self.record.lost - {self.record.poisonous})
                self._timeline.note("demo", "no more mail; the agent is told to leave")
                assert agent.stdin is not None
                await agent.stdin.aclose()
                self.record.status = await agent.wait()
            self.record.finished = True

    def look_into_the_journal(self) -> None:
        """What is there when nobody runs any more."""
        if not self._path.exists():
            return  # time was over before there was one
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
        self._timeline.note("demo", f"mail {self.record.stuck} comes; when it has been handled, its process is stuck")
        await self._deliver(STUCK)

    async def _send_poison(self) -> None:
        self.record.poisonous = len(self.record.sent) + 1
        self._timeline.note("demo", f"mail {self.record.poisonous} comes, which kills whoever handles it")
        await self._deliver(POISON)

    async def _deliver(self, subject: str) -> None:
        number = len(self.record.sent) + 1
        self.record.sent.add(number)
        await self._fake.deliver(inbox_id=INBOX, subject=subject, message_id=f"<{number}@demo.example>")
        self._notify()

    # A process, from its start to its end

    @asynccontextmanager
    async def _life(self) -> AsyncIterator[trio.Process]:
        """A process; the block, or a mail, ends it."""
        self._lives += 1
        name = f"life {self._lives}"
        self._said = []
        self._has_ended = False
        # Away from our terminal: Ctrl-C is for us, and we end it.
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                "trio_agentmail.cli._crash_consumer",
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
                self._timeline.note(name, f"the agent starts, with its journal: process {process.pid}")
                async with background_nursery() as nursery:
                    nursery.start_soon(self._listen_to, process.stdout, name)
                    yield process
                    await self._until(lambda: self._has_ended)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
        self._has_ended = False
        self.record.kills += process.returncode != 0
        handled = sum(line.startswith("handled") for line in self._said)
        self._timeline.note(name, f"has ended, with {handled} handled")

    async def _listen_to(self, stdout: trio.abc.ReceiveStream, name: str) -> None:
        beginning = b""
        async for data in stdout:
            *lines, beginning = (beginning + bytes(data)).split(b"\n")
            for line in lines:
                self._hear(line.decode(), name)
        self._has_ended = True
        self._notify()

    def _hear(self, line: str, name: str) -> None:
        match line.split():
            case ["subscribed"]:
                self._timeline.note(name, "subscribed")
            case ["dead", number]:
                self._timeline.note(name, f"mail {number} is a dead letter: {MAX_ATTEMPTS} attempts were its end")
            case ["trying", number] if int(number) == self.record.poisonous:
                self.record.poisoned += 1
                self._timeline.note(name, f"mail {number} is tried: attempt {self.record.poisoned} of {MAX_ATTEMPTS}")
            case ["handled", number, origin]:
                twice = len(self.record.twice)
                self.record.note_handled(int(number))
                self._timeline.mail(int(number), origin)
                if len(self.record.twice) > twice:
                    self._timeline.note(
                        name, f"mail {number} was handled once more: its ack had not come to be written"
                    )
            case ["acked", number]:
                self.record.acked.add(int(number))
        self._said.append(line)
        self._notify()

    def _notify(self) -> None:
        self._something_happened.set()
        self._something_happened = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._has_ended:
                raise DiedUnexpectedly
            await self._something_happened.wait()

    async def _calm(self) -> None:
        enough = len(self.record.handled) + round(CALM * random.uniform(0.7, 1.3))
        await self._until(lambda: len(self.record.handled) >= enough)

    async def _stay_down(self) -> None:
        self._timeline.note("demo", f"nobody runs while {DOWN} more mails come")
        enough = len(self.record.sent) + DOWN
        await self._until(lambda: len(self.record.sent) >= enough)

    def _kill(self, agent: trio.Process, when: str = "") -> None:
        self._timeline.note("demo", f"the agent is killed{when}")
        agent.kill()
