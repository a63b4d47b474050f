"""Failures over real TCP before a connection is confirmed."""

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.servers import (
    NEVER,
    PATIENCE,
    SUBSCRIBED,
    TEXT,
    Peer,
    close_frame,
    environment,
    frame,
    mail,
    open_stream,
    reserved_port,
    serve,
    story,
)
from tests.helpers.time_outs import ENTER_TIMEOUT, OPEN_TIMEOUT, failure_to_enter, jump_when_idle
from trio_agentmail import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    PermissionDeniedError,
    ReconnectPolicy,
    SubscriptionRejectedError,
)
from trio_agentmail.errors import ConnectionLostError

Misbehaviour = Callable[[Peer], Awaitable[None]]


# Transient failures


async def never_answers(peer: Peer) -> None:
    await peer.wait_for_hang_up()


async def hangs_up_at_once(peer: Peer) -> None:
    peer.hang_up()
    await peer.wait_for_hang_up()


async def resets_at_once(peer: Peer) -> None:
    peer.reset()


async def hangs_up_after_the_request(peer: Peer) -> None:
    await peer.read_request()


async def resets_after_the_request(peer: Peer) -> None:
    await peer.read_request()
    peer.reset()


async def hangs_up_in_the_middle_of_the_answer(peer: Peer) -> None:
    await peer.send(peer.acceptance(await peer.read_request())[:-10])


async def resets_in_the_middle_of_the_answer(peer: Peer) -> None:
    await peer.send(peer.acceptance(await peer.read_request())[:-10])
    peer.reset()


async def speaks_plain_http(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\n\r\nhello")
    await peer.wait_for_hang_up()


async def speaks_plain_http_without_end(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await peer.send(b"5\r\nhello\r\n")


async def speaks_another_protocol(peer: Peer) -> None:
    await peer.send(b"220 mail.example ESMTP\r\n500 what?\r\n\r\n")
    await peer.wait_for_hang_up()


async def sends_headers_without_end(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        await peer.send(b"X-More: and more\r\n" * 100)


async def sends_a_header_without_end_slowly(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nX-More: ")
    while True:
        await peer.send(b".")
        await trio.sleep(0.02)


async def accepts_another_key(peer: Peer) -> None:
    answer = peer.acceptance(await peer.read_request())
    start = answer.index(b"Sec-WebSocket-Accept: ") + len(b"Sec-WebSocket-Accept: ")
    await peer.send(answer[:start] + b"AAAAAAAAAAAAAAAAAAAAAAAAAAA=" + answer[start + 28 :])
    await peer.wait_for_hang_up()


async def accepts_without_a_key(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    await peer.wait_for_hang_up()


async def switches_to_another_protocol(peer: Peer) -> None:
    answer = peer.acceptance(await peer.read_request())
    await peer.send(answer.replace(b"Upgrade: websocket", b"Upgrade: chat"))
    await peer.wait_for_hang_up()


async def agrees_to_an_extension_that_nobody_offered(peer: Peer) -> None:
    answer = peer.acceptance(await peer.read_request())
    await peer.send(answer[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    await peer.wait_for_hang_up()


async def hangs_up_after_the_handshake(peer: Peer) -> None:
    await peer.accept()


async def resets_after_the_handshake(peer: Peer) -> None:
    await peer.accept()
    await peer.read_subscription()
    peer.reset()


async def does_not_confirm(peer: Peer) -> None:
    await peer.accept()
    await peer.wait_for_hang_up()


async def chats_and_does_not_confirm(peer: Peer) -> None:
    await peer.accept()
    while True:
        await peer.push("early")
        await trio.sleep(0.02)


async def floods_and_does_not_confirm(peer: Peer) -> None:
    await peer.accept()
    while True:
        await peer.push(*["early"] * 100)


async def closes_before_it_confirms(peer: Peer) -> None:
    await peer.accept()
    await peer.read_subscription()
    await peer.send(close_frame(1013, "later"))
    await peer.wait_for_hang_up()


async def breaks_the_protocol_before_it_confirms(peer: Peer) -> None:
    await peer.accept()
    await peer.send(frame(TEXT, b"\xff"))
    await peer.wait_for_hang_up()


async def sends_too_large_a_frame_before_it_confirms(peer: Peer) -> None:
    await peer.accept()
    await peer.send(frame(TEXT, mail("early", text="x" * 2**17)))
    await peer.wait_for_hang_up()


async def complains_of_an_internal_fault(peer: Peer) -> None:
    await peer.accept()
    await peer.read_subscription()
    await peer.send(frame(TEXT, '{"type": "error", "name": "InternalServerError", "message": "sorry"}'))
    await peer.wait_for_hang_up()


def answers(status: str, *headers: str, body: str = "") -> Misbehaviour:
    async def answer(peer: Peer) -> None:
        await peer.read_request()
        await peer.send("\r\n".join([f"HTTP/1.1 {status}", *headers, "", body]).encode())
        await peer.wait_for_hang_up()

    answer.__name__ = "answers " + status
    return answer


NOTICED_AT_ONCE = [
    hangs_up_at_once,
    resets_at_once,
    hangs_up_after_the_request,
    resets_after_the_request,
    hangs_up_in_the_middle_of_the_answer,
    resets_in_the_middle_of_the_answer,
    speaks_plain_http,
    speaks_plain_http_without_end,
    speaks_another_protocol,
    sends_headers_without_end,
    accepts_another_key,
    accepts_without_a_key,
    switches_to_another_protocol,
    agrees_to_an_extension_that_nobody_offered,
    hangs_up_after_the_handshake,
    resets_after_the_handshake,
    floods_and_does_not_confirm,
    closes_before_it_confirms,
    breaks_the_protocol_before_it_confirms,
    sends_too_large_a_frame_before_it_confirms,
    complains_of_an_internal_fault,
    answers("408 Request Timeout", "Content-Length: 0"),
    answers("425 Too Early", "Content-Length: 0"),
    answers("429 Too Many Requests"),
    answers("500 Internal Server Error", "Content-Length: 0", "Connection: close"),
    answers("503 Service Unavailable", "Retry-After: 0", "Content-Length: 4", body="busy"),
]


NOTICED_BY_THE_TIME_OUT = [
    never_answers,
    sends_a_header_without_end_slowly,
    does_not_confirm,
    chats_and_does_not_confirm,
]


async def fails_once_on_entering(misbehave: Misbehaviour, open_timeout: float) -> None:
    """Check that a failure of the first attempt is not seen in the stream."""

    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await misbehave(peer)
        else:
            await peer.confirm()
            await peer.push("m1")
            await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, open_timeout=open_timeout, max_message_size=2**16) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
        assert await server.goodbye() == 1000
    assert server.connections == 2


@pytest.mark.parametrize("misbehave", NOTICED_AT_ONCE, ids=lambda misbehave: misbehave.__name__)
async def test_transient_failures_on_entering_are_not_seen(misbehave: Misbehaviour) -> None:
    await fails_once_on_entering(misbehave, NEVER)


@pytest.mark.parametrize("misbehave", NOTICED_BY_THE_TIME_OUT, ids=lambda misbehave: misbehave.__name__)
async def test_attempts_that_time_out_on_entering_are_not_seen(
    misbehave: Misbehaviour, adjustable_clock: MockClock
) -> None:
    async def hang(peer: Peer) -> None:
        async with jump_when_idle(adjustable_clock, OPEN_TIMEOUT):
            await misbehave(peer)

    await fails_once_on_entering(hang, OPEN_TIMEOUT)


@pytest.mark.parametrize(
    "misbehave",
    [
        resets_at_once,
        speaks_plain_http,
        does_not_confirm,
    ],
    ids=lambda misbehave: misbehave.__name__,
)
async def test_transient_failures_beyond_enter_timeout_are_raised_with_their_cause(
    misbehave: Misbehaviour, adjustable_clock: MockClock
) -> None:
    async def handle(peer: Peer) -> None:
        async with jump_when_idle(adjustable_clock, OPEN_TIMEOUT if peer.number == 1 else 0):
            await misbehave(peer)

    async with serve(handle) as server:
        stream = open_stream(server, open_timeout=OPEN_TIMEOUT, enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: server.connections > 1)
    assert isinstance(failure.__cause__, ConnectionLostError)
    assert "enter_timeout" in str(failure)
    assert str(failure).endswith(f": {failure.__cause__}")
    assert server.connections > 1


async def test_every_attempt_that_failed_is_cut(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        await peer.accept()
        adjustable_clock.jump(OPEN_TIMEOUT)
        await peer.stay()  # it does not confirm

    async with serve(handle) as server:
        with pytest.raises(ConnectionFailedError):
            async with open_stream(server, open_timeout=OPEN_TIMEOUT, enter_timeout=ENTER_TIMEOUT):
                pytest.fail("entered")
        assert server.connections > 1
        for _ in range(server.connections):
            assert await server.goodbye() == 1006


async def test_failures_on_entering_are_retried_with_back_off() -> None:
    # Full jitter: ten delays, with ceilings of 0.1, 0.2, 0.4, … seconds, take 0.8 s or less in one of 10¹⁰ runs.
    policy = ReconnectPolicy(initial_delay=0.1, max_delay=100.0)
    async with serve(hangs_up_at_once) as server:
        with pytest.raises(ConnectionFailedError):
            async with open_stream(server, enter_timeout=0.8, reconnect=policy):
                pytest.fail("entered")
    assert server.connections <= 10


async def test_leaving_a_server_that_never_answers_needs_no_time_out() -> None:
    connected = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.read_request()
        connected.set()
        await peer.wait_for_hang_up()
        peer.server.note_goodbye(1006)

    async def leave(scope: trio.CancelScope) -> None:
        await connected.wait()
        scope.cancel()

    async with serve(handle) as server, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(leave, scope)
            async with open_stream(server, open_timeout=NEVER, enter_timeout=NEVER):
                pytest.fail("entered")
        assert scope.cancelled_caught
        assert await server.goodbye() == 1006


# The address


@pytest.fixture
def attempts_failed(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """A function that returns whether several attempts have failed, according to the log. No server counts them."""
    caplog.set_level(logging.INFO, logger="trio_agentmail")
    return lambda: caplog.text.count("for the next attempt") > 1


async def test_a_host_that_does_not_exist_is_transient(
    adjustable_clock: MockClock, attempts_failed: Callable[[], bool]
) -> None:
    with trio.fail_after(PATIENCE):
        stream = open_stream(environment(80, host="does-not-exist.invalid"), enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, attempts_failed)
    assert isinstance(failure.__cause__, socket.gaierror)


async def test_a_port_that_refuses_connections_is_transient(
    adjustable_clock: MockClock, attempts_failed: Callable[[], bool]
) -> None:
    with trio.fail_after(PATIENCE), reserved_port() as port:
        stream = open_stream(environment(port), enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, attempts_failed)
    assert isinstance(failure.__cause__, OSError)


async def test_a_port_that_opens_later_is_found() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await peer.stay()

    entered = trio.Event()

    async def listen(port: int) -> None:
        async with open_stream(environment(port)) as events:
            assert await story(events, 1) == ["subscribed"]
            entered.set()

    with trio.fail_after(10), reserved_port() as port:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, port)
            await trio.sleep(0.1)
            async with serve(handle, port=port) as server:
                await entered.wait()
                assert await server.goodbye() == 1000


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue is full, so the SYN of another connection is dropped, as behind a firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(16):
                client = socket.socket()
                client.settimeout(0.1)
                waiting.append(client)
                try:
                    client.connect(listener.getsockname())
                except TimeoutError:
                    break
            else:
                pytest.skip("this system's queues are not filled")
            yield listener.getsockname()[1]
        finally:
            for client in waiting:
                client.close()


async def test_a_connection_that_never_comes_about_is_given_up(
    full_port: int, adjustable_clock: MockClock, attempts_failed: Callable[[], bool]
) -> None:
    with trio.fail_after(PATIENCE):
        stream = open_stream(environment(full_port), open_timeout=0.1, enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, attempts_failed)
    text = f"did not open within open_timeout (0.1 s): it was still connecting to 127.0.0.1 port {full_port}"
    assert text in str(failure.__cause__)


# Fatal failures


async def refuses_without_end(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        await peer.send(b"who are you? ")


@pytest.mark.parametrize(
    ("refuse", "error", "status", "body"),
    [
        (answers("400 Bad Request", "Content-Length: 3", body="bad"), ApiError, 400, "bad"),
        (answers("401 Unauthorized", "Content-Length: 3", body="who"), AuthenticationError, 401, "who"),
        # Without a length the body ends when the server hangs up, which this one never does.
        (answers("401 Unauthorized", body="who"), AuthenticationError, 401, "who"),
        (answers("401 Unauthorized", "Content-Length: 100", body="who"), AuthenticationError, 401, "who"),
        (answers("401 Unauthorized", "Connection: close", body="who"), AuthenticationError, 401, "who"),
        (refuses_without_end, AuthenticationError, 401, "who are you? "),
        (answers("402 Payment Required", "Content-Length: 0"), ApiError, 402, ""),
        (
            answers("403 Forbidden", "Transfer-Encoding: chunked", body="3\r\nwho\r\n0\r\n\r\n"),
            PermissionDeniedError,
            403,
            "who",
        ),
        (answers("404 Not Found", "Content-Length: 0"), ApiError, 404, ""),
        (answers("418 I'm a teapot", "Content-Length: 0"), ApiError, 418, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_refusal_raises_at_once_as_itself(
    refuse: Misbehaviour, error: type[ApiError], status: int, body: str
) -> None:
    async with serve(refuse) as server:
        with pytest.raises(ApiError) as caught:
            async with open_stream(server, open_timeout=NEVER, enter_timeout=NEVER):
                pytest.fail("entered")
    assert type(caught.value) is error
    assert caught.value.status_code == status
    assert caught.value.body.startswith(body)
    assert server.connections == 1


async def test_a_refusal_whose_server_hangs_up_keeps_its_status_and_body() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nwho are you?")

    async with serve(refuse) as server:
        with pytest.raises(AuthenticationError) as caught:
            async with open_stream(server):
                pytest.fail("entered")
    assert caught.value.body == "who are you?"
    assert caught.value.headers == {"connection": "close"}
    assert server.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_with_the_key(status: int) -> None:
    async with serve(never_answers) as target:
        redirect = answers(f"{status} Over There", f"Location: {target.environment.websockets}/v0", "Content-Length: 0")
        async with serve(redirect) as server:
            with pytest.raises(ApiError) as caught:
                async with open_stream(server):
                    pytest.fail("entered")
    assert caught.value.status_code == status
    assert server.connections == 1
    assert target.connections == 0


async def test_a_server_that_asks_for_more_patience_than_is_left_is_not_waited_for() -> None:
    async with serve(answers("503 Service Unavailable", "Retry-After: 1000", "Content-Length: 0")) as server:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_stream(server, enter_timeout=NEVER):
                pytest.fail("entered")
    cause = caught.value.__cause__
    assert isinstance(cause, ApiError)
    assert cause.status_code == 503
    assert server.connections == 1


async def test_a_server_that_asks_for_a_second_is_given_it() -> None:
    came_at = []

    async def handle(peer: Peer) -> None:
        came_at.append(trio.current_time())
        if peer.number == 1:
            await answers("503 Service Unavailable", "Retry-After: 1", "Content-Length: 0")(peer)
        else:
            await peer.confirm()
            await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
    assert came_at[1] - came_at[0] >= 1.0


@pytest.mark.parametrize("code", [1008, 4000, 4401, 4999])
async def test_a_close_code_that_may_mean_a_refusal_is_fatal_the_third_time(code: int) -> None:
    async def handle(peer: Peer) -> None:
        await peer.accept()
        await peer.read_subscription()
        await peer.send(close_frame(code, "no such inbox"))
        await peer.wait_for_hang_up()

    async with serve(handle) as server:
        with pytest.raises(SubscriptionRejectedError, match="no such inbox") as caught:
            async with open_stream(server, enter_timeout=NEVER):
                pytest.fail("entered")
    assert caught.value.name == f"close {code}"
    assert server.connections == 3


async def test_a_subscription_that_is_refused_raises_at_once_as_itself() -> None:
    async def handle(peer: Peer) -> None:
        await peer.accept()
        await peer.read_subscription()
        await peer.send(frame(TEXT, '{"type": "error", "name": "ForbiddenError", "message": "not yours"}'))
        await peer.wait_for_hang_up()

    async with serve(handle) as server:
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with open_stream(server, enter_timeout=NEVER):
                pytest.fail("entered")
    assert (caught.value.name, caught.value.message) == ("ForbiddenError", "not yours")
    assert server.connections == 1


# Unusual but valid


async def test_frames_in_the_same_packet_as_the_answer_to_the_handshake_are_not_lost() -> None:
    async def handle(peer: Peer) -> None:
        answer = peer.acceptance(await peer.read_request())
        await peer.send(answer, frame(TEXT, mail("m1")), frame(TEXT, SUBSCRIBED), frame(TEXT, mail("m2")))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 3) == ["subscribed", "m1", "m2"]
    assert server.connections == 1


async def test_an_answer_that_comes_byte_by_byte_is_an_answer() -> None:
    async def handle(peer: Peer) -> None:
        for byte in peer.acceptance(await peer.read_request()):
            await peer.send(bytes([byte]))
        await peer.read_subscription()
        await peer.send(frame(TEXT, SUBSCRIBED))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
    assert server.connections == 1


async def test_an_answer_may_be_preceded_by_hints() -> None:
    async def handle(peer: Peer) -> None:
        answer = peer.acceptance(await peer.read_request())
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n", answer)
        await peer.read_subscription()
        await peer.send(frame(TEXT, SUBSCRIBED))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, open_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
    assert server.connections == 1


async def test_a_refusal_is_one_though_its_body_is_cut_off_by_a_reset() -> None:
    async def handle(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\nunkn")
        await wait_all_tasks_blocked(0.01)  # an RST may take with it what has not been read
        peer.reset()

    async with serve(handle) as server:
        with pytest.raises(AuthenticationError, match="unkn"):
            async with open_stream(server):
                pytest.fail("entered")
    assert server.connections == 1
