"""The handshake: what is sent, which answers are accepted, and what the others raise."""

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.taking import taking
from tests.helpers.websocket_server import TEXT, Server, Talk, connected_to, frame
from trio_agentmail import ApiError, AuthenticationError, PermissionDeniedError
from trio_agentmail._handshake import BODY_TIMEOUT
from trio_agentmail._handshake import MAX_BYTES as MAX_HANDSHAKE_BYTES
from trio_agentmail.errors import ConnectionLostError


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
