"""A backend that opens WebSockets with the `websockets` package: what a user can write from public names alone."""

import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.trio.client import ClientConnection, connect

from trio_agentmail import ApiError, AuthenticationError, PermissionDeniedError
from trio_agentmail.errors import ConnectionLostError

__all__ = ["WebsocketsBackend"]

T = TypeVar("T")

OpenStream = Callable[[str, int], Awaitable[trio.abc.Stream]]

REFUSALS = {401: AuthenticationError, 403: PermissionDeniedError}

PROTOCOL_ERRORS = {CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.MESSAGE_TOO_BIG}
"""The close codes that the client sends because of what the server sent."""

logger = logging.getLogger("websockets.client.agentmail")
logger.setLevel(logging.INFO)  # at DEBUG, the package logs the handshake and the API key in it


class WebsocketsBackend:
    """The network, by way of the `websockets` package.

    Args:
        open_stream: Opens a connection to a host and port.
    """

    api_key: str | None = None

    def __init__(self, open_stream: OpenStream = trio.open_tcp_stream) -> None:
        self._open_stream = open_stream

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator["WebsocketsWebSocket"]:
        where = urlsplit(url)
        assert where.hostname is not None
        stream = await self._open_stream(where.hostname, where.port or (443 if where.scheme == "wss" else 80))
        try:
            async with Connect(
                url,
                stream=stream,
                ssl=ssl_context,
                additional_headers=headers,
                compression=None,
                max_size=max_message_size,
                max_queue=1,
                # The stream has timeouts and a heartbeat of its own.
                open_timeout=None,
                close_timeout=None,
                ping_interval=None,
                logger=logger,
            ) as connection:
                try:
                    yield WebsocketsWebSocket(connection, self.now)
                finally:
                    # Leaving closes by force. The package would send a close frame and wait. And if it is cancelled,
                    # its recv() would wait for ever.
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                        await connection.close_stream()
        except InvalidStatus as exc:
            answer = exc.response
            error = REFUSALS.get(answer.status_code, ApiError)
            refusal_headers = {name.lower(): value for name, value in answer.headers.raw_items()}
            raise error(answer.status_code, refusal_headers, (answer.body or b"").decode(errors="replace")) from None
        except WebSocketException as exc:
            raise ConnectionLostError(f"not a WebSocket server: {exc}") from exc
        except trio.BrokenResourceError as exc:
            raise exc.__cause__ or exc from None  # TLS failed: the cause says why

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> httpx2.AsyncBaseTransport:
        return httpx2.AsyncHTTPTransport(verify=ssl_context or ssl.create_default_context(), trust_env=False)

    def now(self) -> float:
        return time.time()

    async def run_sync(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function)


class Connect(connect):
    """`connect` without redirects, because the API key must not follow one."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebsocketsWebSocket:
    """A connection of the `websockets` package as a `WebSocket`. Messages and pongs are its signs of life."""

    def __init__(self, connection: ClientConnection, now: Callable[[], float]) -> None:
        self._connection = connection
        self._now = now
        self.silent_since: float | None = None
        self.last_received = now()
        self.last_heard = trio.current_time()
        self._read_until = self.last_heard

    @property
    def read_until(self) -> float:
        self._note_what_was_read()
        return self._read_until

    def _note_what_was_read(self) -> None:
        # The package reads ahead. But when receive() has waited for a second, nothing is left in its queue.
        if self.silent_since is not None and trio.current_time() - self.silent_since >= 1:
            self._read_until = trio.current_time()

    def _note_sign_of_life(self) -> None:
        self._note_what_was_read()
        self.last_received = self._now()
        self.last_heard = trio.current_time()
        if self.silent_since is not None:
            self.silent_since = self.last_heard

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as exc:
            raise lost(exc) from exc

    async def receive(self) -> bytes:
        self.silent_since = trio.current_time()
        try:
            data = await self._connection.recv(decode=False)
            self._note_sign_of_life()
            return data
        except ConnectionClosed as exc:
            raise lost(exc) from exc
        finally:
            self.silent_since = None

    async def ping(self) -> None:
        try:
            pong = await self._connection.ping(ack_on_close=True)
            await pong.wait()
            if self._connection.state is not State.OPEN:
                await self._connection.ping()  # raises: the end of the connection has ended the wait
        except ConnectionClosed as exc:
            raise lost(exc) from exc
        self._note_sign_of_life()

    def stop_receiving(self) -> None:
        """Nothing to do: `receive` may still return what arrives before the connection is closed."""

    async def close(self) -> None:
        await self._connection.aclose(CloseCode.NORMAL_CLOSURE)


def lost(closed: ConnectionClosed) -> ConnectionLostError:
    if closed.rcvd is not None:
        return ConnectionLostError(f"the WebSocket was closed: {closed.rcvd.reason}", closed.rcvd.code)
    if closed.sent is not None and closed.sent.code in PROTOCOL_ERRORS:
        return ConnectionLostError(f"the WebSocket was closed by the client: {closed.sent.reason}", closed.sent.code)
    return ConnectionLostError("the connection was cut without a close frame")
