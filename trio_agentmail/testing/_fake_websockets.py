"""The WebSockets of the fake: who is connected, what they hear, and how each goes from its beginning to its end."""

import json
import math
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from urllib.parse import urlsplit

import attrs
import trio
import trio_websocket
from trio.testing import memory_stream_pair

from trio_agentmail._settings import Subscribe
from trio_agentmail._websocket import WebSocket, client_websocket
from trio_agentmail.events import Event

from ._checks import check_bytes, check_close_code, check_seconds
from ._encode import encode_event
from ._fake_base import FakeBase
from ._fake_connection import FakeConnection, Spawn, fake_tasks
from ._fake_faults import (
    AnswerConnection,
    CloseInsteadOfConfirming,
    ConnectionFaults,
    DelayConnection,
    DropAfterConfirming,
    FailConnection,
    Fault,
    HangHandshake,
    PushBeforeConfirming,
    RefuseSubscription,
    RejectHandshake,
    WithholdConfirmation,
    refused,
)
from ._fake_handshake import Handshake, read_handshake, rejection
from ._fake_http_server import accept_from, reset, with_tls
from ._fake_push_faults import PushFaults
from ._fake_subscriptions import RefusedFrame, describe, error_frame, mismatch, parse_subscribe, subscribed_frame
from ._slow_stream import SlowStream

__all__ = ["FakeWebSockets"]


class FakeWebSockets(FakeBase, ConnectionFaults, PushFaults):
    """The WebSocket side of `FakeAgentMail`, which documents the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.handshakes: list[Handshake] = []
        self.frames: list[str | bytes] = []
        self.subscriptions: list[Subscribe] = []
        self.close_codes: list[int | None] = []
        self.pings: list[float] = []
        self._connections: list[FakeConnection] = []
        self._numbers = count(1)
        self._bytes_per_second: float | None = None
        self._pong_delay = 0.0
        # The client's and the server's end of a connection in memory. Private: tests of this package put others here.
        self._stream_pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair

    # What can be seen from here

    @property
    def connected(self) -> int:
        """How many WebSockets are open now, silent ones included."""
        return sum(connection.is_open for connection in self._connections)

    @property
    def subscribed(self) -> int:
        """How many WebSockets with a confirmed subscription are open now, silent ones included."""
        return sum(connection.is_subscribed for connection in self._connections)

    async def wait_connected(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `connected` is at least `n`; for an `n` of 0, until every connection has come to its end.

        Otherwise as `wait_for`.
        """
        await self.wait_for(lambda: self.connected >= n if n else not self._connections, within)

    async def wait_subscribed(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `subscribed` is at least `n`: what is pushed then goes to that many.

        Otherwise as `wait_for`.
        """
        await self.wait_for(lambda: self.subscribed >= n, within)

    # What is pushed, and what becomes of the connections

    def _push_event(self, event: Event) -> None:
        """Push to those whose subscription the event matches, as the next fault says."""
        text = encode_event(event)
        fault = self._push(text, self._push_now)
        if fault is not None:
            self._note(f"{describe(json.loads(text))}: met by {fault}")

    def _push_now(self, text: str, sent: str | None = None) -> None:
        # Not orjson, which refuses lone surrogates: an event may have one.
        frame = json.loads(text)
        told: list[FakeConnection] = []
        others = []
        for connection in self._connections:
            if connection.is_open:
                reason = mismatch(connection.subscription, frame, self._store.pods, connection.permissions)
                if reason is None:
                    connection.push(text if sent is None else sent)
                    told.append(connection)
                else:
                    others.append(f"{connection} {reason}")
        self._pushed_to(told)
        receivers = ", ".join(f"{c}, which is silent" if c.is_silent else f"{c}" for c in told) or "nobody"
        self._note("; ".join([f"{describe(frame)}: pushed to {receivers}", *others]))

    def _pushed_to(self, connections: Collection[FakeConnection]) -> None:
        """An event was pushed to these: for who wants to know."""

    async def send_raw(self, frame: str | bytes) -> None:
        """Push a frame as it is, text or binary, to every subscribed connection, whatever its filters.

        Raises:
            TypeError: It is neither.
            ValueError: It cannot be sent as UTF-8.
        """
        if not isinstance(frame, str | bytes):
            raise TypeError(f"frame is str or bytes, not {type(frame).__name__}: see json.dumps")
        try:
            if isinstance(frame, str):
                frame.encode()
        except UnicodeEncodeError:
            raise ValueError("frame has half a character, which no WebSocket carries as text") from None
        receivers = [connection for connection in self._connections if connection.is_subscribed]
        for connection in receivers:
            connection.push(frame)
        self._note(f"{frame[:60]!r} as it is: pushed to {', '.join(map(str, receivers)) or 'nobody'}")
        await trio.lowlevel.checkpoint()

    async def drop_connections(self, code: int | None = None, reason: str = "") -> None:
        """End all connections, after what was pushed to them.

        Args:
            code: `None`: they are cut without a close frame, and that has happened on return; a client that
                does not take what was pushed to it has five seconds. Else a close frame with this code is on
                its way on return, and a client that does not answer it within five seconds is cut.
            reason: What the close frame says.
        """
        if code is not None:
            check_close_code(code)
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                if code is None:
                    nursery.start_soon(connection.cut)
                else:
                    connection.close(code, reason)
        self._notify()

    async def send_bytes(self, data: bytes) -> None:
        """Bytes go as they are to all present connections, after what was pushed to them.

        Args:
            data: A WebSocket frame, like the ping `b"\\x89\\x00"`, a part of one, or none at all. What comes after a
                part is written behind it, whatever it is.
        """
        check_bytes("data", data)
        for connection in self._connections:
            connection.send_bytes(data)
        self._note(f"the bytes {data[:20]!r}: sent to {', '.join(map(str, self._connections)) or 'nobody'}")
        await trio.lowlevel.checkpoint()

    def slow_down(self, bytes_per_second: float | None) -> None:
        """What is sent on connections, present ones and those to come, trickles.

        Args:
            bytes_per_second: On each of them; `None`: as fast as it goes.

        Raises:
            ValueError: It is not more than 0, or infinite.
        """
        if bytes_per_second is not None and not 0 < bytes_per_second < math.inf:
            raise ValueError(f"bytes_per_second is more than 0, or None, not {bytes_per_second!r}")
        if bytes_per_second != self._bytes_per_second:
            slow = bytes_per_second is not None
            self._note(f"{bytes_per_second:g} bytes a second from now on" if slow else "as fast as it goes from now on")
        self._bytes_per_second = bytes_per_second

    def delay_pongs(self, seconds: float) -> None:
        """Pings that come from now on, on present connections and those to come, are answered late. Events are pushed
        meanwhile as ever.

        Args:
            seconds: After the ping; `math.inf`: never; 0: at once, as by default.
        """
        check_seconds("seconds", seconds, or_forever=True)
        self._pong_delay = seconds

    def _take_ping(self, came: float) -> float:
        self.pings.append(came)
        self._notify()
        return self._pong_delay

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """For the block AgentMail is gone: connections are cut, new ones refused, and requests broken off.

        Mail that comes meanwhile is kept, and pushed to nobody.
        """
        self._outages += 1
        self._note("an outage begins")
        try:
            await self.drop_connections()
            yield
        finally:
            self._outages -= 1
            self._note("an outage ends")

    def go_silent(self) -> None:
        """Present connections stay open, but read and write nothing more: no event, no pong, no close."""
        for connection in self._connections:
            connection.fall_silent()
            self._note(f"{connection}: silent from now on")

    # One connection, from its beginning to its end

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        """What makes this a `Backend`: a WebSocket to this fake, in memory, whatever the host in the URL."""
        fault = self._next_connection()
        if isinstance(fault, FailConnection):
            await trio.lowlevel.checkpoint()
            raise fault.error.with_traceback(None)  # or it would grow by each connection that it fails
        if isinstance(fault, DelayConnection):
            await trio.sleep(fault.seconds)
        parts = urlsplit(url)
        client_end, server_end = self._stream_pair()
        async with fake_tasks() as spawn:
            spawn(self._serve_stream, server_end, fault)
            async with client_websocket(
                client_end,
                host=parts.netloc,
                target=parts._replace(scheme="", netloc="").geturl(),
                headers=headers,
                max_message_size=max_message_size,
                now=self.now,
            ) as websocket:
                yield websocket

    async def _accept_websockets(
        self, listener: trio.SocketListener, ssl_context: ssl.SSLContext | None, spawn: Spawn
    ) -> None:
        while True:
            stream = await accept_from(listener)
            fault = self._next_connection()
            if isinstance(fault, FailConnection):
                await reset(stream)
            else:
                spawn(self._serve_tcp, with_tls(stream, ssl_context), fault)

    async def _serve_tcp(self, stream: trio.abc.Stream, fault: Fault | None) -> None:
        if isinstance(fault, DelayConnection):
            await trio.sleep(fault.seconds)
        await self._serve_stream(stream, fault)

    def _next_connection(self) -> Fault | None:
        """Somebody wants a connection: what becomes of it; `None`: all goes well."""
        self.attempts += 1
        fault = refused() if self._outages else self._connection_faults.take()
        match fault:
            case FailConnection(error):
                self._note(f"a connection: {error}")
            case DelayConnection(seconds):
                self._note(f"a connection: it takes {seconds:g} s")
            case AnswerConnection(data):
                self._note(f"a connection: {data!r}")
        return fault

    async def _serve_stream(self, stream: trio.abc.Stream, fault: Fault | None) -> None:
        if self._outages:  # it has begun while the connection was made
            await trio.aclose_forcefully(stream)
            return
        if isinstance(fault, AnswerConnection):
            async with stream:
                await stream.send_all(fault.data)
            return
        connection = FakeConnection(
            SlowStream(stream, lambda: self._bytes_per_second), next(self._numbers), self._take_ping
        )
        self._connections.append(connection)
        try:
            await connection.run(partial(self._talk, connection, fault))
        finally:
            self._connections.remove(connection)
            if connection.ended_by_client:
                self.close_codes.append(connection.close_code)
            self._note(f"{connection}: {connection.end}")

    async def _talk(
        self, connection: FakeConnection, fault: Fault | None, request: trio_websocket.WebSocketRequest
    ) -> None:
        handshake = read_handshake(request)
        connection.key = handshake.key
        if isinstance(fault, HangHandshake):
            self.handshakes.append(handshake)
            self._note(f"{connection}: the handshake is not answered")
            await trio.sleep_forever()
        refusal = (
            fault
            if isinstance(fault, RejectHandshake)
            else rejection(handshake, self.api_keys, self._permissions_of(handshake.key))
        )
        self.handshakes.append(attrs.evolve(handshake, status=101 if refusal is None else refusal.status))
        if refusal is not None:
            self._note(f"{connection}: the handshake is answered with {refusal.status}")
            headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
            await request.reject(refusal.status, extra_headers=headers, body=refusal.body)
            return
        await connection.accept(request)
        self._note(f"{connection}: open")
        while True:
            await self._answer(connection, await connection.receive(), fault)

    async def _answer(self, connection: FakeConnection, data: str | bytes, fault: Fault | None) -> None:
        self.frames.append(data)
        permissions = self._permissions_of(connection.key)
        try:
            subscribe = parse_subscribe(data, permissions)
        except RefusedFrame as refused:
            self._note(f"{connection}: what it sent is answered with the error {refused.name}: {refused.message}")
            connection.push(error_frame(refused.name, refused.message))
            return
        self.subscriptions.append(subscribe)
        self._store.know(subscribe, self._now())
        if isinstance(fault, WithholdConfirmation | RefuseSubscription | CloseInsteadOfConfirming):
            self._note(f"{connection}: the subscription is not confirmed, but met by {fault}")
        match fault:
            case WithholdConfirmation():
                return
            case RefuseSubscription(name, message):
                connection.push(error_frame(name, message))
                return
            case CloseInsteadOfConfirming(code, reason):
                connection.close(code, reason)
                return
            case PushBeforeConfirming(frames):
                for frame in frames:
                    connection.push(frame)
        # Whether a second subscription on a connection replaces the first or adds to it is not documented.
        # Here it replaces it.
        connection.subscription, connection.permissions = subscribe, permissions
        confirmation = subscribed_frame(subscribe)
        connection.push(confirmation)
        self._note(f"{connection}: {confirmation}")
        if isinstance(fault, DropAfterConfirming):
            await connection.cut()
