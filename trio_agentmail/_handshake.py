"""The handshake that makes a WebSocket of a stream: HTTP, which h11 speaks."""

import base64
import os
from collections.abc import Sequence
from contextlib import suppress

import h11
import trio
import trio.abc
from wsproto.utilities import generate_accept_token

from .errors import AgentMailError, ConnectionLostError, refusal

__all__ = ["shake_hands"]

MAX_BYTES = 2**16
"""How much of the head, and how much of the body, of an answer is read."""

BODY_TIMEOUT = 0.2
"""Seconds that the body of a refusal may take once its head is there: the body only helps to explain."""


async def shake_hands(stream: trio.abc.Stream, host: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Ask for a WebSocket, and return what the server sent behind its consent.

    Args:
        host: What the `Host` header says.
        target: Path of the URL, with its query.
        headers: More headers.

    Raises:
        ApiError: The server refuses.
        ConnectionLostError: It hung up, or is not a WebSocket server.
    """
    key = base64.b64encode(os.urandom(16))
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
    asked_for = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key.decode()),
        ("Sec-WebSocket-Version", "13"),
        *headers,
    ]
    # A memoryview, since its repr shows nothing: the request holds the API key, and error reporters show the local
    # variables of a traceback's frames, those of Trio included.
    request = memoryview(http.send(h11.Request(method="GET", target=target, headers=asked_for)) or b"")
    http.send(h11.EndOfMessage())
    await stream.send_all(request)
    while True:
        event = _next_event(http)
        if isinstance(event, str):
            raise ConnectionLostError(f"not a WebSocket server: {event}")
        if event is h11.NEED_DATA:
            data = await stream.receive_some(MAX_BYTES)
            if not data:
                raise ConnectionLostError("the server hung up during the handshake")
            http.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            raise _refused(event, await _receive_body(http, stream))
        else:
            assert isinstance(event, h11.InformationalResponse)
            if event.status_code == 101:
                _check_consent(event, generate_accept_token(key))
                return http.trailing_data[0]


def _check_consent(response: h11.InformationalResponse, token: bytes) -> None:
    """RFC 6455, 4.1: a consent must be one to this request, and bring nothing that was not asked for."""
    headers: dict[bytes, bytes] = {}
    for name, value in response.headers:
        headers[name] = headers[name] + b"," + value if name in headers else value
    upgrades = [word.strip().lower() for word in headers.get(b"connection", b"").split(b",")]
    if (
        headers.get(b"upgrade", b"").lower() != b"websocket"
        or b"upgrade" not in upgrades
        or headers.get(b"sec-websocket-accept") != token
        or b"sec-websocket-extensions" in headers
        or b"sec-websocket-protocol" in headers
    ):
        raise ConnectionLostError("not a WebSocket server: it accepts the handshake in a way that is not valid")


async def _receive_body(http: h11.Connection, stream: trio.abc.Stream) -> bytes:
    """What there is of a refusal's body, however it ends."""
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT), suppress(trio.BrokenResourceError):
        while len(body) < MAX_BYTES:
            event = _next_event(http)
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(MAX_BYTES)))
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
        return ConnectionLostError(f"not a WebSocket server: it answered with HTTP status {status}")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return refusal(status, headers, body.decode(errors="replace"))
