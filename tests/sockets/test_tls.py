"""The stream over TLS, with the certificates of a throw-away authority."""

import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock
from websockets.trio.server import ServerConnection

from tests.helpers.servers import (
    KEY,
    NEVER,
    Peer,
    Server,
    environment,
    failure_of_one_attempt,
    mail,
    open_stream,
    proxy_to,
    serve,
    stay,
    story,
    websockets_server,
)
from tests.helpers.time_outs import ENTER_TIMEOUT, OPEN_TIMEOUT, failure_to_enter, never_answers, pass_time
from trio_agentmail import ConnectionFailedError, Event, MessageReceivedEvent, ReconnectPolicy
from trio_agentmail.errors import ConnectionLostError

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Authority:
    """A certificate authority. It makes the context of a client that trusts it, and the contexts of servers."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.client = ssl.create_default_context()
        self._ca.configure_trust(self.client)
        self.good = self.server("127.0.0.1")

    def server(self, name: str, not_after: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name, not_after=not_after).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def open_tls_stream(
    server: Server, authority: Authority, **settings: Any
) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
    return open_stream(server.tls_environment, ssl_context=authority.client, **settings)


async def confirm_over_tls(context: ssl.SSLContext, peer: Peer) -> None:
    await peer.start_tls(context)
    await peer.confirm()
    await peer.push(f"m{peer.number}")


async def test_events_come_over_tls_and_leaving_closes_with_1000(authority: Authority) -> None:
    names = [f"m{n}" for n in range(200)]

    async def handle(websocket: ServerConnection, number: int) -> None:
        for name in names:
            await websocket.send(mail(name))
        await stay(websocket)

    async with websockets_server(handle, ssl=authority.good) as server:
        async with open_tls_stream(server, authority, close_timeout=NEVER) as events:
            assert await story(events, 201) == ["subscribed", *names]
        assert await server.goodbye() == 1000
    assert server.connections == 1


async def test_a_message_of_8_mib_comes_whole_over_tls(authority: Authority) -> None:
    text = "0123456789abcdef" * 2**19

    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail("large", text=text))
        await websocket.send(mail("small"))
        await stay(websocket)

    async with websockets_server(handle, ssl=authority.good) as server:
        async with open_tls_stream(server, authority) as events:
            assert await story(events, 1) == ["subscribed"]
            large = await events.receive()
            assert isinstance(large, MessageReceivedEvent)
            assert large.message.text == text
            assert await story(events, 1) == ["small"]
    assert server.connections == 1


async def test_cancelled_a_stream_over_tls_is_left_at_once_by_force(authority: Authority) -> None:
    async def handle(peer: Peer) -> None:
        await confirm_over_tls(authority.good, peer)
        await peer.stay()

    async with serve(handle) as server:
        with trio.CancelScope() as scope:
            async with open_tls_stream(server, authority, close_timeout=NEVER) as events:
                assert await story(events, 2) == ["subscribed", "m1"]
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await server.goodbye() == 1006


# Certificates


async def test_a_certificate_for_a_name_is_good_for_that_name(authority: Authority) -> None:
    context = authority.server("localhost")
    async with websockets_server(lambda websocket, number: stay(websocket), ssl=context) as server:
        localhost = environment(server.port, host="localhost", scheme="wss")
        async with open_stream(localhost, ssl_context=authority.client) as events:
            assert await story(events, 1) == ["subscribed"]


@pytest.mark.parametrize(
    ("make_context", "settings"),
    [
        pytest.param(lambda good: good.good, {"ssl_context": None}, id="not trusted by the system"),
        pytest.param(lambda good: Authority().good, {}, id="of another authority"),
        pytest.param(lambda good: good.server("localhost"), {}, id="for another host"),
        pytest.param(lambda good: good.server("127.0.0.1", YESTERDAY), {}, id="expired"),
    ],
)
async def test_a_bad_certificate_raises_at_once_as_itself(
    authority: Authority, make_context: Callable[[Authority], ssl.SSLContext], settings: dict[str, Any]
) -> None:
    context = make_context(authority)
    async with serve(partial(confirm_over_tls, context)) as server:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            async with open_stream(
                server.tls_environment, **({"ssl_context": authority.client, "enter_timeout": NEVER} | settings)
            ):
                pytest.fail("entered")
    assert server.connections == 1
    said = str(caught.value)
    assert said.startswith(f"the certificate of 127.0.0.1 port {server.port} cannot be verified: ")
    assert caught.value.verify_message.rstrip(".") in said


async def test_a_certificate_that_goes_bad_and_stays_so_ends_the_block(authority: Authority) -> None:
    async def handle(peer: Peer) -> None:
        await confirm_over_tls(authority.good if peer.number == 1 else bad, peer)

    bad = Authority().good
    policy = ReconnectPolicy(initial_delay=0.01, max_delay=0.05, refusal_grace=0)
    async with serve(handle) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with open_tls_stream(server, authority, reconnect=policy) as events:
                assert await story(events, 3) == ["subscribed", "m1", "disconnected 1006"]
                await trio.sleep_forever()
    assert server.connections == 1 + 3


@pytest.mark.parametrize(
    "make_context",
    [
        pytest.param(lambda good: Authority().good, id="of another authority"),
        pytest.param(lambda good: good.server("localhost"), id="for another host"),
        pytest.param(lambda good: good.server("127.0.0.1", YESTERDAY), id="expired"),
    ],
)
async def test_a_certificate_that_is_bad_for_a_while_is_survived(
    authority: Authority, make_context: Callable[[Authority], ssl.SSLContext]
) -> None:
    async def handle(peer: Peer) -> None:
        await confirm_over_tls(bad if peer.number in (2, 3) else authority.good, peer)
        if peer.number > 3:
            await peer.stay()

    bad = make_context(authority)
    async with serve(handle) as server:
        async with open_tls_stream(server, authority) as events:
            assert await story(events, 5) == ["subscribed", "m1", "disconnected 1006", "subscribed", "m4"]
    assert server.connections == 4


# Failures of TLS


async def test_a_server_without_tls_is_transient_and_does_not_get_the_key(
    authority: Authority, adjustable_clock: MockClock
) -> None:
    received = bytearray()

    async def handle(peer: Peer) -> None:
        received.extend(await peer.stream.receive_some())
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        while data := await peer.stream.receive_some():
            received.extend(data)

    async with serve(handle) as server:
        stream = open_tls_stream(server, authority, enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: server.connections > 1)
    assert isinstance(failure.__cause__, ssl.SSLError)
    assert str(failure.__cause__).startswith(
        f"cannot establish TLS with 127.0.0.1 port {server.port}: "
        "the server there does not speak TLS ([SSL: WRONG_VERSION_NUMBER]"
    )
    assert server.connections > 1
    assert received
    assert KEY.encode() not in received


async def test_a_plain_connection_to_a_tls_server_is_transient(
    authority: Authority, adjustable_clock: MockClock
) -> None:
    async with serve(partial(confirm_over_tls, authority.good)) as server:
        stream = open_stream(server, enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: server.connections > 1)
    assert isinstance(failure.__cause__, ConnectionLostError)
    assert "handshake" in str(failure)
    assert server.connections > 1


@pytest.mark.parametrize("misbehave", [Peer.reset, Peer.hang_up])
async def test_a_tls_handshake_that_does_not_succeed_is_tried_again(
    authority: Authority, misbehave: Callable[[Peer], None]
) -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.stream.receive_some()
            misbehave(peer)
            await peer.wait_for_hang_up()
        else:
            await confirm_over_tls(authority.good, peer)
            await peer.stay()

    async with serve(handle) as server:
        async with open_tls_stream(server, authority, open_timeout=NEVER) as events:
            assert await story(events, 2) == ["subscribed", "m2"]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("misbehave", "text"),
    [(Peer.hang_up, "the server closed the connection"), (Peer.reset, "connection reset by peer")],
)
async def test_a_tls_handshake_that_never_succeeds_says_why(
    authority: Authority, misbehave: Callable[[Peer], None], text: str
) -> None:
    async def handle(peer: Peer) -> None:
        await peer.stream.receive_some()
        misbehave(peer)
        await peer.wait_for_hang_up()

    async with serve(handle) as server:
        failure = await failure_of_one_attempt(server.tls_environment, ssl_context=authority.client)
    assert isinstance(failure, ssl.SSLError)
    assert str(failure) == f"cannot establish TLS with 127.0.0.1 port {server.port}: {text}"


async def refuse_tls(context: ssl.SSLContext, peer: Peer) -> None:
    """Send TLS's reason, which Trio's server side does not."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await peer.send(outgoing.read())
            incoming.write(await peer.stream.receive_some())
        except ssl.SSLError:
            await peer.send(outgoing.read())
            await peer.wait_for_hang_up()
            return


async def test_tls_that_the_server_refuses_says_what_tls_said(authority: Authority) -> None:
    modern = authority.server("127.0.0.1")
    modern.minimum_version = ssl.TLSVersion.TLSv1_3
    old = ssl.create_default_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serve(partial(refuse_tls, modern)) as server:
        failure = await failure_of_one_attempt(server.tls_environment, ssl_context=old)
    assert isinstance(failure, ssl.SSLError)
    assert str(failure).startswith(
        f"cannot establish TLS with 127.0.0.1 port {server.port}: [SSL: TLSV1_ALERT_PROTOCOL_VERSION]"
    )


async def test_a_missing_client_certificate_is_reported_although_tls_1_3_says_so_late(authority: Authority) -> None:
    demanding = authority.server("127.0.0.1")
    demanding.verify_mode = ssl.CERT_REQUIRED
    async with serve(partial(refuse_tls, demanding)) as server:
        failure = await failure_of_one_attempt(server.tls_environment, ssl_context=authority.client)
    assert isinstance(failure, ConnectionLostError)
    assert failure.reason.startswith(f"127.0.0.1 port {server.port} broke the connection during the handshake: ")
    assert "CERTIFICATE_REQUIRED" in failure.reason


async def test_a_tls_handshake_that_hangs_is_given_up(authority: Authority, adjustable_clock: MockClock) -> None:
    async with serve(partial(never_answers, adjustable_clock)) as server:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_tls_stream(server, authority, open_timeout=OPEN_TIMEOUT, enter_timeout=ENTER_TIMEOUT):
                pytest.fail("entered")
    text = f"did not open within open_timeout (4.0 s): it was still setting up TLS with 127.0.0.1 port {server.port}"
    assert text in str(caught.value.__cause__)
    assert server.connections > 1


async def send_garbage(peer: Peer) -> None:
    await peer.socket.send(b"no TLS record at all")
    await peer.wait_for_hang_up()


@pytest.mark.parametrize("end", [Peer.hang_up, Peer.reset, send_garbage])
async def test_a_connection_that_ends_without_close_notify_is_made_again(
    authority: Authority, end: Callable[[Peer], Any]
) -> None:
    m1_taken = trio.Event()

    async def handle(peer: Peer) -> None:
        await confirm_over_tls(authority.good, peer)
        if peer.number == 1:
            await m1_taken.wait()
            if (waiting := end(peer)) is not None:
                await waiting
        else:
            await peer.stay()

    async with serve(handle) as server:
        async with open_tls_stream(server, authority, ping_interval=None, close_timeout=NEVER) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
            m1_taken.set()
            assert await story(events, 3) == ["disconnected 1006", "subscribed", "m2"]
        assert await server.goodbye() == 1000
    assert server.connections == 2


async def test_a_half_open_connection_over_tls_is_noticed_by_its_silence(
    authority: Authority, adjustable_clock: MockClock
) -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail(f"m{number}"))
        await stay(websocket)

    async with websockets_server(handle, ssl=authority.good) as server:
        async with proxy_to(server) as proxy:
            async with open_tls_stream(proxy.server, authority, ping_interval=0.05, ping_timeout=4) as events:
                assert await story(events, 2) == ["subscribed", "m1"]
                proxy.swallowing.add(1)
                await proxy.swallowed.wait()  # a ping or its pong
                adjustable_clock.jump(4)
                with trio.fail_after(3):
                    assert await story(events, 3) == ["disconnected 1006", "subscribed", "m2"]
    assert server.connections == 2


async def test_a_tls_record_that_trickles_in_beyond_the_ping_timeout_is_not_silence(
    authority: Authority, adjustable_clock: MockClock
) -> None:
    slow = trio.Event()

    async def handle(websocket: ServerConnection, number: int) -> None:
        await slow.wait()
        await websocket.send(mail("slow", text="x" * 7_000))
        await stay(websocket)

    async with websockets_server(handle, ssl=authority.good) as server:
        async with proxy_to(server) as proxy:
            async with open_tls_stream(proxy.server, authority, ping_interval=0.5, ping_timeout=4) as events:
                assert await story(events, 1) == ["subscribed"]
                began = trio.current_time()
                proxy.pause = partial(pass_time, adjustable_clock, 1.0)
                slow.set()
                assert await story(events, 1) == ["slow"]
                assert trio.current_time() - began > 0.5 + 4
                proxy.pause = trio.lowlevel.checkpoint
    assert server.connections == 1
