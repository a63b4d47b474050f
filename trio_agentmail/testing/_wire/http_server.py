"""HTTP/1.1 on a port, for the REST API of the fake.

It uses h11, a dependency of wsproto, and not an ASGI server. Hypercorn 0.18 shields its sends from cancellation, so a
client that has stopped reading would prevent `serve()` from ending. Also, an ASGI application cannot reset a connection
or wait for the client to give up, as some faults do.
"""

import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto

import h11
import httpx2
import trio

from trio_agentmail.testing._agentmail.refusals import Refusal, not_http, too_large

__all__ = ["HttpConnection", "NoAnswer", "Refuse", "Respond", "reset", "with_tls"]


class NoAnswer(Enum):
    """The ways in which a request gets no response."""

    HANG = auto()
    """The connection stays open until the client gives up."""

    RESET = auto()
    """The connection is reset."""


Respond = Callable[[httpx2.Request], Awaitable[httpx2.Response | NoAnswer]]
"""A function that answers a request whose body has been read."""

Refuse = Callable[[h11.Request], Refusal | None]
"""A function that returns the refusal of a request, or `None` if the request is accepted."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes closing the socket reset the connection."""

RECEIVE_SIZE = 2**16

MAX_BODY = 64 * 2**20
"""Maximum size of a request's body, in bytes. A command with a mail may be larger than AgentMail's limit."""


async def reset(stream: trio.SocketStream) -> None:
    """Reset a TCP connection."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    await trio.aclose_forcefully(stream)


def with_tls(stream: trio.SocketStream, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    """Return the server's end of a connection, with TLS if an SSL context is given."""
    return (
        stream if ssl_context is None else trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
    )


def _announced(head: h11.Request) -> int:
    """Return the `Content-Length` of a request, or 0. h11 has already checked that it is a number."""
    return max((int(value) for name, value in head.headers if name == b"content-length"), default=0)


def _too_large() -> Refusal:
    return too_large(f"the request has more than {MAX_BODY // 2**20} MiB")


class HttpConnection:
    """The server's end of a TCP connection. It answers requests one at a time until the client has gone.

    Args:
        refuse: Called with the head of each request.
        respond: Called with each request that is not refused.
    """

    def __init__(
        self, stream: trio.SocketStream, ssl_context: ssl.SSLContext | None, refuse: Refuse, respond: Respond
    ) -> None:
        self._socket_stream = stream
        self._stream = with_tls(stream, ssl_context)
        self._scheme = "http" if ssl_context is None else "https"
        self._refuse = refuse
        self._respond = respond
        self._http = h11.Connection(h11.SERVER)
        self._method = ""

    async def run(self) -> None:
        try:
            with suppress(trio.BrokenResourceError):
                try:
                    await self._answer_requests()
                except httpx2.RequestError:
                    await reset(self._socket_stream)
        finally:
            # The shield prevents a Cancelled from replacing an exception. A forceful close does not block.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _answer_requests(self) -> None:
        try:
            while (request := await self._receive_request()) is not None:
                match await self._respond(request):
                    case httpx2.Response() as response:
                        await self._send(response)
                    case NoAnswer.HANG:
                        while await self._stream.receive_some(RECEIVE_SIZE):
                            pass
                        return
                    case _:
                        await reset(self._socket_stream)
                        return
                if self._http.our_state is h11.MUST_CLOSE:
                    return
                self._http.start_next_cycle()
        except (h11.RemoteProtocolError, httpx2.InvalidURL) as exc:
            status = exc.error_status_hint if isinstance(exc, h11.RemoteProtocolError) else 400
            await self._send_last(status, not_http(exc))
        except Refusal as refused:
            await self._send_last(refused.status, refused)

    async def _receive_request(self) -> httpx2.Request | None:
        """Return the next request with its body, or `None` if the client has gone."""
        head: h11.Request | None = None
        refusal: Refusal | None = None
        self._method = ""  # the response to invalid data has a body
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._stream.send_all(self._http.send(go_on) or b"")
                self._http.receive_data(bytes(await self._stream.receive_some(RECEIVE_SIZE)))
            elif isinstance(event, h11.Request):
                head = event
                self._method = head.method.decode()
                refusal = self._refuse(head)
                if refusal is None and _announced(head) > MAX_BODY:
                    raise _too_large()
                if self._method == "CONNECT":
                    raise httpx2.InvalidURL("CONNECT is for proxies")
            elif isinstance(event, h11.Data):
                if refusal is None:
                    body += event.data
                if len(body) > MAX_BODY:
                    raise _too_large()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                if refusal is not None:
                    raise refusal
                return httpx2.Request(
                    self._method,
                    self._url(head),
                    headers=list(head.headers),
                    content=bytes(body),
                    # The local address. The address of the client is unavailable once it has gone.
                    extensions={"server_address": self._socket_stream.socket.getsockname()[0]},
                )
            else:
                return None

    def _url(self, head: h11.Request) -> httpx2.URL:
        target = head.target.decode("ascii")
        if not target.startswith("/"):
            url = httpx2.URL(target)  # RFC 9112, 3.2.2: the absolute form, which clients send to proxies
            if url.scheme not in ("http", "https"):
                raise httpx2.InvalidURL(f"{target!r} is not an HTTP URL")
            return url
        host = httpx2.Headers(list(head.headers))["Host"]
        return httpx2.URL(f"{self._scheme}://{host}{target}")

    async def _send_last(self, status: int, refusal: Refusal) -> None:
        await self._send(httpx2.Response(status, headers={"Connection": "close"}, json=refusal.answer))

    async def _send(self, response: httpx2.Response) -> None:
        head = h11.Response(status_code=response.status_code, headers=response.headers.raw)
        data = self._http.send(head) or b""
        if self._method != "HEAD":
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            async for content in response.stream:  # `response.content` would be decoded
                data += self._http.send(h11.Data(data=content)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._stream.send_all(data)
