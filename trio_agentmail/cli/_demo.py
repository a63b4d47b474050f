"""`trio-agentmail demo`: a real stream to a fake AgentMail on this machine, broken while mail goes on.

Three tasks: one has mail delivered, one takes what comes out of the stream, and the story breaks the connection. Each
writes down what it did and saw, in a `Record`. When the story is over, `_verdict` compares.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from rich.text import Text

from trio_agentmail._backend import Backend
from trio_agentmail._nursery import background_nursery
from trio_agentmail._settings import AgentMailEnvironment, ReconnectPolicy, Subscribe
from trio_agentmail._stream import AgentMailSession, open_agentmail_session
from trio_agentmail.errors import printable
from trio_agentmail.events import Disconnected, MessageReceivedEvent, Subscribed
from trio_agentmail.testing import FakeAgentMail

from ._output import Output
from ._signals import stop_signals
from ._verdict import Record, judge, mail_number, summary

__all__ = ["demo", "perform"]

API_KEY = "am_demo"
INBOX = "agent@demo.example"
SECOND_INBOX = "sales@demo.example"

MAIL_INTERVAL = 0.06
CALM = 0.7
"""Seconds of undisturbed mail after each trouble."""
SETTLE = 2.0
"""Seconds that what is still under way at the end may take."""
TIME_LIMIT = 26.0

STYLES = {"demo": "yellow", "stream": "green", "lost": "red", "mail": "dim", "kept": "green", "BROKEN": "bold red"}

PING_INTERVAL = 0.7
PING_TIMEOUT = 0.7
RETRY_AFTER = 1
MAX_MESSAGE_SIZE = 50_000


async def demo(output: Output) -> bool:
    """Perform on a loopback port; return whether the promises held.

    Raises:
        OutputClosed: Nobody reads any more.
        OSError: There is no loopback port to be had.
    """
    fake = FakeAgentMail(api_keys=[API_KEY])
    async with stop_signals(), fake.serve() as environment:
        return await perform(output, fake, environment)
    return False


async def perform(
    output: Output, fake: FakeAgentMail, environment: AgentMailEnvironment, backend: Backend | None = None
) -> bool:
    """Tell the story to its end, and judge it; return whether the promises held."""
    timeline = Timeline()
    story = Story(fake, timeline)
    async with background_nursery() as nursery:
        printed = trio.Event()
        nursery.start_soon(timeline.print_to, output, printed)
        timeline.note("demo", f"an AgentMail of our own listens on {environment.websockets}")
        with trio.move_on_after(TIME_LIMIT):
            async with open_agentmail_session(
                Subscribe(inbox_ids=[INBOX]),
                api_key=API_KEY,
                environment=environment,
                reconnect=ReconnectPolicy(initial_delay=0.2, max_delay=0.5, stable_after=0.5),
                ping_interval=PING_INTERVAL,
                ping_timeout=PING_TIMEOUT,
                open_timeout=5.0,
                max_message_size=MAX_MESSAGE_SIZE,
                backend=backend,
            ) as session:
                await story.run(session)
            with trio.move_on_after(SETTLE):
                await fake.wait_connected(0)
            story.record.goodbye = [None, *fake.close_codes][-1]
            timeline.note("stream", f"left: the WebSocket was closed with code {story.record.goodbye}")
        verdict = judge(story.record)
        timeline.blank()
        for promise, kept in verdict:
            timeline.note("kept" if kept else "BROKEN", promise)
        timeline.blank()
        held = all(kept for _, kept in verdict)
        timeline.last(summary(story.record, held=held), held=held)
        await printed.wait()
    return held


class Timeline:
    """What is printed, a line at a time. Taking a note never waits; a task of its own prints."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._put, self._lines = trio.open_memory_channel[Text](math.inf)
        self._delivered: list[int] = []

    def note(self, who: str, what: str) -> None:
        """Somebody did something, or something came of it."""
        if self._delivered:
            first, last, count = self._delivered[0], self._delivered[-1], len(self._delivered)
            self._delivered = []
            self.note("mail", f"{first} to {last} delivered ({count})" if count > 1 else f"{first} delivered")
        seconds = trio.current_time() - self._began
        style = STYLES[who]
        self._put.send_nowait(
            Text.assemble((f"{seconds:6.2f} s  ", "dim"), (f"{who:<8}", style), (printable(what, 200), style))
        )

    def delivered(self, number: int) -> None:
        """A mail came. That is told together with its neighbours, before the next note."""
        self._delivered.append(number)

    def blank(self) -> None:
        self._put.send_nowait(Text())

    def last(self, line: str, *, held: bool) -> None:
        """The last line."""
        self._put.send_nowait(Text(line, style="bold green" if held else "bold red"))
        self._put.close()

    async def print_to(self, output: Output, printed: trio.Event) -> None:
        async for line in self._lines:
            await output.print(line)
        printed.set()


class Story:
    """What happens: `run` breaks the connection, while `_send_mail` and `_receive` go on."""

    def __init__(self, fake: FakeAgentMail, timeline: Timeline) -> None:
        self.record = Record()
        self._fake = fake
        self._timeline = timeline
        self._inboxes = [INBOX]
        self._owed_from = 1
        self._last_mail: MessageReceivedEvent
        self._something_came = trio.Event()

    async def run(self, session: AgentMailSession) -> None:
        async with background_nursery() as nursery:
            nursery.start_soon(self._receive, session)
            sending = trio.CancelScope()
            nursery.start_soon(self._send_mail, sending)
            await self._calm()
            await self._break_connection(
                "the connection is cut, without a close frame", 1006, self._fake.drop_connections
            )
            await self._push_oddities(session)
            await self._break_connection(
                "the server goes away: close code 1001", 1001, partial(self._fake.drop_connections, 1001)
            )
            await self._listen_to_more(session)
            await self._break_connection("the server falls silent, and leaves the connection open", 1006, self._silence)
            await self._break_connection(
                f"the server restarts: close code 1012, then HTTP 503 with Retry-After: {RETRY_AFTER}",
                1012,
                self._restart,
            )
            await self._break_connection(
                f"a frame of more than the {MAX_MESSAGE_SIZE} characters that we take", 1009, self._push_too_much
            )
            sending.cancel()
            with trio.move_on_after(SETTLE):
                await self._until(lambda: self.record.last_delivered == len(self.record.sent))
            self.record.finished = True

    async def _send_mail(self, sending: trio.CancelScope) -> None:
        number = 0
        with sending:
            while True:
                number += 1
                # Whoever is subscribed when it is pushed is owed the mail, unless the connection is broken already.
                owed = self._fake.subscribed > 0 and len(self._fake.subscriptions) >= self._owed_from
                self.record.sent[number] = owed
                self._last_mail = await self._fake.deliver(
                    inbox_id=self._inboxes[number % len(self._inboxes)],
                    subject=f"Mail number {number}",
                    message_id=f"<{number}@demo.example>",
                )
                await trio.sleep(MAIL_INTERVAL)

    async def _receive(self, session: AgentMailSession) -> None:
        lost_at = 0.0
        async for event in session.events:
            match event:
                case MessageReceivedEvent():
                    self._note_mail(mail_number(event))
                case Disconnected():
                    lost_at = trio.current_time()
                    self._timeline.note("lost", f"the subscription: {event.reason} (code {event.code})")
                case Subscribed():
                    is_again = self.record.reconnected < len(self.record.gaps)
                    after = f" again, after {trio.current_time() - lost_at:.2f} s" if is_again else ""
                    self._timeline.note("stream", f"subscribed{after}: {', '.join(event.inbox_ids or ())}")
                case _:
                    self._timeline.note("stream", f"{type(event).__name__}: {getattr(event, 'reason', '')}")
            self.record.seen.append(event)
            self._something_came.set()
            self._something_came = trio.Event()

    def _note_mail(self, number: int) -> None:
        missing = range(self.record.last_delivered + 1, number)
        if missing:
            which = f"{missing[0]} to {missing[-1]}" if len(missing) > 1 else f"{missing[0]}"
            self._timeline.note("lost", f"mail {which} ({len(missing)}), sent into the gap")
        self._timeline.delivered(number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._something_came.wait()

    async def _calm(self) -> None:
        await trio.sleep(CALM)

    async def _break_connection(self, what: str, code: int, how: Callable[[], Awaitable[None]]) -> None:
        self._timeline.note("demo", what)
        self.record.broken_with.append(code)
        self._owed_from = len(self._fake.subscriptions) + 1
        await how()
        await self._until(lambda: self.record.mended)
        await self._calm()

    async def _silence(self) -> None:
        self._fake.go_silent()

    async def _restart(self) -> None:
        self._fake.reject_handshakes(503, headers=[("Retry-After", str(RETRY_AFTER))])
        rejected = len(self._fake.handshakes)
        await self._fake.drop_connections(1012, "restarting")
        await self._until(lambda: len(self._fake.handshakes) > rejected + 1)
        waited = self._fake.handshakes[rejected + 1].at - self._fake.handshakes[rejected].at
        self.record.patient = waited >= RETRY_AFTER
        self._timeline.note("stream", f"tried again {waited:.2f} s after the 503")

    async def _push_too_much(self) -> None:
        await self._fake.send_raw("x" * (MAX_MESSAGE_SIZE + 1))

    async def _push_oddities(self, session: AgentMailSession) -> None:
        self._timeline.note("demo", "the last mail is pushed three times more")
        before = session.statistics().duplicates
        for _ in range(3):
            await self._fake.emit(self._last_mail)
        await self._calm()
        suppressed = session.statistics().duplicates - before
        self._timeline.note("stream", f"duplicates suppressed: {suppressed}")
        self._timeline.note("demo", "an event of a type that nobody knows yet, and a frame that is no JSON")
        await self._fake.send_raw('{"type": "event", "event_type": "message.teleported", "event_id": "e1"}')
        await self._fake.send_raw("\x1b[2J{")
        self.record.oddities += 2
        await self._calm()

    async def _listen_to_more(self, session: AgentMailSession) -> None:
        self._timeline.note("demo", f"session.subscribe(): listen to {SECOND_INBOX} as well; the last mail comes again")
        before = session.statistics().duplicates
        self._fake.push_before_confirming(self._last_mail)
        self.record.replacements += 1
        await session.subscribe(Subscribe(inbox_ids=[INBOX, SECOND_INBOX]))
        self._inboxes.append(SECOND_INBOX)
        await self._calm()
        suppressed = session.statistics().duplicates - before
        self._timeline.note("stream", f"two connections overlapped, duplicates suppressed: {suppressed}")
