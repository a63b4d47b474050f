"""The table of faults.

Each fault is a method of `Faults`. Everything else follows from it, with its name: chaos, the control API of the
emulator, the command `trio-agentmail fault` with its help and completion, the texts of `explain`, and the lists in the
documentation, which a test compares with this table. So a new fault is one method here, and nothing elsewhere in the
package:

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.repeat_letters(draw.randint(1, 3)))
    def repeat_letters(self, letters: Annotated[int, Whole("a number", 1, 1000)], times: Times = 1) -> PushFault:
        \"""Push the next event with each letter repeated.\"""
        return PushFault(on_push=lambda text, push_now: push_now(text, …))

- The decorator says what the fault is for, and how chaos has it strike, if chaos does.
- A parameter with `Annotated` metadata can be given over the control API and on the command line as well. If a required
  parameter has none, the fault is for Python only.
- The method of a `queued` fault checks its arguments and returns the hooks that the wire calls: see `_wire/hooks.py`.
  An `immediate` one acts at once.

This module is longer than others so that the table is in one place.
"""

import errno
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Annotated, Any, NoReturn, TypeAlias

import attrs
import httpx2
import trio

from trio_agentmail.events import Event
from trio_agentmail.testing._agentmail.refusals import error_body
from trio_agentmail.testing._checks import (
    check_bytes,
    check_close,
    check_response,
    check_seconds,
    check_text,
    check_whole,
)
from trio_agentmail.testing._encode import encode_event
from trio_agentmail.testing._log import Log
from trio_agentmail.testing._wire.connection import Connection, cut
from trio_agentmail.testing._wire.connections import Connections
from trio_agentmail.testing._wire.handshake import Rejection
from trio_agentmail.testing._wire.hooks import ConnectionFault, PendingFaults, PushFault, PushNow, RequestFault
from trio_agentmail.testing._wire.http_server import NoAnswer
from trio_agentmail.testing._wire.subscriptions import error_frame
from trio_agentmail.testing._wire.tasks import fake_tasks

from .arguments import CloseCode, FaultNames, Number, Seconds, Seed, Text, Times, Whole
from .chaos import strike
from .entry import Kind, immediate, queued, short, table_of

__all__ = ["CHAOS", "FAULTS", "GARBAGE", "Faults"]

GARBAGE = b"\xff" * 16
"""Bytes that are neither a WebSocket frame nor the beginning of one."""

CLOSE_CODES_OF_CHAOS = (1000, 1001, 1008, 1011, 1012, 1013, 4000)
STATUSES_OF_CHAOS = (408, 429, 500, 502, 503)

MAX_CLOSE_REASON = 123
"""Bytes: a control frame has at most 125, and the code takes two."""

CloseReason: TypeAlias = Annotated[str, Text("The reason in the close frame.", MAX_CLOSE_REASON)]
RetryAfter: TypeAlias = Annotated[
    int | None, Whole("a number of seconds", 0, 10**6, "The seconds in the response's Retry-After.")
]
Path: TypeAlias = Annotated[str | None, Text("Only requests whose path contains this.")]
Headers: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
Answer: TypeAlias = Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]


async def reset(_: httpx2.Request) -> NoAnswer:
    return NoAnswer.RESET


async def hang(_: httpx2.Request) -> NoAnswer:
    return NoAnswer.HANG


def failing(error: Exception) -> ConnectionFault:
    async def fail() -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise error.with_traceback(None)  # or it would grow by each connection that it fails

    return ConnectionFault(on_connecting=fail)


def refused() -> ConnectionFault:
    return failing(ConnectionRefusedError(errno.ECONNREFUSED, "refused by FakeAgentMail"))


def response_headers(
    status: int, headers: Headers, body: bytes | None, retry_after: int | None
) -> tuple[tuple[str, str], ...]:
    """Check a response, and return its headers."""
    if retry_after is not None:
        check_whole("retry_after", retry_after, 0)
    pairs = check_response(status, headers, body or b"")
    return pairs if retry_after is None else (*pairs, ("Retry-After", str(retry_after)))


def request_fault(
    on_request: Callable[[httpx2.Request], Awaitable[httpx2.Response | NoAnswer]], path: str | None
) -> RequestFault:
    check_text("path", path)
    return RequestFault(on_request=on_request, path=path)


async def slow_down_for_a_while(faults: "Faults", draw: Random) -> None:
    faults.slow_down(draw.uniform(20, 2000))
    await trio.sleep(draw.uniform(1, 60))
    faults.slow_down(None)


async def outage_for_a_while(faults: "Faults", draw: Random) -> None:
    async with faults.outage():
        await trio.sleep(draw.uniform(1, 600))


class Faults:
    """What can go wrong, each a method: `fake.faults.reject_handshakes(503)`.

    A fault of connections, pushes or requests is asked for before what it is for. Each new connection, push or request
    takes the next fault of its kind, in the order in which the test asked for them. `times` says how many of them the
    fault is for; `None`: all that follow, until `clear()`. An argument that makes no sense is a TypeError or a
    ValueError at once.
    """

    def __init__(self, pending_faults: PendingFaults, connections: Connections, log: Log) -> None:
        self._pending = pending_faults
        self._connections = connections
        self._log = log

    def clear(self) -> None:
        """End all faults that are still to come, `slow_down` and `delay_pongs`.

        What `reorder_pushes` keeps back is pushed now, and what `delay_pushes` keeps back comes when it is due. A
        silent connection stays silent.
        """
        self._pending.connections.clear()
        for fault in self._pending.pushes.clear():
            fault.on_clear(self._connections.push)
        self._pending.requests.clear()
        self.slow_down(None)
        self.delay_pongs(0)

    # The WebSockets that are open

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.drop_connections())
    async def drop_connections(self) -> None:
        """Cut the WebSockets that are open, without a close frame.

        On return they have ended. A client has five seconds to take what was pushed to it before.
        """
        await self._connections.cut()

    @immediate(
        Kind.PRESENT, chaos=lambda faults, draw: faults.close_connections(draw.choice(CLOSE_CODES_OF_CHAOS), "chaos")
    )
    async def close_connections(self, code: Annotated[int, CloseCode()] = 1001, reason: CloseReason = "") -> None:
        """Close the WebSockets that are open with a code.

        On return the close frame is on its way, after what was pushed before. A client that does not answer it within
        five seconds is cut.
        """
        check_close(code, reason)
        await self._connections.close(code, reason)

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.silence_connections())
    def silence_connections(self) -> None:
        """Leave the WebSockets that are open half-open: they neither read nor write any more.

        Nothing comes on them: no event, no pong, no close frame.
        """
        for connection in self._connections:
            connection.fall_silent()
            self._log.note(f"{connection}: silent from now on")

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.send_bytes())
    async def send_bytes(self, data: bytes = GARBAGE) -> None:
        """Send bytes that are not a frame on the WebSockets that are open, after what was pushed before.

        Args:
            data: Other bytes: a frame, like the ping `b"\\x89\\x00"`, or a part of one. What is sent after a part
                follows it immediately, whatever it is.
        """
        check_bytes("data", data)
        for connection in self._connections:
            connection.send_bytes(data)
        self._log.note(f"the bytes {data[:20]!r}: sent to {self._connections}")
        await trio.lowlevel.checkpoint()

    # Connections to come

    @queued(Kind.CONNECTION, chaos=lambda faults, draw: faults.refuse_connections(draw.randint(1, 5)))
    def refuse_connections(self, times: Times = 1) -> ConnectionFault:
        """Refuse the next connection for a WebSocket: `ConnectionRefusedError`.

        On a port it is accepted, and reset at once.
        """
        return refused()

    @queued(Kind.CONNECTION)
    def fail_connections(self, error: Exception, times: Times = 1) -> ConnectionFault:
        """Fail the next connection for a WebSocket with an exception, for example `socket.gaierror(-2, "unknown
        name")`.

        On a port it is accepted, and reset at once.
        """
        if not isinstance(error, Exception):
            raise TypeError(f"error is an exception, not {error!r}")
        return failing(error)

    @queued(Kind.CONNECTION)
    def delay_connections(self, seconds: Seconds, times: Times = 1) -> ConnectionFault:
        """Make the next connection for a WebSocket take this long.

        Args:
            seconds: `math.inf`: it is never made.
        """
        check_seconds("seconds", seconds, or_forever=True)
        return ConnectionFault(on_connecting=partial(trio.sleep, seconds))

    @queued(Kind.CONNECTION)
    def answer_connections(self, data: bytes, times: Times = 1) -> ConnectionFault:
        """Send these bytes on the next connection for a WebSocket, and hang up, as a server of another protocol."""
        check_bytes("data", data)
        return ConnectionFault(on_stream=lambda stream: stream.send_all(data))

    @queued(Kind.CONNECTION, chaos=lambda faults, _: faults.hang_handshakes())
    def hang_handshakes(self, times: Times = 1) -> ConnectionFault:
        """Never answer the next request for a WebSocket."""
        return ConnectionFault(on_handshake=trio.sleep_forever)

    @queued(
        Kind.CONNECTION,
        chaos=lambda faults, draw: faults.reject_handshakes(
            draw.choice(STATUSES_OF_CHAOS),
            retry_after=draw.choice([None, draw.randint(1, 60)]),
            times=draw.randint(1, 3),
        ),
    )
    def reject_handshakes(
        self,
        status: Annotated[int, Whole("an HTTP status that refuses,", 300, 599)],
        *,
        headers: Headers = (),
        body: bytes | None = None,
        retry_after: RetryAfter = None,
        times: Times = 1,
    ) -> ConnectionFault:
        """Answer the next request for a WebSocket with an HTTP status.

        Args:
            status: From 200 to 999.
            body: `None`: the JSON of AgentMail's errors, from 400 on.
            retry_after: Seconds, for a header `Retry-After`.
        """
        pairs = response_headers(status, headers, body, retry_after)
        rejection = Rejection(status, pairs, error_body(status) if body is None else body)

        async def reject() -> Rejection:
            return rejection

        return ConnectionFault(on_handshake=reject)

    @queued(Kind.CONNECTION, chaos=lambda faults, _: faults.withhold_confirmations())
    def withhold_confirmations(self, times: Times = 1) -> ConnectionFault:
        """Never confirm the next connection's subscriptions, and push nothing to it."""

        async def withhold(_: Connection, confirm: Callable[[], None]) -> None:
            pass

        return ConnectionFault(on_subscription=withhold)

    @queued(Kind.CONNECTION)
    def refuse_subscriptions(
        self,
        name: Annotated[str, Text("The name of the error.")],
        message: Annotated[str, Text("The message of the error.")],
        times: Times = 1,
    ) -> ConnectionFault:
        """Answer the next connection's subscriptions with an `error` frame."""
        check_text("name", name, or_none=False)
        check_text("message", message, or_none=False)

        async def refuse(connection: Connection, confirm: Callable[[], None]) -> None:
            connection.push(error_frame(name, message))

        return ConnectionFault(on_subscription=refuse)

    @queued(Kind.CONNECTION)
    def close_instead_of_confirming(
        self, code: Annotated[int, CloseCode()], reason: CloseReason = "", times: Times = 1
    ) -> ConnectionFault:
        """Answer the next connection's subscriptions with a close frame."""
        check_close(code, reason)

        async def close(connection: Connection, confirm: Callable[[], None]) -> None:
            connection.close(code, reason)

        return ConnectionFault(on_subscription=close)

    @queued(Kind.CONNECTION)
    def push_before_confirming(self, *events_or_frames: Event | str | bytes, times: Times = 1) -> ConnectionFault:
        """Push these events, or frames as they are, on the next connection before its subscriptions are confirmed.

        Raises:
            TypeError: An event has no wire form.
        """
        frames = [item if isinstance(item, str | bytes) else encode_event(item) for item in events_or_frames]

        async def push(connection: Connection, confirm: Callable[[], None]) -> None:
            for frame in frames:
                connection.push(frame)
            confirm()

        return ConnectionFault(on_subscription=push)

    @queued(Kind.CONNECTION, chaos=lambda faults, draw: faults.drop_after_confirming(draw.randint(1, 3)))
    def drop_after_confirming(self, times: Times = 1) -> ConnectionFault:
        """Cut the next connection as soon as its subscription is confirmed."""

        async def drop(connection: Connection, confirm: Callable[[], None]) -> None:
            confirm()
            await cut([connection])

        return ConnectionFault(on_subscription=drop)

    # Pushes to come

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.swallow_pushes(draw.randint(1, 3)))
    def swallow_pushes(self, times: Times = 1) -> PushFault:
        """Do not push the next event; the REST API has the mail all the same."""
        return PushFault(on_push=lambda text, push_now: None)

    @queued(Kind.PUSH, chaos=lambda faults, _: faults.corrupt_pushes())
    def corrupt_pushes(self, times: Times = 1) -> PushFault:
        """Push only the first half of the next event's text, which is not JSON."""
        return PushFault(on_push=lambda text, push_now: push_now(text, text[: len(text) // 2]))

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.duplicate_pushes(draw.randint(1, 3)))
    def duplicate_pushes(
        self,
        times: Times = 1,
        copies: Annotated[int, Whole("a number", 1, 1000, "How often it is pushed again.")] = 1,
    ) -> PushFault:
        """Push the next event more than once.

        Args:
            copies: How often it is pushed again.
        """
        check_whole("copies", copies, 1)

        def push_again(text: str, push_now: PushNow) -> None:
            for _ in range(1 + copies):
                push_now(text)

        return PushFault(on_push=push_again)

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.delay_pushes(draw.uniform(1, 120), draw.randint(1, 3)))
    def delay_pushes(self, seconds: Seconds, times: Times = 1) -> PushFault:
        """Push the next event this many seconds later, to the connections that are open then.

        Events that come after it overtake it.
        """
        check_seconds("seconds", seconds)

        async def push_later(text: str, push_now: PushNow) -> None:
            await trio.sleep(seconds)
            push_now(text)

        def begin_to_wait(text: str, push_now: PushNow) -> None:
            # Not in the nursery of a connection, which may have ended by then.
            trio.lowlevel.spawn_system_task(push_later, text, push_now)

        return PushFault(on_push=begin_to_wait)

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.reorder_pushes(draw.randint(2, 4)))
    def reorder_pushes(self, times: Annotated[int, Whole("a number", 2, 1000)]) -> PushFault:
        """Keep back this many events, and then push the last one first."""
        check_whole("times", times, 1)
        kept_back: list[str] = []

        def push_kept_back(push_now: PushNow) -> None:
            while kept_back:
                push_now(kept_back.pop())

        def keep_back(text: str, push_now: PushNow) -> None:
            kept_back.append(text)
            if len(kept_back) == times:
                push_kept_back(push_now)

        return PushFault(on_push=keep_back, on_clear=push_kept_back)

    # Requests to come

    @queued(
        Kind.REQUEST,
        chaos=lambda faults, draw: faults.fail_requests(draw.choice(STATUSES_OF_CHAOS), times=draw.randint(1, 3)),
    )
    def fail_requests(
        self,
        status: Annotated[int, Whole("an HTTP status", 200, 599)],
        *,
        headers: Headers = (),
        body: bytes | None = None,
        retry_after: RetryAfter = None,
        times: Times = 1,
        path: Path = None,
    ) -> RequestFault:
        """Answer the next REST request with an HTTP status.

        Args:
            status: From 200 to 999.
            body: `None`: the JSON of AgentMail's errors, from 400 on.
            retry_after: Seconds, for a header `Retry-After`.
            path: Only requests whose path, without its percent-encoding, contains this.
        """
        all_headers = httpx2.Headers(response_headers(status, headers, body, retry_after))
        content = error_body(status) if body is None else body
        if body is None and content:
            all_headers.setdefault("Content-Type", "application/json")

        async def fail(_: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(status, headers=all_headers, content=content)

        return request_fault(fail, path)

    @queued(Kind.REQUEST)
    def answer_requests(self, answer: Answer, times: Times = 1, path: Path = None) -> RequestFault:
        """Answer the next REST request by a function.

        Args:
            answer: A function, async or not, that takes the `httpx2.Request`, read to its end, and returns an
                `httpx2.Response`. An async one may take its time. In memory the client gets what it raises, and a
                client of httpx gets an `httpx2.RequestError` as the error of that name of httpx. On a port such an
                error resets the connection. The fake adds a `Date` if the response has none.
            path: Only requests whose path, without its percent-encoding, contains this.

        Raises:
            TypeError: `answer` is not a function. If it returns something else than an `httpx2.Response`, the request
                ends with a TypeError.
        """
        if not callable(answer):
            raise TypeError(f"answer is a function of an httpx2.Request, not {answer!r}")

        async def respond(request: httpx2.Request) -> httpx2.Response:
            returned: object = answer(request)
            response = await returned if inspect.isawaitable(returned) else returned
            if not isinstance(response, httpx2.Response):
                kind = type(response)
                name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
                raise TypeError(
                    f"answer_requests({short(answer)}): the function must return an httpx2.Response, not {name}"
                )
            return response

        return request_fault(respond, path)

    @queued(Kind.REQUEST, chaos=lambda faults, _: faults.hang_requests())
    def hang_requests(self, times: Times = 1, path: Path = None) -> RequestFault:
        """Never answer the next REST request.

        Args:
            path: Only requests whose path, without its percent-encoding, contains this.
        """
        return request_fault(hang, path)

    @queued(Kind.REQUEST, chaos=lambda faults, draw: faults.break_requests(draw.randint(1, 3)))
    def break_requests(self, times: Times = 1, path: Path = None) -> RequestFault:
        """Read the next REST request, and reset its connection: a `ReadError`.

        Args:
            path: Only requests whose path, without its percent-encoding, contains this.
        """
        return request_fault(reset, path)

    # Everything

    @immediate(Kind.STATE, chaos=slow_down_for_a_while)
    def slow_down(
        self, bytes_per_second: Annotated[float | None, Whole("a number of bytes in a second", 1, 10**9)]
    ) -> None:
        """Limit the rate at which each WebSocket sends, until the faults are cleared.

        Args:
            bytes_per_second: `None`: no limit.

        Raises:
            ValueError: It is infinite, or not more than 0.
        """
        if bytes_per_second is not None and not 0 < bytes_per_second < math.inf:
            raise ValueError(f"bytes_per_second is more than 0, or None, not {bytes_per_second!r}")
        if bytes_per_second != self._pending.bytes_per_second:
            slow = bytes_per_second is not None
            rate = f"{bytes_per_second:g} bytes a second" if slow else "as fast as it goes"
            self._log.note(f"{rate} from now on")
        self._pending.bytes_per_second = bytes_per_second

    @immediate(Kind.STATE)
    def delay_pongs(self, seconds: Seconds) -> None:
        """Answer pings this many seconds late, until the faults are cleared.

        Events are pushed meanwhile as usual.

        Args:
            seconds: `math.inf`: pings are never answered; 0: at once, as by default.
        """
        check_seconds("seconds", seconds, or_forever=True)
        self._pending.pong_delay = seconds

    @immediate(Kind.BLOCK, chaos=outage_for_a_while)
    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Take AgentMail away for a while: WebSockets are cut, new ones refused, and REST requests broken off.

        Mail that comes meanwhile is kept, and not pushed.
        """
        refuse = attrs.evolve(refused(), asked_for="outage()")
        break_off = RequestFault(on_request=reset, asked_for="outage()")
        with self._pending.connections.override(refuse), self._pending.requests.override(break_off):
            self._log.note("an outage begins")
            try:
                await self.drop_connections()
                yield
            finally:
                self._log.note("an outage ends")

    @immediate(Kind.BLOCK)
    @asynccontextmanager
    async def chaos(
        self,
        seed: Annotated[int, Seed()],
        *,
        every: Annotated[float, Number("a number of seconds", 0.01, 10**6, "The mean time between two faults.")] = 60.0,
        faults: Annotated[Collection[str] | None, FaultNames(lambda: CHAOS)] = None,
    ) -> AsyncIterator[list[tuple[float, str]]]:
        """Have faults strike now and then, as a seed decides.

        At the end of the block all faults are cleared.

        Args:
            seed: Which faults strike, and when, is drawn from it. The same seed gives the same faults at the same
                times.
            every: Seconds between two faults, in the mean.
            faults: The names of the faults to draw from; `None`: all that chaos has.

        Yields:
            The faults that have struck so far, each as the seconds since the beginning of the block and its name.

        Raises:
            ValueError: Chaos has no such fault, or `every` is not more than 0.
        """
        if isinstance(faults, str):
            faults = {faults}
        check_seconds("every", every)
        if not every:
            raise ValueError("every is more than 0 seconds")
        names = sorted(CHAOS if faults is None else set(faults))
        if not names or not CHAOS.keys() >= set(names):
            raise ValueError(f"faults are some of {', '.join(CHAOS)}, not {', '.join(names) or 'none'}")
        happened: list[tuple[float, str]] = []
        self._log.note(f"chaos begins, with the seed {seed}")
        try:
            async with fake_tasks() as spawn:
                spawn(strike, Random(seed), every, names, self._strike, spawn, happened)
                yield happened
        finally:
            self.clear()
            self._log.note("chaos ends")

    async def _strike(self, name: str, draw: Random) -> None:
        self._log.note(f"chaos: {name}")
        struck = CHAOS[name](self, draw)
        if inspect.isawaitable(struck):
            await struck
        if FAULTS[name].kind is Kind.CONNECTION:
            await self.drop_connections()  # or the next connection might not come for long


FAULTS = table_of(Faults)
"""All faults by their names."""

CHAOS: dict[str, Callable[[Any, Random], Any]] = {
    name: entry.chaos for name, entry in FAULTS.items() if entry.chaos is not None
}
"""The faults that chaos draws from, and how it has each strike."""
