"""The base of the tests' backends: a `FakeAgentMail` in everything except what the test is about."""

import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import httpx2

from trio_agentmail._backend import WebSocket
from trio_agentmail.testing import FakeAgentMail

T = TypeVar("T")


class FakeBackend:
    """A `FakeAgentMail` as a backend only. A subclass opens WebSockets in its own way.

    Args:
        fake: The fake. A test with another server may leave it out.
    """

    def __init__(self, fake: FakeAgentMail | None = None) -> None:
        self.fake = fake or FakeAgentMail()
        self.api_key: str | None = self.fake.api_key

    def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AbstractAsyncContextManager[WebSocket]:
        return self.fake.open_websocket(
            url, headers=headers, max_message_size=max_message_size, ssl_context=ssl_context
        )

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> httpx2.AsyncBaseTransport:
        return self.fake.http_transport(ssl_context)

    def now(self) -> float:
        return self.fake.now()

    async def run_sync(self, function: Callable[[], T]) -> T:
        return await self.fake.run_sync(function)
