"""Who is connected to the fake: how each WebSocket begins, what its client says, and how it ends."""

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

from trio_agentmail._backend import WebSocket
from trio_agentmail._settings import Subscribe
from trio_agentmail._websocket import client_websocket

from ._door import DoorStream
from ._fake_base import FakeBase
from ._fake_connection import FakeConnection, Spawn, cut, fake_tasks
from ._fake_handshake import Handshake, read_handshake, rejection
from ._fake_http_server import accept_from, reset, with_tls
from ._fake_subscriptions import RefusedFrame, error_frame, parse_subscribe, subscribed_frame
from ._faults.connections import (
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
from ._slow_stream import SlowStream

__all__ = ["FakeConnecting"]


class FakeConnecting(FakeBase, ConnectionFaults):
    """Who is connected, for `FakeAgentMail`, which documents the attributes."""

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
        await self._wait_for(
            lambda: self.connected >= n if n else not self._connections,
            within,
            lambda _: f"{self.connected} WebSockets are open, and were to be {n}",
        )

    async def wait_subscribed(self, n: int = 1, within: float = 60.0) -> None:
        """Wait until `subscribed` is at least `n`: what is pushed then goes to that many.

        Otherwise as `wait_for`.
        """
        await self._wait_for(
            lambda: self.subscribed >= n,
            within,
            lambda _: f"{self.subscribed} WebSockets are subscribed, and were to be {n}",
        )

    # From the beginning to the end

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
        self,
        listener: trio.SocketListener,
        ssl_context: ssl.SSLContext | None,
        allow_hosts: Collection[str],
        spawn: Spawn,
    ) -> None:
        while True:
            stream = await accept_from(listener)
            fault = self._next_connection()
            if isinstance(fault, FailConnection):
                await reset(stream)
            else:
                door = DoorStream(with_tls(stream, ssl_context), self._door(stream, allow_hosts))
                spawn(self._serve_tcp, door, fault)

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
        refusal = fault if isinstance(fault, RejectHandshake) else rejection(handshake, self._agentmail.keys)
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
        permissions = self._agentmail.keys.permissions_of(connection.key)
        try:
            subscribe = parse_subscribe(data, permissions)
        except RefusedFrame as no:
            self._note(f"{connection}: what it sent is answered with the error {no.name}: {no.message}")
            connection.push(error_frame(no.name, no.message))
            return
        self.subscriptions.append(subscribe)
        self._agentmail.know(subscribe, now=self._now())
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
            await cut([connection])

    def _take_ping(self, came: float) -> float:
        self.pings.append(came)
        self._notify()
        return self._pong_delay
