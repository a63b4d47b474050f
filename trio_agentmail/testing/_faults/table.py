"""The table of faults.

Each fault is a method of `Faults`. Chaos, the control API of the emulator, the command `trio-agentmail fault` with its
help and completion, and the texts of `explain` are all derived from these methods. A test compares the lists in the
documentation with this table. To add a fault, add a method here, and change nothing else in the package:

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.repeat_letters(draw.randint(1, 3)))
    def repeat_letters(self, letters: Annotated[int, Whole("a number", 1, 1000)], times: Times = 1) -> PushFault:
        \"""Push the next event with each letter repeated.\"""
        return PushFault(on_push=lambda text, push_now: push_now(text, …))

- The decorator says what the fault applies to. Its argument `chaos` is a function that causes the fault with random
  arguments; without it, chaos does not draw this fault.
- A parameter with `Annotated` metadata exists in the control API and on the command line, too. If a required parameter
  has none, the fault can be caused in Python only.
- The method of a `queued` fault checks its arguments and returns hooks, which the modules in `_wire` call: see
  `_wire/hooks.py`. The method of an `immediate` fault causes it.

This module is long because it keeps the whole table in one place.
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
from .chaos import cause_faults
from .entry import Kind, immediate, queued, short, table_of

__all__ = ["CHAOS", "FAULTS", "GARBAGE", "Faults"]

GARBAGE = b"\xff" * 16
"""Bytes that are neither a WebSocket frame nor the beginning of one."""

CLOSE_CODES_OF_CHAOS = (1000, 1001, 1008, 1011, 1012, 1013, 4000)
STATUSES_OF_CHAOS = (408, 429, 500, 502, 503)

MAX_CLOSE_REASON = 123
"""Maximum number of bytes. A control frame has at most 125, of which the code takes two."""

COPIES = Whole("a number", 1, 1000, "The number of additional pushes.")
"""They are pushed at once, without waiting for the client, so there is a limit in Python as well."""

CloseReason: TypeAlias = Annotated[str, Text("The reason in the close frame.", MAX_CLOSE_REASON)]
RetryAfter: TypeAlias = Annotated[
    int | None, Whole("a number of seconds", 0, 10**6, "The Retry-After header of the response, in seconds.")
]
Path: TypeAlias = Annotated[str | None, Text("Only requests whose path contains this string.")]
Headers: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
Answer: TypeAlias = Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]


async def reset(_: httpx2.Request) -> NoAnswer:
    return NoAnswer.RESET


async def hang(_: httpx2.Request) -> NoAnswer:
    return NoAnswer.HANG


def failing(error: Exception) -> ConnectionFault:
    async def fail() -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise error.with_traceback(None)  # otherwise its traceback would grow with each connection

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
    """The faults that a test can cause, each with a method: `fake.faults.reject_handshakes(503)`.

    Faults of connections, pushes and requests wait in queues. Each new connection, push or request takes the next fault
    from its queue. `times` is the number of connections, pushes or requests that a fault applies to; `None` means all
    until `clear()`. The methods raise TypeError or ValueError at once for invalid arguments.
    """

    def __init__(self, pending_faults: PendingFaults, connections: Connections, log: Log) -> None:
        self._pending = pending_faults
        self._connections = connections
        self._log = log

    def clear(self) -> None:
        """Remove all faults that are still to come, and end `slow_down` and `delay_pongs`.

        Events that `reorder_pushes` keeps back are pushed now. Events that `delay_pushes` delays are pushed when they
        are due. A silent connection stays silent.
        """
        self._pending.connections.clear()
        for fault in self._pending.pushes.clear():
            fault.on_clear(self._connections.push)
        self._pending.requests.clear()
        self.slow_down(None)
        self.delay_pongs(0)

    # Open WebSockets

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.drop_connections())
    async def drop_connections(self) -> None:
        """Cut the open WebSockets without a close frame.

        This returns when the connections have ended. A client has five seconds to read what was pushed to it before.
        """
        await self._connections.cut()

    @immediate(
        Kind.PRESENT, chaos=lambda faults, draw: faults.close_connections(draw.choice(CLOSE_CODES_OF_CHAOS), "chaos")
    )
    async def close_connections(self, code: Annotated[int, CloseCode()] = 1001, reason: CloseReason = "") -> None:
        """Close the open WebSockets with a close frame.

        This returns when the close frame is queued, after what was pushed before. A connection is cut if the client
        does not answer the close frame within five seconds.
        """
        check_close(code, reason)
        await self._connections.close(code, reason)

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.silence_connections())
    def silence_connections(self) -> None:
        """Make the open WebSockets silent: the fake stops reading and writing, and does not close them.

        They no longer send events, pongs or close frames.
        """
        for connection in self._connections:
            connection.fall_silent()
            self._log.note(f"{connection}: silent from now on")

    @immediate(Kind.PRESENT, chaos=lambda faults, _: faults.send_bytes())
    async def send_bytes(self, data: bytes = GARBAGE) -> None:
        """Send bytes that are not a WebSocket frame on the open WebSockets, after what was pushed before.

        Args:
            data: The bytes. They may also be a frame, such as the ping `b"\\x89\\x00"`, or a part of a frame. The next
                frame follows a part immediately.
        """
        check_bytes("data", data)
        for connection in self._connections:
            connection.send_bytes(data)
        self._log.note(f"the bytes {data[:20]!r}: sent to {self._connections}")
        await trio.lowlevel.checkpoint()

    # Future connections

    @queued(Kind.CONNECTION, chaos=lambda faults, draw: faults.refuse_connections(draw.randint(1, 5)))
    def refuse_connections(self, times: Times = 1) -> ConnectionFault:
        """Refuse the next WebSocket connection with a `ConnectionRefusedError`.

        On a port, the connection is accepted and reset at once.
        """
        return refused()

    @queued(Kind.CONNECTION)
    def fail_connections(self, error: Exception, times: Times = 1) -> ConnectionFault:
        """Fail the next WebSocket connection with an exception, for example `socket.gaierror(-2, "unknown name")`.

        On a port, the connection is accepted and reset at once.
        """
        if not isinstance(error, Exception):
            raise TypeError(f"error is an exception, not {error!r}")
        return failing(error)

    @queued(Kind.CONNECTION)
    def delay_connections(self, seconds: Seconds, times: Times = 1) -> ConnectionFault:
        """Delay the next WebSocket connection by this many seconds.

        Args:
            seconds: The delay. With `math.inf`, the connection is never made.
        """
        check_seconds("seconds", seconds, or_forever=True)
        return ConnectionFault(on_connecting=partial(trio.sleep, seconds))

    @queued(Kind.CONNECTION)
    def answer_connections(self, data: bytes, times: Times = 1) -> ConnectionFault:
        """Send these bytes on the next WebSocket connection, and close it, like a server of another protocol."""
        check_bytes("data", data)
        return ConnectionFault(on_stream=lambda stream: stream.send_all(data))

    @queued(Kind.CONNECTION, chaos=lambda faults, _: faults.hang_handshakes())
    def hang_handshakes(self, times: Times = 1) -> ConnectionFault:
        """Never answer the next WebSocket handshake."""
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
        """Answer the next WebSocket handshake with an HTTP status.

        Args:
            status: From 200 to 999.
            body: The body. By default, AgentMail's JSON for an error if the status is 400 or more.
            retry_after: The `Retry-After` header, in seconds.
        """
        pairs = response_headers(status, headers, body, retry_after)
        rejection = Rejection(status, pairs, error_body(status) if body is None else body)

        async def reject() -> Rejection:
            return rejection

        return ConnectionFault(on_handshake=reject)

    @queued(Kind.CONNECTION, chaos=lambda faults, _: faults.withhold_confirmations())
    def withhold_confirmations(self, times: Times = 1) -> ConnectionFault:
        """Never confirm the subscriptions of the next connection, and push nothing to it."""

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
        """Answer the subscriptions of the next connection with an `error` frame."""
        check_text("name", name, or_none=False)
        check_text("message", message, or_none=False)

        async def refuse(connection: Connection, confirm: Callable[[], None]) -> None:
            connection.push(error_frame(name, message))

        return ConnectionFault(on_subscription=refuse)

    @queued(Kind.CONNECTION)
    def close_instead_of_confirming(
        self, code: Annotated[int, CloseCode()], reason: CloseReason = "", times: Times = 1
    ) -> ConnectionFault:
        """Answer the subscriptions of the next connection with a close frame."""
        check_close(code, reason)

        async def close(connection: Connection, confirm: Callable[[], None]) -> None:
            connection.close(code, reason)

        return ConnectionFault(on_subscription=close)

    @queued(Kind.CONNECTION)
    def push_before_confirming(self, *events_or_frames: Event | str | bytes, times: Times = 1) -> ConnectionFault:
        """Push these events or raw frames on the next connection, before its subscriptions are confirmed.

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
        """Cut the next connection as soon as its subscription has been confirmed."""

        async def drop(connection: Connection, confirm: Callable[[], None]) -> None:
            confirm()
            await cut([connection])

        return ConnectionFault(on_subscription=drop)

    # Future pushes

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.swallow_pushes(draw.randint(1, 3)))
    def swallow_pushes(self, times: Times = 1) -> PushFault:
        """Do not push the next event; the REST API still has its mail."""
        return PushFault(on_push=lambda text, push_now: None)

    @queued(Kind.PUSH, chaos=lambda faults, _: faults.corrupt_pushes())
    def corrupt_pushes(self, times: Times = 1) -> PushFault:
        """Push only the first half of the next event's text, which is invalid JSON."""
        return PushFault(on_push=lambda text, push_now: push_now(text, text[: len(text) // 2]))

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.duplicate_pushes(draw.randint(1, 3)))
    def duplicate_pushes(self, times: Times = 1, copies: Annotated[int, COPIES] = 1) -> PushFault:
        """Push the next event more than once.

        Args:
            copies: The number of additional pushes, at most 1,000.
        """
        check_whole("copies", copies, COPIES.low, COPIES.high)

        def push_again(text: str, push_now: PushNow) -> None:
            for _ in range(1 + copies):
                push_now(text)

        return PushFault(on_push=push_again)

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.delay_pushes(draw.uniform(1, 120), draw.randint(1, 3)))
    def delay_pushes(self, seconds: Seconds, times: Times = 1) -> PushFault:
        """Push the next event this many seconds later, to the connections that are open then.

        Later events overtake it.
        """
        check_seconds("seconds", seconds)

        retired = self._pending.retired

        async def push_later(text: str, push_now: PushNow) -> None:
            # This task keeps the fake alive, so it must end with a fake that has been replaced.
            with trio.move_on_after(seconds) as delay:
                await retired.wait()
            if delay.cancelled_caught:
                push_now(text)

        def begin_to_wait(text: str, push_now: PushNow) -> None:
            # Not in the nursery of a connection, since the connection may end before the delay does.
            trio.lowlevel.spawn_system_task(push_later, text, push_now)

        return PushFault(on_push=begin_to_wait)

    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.reorder_pushes(draw.randint(2, 4)))
    def reorder_pushes(self, times: Annotated[int, Whole("a number", 2, 1000)]) -> PushFault:
        """Keep back the next events until there are this many, and then push them in reverse order."""
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

    # Future requests

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
            body: The body. By default, AgentMail's JSON for an error if the status is 400 or more.
            retry_after: The `Retry-After` header, in seconds.
            path: A string that the decoded path of the request must contain.
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
        """Answer the next REST request with the response that a function returns.

        Args:
            answer: A function, async or not, that takes the `httpx2.Request`, whose body has been read, and returns an
                `httpx2.Response`. An async function may block. In memory, the client gets the exceptions of the
                function; for a client of httpx, an `httpx2.RequestError` becomes the httpx exception of the same name.
                On a port, an `httpx2.RequestError` resets the connection. The fake adds a `Date` header if the response
                has none.
            path: A string that the decoded path of the request must contain.

        Raises:
            TypeError: `answer` is not a function. The request raises a TypeError if the function returns anything but a
                response.
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
            path: A string that the decoded path of the request must contain.
        """
        return request_fault(hang, path)

    @queued(Kind.REQUEST, chaos=lambda faults, draw: faults.break_requests(draw.randint(1, 3)))
    def break_requests(self, times: Times = 1, path: Path = None) -> RequestFault:
        """Read the next REST request, and reset its connection: the client gets a `ReadError`.

        Args:
            path: A string that the decoded path of the request must contain.
        """
        return request_fault(reset, path)

    # Everything

    @immediate(Kind.STATE, chaos=slow_down_for_a_while)
    def slow_down(
        self, bytes_per_second: Annotated[float | None, Whole("a number of bytes per second", 1, 10**9)]
    ) -> None:
        """Limit the rate at which each WebSocket sends, until the faults are cleared.

        Args:
            bytes_per_second: The rate, or `None` for no limit.

        Raises:
            ValueError: The rate is infinite, or not more than 0.
        """
        if bytes_per_second is not None and not 0 < bytes_per_second < math.inf:
            raise ValueError(f"bytes_per_second is more than 0, or None, not {bytes_per_second!r}")
        if bytes_per_second != self._pending.bytes_per_second:
            slow = bytes_per_second is not None
            rate = f"{bytes_per_second:g} bytes per second" if slow else "without a limit"
            self._log.note(f"WebSockets send {rate} from now on")
        self._pending.bytes_per_second = bytes_per_second

    @immediate(Kind.STATE)
    def delay_pongs(self, seconds: Seconds) -> None:
        """Answer pings this many seconds late, until the faults are cleared.

        Events are still pushed at once.

        Args:
            seconds: The delay. 0 means that pings are answered at once, and `math.inf` that they are never answered.
        """
        check_seconds("seconds", seconds, or_forever=True)
        self._pending.pong_delay = seconds

    @immediate(Kind.BLOCK, chaos=outage_for_a_while)
    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Make AgentMail unreachable: open WebSockets are cut, new ones are refused, and REST requests are reset.

        The outage lasts as long as the block. Mail that arrives during it is kept, but not pushed.
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
        """Cause random faults at random times, drawn from a seed.

        All faults are cleared at the end of the block.

        Args:
            seed: The seed. The same seed gives the same faults at the same times.
            every: The mean time between two faults, in seconds.
            faults: The names of the faults to draw from. `None` means all that support chaos.

        Yields:
            The list of the faults so far: the time of each, in seconds since the beginning of the block, and its name.

        Raises:
            ValueError: Chaos does not support one of the faults, or `every` is not more than 0.
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
                spawn(cause_faults, Random(seed), every, names, self._cause, spawn, happened)
                yield happened
        finally:
            self.clear()
            self._log.note("chaos ends")

    async def _cause(self, name: str, draw: Random) -> None:
        self._log.note(f"chaos: {name}")
        result = CHAOS[name](self, draw)
        if inspect.isawaitable(result):
            await result
        if FAULTS[name].kind is Kind.CONNECTION:
            await self.drop_connections()  # otherwise the next connection might be hours away


FAULTS = table_of(Faults)
"""All faults by their names."""

CHAOS: dict[str, Callable[[Any, Random], Any]] = {
    name: entry.chaos for name, entry in FAULTS.items() if entry.chaos is not None
}
"""The faults that chaos draws from, each with the function that causes it."""
