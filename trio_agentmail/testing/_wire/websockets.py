"""The WebSocket service of the fake: handshakes, subscriptions and the end of connections."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from urllib.parse import urlsplit

import trio
import trio_websocket
from trio.testing import memory_stream_pair

from trio_agentmail._backend import WebSocket
from trio_agentmail._websocket import client_websocket
from trio_agentmail.testing._agentmail.agentmail import AgentMail
from trio_agentmail.testing._clock import FakeClock
from trio_agentmail.testing._log import Log
from trio_agentmail.testing._record import Record

from .connection import Connection
from .connections import Connections
from .handshake import read_handshake, rejection
from .hooks import ConnectionFault, PendingFaults
from .http_server import reset
from .slow_stream import SlowStream
from .subscriptions import InvalidFrame, error_frame, parse_subscribe, subscribed_frame
from .tasks import fake_tasks

__all__ = ["WebSockets"]

NO_FAULT = ConnectionFault()


class WebSockets:
    """The WebSocket service.

    Args:
        agentmail: Decides which handshakes and subscriptions are valid.
        connections: The collection to which each connection belongs while it lasts.
        faults: The source of the faults of connections.
        record: The record of handshakes, frames, subscriptions, pings and close codes.
    """

    def __init__(
        self,
        agentmail: AgentMail,
        connections: Connections,
        faults: PendingFaults,
        record: Record,
        log: Log,
        clock: FakeClock,
    ) -> None:
        self._agentmail = agentmail
        self._connections = connections
        self._faults = faults
        self._record = record
        self._log = log
        self._clock = clock
        self._connecting: set[trio.CancelScope] = set()
        self._numbers = count(1)
        # Returns the client's and the server's end of an in-memory connection. Tests of this package replace it.
        self.stream_pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair

    @asynccontextmanager
    async def open_websocket(
        self, url: str, *, headers: Sequence[tuple[str, str]], max_message_size: int
    ) -> AsyncIterator[WebSocket]:
        """Open a WebSocket in memory. The host in the URL does not matter."""
        fault = self.next_fault()
        if fault.on_connecting is not None:
            await fault.on_connecting()
        parts = urlsplit(url)
        client_end, server_end = self.stream_pair()
        async with fake_tasks() as spawn:
            spawn(self.serve, server_end, fault)
            async with client_websocket(
                client_end,
                host=parts.netloc,
                target=parts._replace(scheme="", netloc="").geturl(),
                headers=headers,
                max_message_size=max_message_size,
                now=self._clock.time,
            ) as websocket:
                yield websocket

    def next_fault(self) -> ConnectionFault:
        """Count an attempt to connect, and return its fault, or `NO_FAULT`."""
        self._record.attempts += 1
        fault = self._faults.connections.take() or NO_FAULT
        if fault.on_connecting is not None or fault.on_stream is not None:
            self._log.note(f"a connection: fault {fault}")
        return fault

    async def serve_tcp(self, stream: trio.SocketStream, wrap: Callable[[], trio.abc.Stream]) -> None:
        """Serve a client that has connected to a port.

        Args:
            wrap: Returns a stream that wraps the given one, for all reading and writing.
        """
        fault = self.next_fault()
        if fault.on_connecting is not None:
            scope = trio.CancelScope()
            self._connecting.add(scope)
            try:
                with scope:
                    await fault.on_connecting()
            except Exception:  # noqa: BLE001  a fault may raise any exception
                await reset(stream)
                return
            finally:
                self._connecting.remove(scope)
        await self.serve(wrap(), fault)

    def retire(self) -> None:
        """Close new connections at once, and those that a fault delays."""
        self._faults.retired.set()
        for scope in self._connecting:
            scope.cancel()

    async def serve(self, stream: trio.abc.Stream, fault: ConnectionFault) -> None:
        """Serve a client until the connection ends.

        Args:
            stream: The server's end.
            fault: From `next_fault`. Its `on_connecting` has been called.
        """
        # An outage may have begun while the connection was being made.
        if self._faults.connections.is_overridden or self._faults.retired.is_set():
            await trio.aclose_forcefully(stream)
            return
        if fault.on_stream is not None:
            async with stream:
                await fault.on_stream(stream)
            return
        connection = Connection(
            SlowStream(stream, lambda: self._faults.bytes_per_second), next(self._numbers), self.take_ping
        )
        self._connections.add(connection)
        try:
            await connection.run(partial(self._talk, connection, fault))
        finally:
            self._connections.remove(connection)
            if connection.ended_by_client:
                self._record.close_codes.append(connection.close_code)
            self._log.note(f"{connection}: {connection.end}")

    async def _talk(
        self, connection: Connection, fault: ConnectionFault, request: trio_websocket.WebSocketRequest
    ) -> None:
        handshake = read_handshake(request)
        connection.key = handshake.key
        self._record.handshakes.append(handshake)
        self._log.notify()
        if fault.on_handshake is None:
            refusal = rejection(handshake, self._agentmail.keys)
        else:
            self._log.note(f"{connection}, handshake: fault {fault}")
            refusal = await fault.on_handshake()
        handshake.status = 101 if refusal is None else refusal.status
        if refusal is not None:
            self._log.note(f"{connection}: the handshake is answered with {refusal.status}")
            headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
            await request.reject(refusal.status, extra_headers=headers, body=refusal.body)
            return
        await connection.accept(request)
        self._log.note(f"{connection}: open")
        while True:
            await self._answer(connection, await connection.receive(), fault)

    async def _answer(self, connection: Connection, data: str | bytes, fault: ConnectionFault) -> None:
        self._record.frames.append(data)
        permissions = self._agentmail.keys.permissions_of(connection.key)
        try:
            subscribe = parse_subscribe(data, permissions)
        except InvalidFrame as exc:
            self._log.note(f"{connection}: an invalid frame is answered with the error {exc.name}: {exc.message}")
            connection.push(error_frame(exc.name, exc.message))
            return
        self._record.subscriptions.append(subscribe)
        self._agentmail.know(subscribe, now=self._clock.now())

        def confirm() -> None:
            # AgentMail does not document whether a second subscription on a connection replaces the first or adds to
            # it. Here it replaces it.
            connection.subscription, connection.permissions = subscribe, permissions
            confirmation = subscribed_frame(subscribe)
            connection.push(confirmation)
            self._log.note(f"{connection}: {confirmation}")

        if fault.on_subscription is None:
            confirm()
        else:
            self._log.note(f"{connection}, subscription: fault {fault}")
            await fault.on_subscription(connection, confirm)

    def take_ping(self, came: float) -> float:
        """Record a ping, and return the delay of its pong in seconds."""
        self._record.pings.append(came)
        self._log.notify()
        return self._faults.pong_delay
