"""`trio-agentmail demo`: a real stream to a fake AgentMail on this machine, broken while mail keeps arriving.

No mail is lost: recovery finds mail that was not pushed, through the REST API of the same fake.

One task sends mail, one receives the events of the stream, and the story breaks the connection. All three write into an
`OutageRecord`, which `outages_verdict` judges at the end.
"""

from collections.abc import Awaitable, Callable

import trio

from trio_agentmail._backend import Backend
from trio_agentmail._nursery import background_nursery
from trio_agentmail._session import AgentMailSession
from trio_agentmail._settings import AgentMailEnvironment, ReconnectPolicy, Recovery, Subscribe
from trio_agentmail._stream import open_agentmail_session
from trio_agentmail.cli._output import Output
from trio_agentmail.cli._signals import interruptible
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    MessageReceivedEvent,
    MessageSecurityReviewEvent,
    Subscribed,
)
from trio_agentmail.testing import FakeAgentMail

from .mail_numbers import mail_number, number_of
from .outages_verdict import OutageRecord, judge, summary
from .timeline import Timeline

__all__ = ["outage_demo", "perform"]

API_KEY = "am_demo"
INBOX = "agent@demo.example"
SECOND_INBOX = "sales@demo.example"

MAIL_INTERVAL = 0.06
CALM = 0.7
"""Seconds of undisturbed mail after each step of the story."""
SETTLE = 10.0
"""The maximum time to wait at the end for missing mail, in seconds, for slow machines."""
TIME_LIMIT = 120.0
"""The time limit in seconds, for a demo that hangs. A demo usually takes fifteen seconds."""

SWEEP_INTERVAL = 1.5
SWALLOWED = 3
"""The number of mails that are not pushed on a healthy connection."""

PING_INTERVAL = 0.7
PING_TIMEOUT = 2.0
RETRY_AFTER = 1
"""The `Retry-After` of the responses to a WebSocket handshake and to a REST request, in seconds."""
MAX_MESSAGE_SIZE = 50_000


async def outage_demo(output: Output) -> bool:
    """Run the demo on loopback ports, and return whether all promises were kept.

    Raises:
        Interrupted: SIGINT or SIGTERM came before the end. The demo has shown nothing.
        OutputClosed: The reader of the output has gone.
        OSError: A port cannot be opened.
    """
    fake = FakeAgentMail(api_keys=[API_KEY])
    async with interruptible(), fake.serve() as environment:
        return await perform(output, fake, environment)


async def perform(
    output: Output, fake: FakeAgentMail, environment: AgentMailEnvironment, backend: Backend | None = None
) -> bool:
    """Run the demo against this fake, and return whether all promises were kept."""
    timeline = Timeline()
    story = Story(fake, timeline)
    async with background_nursery() as nursery:
        printed = trio.Event()
        nursery.start_soon(timeline.print_to, output, printed)
        timeline.note("demo", f"our own AgentMail listens on {environment.websockets}")
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
            story.record.goodbye = [None, *fake.record.close_codes][-1]
            timeline.note("stream", f"closed the WebSocket with code {story.record.goodbye}")
        promises = judge(story.record)
        all_kept = all(kept for _, kept in promises)
        timeline.verdict(promises, summary(story.record, kept=all_kept))
        await printed.wait()
    return all_kept


class Story:
    """The course of events: `run` breaks the connection while `_send_mail` and `_receive` continue."""

    def __init__(self, fake: FakeAgentMail, timeline: Timeline) -> None:
        self.record = OutageRecord()
        self._fake = fake
        self._timeline = timeline
        self._inboxes = [INBOX]
        self._to_swallow = 0
        self._to_hold = 0
        self._held: list[MessageReceivedEvent] = []
        self._last_mail: MessageReceivedEvent
        self._changed = trio.Event()

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
                f"the server goes away: close code 1001; its REST API answers 500, then 429 with Retry-After: "
                f"{RETRY_AFTER}",
                1001,
                self._go_away,
            )
            self._check_retry_after_of_requests()
            await self._listen_to_more(session)
            await self._break_connection("the server falls silent, on an open connection", 1006, self._silence)
            await self._hold_a_mail()
            await self._break_connection(
                f"the server restarts: close code 1012, then HTTP 503 with Retry-After: {RETRY_AFTER}; meanwhile the "
                "held mail is released",
                1012,
                self._restart,
            )
            await self._break_connection(
                f"a frame of more than {MAX_MESSAGE_SIZE} characters, the limit",
                1009,
                self._push_large_frame,
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
                    self._fake.faults.swallow_pushes()
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
            self._changed.set()
            self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def _calm(self) -> None:
        await trio.sleep(CALM)

    async def _break_connection(self, what: str, code: int, how: Callable[[], Awaitable[None]]) -> None:
        self._timeline.note("demo", what)
        self.record.broken_with.append(code)
        await how()
        await self._until(lambda: self.record.mended)
        await self._calm()

    async def _silence(self) -> None:
        self._fake.faults.silence_connections()

    async def _go_away(self) -> None:
        self._fake.faults.fail_requests(500)
        self._fake.faults.fail_requests(429, headers=[("Retry-After", str(RETRY_AFTER))])
        await self._fake.drop_connections(1001)

    def _check_retry_after_of_requests(self) -> None:
        requests = self._fake.record.requests
        [refused] = [index for index, request in enumerate(requests) if request.status == 429]
        self._note_patience("asked", requests[refused + 1].at - requests[refused].at, "429")

    async def _restart(self) -> None:
        self._fake.faults.reject_handshakes(503, headers=[("Retry-After", str(RETRY_AFTER))])
        rejected = len(self._fake.record.handshakes)
        await self._fake.drop_connections(1012, "restarting")
        for mail in self._held:
            self.record.released[mail_number(mail)] = len(self.record.seen)
            await self._fake.mail.release(mail.message.inbox_id, mail.message.message_id)
        await self._until(lambda: len(self._fake.record.handshakes) > rejected + 1)
        handshakes = self._fake.record.handshakes
        self._note_patience("tried", handshakes[rejected + 1].at - handshakes[rejected].at, "503")

    def _note_patience(self, did: str, waited: float, status: str) -> None:
        self.record.patient.append(waited >= RETRY_AFTER)
        self._timeline.note("stream", f"{did} again {waited:.2f} s after the {status}")

    async def _push_large_frame(self) -> None:
        await self._fake.send_raw("x" * (MAX_MESSAGE_SIZE + 1))

    async def _push_oddities(self, session: AgentMailSession) -> None:
        self._timeline.note("demo", "the last mail is pushed three more times")
        before = session.statistics().duplicates
        for _ in range(3):
            await self._fake.emit(self._last_mail)
        await self._calm()
        suppressed = session.statistics().duplicates - before
        self._timeline.note("stream", f"duplicates suppressed: {suppressed}")
        self._timeline.note("demo", "the server pushes an event of an unknown type, and a frame that is not JSON")
        await self._fake.send_raw('{"type": "event", "event_type": "message.teleported", "event_id": "e1"}')
        await self._fake.send_raw("\x1b[2J{")
        self.record.oddities += 2
        await self._calm()

    async def _swallow_pushes(self) -> None:
        swallowed = range(len(self.record.sent) + 1, len(self.record.sent) + 1 + SWALLOWED)
        self._timeline.note(
            "demo",
            f"the pushes of mail {swallowed[0]} to {swallowed[-1]} are swallowed on a healthy connection: only a sweep "
            f"can find them, and there is one every {SWEEP_INTERVAL} s",
        )
        self._to_swallow = SWALLOWED
        await self._until(lambda: self.record.recovered.issuperset(swallowed))
        await self._calm()

    async def _hold_a_mail(self) -> None:
        self._timeline.note(
            "demo",
            f"mail {len(self.record.sent) + 1} is held for review: the API lists it without its content",
        )
        self._to_hold = 1
        await self._calm()

    async def _listen_to_more(self, session: AgentMailSession) -> None:
        self._timeline.note("demo", f"session.subscribe() adds {SECOND_INBOX}; the last mail is pushed again")
        before = session.statistics().duplicates
        self._fake.faults.push_before_confirming(self._last_mail)
        self.record.replacements += 1
        await session.subscribe(Subscribe(inbox_ids=[INBOX, SECOND_INBOX]))
        self._inboxes.append(SECOND_INBOX)
        await self._calm()
        suppressed = session.statistics().duplicates - before
        self._timeline.note("stream", f"two connections overlapped, duplicates suppressed: {suppressed}")
