"""The WebSockets of the fake: what is pushed on them, and what a test does to those that are open."""

import json
import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio

from trio_agentmail.events import Event

from ._checks import check_bytes, check_close, check_seconds, has_lone_surrogate
from ._encode import encode_event
from ._fake_connecting import FakeConnecting
from ._fake_connection import FakeConnection, cut
from ._fake_subscriptions import describe
from ._faults.pushes import PushFaults

__all__ = ["FakeWebSockets"]


class FakeWebSockets(FakeConnecting, PushFaults):
    """The WebSocket side of `FakeAgentMail`."""

    # What is pushed

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
                reason = self._agentmail.mismatch(connection.subscription, frame, connection.permissions)
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
        if isinstance(frame, str) and has_lone_surrogate(frame):
            raise ValueError("frame has a lone surrogate, which no WebSocket can carry as text")
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
            check_close(code, reason)
        if code is None:
            await cut(self._connections)
        else:
            for connection in self._connections:
                connection.close(code, reason)
            await trio.lowlevel.checkpoint()
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
