"""`trio-agentmail demo`: a real stream to a fake AgentMail on this machine, broken while mail goes on.

Nothing is lost by that: what was not pushed is found through the REST API of the same fake.

Three tasks: one has mail delivered, one takes what comes out of the stream, and the story breaks the connection. Each
writes down what it did and saw, in a `Record`. When the story is over, `_verdict` compares.
"""

from collections.abc import Awaitable, Callable

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._nursery import background_nursery
from trio_agentmail._session import AgentMailSession
from trio_agentmail._settings import AgentMailEnvironment, ReconnectPolicy, Recovery, Subscribe
from trio_agentmail._stream import open_agentmail_session
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    Subscribed,
)
from trio_agentmail.testing import FakeAgentMail

from ._output import Output
from ._signals import interruptible
from ._timeline import Timeline
from ._verdict import Record, judge, mail_number, number_of, summary

__all__ = ["demo", "perform"]

API_KEY = "am_demo"
INBOX = "agent@demo.example"
SECOND_INBOX = "sales@demo.example"

MAIL_INTERVAL = 0.06
CALM = 0.7
"""Seconds of undisturbed mail after each trouble."""
SETTLE = 10.0
"""Seconds that what is still under way at the end may take, on a slow machine."""
TIME_LIMIT = 120.0
"""Seconds, where it usually takes fifteen: for what never comes, and not for what is slow."""

SWEEP_INTERVAL = 1.5
SWALLOWED = 3
"""How many mails are not pushed, on a connection that is well."""

PING_INTERVAL = 0.7
PING_TIMEOUT = 2.0
RETRY_AFTER = 1
"""Seconds, of a WebSocket and of the REST API."""
MAX_MESSAGE_SIZE = 50_000


async def demo(output: Output) -> bool:
    """Perform on a loopback port; return whether the promises held.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM; nothing has been shown then.
        OutputClosed: Nobody reads any more.
        OSError: There is no loopback port to be had.
    """
    fake = FakeAgentMail(api_keys=[API_KEY])
    async with interruptible(), fake.serve() as environment:
        return await perform(output, fake, environment)


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
                recovery=Recovery(sweep_interval=SWEEP_INTERVAL),
                backend=backend,
            ) as session:
                await story.run(session)
            with trio.move_on_after(SETTLE):
                await fake.wait_connected(0)
            story.record.goodbye = [None, *fake.close_codes][-1]
            timeline.note("stream", f"left: the WebSocket was closed with code {story.record.goodbye}")
        promises = judge(story.record)
        held = all(kept for _, kept in promises)
        timeline.verdict(promises, summary(story.record, held=held))
        await printed.wait()
    return held


class Story:
    """What happens: `run` breaks the connection, while `_send_mail` and `_receive` go on."""

    def __init__(self, fake: FakeAgentMail, timeline: Timeline) -> None:
        self.record = Record()
        self._fake = fake
        self._timeline = timeline
        self._inboxes = [INBOX]
        self._to_swallow = 0
        self._to_hold = 0
        self._held: list[MessageReceivedEvent] = []
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
            await self._swallow_pushes()
            await self._break_connection(
                f"the server goes away: close code 1001; and its REST API answers 500, then 429 with Retry-After: "
                f"{RETRY_AFTER}",
                1001,
                self._go_away,
            )
            self._judge_patience_of_requests()
            await self._listen_to_more(session)
            await self._break_connection("the server falls silent, and leaves the connection open", 1006, self._silence)
            await self._hold_a_mail()
            await self._break_connection(
                f"the server restarts: close code 1012, then HTTP 503 with Retry-After: {RETRY_AFTER}; meanwhile the "
                "held mail is released",
                1012,
                self._restart,
            )
            await self._break_connection(
                f"a frame of more than the {MAX_MESSAGE_SIZE} characters that we take", 1009, self._push_too_much
            )
            sending.cancel()
            with trio.move_on_after(SETTLE):
                await self._until(lambda: not self.record.lost)
            self.record.finished = True

    async def _send_mail(self, sending: trio.CancelScope) -> None:
        number = 0
        with sending:
            while True:
                number += 1
                inbox_id = self._inboxes[number % len(self._inboxes)]
                swallow, self._to_swallow = self._to_swallow > 0, max(self._to_swallow - 1, 0)
                hold, self._to_hold = self._to_hold > 0, max(self._to_hold - 1, 0)
                if swallow:
                    self._fake.swallow_pushes()
                self.record.sent[number] = self._fake.subscribed > 0 and not swallow and not hold
                mail = await self._fake.deliver(
                    inbox_id=inbox_id,
                    subject=f"Mail number {number}",
                    message_id=f"<{number}@demo.example>",
                    held=hold,
                )
                if hold:
                    self._held.append(mail)
                else:
                    self._last_mail = mail
                await trio.sleep(MAIL_INTERVAL)

    async def _receive(self, session: AgentMailSession) -> None:
        lost_at = 0.0
        async for event in session.events:
            match event:
                case MessageReceivedEvent():
                    self._timeline.mail(mail_number(event), event.origin)
                case Disconnected():
                    lost_at = trio.current_time()
                    self._timeline.note("lost", f"the subscription: {event.reason} (code {event.code})")
                case Subscribed():
                    is_again = self.record.reconnected < len(self.record.gaps)
                    after = f" again, after {trio.current_time() - lost_at:.2f} s" if is_again else ""
                    self._timeline.note("stream", f"subscribed{after}: {', '.join(event.inbox_ids or ())}")
                case CaughtUp():
                    self._timeline.note(
                        "stream",
                        f"CaughtUp: {event.recovered} recovered, {event.known} known before, {event.held} held; "
                        f"{event.requests} requests",
                    )
                case MessageSecurityReviewEvent(message=message):
                    self._timeline.note("stream", f"{event.event_type}: mail {number_of(message.message_id or '')}")
                case _:
                    self._timeline.note("stream", f"{type(event).__name__}: {getattr(event, 'reason', '')}")
            self.record.seen.append(event)
            self._something_came.set()
            self._something_came = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._something_came.wait()

    async def _calm(self) -> None:
        await trio.sleep(CALM)

    async def _break_connection(self, what: str, code: int, how: Callable[[], Awaitable[None]]) -> None:
        self._timeline.note("demo", what)
        self.record.broken_with.append(code)
        await how()
        await self._until(lambda: self.record.mended)
        await self._calm()

    async def _silence(self) -> None:
        self._fake.go_silent()

    async def _go_away(self) -> None:
        self._fake.fail_requests(500)
        self._fake.fail_requests(429, headers=[("Retry-After", str(RETRY_AFTER))])
        await self._fake.drop_connections(1001)

    def _judge_patience_of_requests(self) -> None:
        requests = self._fake.requests
        [refused] = [index for index, request in enumerate(requests) if request.status == 429]
        self._note_patience("asked", requests[refused + 1].at - requests[refused].at, "429")

    async def _restart(self) -> None:
        self._fake.reject_handshakes(503, headers=[("Retry-After", str(RETRY_AFTER))])
        rejected = len(self._fake.handshakes)
        await self._fake.drop_connections(1012, "restarting")
        for mail in self._held:
            self.record.released[mail_number(mail)] = len(self.record.seen)
            await self._fake.release(mail.message.inbox_id, mail.message.message_id)
        await self._until(lambda: len(self._fake.handshakes) > rejected + 1)
        handshakes = self._fake.handshakes
        self._note_patience("tried", handshakes[rejected + 1].at - handshakes[rejected].at, "503")

    def _note_patience(self, did: str, waited: float, status: str) -> None:
        self.record.patient.append(waited >= RETRY_AFTER)
        self._timeline.note("stream", f"{did} again {waited:.2f} s after the {status}")

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

    async def _swallow_pushes(self) -> None:
        swallowed = range(len(self.record.sent) + 1, len(self.record.sent) + 1 + SWALLOWED)
        self._timeline.note(
            "demo",
            f"the pushes of mail {swallowed[0]} to {swallowed[-1]} are swallowed, on a connection that is well: only a "
            f"sweep can tell, and there is one every {SWEEP_INTERVAL} s",
        )
        self._to_swallow = SWALLOWED
        await self._until(lambda: self.record.recovered.issuperset(swallowed))
        await self._calm()

    async def _hold_a_mail(self) -> None:
        self._timeline.note(
            "demo", f"mail {len(self.record.sent) + 1} is held for review: listed, and not to be handed out"
        )
        self._to_hold = 1
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
