"""`FakeAgentMail`: the public side of the fake, and what it does as AgentMail."""

import errno
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import trio
import trio_websocket
from trio.testing import MockClock, memory_stream_pair

from trio_agentmail._settings import AgentMailEnvironment, Subscribe
from trio_agentmail._websocket import WebSocket, client_websocket
from trio_agentmail.events import Event, MessageReceivedEvent

from ._encode import encode_event
from ._fake_connection import FakeConnection, Spawn, fake_tasks
from ._fake_events import (
    RefusedFrame,
    error_frame,
    matches,
    parse_subscribe,
    received_event,
    subscribed_frame,
)
from ._fake_faults import (
    CloseInsteadOfConfirming,
    DropAfterConfirming,
    Fault,
    Faults,
    HangHandshake,
    PushBeforeConfirming,
    RefuseConnection,
    RefuseSubscription,
    RejectHandshake,
    WithholdConfirmation,
)
from ._fake_handshake import Handshake, read_handshake, rejection

__all__ = ["FakeAgentMail"]

T = TypeVar("T")

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""As SO_LINGER: closing the socket resets the connection."""


class FakeAgentMail(Faults):
    """An AgentMail in memory: pass it as `backend=`, or `serve()` it on a port of this machine.

    It has neither a start nor an end: its tasks live inside the connections that it serves. A bug in it comes
    out of the block that has the connection open, as itself.

    Faults are asked for, by method, before the connection that they are for is made: each new connection
    takes the next one, in the order in which they were asked for, and behaves well when none is left. `times`
    is how many connections a fault is for; `None`: all that follow, until `clear_faults()`.

    Args:
        api_keys: The API keys that it knows; `None`: it knows any.
        permissions: What the keys may do, for example `{"label_spam_read"}`; `None`: everything.

    Attributes:
        api_keys: As given; may be changed, for the handshakes to come.
        permissions: As given; may be changed, for the subscriptions to come.
        handshakes: Every request for a WebSocket that was read, granted or not, in order.
        subscriptions: Every valid `subscribe` frame, confirmed or not, in order.
        close_codes: Of every WebSocket that `drop_connections` or a fault did not end, when it has ended: the
            code with which the client closed it, or `None` where it just went.
    """

    def __init__(self, *, api_keys: Collection[str] | None = None, permissions: Collection[str] | None = None) -> None:
        super().__init__()
        self.api_keys = api_keys
        self.permissions = permissions
        self.handshakes: list[Handshake] = []
        self.subscriptions: list[Subscribe] = []
        self.close_codes: list[int | None] = []
        self._connections: list[FakeConnection] = []
        self._pods: dict[str, str] = {}
        self._changed = trio.Event()
        self._epoch = int(time.time())

    # How clients come here

    @property
    def api_key(self) -> str:
        """The API key that is used when the caller gives none."""
        return "am_fake_key"

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
        fault = self._take_fault()
        if isinstance(fault, RefuseConnection):
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused by FakeAgentMail")
        parts = urlsplit(url)
        client_end, server_end = memory_stream_pair()
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

    def http_transport(self, ssl_context: ssl.SSLContext | None = None) -> httpx.AsyncBaseTransport:
        """An in-memory transport to the REST API of this fake, for httpx."""
        return httpx.MockTransport(self._answer_request)

    async def _answer_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"name": "not_found", "message": "there is nothing here"})

    def now(self) -> float:
        """The time of day here, in seconds since the epoch: on a mock clock it passes as that does."""
        clock_is_real = not isinstance(trio.lowlevel.current_clock(), MockClock)
        return time.time() if clock_is_real else self._epoch + trio.current_time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        """What makes this a `Backend`: on a mock clock no thread is used, since that would not wait for one."""
        if isinstance(trio.lowlevel.current_clock(), MockClock):
            await trio.lowlevel.checkpoint()
            return function()
        return await trio.to_thread.run_sync(function)

    @asynccontextmanager
    async def serve(
        self, port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> AsyncIterator[AgentMailEnvironment]:
        """Listen on 127.0.0.1 for the block, at whose end the connections that are left are cut.

        Args:
            port: `0`: any that is free.
            ssl_context: Speak TLS, with this server's context; its certificate must be for `localhost`.

        Yields:
            Where a client finds it. Only the WebSocket is there, and no REST API.

        Raises:
            OSError: The port is not free.
        """
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with listener, fake_tasks() as spawn:
            spawn(self._accept_streams, listener, ssl_context, spawn)
            host, s = ("127.0.0.1", "") if ssl_context is None else ("localhost", "s")
            authority = f"{host}:{listener.socket.getsockname()[1]}"
            yield AgentMailEnvironment(http=f"http{s}://{authority}", websockets=f"ws{s}://{authority}")

    # What happens at AgentMail

    def add_inbox(self, inbox_id: str, *, pod_id: str) -> None:
        """Put an inbox into a pod, for subscriptions to the pod. Inboxes without a pod need not be added."""
        self._pods[inbox_id] = pod_id

    async def deliver(
        self,
        *,
        inbox_id: str,
        from_: str = "Jane <jane@example.com>",
        subject: str | None = "Hello",
        text: str | None = "Hello!",
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        event_type: str = "message.received",
        message_id: str | None = None,
        thread_id: str | None = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> MessageReceivedEvent:
        """A mail comes, and is pushed to those who listen for it.

        Args:
            to: `None`: the inbox.
            event_type: `"message.received"`, or one of its three kinds, like `"message.received.spam"`.
            message_id: `None`, here as below: a new one.
            timestamp: The mail's own time, aware. `None`: now.

        Returns:
            The event as it was pushed. What cannot be given here, `attrs.evolve` and `emit` can.
        """
        event = received_event(
            inbox_id=inbox_id,
            from_=from_,
            subject=subject,
            text=text,
            html=html,
            to=to,
            event_type=event_type,
            message_id=message_id,
            thread_id=thread_id,
            event_id=event_id,
            timestamp=timestamp,
        )
        await self.emit(event)
        return event

    async def emit(self, event: Event) -> None:
        """Push any event to the connections whose subscription it matches.

        This waits for no client. On each connection everything comes in the order in which it was pushed.

        Raises:
            TypeError: The event has no wire form, like `Disconnected`.
        """
        text = encode_event(event)
        # Not orjson, which refuses lone surrogates: an event may have one.
        frame = json.loads(text)
        for connection in self._connections:
            if connection.is_open and matches(connection.subscription, frame, self._pods):
                connection.push(text)
        await trio.lowlevel.checkpoint()

    async def send_raw(self, frame: str | bytes) -> None:
        """Push a frame as it is, text or binary, to every subscribed connection, whatever its filters."""
        for connection in self._connections:
            if connection.is_subscribed:
                connection.push(frame)
        await trio.lowlevel.checkpoint()

    async def drop_connections(self, code: int | None = None, reason: str = "") -> None:
        """End all connections, after what was pushed to them.

        Args:
            code: `None`: they are cut without a close frame, and that has happened on return; a client that
                does not take what was pushed to it has five seconds. Else a close frame with this code is on
                its way on return, and a client that does not answer it within five seconds is cut.
            reason: What the close frame says.
        """
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                if code is None:
                    nursery.start_soon(connection.cut)
                else:
                    connection.close(code, reason)
        self._notify()

    def go_silent(self) -> None:
        """Present connections stay open, but read and write nothing more: no event, no pong, no close."""
        for connection in self._connections:
            connection.fall_silent()

    # What can be seen from here

    @property
    def connected(self) -> int:
        """How many WebSockets are open now, silent ones included."""
        return sum(connection.is_open for connection in self._connections)

    @property
    def subscribed(self) -> int:
        """How many WebSockets with a confirmed subscription are open now, silent ones included."""
        return sum(connection.is_subscribed for connection in self._connections)

    async def wait_connected(self, n: int = 1) -> None:
        """Wait until `connected` is at least `n`; for an `n` of 0, until every connection has come to its end."""
        await self._wait_until(lambda: self.connected >= n if n else not self._connections)

    async def wait_subscribed(self, n: int = 1) -> None:
        """Wait until `subscribed` is at least `n`: what is pushed then goes to that many."""
        await self._wait_until(lambda: self.subscribed >= n)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # One connection, from its beginning to its end

    async def _accept_streams(
        self, listener: trio.SocketListener, ssl_context: ssl.SSLContext | None, spawn: Spawn
    ) -> None:
        while True:
            stream = await listener.accept()
            fault = self._take_fault()
            if isinstance(fault, RefuseConnection):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                await trio.aclose_forcefully(stream)
            elif ssl_context is None:
                spawn(self._serve_stream, stream, fault)
            else:
                tls = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
                spawn(self._serve_stream, tls, fault)

    async def _serve_stream(self, stream: trio.abc.Stream, fault: Fault | None) -> None:
        connection = FakeConnection(stream)
        self._connections.append(connection)
        try:
            await connection.run(partial(self._talk, connection, fault))
        finally:
            self._connections.remove(connection)
            if connection.ended_by_client:
                self.close_codes.append(connection.close_code)
            self._notify()

    async def _talk(
        self, connection: FakeConnection, fault: Fault | None, request: trio_websocket.WebSocketRequest
    ) -> None:
        handshake = read_handshake(request)
        self.handshakes.append(handshake)
        if isinstance(fault, HangHandshake):
            await trio.sleep_forever()
        refusal = fault if isinstance(fault, RejectHandshake) else rejection(handshake, self.api_keys)
        if refusal is not None:
            headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
            await request.reject(refusal.status, extra_headers=headers, body=refusal.body)
            return
        await connection.accept(request)
        self._notify()
        while True:
            await self._answer(connection, await connection.receive(), fault)

    async def _answer(self, connection: FakeConnection, data: str | bytes, fault: Fault | None) -> None:
        try:
            subscribe = parse_subscribe(data, self.permissions)
        except RefusedFrame as refused:
            connection.push(error_frame(refused.name, refused.message))
            return
        self.subscriptions.append(subscribe)
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
        connection.subscription = subscribe
        connection.push(subscribed_frame(subscribe))
        self._notify()
        if isinstance(fault, DropAfterConfirming):
            await connection.cut()
