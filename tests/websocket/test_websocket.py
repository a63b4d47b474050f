"""The client WebSocket over memory streams, against servers that are written byte by byte. It never hangs."""

import base64
import functools
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn, TypeAlias

import pytest
import trio
import trustme
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from trio_agentmail import ApiError, AuthenticationError, PermissionDeniedError
from trio_agentmail._handshake import BODY_TIMEOUT
from trio_agentmail._handshake import MAX_BYTES as MAX_HANDSHAKE_BYTES
from trio_agentmail._network import start_tls
from trio_agentmail._nursery import background_nursery
from trio_agentmail._watched_stream import SEND_TIMEOUT, WatchedStream
from trio_agentmail._websocket import ClientWebSocket, client_websocket
from trio_agentmail.errors import ConnectionLostError

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

Talk: TypeAlias = Callable[["Server"], Awaitable[None]]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    if len(payload) < 126:
        length = bytes([len(payload)])
    elif len(payload) < 2**16:
        length = b"\x7e" + len(payload).to_bytes(2)
    else:
        length = b"\x7f" + len(payload).to_bytes(8)
    return bytes([opcode | (0x80 if fin else 0)]) + length + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason.encode())


class Server:
    """The server's end of a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.request = b""
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_request(self) -> bytes:
        """Read the handshake and return the answer that accepts it."""
        while b"\r\n\r\n" not in self.request:
            self.request += await self.stream.receive_some()
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", self.request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    async def accept(self) -> None:
        await self.send(await self.read_request())

    async def receive_frame(self) -> tuple[int, bytes]:
        """Return the client's next frame, unmasked. All of them are short here."""
        head = await self._receive_exactly(6)
        assert head[1] & 0x80, "a client masks its frames"
        payload = await self._receive_exactly(head[1] & 0x7F)
        return head[0] & 0x0F, bytes(byte ^ head[2 + i % 4] for i, byte in enumerate(payload))

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Return the client's frames until it hangs up."""
        while True:
            if not self._received:
                self._received += await self.stream.receive_some()
            if not self._received:
                return
            yield await self.receive_frame()

    async def _receive_exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            data = await self.stream.receive_some()
            assert data, "the client hung up"
            self._received += data
        data, self._received = self._received[:size], self._received[size:]
        return bytes(data)


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a client and of a server that it trusts."""
    authority = trustme.CA()
    client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("ws.example").configure_cert(server)
    return client, server


plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


@asynccontextmanager
async def connected_to(
    talk: Talk, *, max_message_size: int = 1000, lockstep: bool = False, tls: bool = False
) -> AsyncIterator[ClientWebSocket]:
    """A WebSocket to a server that runs `talk`. The server leaves its end of the stream open if `talk` does.

    At the end of the block, the client must have closed its own end.
    """
    client_end, server_end = lockstep_stream_pair() if lockstep else memory_stream_pair()
    client_stream: trio.abc.Stream = client_end
    server_stream: trio.abc.Stream = server_end
    watched: WatchedStream | None = None
    if tls:
        client_context, server_context = tls_contexts()
        server_stream = trio.SSLStream(server_end, server_context, server_side=True, https_compatible=True)
    # On the mock clock, a test that hangs would hang for ever.
    with trio.fail_after(1000):
        async with background_nursery() as nursery:
            nursery.start_soon(talk, Server(server_stream))
            try:
                if tls:
                    watched = WatchedStream(client_end)
                    client_stream = await start_tls(watched, client_context, "ws.example", "ws.example port 443")
                async with client_websocket(
                    client_stream,
                    host="ws.example",
                    target="/v0",
                    headers=[("Authorization", "Bearer am_key")],
                    max_message_size=max_message_size,
                    watched=watched,
                ) as websocket:
                    yield websocket
            finally:
                with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                    await client_end.send_all(b"is it closed?")


@asynccontextmanager
async def taking(seconds: float) -> AsyncIterator[None]:
    started = trio.current_time()
    yield
    assert trio.current_time() - started == pytest.approx(seconds, abs=1e-6)


async def refused_by(talk: Talk) -> Exception:
    """Return the exception for a server that answers the handshake like this."""
    with pytest.raises((ApiError, ConnectionLostError)) as caught:
        async with connected_to(talk):
            pytest.fail("connected")
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value


def saying(*parts: bytes | float, then: str = "leave it open") -> Talk:
    """A server that answers the handshake with these bytes. It sleeps for the numbers between them, in seconds."""

    async def talk(server: Server) -> None:
        await server.read_request()
        for part in parts:
            if isinstance(part, bytes):
                await server.send(part)
            else:
                await trio.sleep(part)
        if then == "hang up":
            await server.stream.aclose()

    return talk


# The handshake


async def test_the_handshake_says_what_is_asked_for(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        requests.append(server.request)
        await trio.sleep_forever()

    requests: list[bytes] = []
    async with taking(0), connected_to(talk):
        pass
    [request] = requests
    lines = request.split(b"\r\n")
    assert lines[0] == b"GET /v0 HTTP/1.1"
    assert b"Host: ws.example" in lines
    assert [line for line in lines if b"am_key" in line] == [b"Authorization: Bearer am_key"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, ApiError),
        (307, ApiError),
        (400, ApiError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, ApiError),
        (429, ApiError),
        (500, ApiError),
        (503, ApiError),
        (599, ApiError),
    ],
)
async def test_a_refusal_is_raised_with_status_headers_and_body(
    status: int, error: type[ApiError], autojump_clock: MockClock
) -> None:
    async with taking(0):
        refusal = await refused_by(
            saying(
                f"HTTP/1.1 {status} Oh\r\nContent-Length: 4\r\nRetry-After: 7\r\n"
                "X-Many: one\r\nX-Many: two\r\n\r\nbody".encode()
            )
        )
    assert type(refusal) is error
    assert isinstance(refusal, ApiError)
    assert (refusal.status_code, refusal.body) == (status, "body")
    assert refusal.headers == {"content-length": "4", "retry-after": "7", "x-many": "two"}


REFUSAL = b"HTTP/1.1 401 Unauthorized\r\n"


@pytest.mark.parametrize(
    ("talk", "body", "seconds"),
    [
        (saying(REFUSAL + b"Content-Length: 0\r\n\r\n"), "", 0),
        (saying(REFUSAL + b"Content-Length: 4\r\n\r\nbody"), "body", 0),
        (saying(REFUSAL + b"Content-Length: 4\r\n\r\nbo", 0.1, b"dy"), "body", 0.1),
        (saying(REFUSAL + b"Content-Length: 9\r\n\r\nbody"), "body", BODY_TIMEOUT),
        (saying(REFUSAL + b"Content-Length: 9\r\n\r\nbody", then="hang up"), "body", 0),
        (saying(REFUSAL + b"\r\nbody", then="hang up"), "body", 0),
        (saying(REFUSAL + b"\r\nbody"), "body", BODY_TIMEOUT),
        (saying(REFUSAL + b"\r\n"), "", BODY_TIMEOUT),
        (saying(REFUSAL + b"\r\n", then="hang up"), "", 0),
        (saying(REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), "body", 0),
        (saying(REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"), "body", BODY_TIMEOUT),
        (saying(REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", then="hang up"), "body", 0),
        (saying(REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nnot a chunk\r\n"), "body", 0),
        (saying(REFUSAL + b"Content-Length: 4\r\n\r\nb\xffdy"), "b\ufffddy", 0),
        (saying(REFUSAL + b"\r\n" + 10 * MAX_HANDSHAKE_BYTES * b"x"), MAX_HANDSHAKE_BYTES * "x", 0),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n" + REFUSAL + b"Content-Length: 4\r\n\r\nbody"), "body", 0),
    ],
    ids=[
        "none",
        "complete",
        "in two parts",
        "incomplete",
        "incomplete, then the end",
        "up to the end",
        "without an end",
        "no length and nothing",
        "no length and the end",
        "chunked",
        "chunked without an end",
        "chunked, then the end",
        "chunked and malformed",
        "not UTF-8",
        "huge",
        "after a 100",
    ],
)
async def test_a_refusal_comes_out_whatever_its_body_does(
    talk: Talk, body: str, seconds: float, autojump_clock: MockClock
) -> None:
    async with taking(seconds):
        refusal = await refused_by(talk)
    assert isinstance(refusal, AuthenticationError)
    assert refusal.body == body


async def test_a_body_that_trickles_for_ever_is_not_waited_for(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.read_request()
        await server.send(REFUSAL + b"\r\n")
        while True:
            await trio.sleep(0.15)
            await server.send(b"x")

    async with taking(BODY_TIMEOUT):
        refusal = await refused_by(talk)
    assert isinstance(refusal, AuthenticationError)
    assert refusal.body == "x"


@pytest.mark.parametrize("early", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
async def test_an_interim_answer_before_the_acceptance_is_passed_over(early: bytes, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        await server.send(early)
        await trio.sleep(1)
        await server.send(early + answer + frame(TEXT, b"hello"))

    async with taking(1), connected_to(talk) as websocket:
        assert await websocket.receive() == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\x00" * 100,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        b"HTTP/1.1 401 " + b"x" * 2 * MAX_HANDSHAKE_BYTES,
        b"HTTP/1.1 401 Unauthorized\r\n" + b"A: x\r\n" * MAX_HANDSHAKE_BYTES,
    ],
    ids=["200", "204", "SSH", "TLS", "zeros", "101 without the headers", "101 of another", "no end", "no end of heads"],
)
async def test_what_is_no_websocket_server_is_a_lost_connection(answer: bytes, autojump_clock: MockClock) -> None:
    async with taking(0):
        lost = await refused_by(saying(answer, then="hang up"))
    assert isinstance(lost, ConnectionLostError)
    assert len(str(lost)) < 600


def accepting(answer: bytes, changes: dict[str, list[str]]) -> bytes:
    """The answer that accepts, with other values for some headers. `{token}` in them stands for the right token."""
    lines = answer.decode().split("\r\n")[:-2]
    token = next(line.split(": ")[1] for line in lines if line.startswith("Sec-WebSocket-Accept"))
    kept = [line for line in lines if line.partition(":")[0] not in changes]
    added = [f"{name}:{value}".replace("{token}", token) for name, values in changes.items() for value in values]
    return "\r\n".join([*kept, *added, "", ""]).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": [" WebSocket"]},
        {"Upgrade": ["\tWEBSOCKET  "]},
        {"Connection": [" upgrade"]},
        {"Connection": [" keep-alive, UPGRADE"]},
        {"Connection": [" Upgrade ,\tkeep-alive"]},
        {"Connection": [" keep-alive", " Upgrade"]},
        {"Connection": [], "CONNECTION": [" Upgrade"]},
        {"Sec-WebSocket-Accept": ["{token}"]},
        {"Sec-WebSocket-Accept": ["  {token}\t"]},
        {"Sec-WebSocket-Accept": [], "sec-websocket-accept": [" {token}"]},
        {"Sec-WebSocket-Version": [" 13"], "Server": [" x"], "Set-Cookie": [" a=b", " c=d"]},
    ],
    ids=str,
)
async def test_a_consent_may_be_written_in_many_ways(changes: dict[str, list[str]], autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(accepting(await server.read_request(), changes) + frame(TEXT, b"hello"))

    async with taking(0), connected_to(talk) as websocket:
        assert await websocket.receive() == b"hello"


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": []},
        {"Upgrade": [""]},
        {"Upgrade": [" h2c"]},
        {"Upgrade": [" websocket2"]},
        {"Upgrade": [" websocket, h2c"]},
        {"Upgrade": [" websocket", " h2c"]},
        {"Connection": []},
        {"Connection": [""]},
        {"Connection": [" close"]},
        {"Connection": [" keep-alive"]},
        {"Connection": [" Upgraded"]},
        {"Connection": [" keep-alive Upgrade"]},
        {"Sec-WebSocket-Accept": []},
        {"Sec-WebSocket-Accept": [""]},
        {"Sec-WebSocket-Accept": [" dGhlIHNhbXBsZSBub25jZQ=="]},
        {"Sec-WebSocket-Accept": [" x{token}"]},
        {"Sec-WebSocket-Accept": [" {token}, {token}"]},
        {"Sec-WebSocket-Accept": [" {token}", " {token}"]},
        {"Sec-WebSocket-Accept": [" {token}", " other"]},
        {"Sec-WebSocket-Extensions": [" permessage-deflate"]},
        {"Sec-WebSocket-Protocol": [" chat"]},
    ],
    ids=str,
)
async def test_a_consent_to_something_else_is_a_lost_connection(
    changes: dict[str, list[str]], autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.send(accepting(await server.read_request(), changes))

    async with taking(0):
        lost = await refused_by(talk)
    assert isinstance(lost, ConnectionLostError)
    assert "its 101 response is not valid" in str(lost)


async def test_a_token_in_other_letters_is_another_token(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        head, token = answer.rstrip().rsplit(b" ", 1)
        await server.send(head + b" " + token.swapcase() + b"\r\n\r\n")

    assert isinstance(await refused_by(talk), ConnectionLostError)


async def test_a_server_that_hangs_up_at_any_point_of_the_handshake_is_noticed_at_once(
    autojump_clock: MockClock,
) -> None:
    for size in range(129):

        async def talk(server: Server, size: int = size) -> None:
            answer = await server.read_request()
            assert len(answer) == 129
            await server.send(answer[:size])
            await server.stream.aclose()

        async with taking(0):
            lost = await refused_by(talk)
        assert isinstance(lost, ConnectionLostError)
        assert "closed the connection during the handshake" in str(lost)


async def test_a_server_that_hangs_up_before_the_request_is_noticed_at_once(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.stream.aclose()

    async with taking(0):
        with pytest.raises((ConnectionLostError, trio.BrokenResourceError)):
            async with connected_to(talk):
                pytest.fail("connected")


async def test_a_handshake_in_single_bytes_succeeds(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        for byte in await server.read_request() + frame(TEXT, b"hello"):
            await server.send(bytes([byte]))
            await trio.sleep(1)

    async with connected_to(talk) as websocket:
        assert await websocket.receive() == b"hello"


async def test_a_handshake_that_is_never_answered_ends_at_once_when_cancelled(autojump_clock: MockClock) -> None:
    async with taking(3):
        with trio.move_on_after(3) as scope:
            async with connected_to(saying()):
                pytest.fail("connected")
        assert scope.cancelled_caught


# Messages


async def test_messages_come_in_order_and_any_shape(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        await server.send(answer + frame(TEXT, "grüße".encode()) + frame(BINARY, b"\xff\x00"))
        await server.send(frame(TEXT, b"in ", fin=False) + frame(PING, b"!") + frame(0, b"two parts"))
        await server.send(frame(TEXT, b""))
        assert await server.receive_frame() == (PONG, b"!")
        await server.send(frame(TEXT, b"after the pong"))

    async with taking(0), connected_to(talk) as websocket:
        received = [await websocket.receive() for _ in range(5)]
    assert received == ["grüße".encode(), b"\xff\x00", b"in two parts", b"", b"after the pong"]


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (close_frame(1000), 1000),
        (close_frame(1001, "going away"), 1001),
        (close_frame(1008, "policy"), 1008),
        (close_frame(4401, "no"), 4401),
        (frame(CLOSE), 1005),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(3, b"?"), 1002),
        (frame(11, b"?"), 1002),
        (b"\xc1\x01x", 1002),
        (frame(0, b"continues nothing"), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, (999).to_bytes(2)), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(TEXT, b"x" * 1001), 1009),
        (frame(TEXT, b"x" * 600, fin=False) + frame(0, b"x" * 600, fin=False) + frame(0, b"x" * 600), 1009),
        (frame(BINARY, b"x" * 1001), 1009),
        (frame(TEXT, b"x" * 2**17), 1009),
    ],
    ids=[
        "1000",
        "1001",
        "1008",
        "4401",
        "no code",
        "not UTF-8",
        "reason not UTF-8",
        "reserved opcode",
        "reserved control opcode",
        "reserved bit",
        "continues nothing",
        "half a code",
        "bad code",
        "large ping",
        "ping in parts",
        "oversized",
        "oversized in parts",
        "oversized binary",
        "very oversized",
    ],
)
@pytest.mark.parametrize("then", ["leave it open", "hang up"])
async def test_nothing_before_the_end_is_lost_and_it_is_left_at_once(
    last: bytes, code: int, then: str, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        await server.send(answer + frame(TEXT, b"one") + frame(TEXT, b"two") + frame(TEXT, b"three") + last)
        if then == "hang up":
            await server.stream.aclose()

    async with taking(0), connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        for text in (b"one", b"two", b"three"):
            assert await websocket.receive() == text
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == code
        for action in (websocket.receive, websocket.ping):
            with pytest.raises(ConnectionLostError):
                await action()
        with pytest.raises(ConnectionLostError):
            await websocket.send("x")


async def test_the_reason_of_a_close_frame_is_reported(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + close_frame(4000, "maintenance"))

    async with connected_to(talk) as websocket:
        with pytest.raises(ConnectionLostError, match="maintenance"):
            await websocket.receive()


async def test_a_message_of_exactly_the_largest_size_is_received(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, ("ü" * 1000).encode()))

    async with connected_to(talk, max_message_size=1000) as websocket:
        assert await websocket.receive() == "ü".encode() * 1000


async def test_very_many_messages_of_one_read_leave_others_their_turn(autojump_clock: MockClock) -> None:
    messages = [b"%d" % number for number in range(10_500)]

    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + b"".join(frame(TEXT, message) for message in messages))

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with connected_to(talk) as websocket, background_nursery() as nursery:
        assert await websocket.receive() == messages[0]
        nursery.start_soon(other)
        assert [await websocket.receive() for _ in messages[1:]] == messages[1:]
        assert 5 <= turns <= 20


async def test_a_stream_cut_at_any_byte_loses_no_whole_message(autojump_clock: MockClock) -> None:
    data = frame(TEXT, b"one") + frame(TEXT, b"two", fin=False) + frame(0, b"three")
    for size in range(len(data) + 1):

        async def talk(server: Server, size: int = size) -> None:
            await server.send(await server.read_request() + data[:size])
            await server.stream.aclose()

        received = []
        async with taking(0), connected_to(talk) as websocket:
            with pytest.raises(ConnectionLostError) as caught:
                while True:
                    received.append(await websocket.receive())
        assert caught.value.code == 1006
        assert received == [b"one", b"twothree"][: (size >= 5) + (size == len(data))]


async def test_a_stream_that_breaks_is_a_lost_connection(autojump_clock: MockClock) -> None:
    class BreakingStream(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> NoReturn:
            await trio.sleep(1)
            raise trio.BrokenResourceError("reset")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def talk(server: Server) -> None:
        await server.accept()

    client_end, server_end = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, Server(server_end))
        async with client_websocket(
            client_end, host="ws.example", target="/v0", headers=[], max_message_size=1000
        ) as websocket:
            await server_end.send_all(frame(TEXT, b"the last"))
            assert await websocket.receive() == b"the last"
            client_end.receive_stream, real = BreakingStream(), client_end.receive_stream  # type: ignore[assignment]
            with pytest.raises(ConnectionLostError) as caught:
                await websocket.receive()
        await real.aclose()
    assert caught.value.code == 1006


# Sending


async def test_what_is_sent_arrives(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        assert await server.receive_frame() == (TEXT, b"hello")
        opcode, payload = await server.receive_frame()
        assert opcode == PING
        await trio.sleep(2)
        await server.send(frame(PONG, payload))

    async with taking(2), connected_to(talk) as websocket:
        await websocket.send("hello")
        receiving = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_cancelled, websocket, receiving)
            await websocket.ping()
            receiving.cancel()


async def receive_until_cancelled(websocket: ClientWebSocket, scope: trio.CancelScope) -> None:
    with scope:
        await websocket.receive()


async def test_a_server_that_stops_reading_is_not_sent_to_for_ever_and_is_still_heard(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(2 * SEND_TIMEOUT)
        await server.send(frame(TEXT, b"still here"))
        await trio.sleep_forever()

    async with connected_to(talk, lockstep=True) as websocket:
        async with taking(SEND_TIMEOUT):
            await websocket.send("hello")
        async with taking(0):
            await websocket.send("hello")  # half of the first may have left: nothing may follow it
        async with taking(SEND_TIMEOUT):
            assert await websocket.receive() == b"still here"


async def test_a_pong_that_cannot_be_sent_costs_nothing_that_came_before_the_end(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(frame(PING, b"?") + frame(TEXT, b"one") + frame(PING, b"?") + frame(TEXT, b"two"))
        await server.stream.aclose()

    async with connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        assert [await websocket.receive(), await websocket.receive()] == [b"one", b"two"]
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == 1006


async def test_a_ping_that_waits_when_the_connection_ends_raises(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        await trio.sleep(2)
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive_until_lost, websocket)
        with pytest.raises(ConnectionLostError):
            await websocket.ping()


async def receive_until_lost(websocket: ClientWebSocket) -> None:
    with suppress(ConnectionLostError):
        while True:
            await websocket.receive()


async def test_a_pong_answers_all_the_pings_before_it_too_and_no_later_one(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        pings = [await server.receive_frame() for _ in range(3)]
        await server.send(frame(PONG, b"of nothing") + frame(PONG, pings[1][1]))
        await trio.sleep(2)
        await server.send(frame(PONG, pings[2][1]))

    async def ping() -> None:
        await websocket.ping()
        answered_at.append(trio.current_time() - started)

    started = trio.current_time()
    answered_at: list[float] = []
    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        async with trio.open_nursery() as pinging:
            for _ in range(3):
                pinging.start_soon(ping)
        receiving.cancel()
    assert answered_at == [0, 0, 2]


# Closing


async def test_closing_sends_1000_and_waits_for_the_servers_answer(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        frames.append(await server.receive_frame())
        await trio.sleep(2)
        await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_messages_that_cross_the_close_frame_do_not_hold_it_up(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        for _ in range(100):
            await server.send(frame(TEXT, b"x" * 500))
        await trio.sleep(2)
        await server.send(close_frame(1000))

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_messages_that_are_not_received_do_not_delay_the_close(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, b"x") * 100)
        assert (await server.receive_frame())[0] == CLOSE
        await server.send(close_frame(1000))

    async with taking(0), connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        await websocket.close()


async def test_closing_waits_for_a_hang_up_after_a_ping_that_crosses_the_close_frame(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        opcode, _ = await server.receive_frame()
        assert opcode == CLOSE
        await server.send(frame(PING, b"crosses"))
        await trio.sleep(2)
        await server.send(close_frame(1000))
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_a_server_that_hangs_up_instead_of_answering_the_close_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        await trio.sleep(2)
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_closing_what_has_ended_takes_no_time(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + close_frame(1001))

    async with taking(0), connected_to(talk) as websocket:
        with pytest.raises(ConnectionLostError):
            await websocket.receive()
        await websocket.close()


async def test_closing_what_was_cut_takes_no_time_even_if_the_server_reads_no_more(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        assert isinstance(server.stream, trio.abc.HalfCloseableStream)
        await server.stream.send_eof()
        await trio.sleep_forever()

    async with taking(0), connected_to(talk, lockstep=True) as websocket:
        with pytest.raises(ConnectionLostError):
            await websocket.receive()
        await websocket.close()


async def test_a_block_that_is_left_without_a_close_cuts_the_stream(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        while data := await server.stream.receive_some():
            sent_by_client.append(bytes(data))

    sent_by_client: list[bytes] = []
    error = ValueError()
    async with taking(0):
        with pytest.raises(ValueError) as caught:
            async with connected_to(talk):
                raise error
    assert caught.value is error
    assert error.__context__ is None
    assert sent_by_client == []


# Several tasks, and cancellation


class TricklingStream(trio.abc.SendStream):
    """A stream that sends a byte a second."""

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data):
            await self._stream.send_all(bytes([byte]))
            await trio.sleep(1)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._stream.aclose()


@plain_and_tls
async def test_a_receive_that_is_cancelled_anywhere_loses_nothing(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        stream = server.stream
        if isinstance(stream, trio.SSLStream):  # what comes byte by byte then are TLS's records
            transport = stream.transport_stream
            stream.transport_stream = trio.StapledStream(TricklingStream(transport), transport)
        else:
            server.stream = trio.StapledStream(TricklingStream(stream), stream)
        await server.send(frame(TEXT, "grüße".encode()) + frame(TEXT, b"in ", fin=False))
        await server.send(frame(PING, b"!") + frame(0, b"two parts") + close_frame(1001))

    received = []
    cancelled = 0
    async with connected_to(talk, tls=tls) as websocket:
        with pytest.raises(ConnectionLostError) as caught:
            while True:
                with trio.move_on_after(0.7) as scope:
                    received.append(await websocket.receive())
                cancelled += scope.cancelled_caught
    assert received == ["grüße".encode(), b"in two parts"]
    assert caught.value.code == 1001
    assert cancelled > 40


async def test_a_receive_that_was_cancelled_is_no_longer_reading(autojump_clock: MockClock) -> None:
    async with connected_to(Server.accept) as websocket:
        with trio.move_on_after(1):
            await websocket.receive()
        assert websocket.silent_since is None


@pytest.mark.parametrize(("last", "code"), [(close_frame(1008), 1008), (frame(3), 1002)], ids=["close", "failure"])
async def test_a_receive_cancelled_while_it_answers_a_close_frame_keeps_the_end(
    last: bytes, code: int, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(last)
        await trio.sleep_forever()  # and read no answer

    async with connected_to(talk, lockstep=True) as websocket:
        with trio.move_on_after(1), suppress(ConnectionLostError):
            await websocket.receive()
        async with taking(0):
            with trio.fail_after(10), pytest.raises(ConnectionLostError) as caught:
                await websocket.receive()
        assert caught.value.code == code


@plain_and_tls
async def test_a_receive_cancelled_while_it_answers_a_ping_leaves_room_for_the_close_frame(
    tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            if frame_[0] == TEXT:
                await server.send(frame(PING, b"?"))
            elif frame_[0] == CLOSE:
                await server.send(close_frame(1000))

    for steps in range(15):  # in one of them it has begun to send its pong
        frames: list[tuple[int, bytes]] = []
        async with taking(0), connected_to(talk, tls=tls) as websocket:
            receiving = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_until_cancelled, websocket, receiving)
                await wait_all_tasks_blocked()
                await websocket.send("ping me")
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                receiving.cancel()
            with trio.move_on_after(5):
                await websocket.close()
            await wait_all_tasks_blocked()
        assert frames[-1] == (CLOSE, (1000).to_bytes(2))


@plain_and_tls
async def test_of_two_tasks_that_receive_each_message_goes_to_one(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        for number in range(0, 30, 3):
            await trio.sleep(1)
            await server.send(b"".join(frame(TEXT, str(number + n).encode()) for n in range(3)))
        await server.send(close_frame(1001))

    async def receive() -> None:
        with pytest.raises(ConnectionLostError) as caught:
            while True:
                received.append(int(await websocket.receive()))
                await trio.lowlevel.checkpoint()
        assert caught.value.code == 1001

    received: list[int] = []
    async with taking(10), connected_to(talk, tls=tls) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(receive)
    assert sorted(received) == list(range(30))


async def test_when_the_task_that_reads_is_cancelled_the_other_one_reads_on(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(2)
        await server.send(frame(TEXT, b"hello"))

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope(deadline=trio.current_time() + 1)
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await wait_all_tasks_blocked()
        assert await websocket.receive() == b"hello"
        assert receiving.cancelled_caught


@pytest.mark.parametrize(("last", "code"), [(close_frame(1008), 1008), (frame(3), 1002)], ids=["close", "failure"])
async def test_two_tasks_that_receive_both_learn_of_the_end_at_once(
    last: bytes, code: int, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(1)
        await server.send(last)
        await trio.sleep_forever()

    async def receive() -> None:
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        codes.append(caught.value.code)

    codes: list[int] = []
    async with taking(1), connected_to(talk) as websocket:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(receive)
    assert codes == [code, code]


@plain_and_tls
async def test_closing_ends_a_receive_of_another_task_too(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            await trio.sleep(2)
            await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk, tls=tls) as websocket:
        async with taking(2), trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_lost, websocket)
            await wait_all_tasks_blocked()
            await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_however_often_it_is_closed_there_is_one_close_frame(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        nursery.start_soon(answer, server)
        async for frame_ in server.frames():
            frames.append(frame_)

    async def answer(server: Server) -> None:
        await trio.sleep(3)
        await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with taking(3), trio.open_nursery() as nursery, connected_to(talk) as websocket:
        with trio.move_on_after(1) as scope:
            await websocket.close()
        assert scope.cancelled_caught
        async with trio.open_nursery() as closing:
            closing.start_soon(websocket.close)
            closing.start_soon(websocket.close)
        await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


@plain_and_tls
@pytest.mark.parametrize(
    ("crossing", "code"),
    [
        (close_frame(1001), 1001),
        (frame(CLOSE), 1005),
        (frame(PING, b"?") + frame(TEXT, b"one") + close_frame(1001), 1001),
        (frame(3), 1002),
        (frame(TEXT, b"x" * 1001), 1009),
        (frame(TEXT, b"\xff"), 1007),
    ],
    ids=["close", "close without a code", "more than a close", "failure", "oversized", "not UTF-8"],
)
async def test_anything_may_cross_our_close_frame_and_there_is_no_second_one(
    crossing: bytes, code: int, tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + crossing)
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with taking(0), connected_to(talk, tls=tls) as websocket:
        await wait_all_tasks_blocked()
        await websocket.close()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
    assert caught.value.code == code
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_closing_while_another_task_answers_a_close_frame_sends_no_second_one(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(close_frame(1001))
        await trio.sleep(1)
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk, lockstep=True) as websocket:
        async with taking(1), trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_lost, websocket)
            await wait_all_tasks_blocked()
            await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1001).to_bytes(2))]


async def test_nothing_is_sent_behind_our_close_frame(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(websocket.close)
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            with pytest.raises(ConnectionLostError):
                await websocket.send("x")
            with pytest.raises(ConnectionLostError):
                await websocket.ping()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


@pytest.mark.parametrize("action", [lambda ws: ws.send("x"), ClientWebSocket.close], ids=["send", "close"])
async def test_who_sends_or_closes_is_cancelled_at_once_even_if_the_server_reads_no_more(
    action: Callable[[ClientWebSocket], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with connected_to(Server.accept, lockstep=True) as websocket, taking(1):
        with trio.move_on_after(1):
            await action(websocket)


@plain_and_tls
async def test_a_ping_that_was_cancelled_is_forgotten(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for _, payload in server.frames():
            await trio.sleep(2)
            await server.send(frame(PONG, payload))

    async with taking(4), connected_to(talk, tls=tls) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        with trio.move_on_after(1) as scope:
            await websocket.ping()
        assert scope.cancelled_caught
        await websocket.ping()  # which the pong to the first one, a second from now, does not answer
        receiving.cancel()


@plain_and_tls
async def test_a_ping_cancelled_at_any_moment_leaves_room_for_the_close_frame(
    tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            if frame_[0] == CLOSE:
                await server.send(close_frame(1000))

    async def ping() -> None:
        with pinging:
            await websocket.ping()

    for steps in range(10):
        frames: list[tuple[int, bytes]] = []
        pinging = trio.CancelScope()
        async with taking(0), connected_to(talk, tls=tls) as websocket:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ping)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                pinging.cancel()
            with trio.move_on_after(5):
                await websocket.close()
            await wait_all_tasks_blocked()
        assert frames[-1:] == [(CLOSE, (1000).to_bytes(2))]


@pytest.mark.parametrize("payload", [b"", b"\x01", (1).to_bytes(4), (1).to_bytes(9), (2).to_bytes(8), b"x" * 8])
async def test_a_pong_to_no_ping_of_ours_answers_none(payload: bytes, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        _, right = await server.receive_frame()
        assert payload != right
        await server.send(frame(PONG, payload))
        await trio.sleep(2)
        await server.send(frame(PONG, right))

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await websocket.ping()
        receiving.cancel()


async def test_the_pong_to_a_ping_that_was_cancelled_answers_those_before_it(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        pings = [await server.receive_frame() for _ in range(2)]
        await trio.sleep(2)
        await server.send(frame(PONG, pings[1][1]))  # RFC 6455, 5.5.3: it may answer the last one only
        await trio.sleep_forever()

    async def ping_and_give_up() -> None:
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await websocket.ping()

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        nursery.start_soon(ping_and_give_up)
        with trio.fail_after(10):
            await websocket.ping()
        receiving.cancel()


@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
@pytest.mark.parametrize("end", [close_frame(1000), frame(3), b""], ids=["close", "failure", "cut"])
async def test_a_ping_whose_pong_comes_right_before_the_end_has_been_answered(
    end: bytes, closing: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        _, payload = await server.receive_frame()
        await trio.sleep(1)
        await server.send(frame(PONG, payload) + end)
        await server.stream.aclose()

    async with taking(1), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive_until_lost, websocket)
        if closing:
            nursery.start_soon(close_later, websocket)
        await websocket.ping()


async def close_later(websocket: ClientWebSocket) -> None:
    await wait_all_tasks_blocked()
    await websocket.close()


# Signs of life


async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        for byte in frame(TEXT, b"x" * 20):
            await trio.sleep(1)
            await server.send(bytes([byte]))

    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        assert websocket.silent_since == started
        for seconds in range(1, 22):
            await trio.sleep_until(started + seconds)
            await wait_all_tasks_blocked()
            assert websocket.silent_since == started + seconds
        receiving.cancel()


async def test_there_is_no_silence_while_messages_wait_to_be_received(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, b"one") + frame(TEXT, b"two"))

    async with connected_to(talk) as websocket:
        await trio.sleep(100)
        assert websocket.silent_since is None
        assert await websocket.receive() == b"one"
        await trio.sleep(100)
        assert websocket.silent_since is None
        assert await websocket.receive() == b"two"
        await trio.sleep(100)
        assert websocket.silent_since is None
        async with trio.open_nursery() as nursery:
            receiving = trio.CancelScope()
            nursery.start_soon(receive_until_cancelled, websocket, receiving)
            await wait_all_tasks_blocked()
            assert websocket.silent_since == trio.current_time()
            receiving.cancel()


async def test_nothing_is_read_ahead_of_receive(autojump_clock: MockClock) -> None:
    sent = 0

    async def talk(server: Server) -> None:
        nonlocal sent
        await server.accept()
        with suppress(trio.BrokenResourceError):  # the client goes
            for number in range(100):
                await server.send(frame(TEXT, str(number).encode()))
                sent += 1

    async with connected_to(talk, lockstep=True) as websocket:
        await wait_all_tasks_blocked()
        assert sent == 0
        for number in range(10):
            assert await websocket.receive() == str(number).encode()
            await wait_all_tasks_blocked()
            assert sent == number + 1
