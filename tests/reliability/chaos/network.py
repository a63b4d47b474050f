"""The network between the stream and the fake, where data is lost, and attempts and requests are counted."""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import inf

import httpx2
import trio

from tests.helpers.backends import FakeBackend
from trio_agentmail import ApiError
from trio_agentmail._backend import WebSocket
from trio_agentmail.testing import FakeAgentMail

__all__ = ["ChaosBackend", "Wire"]


class Wire(trio.abc.Stream):
    """The client's end of a connection, with the faults of the network."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reading = trio.CancelScope()
        self._was_reset = False
        self._is_jammed = False
        self.slow_until = -inf
        self.slow_reads = 0

    def jam(self) -> None:
        """Keep back all data that arrives from now on."""
        self._is_jammed = True

    def reset(self) -> None:
        """Lose the data in transit, and reset the connection."""
        self._was_reset = True
        self._reading.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope() as self._reading:
            if self._was_reset:
                self._reading.cancel()
            if trio.current_time() < self.slow_until:
                self.slow_reads += 1
                await trio.sleep(0.5)
                max_bytes = 200
            data = await self._stream.receive_some(max_bytes)
            if self._is_jammed:
                await trio.sleep_forever()
            if not self._was_reset:
                return data
        raise trio.BrokenResourceError("connection reset by peer")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._was_reset:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("connection reset by peer")
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class ChaosBackend(FakeBackend):
    """The fake with a clock that is ahead of it or behind. Counts connection attempts and requests by their outcome."""

    def __init__(self, fake: FakeAgentMail, skew: float) -> None:
        super().__init__(fake)
        self._skew = skew
        self.attempts: Counter[str] = Counter()
        self.statuses: Counter[int | None] = Counter()
        """The statuses of the answers to requests; None: no answer."""
        self.changed: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.fake.now() + self._skew

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> httpx2.AsyncBaseTransport:
        return CountingTransport(self.fake.http_transport(ssl_context), self._count)

    def _count(self, status: int | None) -> None:
        self.statuses[status] += 1
        self.fake.record.requests.clear()  # a long run makes a million requests
        self.changed()

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        self.attempts["all"] += 1
        self.changed()
        try:
            async with self.fake.open_websocket(
                url, headers=headers, max_message_size=max_message_size, ssl_context=ssl_context
            ) as websocket:
                yield websocket
        except ConnectionRefusedError:
            self.attempts["refused"] += 1
            raise
        except ApiError as exc:
            self.attempts[str(exc.status_code)] += 1
            raise


class CountingTransport(httpx2.AsyncBaseTransport):
    """Reports the status with which each request was answered."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, count: Callable[[int | None], None]) -> None:
        self._transport = transport
        self._count = count

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        status = None
        try:
            response = await self._transport.handle_async_request(request)
            status = response.status_code
        finally:
            self._count(status)
        return response
