"""The HTTP requests that open a WebSocket, written with h11: `CONNECT` to a proxy, and the opening handshake."""

import base64
import os
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

import h11
import trio
import trio.abc
from wsproto.utilities import generate_accept_token

from ._proxy import Proxy, ProxyCredentialsError, authority
from ._why import describe, refusal
from .errors import AgentMailError, ConnectionLostError

__all__ = ["ask_for_tunnel", "refused_by_proxy", "shake_hands"]

MAX_BYTES = 2**16
"""Maximum size of a response's head, and maximum size of its body, in bytes."""

BODY_TIMEOUT = 0.2
"""Seconds to wait for the body of an error response after its head. The body only helps to explain the error."""


async def ask_for_tunnel(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask a proxy for a tunnel. Afterwards, the stream is connected to the host.

    Raises:
        ConnectionError: The proxy refused. The message does not quote the proxy, because its response may contain the
            credentials.
        ProxyCredentialsError: The proxy did not accept the credentials, or there were none.
    """
    failure = await _failure_of_tunnel(stream, proxy, authority(host, port))
    if failure is not None:
        raise failure


async def _failure_of_tunnel(stream: trio.abc.Stream, proxy: Proxy, target: str) -> ConnectionError | None:
    """Ask for a tunnel, and return the error to raise, or None.

    This does not raise, because the locals hold the response of the proxy, which may contain the credentials.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
    await stream.send_all(_tunnel_request(connection, proxy, target))
    while True:
        event = _next_event(connection)
        if isinstance(event, str):
            return ConnectionError(f"{proxy} does not answer in HTTP")
        if event is h11.NEED_DATA:
            try:
                data = await stream.receive_some(MAX_BYTES)
            except trio.BrokenResourceError as exc:
                return ConnectionError(f"{proxy} broke the connection before it answered: {describe(exc)}")
            if not data:
                return ConnectionError(f"{proxy} closed the connection before it answered")
            connection.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            if event.status_code >= 300:
                return refused_by_proxy(proxy, event.status_code, target)
            if connection.trailing_data[0]:
                return ConnectionError(f"{proxy} sent data after its answer")
            return None


def _tunnel_request(connection: h11.Connection, proxy: Proxy, target: str) -> memoryview:
    """Return the bytes to send, as a memoryview, because its repr shows no credentials in a traceback."""
    headers = [("Host", target)]
    if proxy.credentials is not None:
        headers.append(("Proxy-Authorization", _basic(*proxy.credentials)))
    request = connection.send(h11.Request(method="CONNECT", target=target, headers=headers))
    assert request is not None
    connection.send(h11.EndOfMessage())
    return memoryview(request)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def refused_by_proxy(proxy: Proxy, status: int, target: str) -> ConnectionError:
    """Return the error for an HTTP status from a proxy. It is not an `ApiError`, since AgentMail did not answer."""
    if status == 407:
        without = proxy.credentials is None
        wrong = "asks for a user name and a password" if without else "does not accept the user name and the password"
        return ProxyCredentialsError(f"{proxy} {wrong} (HTTP status 407)")
    phrase = next((known.phrase for known in HTTPStatus if known == status), "")
    return ConnectionError(f"{proxy} did not connect to {target}: HTTP status {status} {phrase}".rstrip())


async def shake_hands(
    stream: trio.abc.Stream,
    host: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    server: str = "the server",
) -> bytes:
    """Perform the opening handshake, and return the bytes received after the 101 response.

    Args:
        stream: The stream to the server.
        host: The `Host` header.
        target: The path of the URL, with its query.
        headers: Additional headers.
        server: The server's name in errors.

    Raises:
        ApiError: The server refused the handshake.
        ConnectionLostError: The server closed the connection, or is not a WebSocket server.
    """
    key = base64.b64encode(os.urandom(16))
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
    request_headers = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key.decode()),
        ("Sec-WebSocket-Version", "13"),
        *headers,
    ]
    # The request contains the API key, and error reporters show the local variables in a traceback, including those of
    # Trio's functions. The repr of a memoryview does not show its content.
    request = memoryview(http.send(h11.Request(method="GET", target=target, headers=request_headers)) or b"")
    http.send(h11.EndOfMessage())
    await stream.send_all(request)
    while True:
        event = _next_event(http)
        if isinstance(event, str):
            raise ConnectionLostError(f"not a WebSocket server: {event}")
        if event is h11.NEED_DATA:
            try:
                data = await stream.receive_some(MAX_BYTES)
            except trio.BrokenResourceError as exc:
                raise ConnectionLostError(
                    f"{server} broke the connection during the handshake: {describe(exc)}"
                ) from exc
            if not data:
                raise ConnectionLostError(f"{server} closed the connection during the handshake")
            http.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            raise _refused(event, await _receive_body(http, stream))
        else:
            assert isinstance(event, h11.InformationalResponse)
            if event.status_code == 101:
                _check_acceptance(event, generate_accept_token(key))
                return http.trailing_data[0]


def _check_acceptance(response: h11.InformationalResponse, token: bytes) -> None:
    """Check that the 101 response answers this request, and selects no extension or subprotocol (RFC 6455, 4.1)."""
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
        raise ConnectionLostError("not a WebSocket server: its 101 response is not valid")


async def _receive_body(http: h11.Connection, stream: trio.abc.Stream) -> bytes:
    """Return the body of an error response, as far as it arrives in time."""
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
    """Return h11's next event, or its error message if the server does not speak HTTP.

    h11's exception is not raised, because it would be the context of the exception that is raised in its place. It
    quotes the server, and a server may echo the API key.
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
