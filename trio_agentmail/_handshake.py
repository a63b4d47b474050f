"""The server's answer to the WebSocket handshake, read with h11 before trio-websocket sees it."""

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
        refusal: h11.Response | None = None
        body = bytearray()
        deadline = trio.CancelScope()
        with deadline:
            while len(body) < MAX_BYTES:
                problem = None
                try:
                    event = http.next_event()
                except h11.RemoteProtocolError as exc:
                    problem = str(exc)
                if problem is not None and refusal is None:
                    # Raised here, where it has no context: h11's words hold the server's, which may hold the API key.
                    raise ConnectionLost(f"not a WebSocket server: {problem}")
                if problem is not None:
                    break
                if event is h11.NEED_DATA:
                    try:
                        data = await self._stream.receive_some(MAX_BYTES)
                    except trio.BrokenResourceError:
                        if refusal is None:
                            raise
                        break
                    if not data and refusal is None:
                        raise ConnectionLost("the server hung up during the handshake")
                    http.receive_data(bytes(data))
                    received += data
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        self.accepted = True
                        return bytes(received)
                    received[:] = http.trailing_data[0]  # trio-websocket knows no interim answers
                elif isinstance(event, h11.Response):
                    refusal = event
                    deadline.deadline = trio.current_time() + BODY_TIMEOUT
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
        assert refusal is not None  # h11 gives the rest of an answer after its head only
        raise _refused(refusal, bytes(body[:MAX_BYTES]))


def _refused(response: h11.Response, body: bytes) -> AgentMailError:
    status = response.status_code
    if status < 300:
        return ConnectionLost(f"not a WebSocket server: it answered with HTTP status {status}")
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status, ApiError)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return error(status, headers, body.decode(errors="replace"))
