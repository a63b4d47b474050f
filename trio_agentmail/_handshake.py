"""The server's answer to the WebSocket handshake, read with h11 before trio-websocket sees it."""

from contextlib import suppress

import h11
import trio
import trio.abc

from .errors import AgentMailError, ApiError, AuthenticationError, ConnectionLost, PermissionDeniedError

__all__ = ["HandshakeStream"]

MAX_BYTES = 2**16
"""How much of the head, and how much of the body, of an answer is read."""

BODY_TIMEOUT = 0.2
"""Seconds that the body of a refusal may take once its head is there: the body only helps to explain."""


class HandshakeStream(trio.abc.Stream):
    """The stream that trio-websocket reads: only an answer that accepts the handshake comes through it.

    Closing it does nothing: whoever made the stream below closes that.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._answered = False
        self.accepted = False
        """Whether the server has answered with 101."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._answered:
            return await self._stream.receive_some(max_bytes)
        self._answered = True
        return await self._receive_answer()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:  # pragma: no cover  a Stream has it, nobody calls it
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _receive_answer(self) -> bytes:
        """The bytes with which the server accepts the handshake, and what came with them.

        Raises:
            ApiError: it refuses.
            ConnectionLost: it does neither.
        """
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
        # What is really sent is trio-websocket's request: h11 must only know that an upgrade was asked for.
        upgrade = [("host", ""), ("connection", "upgrade"), ("upgrade", "websocket")]
        http.send(h11.Request(method="GET", target="/", headers=upgrade))
        received = bytearray()
        while True:
            event = _next_event(http)
            if isinstance(event, str):
                raise ConnectionLost(f"not a WebSocket server: {event}")
            if event is h11.NEED_DATA:
                data = await self._stream.receive_some(MAX_BYTES)
                if not data:
                    raise ConnectionLost("the server hung up during the handshake")
                http.receive_data(bytes(data))
                received += data
            elif isinstance(event, h11.Response):
                raise _refused(event, await self._receive_body(http))
            else:
                assert isinstance(event, h11.InformationalResponse)
                if event.status_code == 101:
                    self.accepted = True
                    return bytes(received)
                received[:] = http.trailing_data[0]  # trio-websocket knows no interim answers

    async def _receive_body(self, http: h11.Connection) -> bytes:
        """What there is of a refusal's body, however it ends."""
        body = bytearray()
        with trio.move_on_after(BODY_TIMEOUT), suppress(trio.BrokenResourceError):
            while len(body) < MAX_BYTES:
                event = _next_event(http)
                if event is h11.NEED_DATA:
                    http.receive_data(bytes(await self._stream.receive_some(MAX_BYTES)))
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
        return bytes(body[:MAX_BYTES])


def _next_event(http: h11.Connection) -> object:
    """h11's next event, or, where the server does not speak HTTP, h11's words on that.

    They are not raised, since they hold the server's words, and those maybe the API key: they would stay behind as the
    context of what is raised instead.
    """
    try:
        return http.next_event()
    except h11.RemoteProtocolError as exc:
        return str(exc)


def _refused(response: h11.Response, body: bytes) -> AgentMailError:
    status = response.status_code
    if status < 300:
        return ConnectionLost(f"not a WebSocket server: it answered with HTTP status {status}")
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status, ApiError)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return error(status, headers, body.decode(errors="replace"))
