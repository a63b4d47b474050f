"""The WebSocket and the REST API through an HTTP proxy on a real socket, and what a proxy can do to them."""

import base64
import logging
import os
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock
from websockets.trio.server import ServerConnection

from tests.helpers.proxies import (
    API,
    ENCRYPTED,
    ESTABLISHED,
    PLAIN,
    WS,
    Answer,
    Certificates,
    ConnectProxy,
    connect_proxy,
    established,
)
from tests.helpers.servers import (
    KEY,
    NEVER,
    Peer,
    failure_of_one_attempt,
    mail,
    open_stream,
    proxy_to,
    reserved_port,
    serve,
    stay,
    story,
    websockets_server,
)
from tests.helpers.steps import Interruption
from tests.helpers.time_outs import (
    ENTER_TIMEOUT,
    OPEN_TIMEOUT,
    failure_to_enter,
    jump_when_idle,
    never_answers,
    pass_time,
)
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    CaughtUp,
    ConnectionFailedError,
    MessageReceivedEvent,
    ReconnectPolicy,
    RecoveryFailed,
    open_agentmail_session,
    open_agentmail_stream,
)
from trio_agentmail._network import NetworkBackend
from trio_agentmail._proxy import Proxies, Proxy, proxy_from_url
from trio_agentmail.testing import FakeAgentMail

SECRET = "S3CRET"
BASIC = "Basic " + base64.b64encode(f"user:{SECRET}@".encode()).decode()
CREDENTIALS = f"user:{SECRET}%40"


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log record may hold a password."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        if record.name.startswith("httpcore2") and record.getMessage().startswith("receive_response_headers"):
            continue  # httpcore2 tells, at level DEBUG, what the proxy said, and a proxy of ours repeats what it heard
        text = record.getMessage() + repr(vars(record))
        assert SECRET not in text
        assert BASIC[6:] not in text


async def push_one(websocket: ServerConnection, number: int) -> None:
    await websocket.send(mail(f"m{number}"))
    await stay(websocket)


# Without failures


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["ws", "wss"])
async def test_events_come_through_a_proxy_that_alone_knows_the_name(
    scheme: str, encrypted: bool, certificates: Certificates
) -> None:
    target = f"{WS}:443" if encrypted else f"{WS}:80"
    tls = certificates.servers if scheme == "https" else None
    async with websockets_server(push_one, ssl=certificates.servers if encrypted else None) as server:
        async with connect_proxy({target: server.port}, tls=tls) as proxy:
            async with open_stream(
                ENCRYPTED if encrypted else PLAIN,
                proxy=proxy.url(CREDENTIALS, scheme),
                ssl_context=certificates.client,
            ) as events:
                assert await story(events, 2) == ["subscribed", "m1"]
            assert await server.goodbye() == 1000
    assert (proxy.asked, proxy.authorizations) == ([target], [BASIC])


async def test_without_credentials_none_are_sent() -> None:
    async with websockets_server(push_one) as server, connect_proxy({f"{WS}:80": server.port}) as proxy:
        async with open_stream(PLAIN, proxy=proxy.url()) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
    assert proxy.authorizations == []


async def test_the_environment_says_through_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with websockets_server(push_one) as server, connect_proxy({f"{WS}:80": server.port}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url(CREDENTIALS))
        monkeypatch.delenv("https_proxy", raising=False)
        async with open_stream(PLAIN) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
    assert proxy.authorizations == [BASIC]


async def test_a_loopback_host_is_reached_directly() -> None:
    async with websockets_server(push_one) as server, connect_proxy({}) as proxy:
        async with open_stream(server, proxy=proxy.url()) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
    assert proxy.asked == []


@asynccontextmanager
async def agentmail_behind_a_proxy(
    certificates: Certificates, *, scheme: str = "http", answer: Answer = established, **settings: Any
) -> AsyncIterator[tuple[FakeAgentMail, ConnectProxy, AgentMailSession]]:
    fake = FakeAgentMail(api_keys={KEY})
    tls = certificates.servers if scheme == "https" else None
    async with fake.serve(ssl_context=certificates.servers, allow_hosts={WS, API}) as where:
        leads_to = {f"{WS}:443": port_of(where.websockets), f"{API}:443": port_of(where.http)}
        async with connect_proxy(leads_to, answer, tls=tls) as proxy:
            async with open_agentmail_session(
                api_key=KEY,
                environment=ENCRYPTED,
                proxy=proxy.url(CREDENTIALS, scheme),
                ssl_context=certificates.client,
                reconnect=ReconnectPolicy(initial_delay=0.01, max_delay=0.05),
                **settings,
            ) as session:
                yield fake, proxy, session


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_mail_that_was_missed_is_recovered_through_the_proxy(scheme: str, certificates: Certificates) -> None:
    recovered: MessageReceivedEvent | None = None
    async with agentmail_behind_a_proxy(certificates, scheme=scheme) as (fake, proxy, session):
        await session.events.receive()
        async with fake.faults.outage():
            await fake.deliver(inbox_id="agent@agentmail.to", subject="missed")
        async for event in session.events:
            if isinstance(event, MessageReceivedEvent):
                recovered = event
            if isinstance(event, CaughtUp):
                break
    assert recovered is not None
    assert (recovered.message.subject, recovered.origin) == ("missed", "recovered")
    assert set(proxy.asked) == {f"{WS}:443", f"{API}:443"}
    assert set(proxy.authorizations) == {BASIC}
    assert all(handshake.headers["authorization"] == f"Bearer {KEY}" for handshake in fake.record.handshakes)


async def test_each_host_is_excepted_for_itself(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """The REST API is to be reached directly, but its name cannot be resolved here."""
    monkeypatch.setattr("trio_agentmail._recovery.rest.ATTEMPTS", 1)
    monkeypatch.setenv("NO_PROXY", API)
    async with websockets_server(push_one, ssl=certificates.servers) as server:
        async with connect_proxy({f"{WS}:443": server.port}) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url())
            async with open_agentmail_session(
                api_key=KEY, environment=ENCRYPTED, ssl_context=certificates.client
            ) as session:
                async for event in session.events:
                    if isinstance(event, RecoveryFailed):
                        break
    assert set(proxy.asked) == {f"{WS}:443"}
    assert isinstance(event, RecoveryFailed)
    assert f"cannot resolve {API}: " in event.reason
    assert "proxy=" in event.reason


async def test_any_byte_through_two_layers_of_tls_is_a_sign_of_life(
    certificates: Certificates, adjustable_clock: MockClock
) -> None:
    slow = trio.Event()

    async def handle(websocket: ServerConnection, number: int) -> None:
        await slow.wait()
        await websocket.send(mail("slow", text="x" * 7_000))
        await stay(websocket)

    async with websockets_server(handle, ssl=certificates.servers) as server:
        async with connect_proxy({f"{WS}:443": server.port}, tls=certificates.servers) as proxy:
            async with proxy_to(proxy.server) as network:
                async with open_stream(
                    ENCRYPTED,
                    proxy=f"https://127.0.0.1:{network.server.port}",
                    ssl_context=certificates.client,
                    ping_interval=0.5,
                    ping_timeout=4,
                ) as events:
                    assert await story(events, 1) == ["subscribed"]
                    began = trio.current_time()
                    network.pause = partial(pass_time, adjustable_clock, 1.0)
                    slow.set()
                    assert await story(events, 1) == ["slow"]
                    assert trio.current_time() - began > 0.5 + 4
                    network.pause = trio.lowlevel.checkpoint
    assert server.connections == 1


async def test_a_message_of_8_mib_comes_whole_through_two_layers_of_tls(certificates: Certificates) -> None:
    text = "0123456789abcdef" * 2**19

    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail("large", text=text))
        await stay(websocket)

    async with websockets_server(handle, ssl=certificates.servers) as server:
        async with connect_proxy({f"{WS}:443": server.port}, tls=certificates.servers) as proxy:
            async with open_stream(
                ENCRYPTED, proxy=proxy.url(scheme="https"), ssl_context=certificates.client
            ) as events:
                assert await story(events, 1) == ["subscribed"]
                large = await events.receive()
                assert isinstance(large, MessageReceivedEvent)
                assert large.message.text == text
            assert await server.goodbye() == 1000


# How an accepting answer may look


def consents(*pieces: bytes) -> Answer:
    async def answer(peer: Peer) -> bool:
        for piece in pieces:
            await peer.send(piece)
            await trio.sleep(0.01)
        return True

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        consents(b"HTTP/1.0 200 OK\r\n\r\n"),
        consents(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\nX-Cache: none\r\n\r\n"),
        consents(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        consents(b"HTTP/1.1 202\r\n\r\n"),
        consents(b"HTTP/1.1 200 OK\r\n", b"Via: 1.1 proxy\r\n", b"\r\n"),
        consents(*(bytes([byte]) for byte in ESTABLISHED)),
        consents(b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
async def test_any_success_status_accepts_in_any_number_of_packets(answer: Answer) -> None:
    async with websockets_server(push_one) as server, connect_proxy({f"{WS}:80": server.port}, answer) as proxy:
        async with open_stream(PLAIN, proxy=proxy.url()) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
    assert proxy.server.connections == 1


async def test_an_ipv6_address_is_asked_for_in_brackets() -> None:
    environment = AgentMailEnvironment(http="https://api.invalid", websockets="ws://[2001:db8::1]:8080", insecure=True)
    async with websockets_server(push_one) as server:
        async with connect_proxy({"[2001:db8::1]:8080": server.port}) as proxy:
            async with open_stream(environment, proxy=proxy.url()) as events:
                assert await story(events, 2) == ["subscribed", "m1"]


# A proxy that gives no connection


def answers(data: bytes) -> Answer:
    async def answer(peer: Peer) -> bool:
        await peer.send(data)
        await peer.wait_for_hang_up()
        return False

    return answer


def status(line: str, *headers: str) -> Answer:
    return answers("\r\n".join([f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "", ""]).encode())


async def repeats_what_it_hears(peer: Peer) -> bool:
    await peer.send(f"Proxy-Authorization: {BASIC}\r\nuser:{SECRET}\r\n\r\n".encode())
    return False


async def hangs_up(peer: Peer) -> bool:
    return False


async def resets(peer: Peer) -> bool:
    peer.reset()
    return False


async def breaks_off(peer: Peer) -> bool:
    await peer.send(b"HTTP/1.1 200 Conn")
    return False


async def floods(peer: Peer) -> bool:
    while True:
        await peer.send(b"X-More: and more\r\n" * 100)


async def answers_and_floods(peer: Peer) -> bool:
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await floods(peer)
    return False


REFUSALS = [
    (
        status("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="x"'),
        "does not accept the user name and the password (HTTP status 407)",
    ),
    (status("403 Forbidden"), f"did not connect to {WS}:80: HTTP status 403 Forbidden"),
    (status("502 Bad Gateway"), f"did not connect to {WS}:80: HTTP status 502 Bad Gateway"),
    (status("503 Service Unavailable", "Retry-After: 3600"), "HTTP status 503 Service Unavailable"),
    (status("401 Unauthorized"), "HTTP status 401 Unauthorized"),
    (status("302 Found", "Location: http://portal.example/"), "HTTP status 302 Found"),
    (status(f"599 user:{SECRET}"), "HTTP status 599"),
    (repeats_what_it_hears, "does not answer in HTTP"),
    (answers(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "does not answer in HTTP"),
    (answers(b"\x15\x03\x01\x00\x02\x02\x16\r\n\r\n"), "does not answer in HTTP"),
    (floods, "does not answer in HTTP"),
    (answers_and_floods, "does not answer in HTTP"),
    (answers(ESTABLISHED + b"220 mail.example ESMTP\r\n"), "sent data after"),
    (hangs_up, "closed the connection before it answered"),
    (breaks_off, "closed the connection before it answered"),
    (resets, "broke the connection before it answered: "),
]


def everything_said(exc: BaseException) -> str:
    """Return everything that can be shown of an exception and of its chain, with the locals of the package's frames."""
    text = ""
    failure: BaseException | None = exc
    while failure is not None:
        text += f"{failure!s} {failure!r} {vars(failure)} {getattr(failure, '__notes__', [])}"
        frames = traceback.TracebackException(type(failure), failure, failure.__traceback__, capture_locals=True).stack
        text += "".join(repr(frame.locals) for frame in frames if "/tests/" not in frame.filename)
        failure = failure.__cause__ or failure.__context__
    return text


@pytest.mark.parametrize(("answer", "text"), REFUSALS)
async def test_what_a_proxy_does_instead_of_connecting_says_which_proxy(answer: Answer, text: str) -> None:
    async with connect_proxy({}, answer) as proxy:
        failure = await failure_of_one_attempt(PLAIN, proxy=proxy.url(CREDENTIALS))
    assert isinstance(failure, ConnectionError)
    assert str(failure).startswith(f"the proxy {proxy.name} ")
    assert text in str(failure)
    said = everything_said(failure)
    assert SECRET not in said
    assert BASIC[6:] not in said


async def test_a_proxy_that_asks_for_credentials_is_reported_as_such() -> None:
    async with connect_proxy({}, status("407 Proxy Authentication Required")) as proxy:
        failure = await failure_of_one_attempt(PLAIN, proxy=proxy.url())
    assert str(failure) == f"the proxy {proxy.name} asks for a user name and a password (HTTP status 407)"


async def test_credentials_that_are_refused_on_entering_raise_at_once() -> None:
    async with connect_proxy({}, status("407 Proxy Authentication Required")) as proxy:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_stream(PLAIN, proxy=proxy.url(CREDENTIALS), enter_timeout=NEVER):
                pytest.fail("entered")
    wrong = "does not accept the user name and the password (HTTP status 407)"
    assert str(caught.value) == f"not subscribed: the proxy {proxy.name} {wrong}"
    assert proxy.server.connections == 1
    said = everything_said(caught.value)
    assert SECRET not in said
    assert BASIC[6:] not in said


async def test_other_failures_of_a_proxy_on_entering_raise_after_enter_timeout(adjustable_clock: MockClock) -> None:
    async with connect_proxy({}, status("403 Forbidden")) as proxy:
        stream = open_stream(PLAIN, proxy=proxy.url(CREDENTIALS), enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: proxy.server.connections > 1)
    assert str(failure).startswith(f"not subscribed within enter_timeout (7.0 s): the proxy {proxy.name} did")
    assert proxy.server.connections > 1
    assert SECRET not in everything_said(failure)


async def hangs(peer: Peer) -> bool:
    await peer.wait_for_hang_up()
    return False


async def hangs_in_the_middle(peer: Peer) -> bool:
    await peer.send(b"HTTP/1.1 200 OK\r\nVia: ")
    return await hangs(peer)


async def trickles(peer: Peer) -> bool:
    await peer.send(b"HTTP/1.1 200 OK\r\nVia: ")
    while True:
        await peer.send(b".")
        await trio.sleep(0.02)


@pytest.mark.parametrize("answer", [hangs, hangs_in_the_middle, trickles])
async def test_a_proxy_that_hangs_is_given_up_after_the_open_timeout(
    answer: Answer, adjustable_clock: MockClock
) -> None:
    async def hang(peer: Peer) -> bool:
        async with jump_when_idle(adjustable_clock, OPEN_TIMEOUT):
            return await answer(peer)

    async with connect_proxy({}, hang) as proxy:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_stream(PLAIN, proxy=proxy.url(), open_timeout=OPEN_TIMEOUT, enter_timeout=ENTER_TIMEOUT):
                pytest.fail("entered")
    assert f"open_timeout (4.0 s): it was still waiting for the proxy {proxy.name} to connect" in str(caught.value)
    assert proxy.server.connections > 1


async def test_a_proxy_that_hangs_within_the_enter_timeout_is_named(adjustable_clock: MockClock) -> None:
    async def hang(peer: Peer) -> bool:
        adjustable_clock.jump(ENTER_TIMEOUT)
        return await hangs(peer)

    async with connect_proxy({}, hang) as proxy:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_stream(PLAIN, proxy=proxy.url(), open_timeout=NEVER, enter_timeout=ENTER_TIMEOUT):
                pytest.fail("entered")
    assert f"the first attempt was still waiting for the proxy {proxy.name} to connect to {WS}" in str(caught.value)


async def test_a_proxy_that_cannot_be_reached_is_named() -> None:
    with reserved_port() as port:
        failure = await failure_of_one_attempt(PLAIN, proxy=f"http://user:{SECRET}@127.0.0.1:{port}")
    assert isinstance(failure, ConnectionRefusedError)
    assert str(failure) == f"connection refused: the proxy 127.0.0.1:{port}"


async def test_a_proxy_whose_name_cannot_be_resolved_is_named() -> None:
    failure = await failure_of_one_attempt(PLAIN, proxy="http://proxy.invalid:3128")
    assert isinstance(failure, socket.gaierror)
    assert str(failure).startswith("cannot resolve proxy.invalid, for the proxy proxy.invalid:3128: ")
    assert "pass proxy=" not in str(failure)


async def test_a_proxy_that_does_not_speak_tls_is_named(certificates: Certificates) -> None:
    async def handle(peer: Peer) -> None:
        await peer.stream.receive_some()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serve(handle) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        failure = await failure_of_one_attempt(PLAIN, proxy=url, ssl_context=certificates.client)
    assert isinstance(failure, ssl.SSLError)
    assert f"cannot establish TLS with the proxy 127.0.0.1:{proxy.port}: the server there does not speak TLS" in str(
        failure
    )


async def test_a_proxy_whose_tls_hangs_is_named(certificates: Certificates, adjustable_clock: MockClock) -> None:
    async with serve(partial(never_answers, adjustable_clock)) as proxy:
        with pytest.raises(ConnectionFailedError) as caught:
            async with open_stream(
                PLAIN,
                proxy=f"https://127.0.0.1:{proxy.port}",
                ssl_context=certificates.client,
                open_timeout=OPEN_TIMEOUT,
                enter_timeout=ENTER_TIMEOUT,
            ):
                pytest.fail("entered")
    text = f"open_timeout (4.0 s): it was still setting up TLS with the proxy 127.0.0.1:{proxy.port}"
    assert text in str(caught.value)


@pytest.mark.parametrize("untrusted", ["proxy", "agentmail"])
async def test_an_untrusted_certificate_is_reported_with_its_host(untrusted: str, certificates: Certificates) -> None:
    """A proxy that intercepts TLS shows its own certificate in place of AgentMail's."""
    strange = Certificates().servers
    good = certificates.servers
    async with websockets_server(push_one, ssl=strange if untrusted == "agentmail" else good) as server:
        tls = strange if untrusted == "proxy" else good
        async with connect_proxy({f"{WS}:443": server.port}, tls=tls) as proxy:
            with pytest.raises(ssl.SSLCertVerificationError) as caught:
                async with open_stream(ENCRYPTED, proxy=proxy.url(scheme="https"), ssl_context=certificates.client):
                    pytest.fail("entered")
    whose = f"the proxy {proxy.name}"
    if untrusted == "agentmail":
        whose = f"{WS} port 443 through {whose}"
    assert str(caught.value).startswith(f"the certificate of {whose} cannot be verified: ")
    assert server.connections == 0 or untrusted == "agentmail"


# Losing a confirmed connection


async def test_a_connection_that_the_proxy_drops_is_made_again_through_it() -> None:
    drop = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await peer.push(f"m{peer.number}")
        if peer.number == 1:
            await drop.wait()
        else:
            await peer.stay()

    async with serve(handle) as server, connect_proxy({f"{WS}:80": server.port}) as proxy:
        async with open_stream(PLAIN, proxy=proxy.url()) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
            drop.set()
            assert await story(events, 3) == ["disconnected 1006", "subscribed", "m2"]
    assert proxy.asked == [f"{WS}:80"] * 2


async def test_nothing_that_a_proxy_does_ends_a_healthy_stream() -> None:
    drop = trio.Event()
    misbehaviours = [answer for answer, _ in REFUSALS]

    async def answer(peer: Peer) -> bool:
        if 2 <= peer.number < 2 + len(misbehaviours):
            return await misbehaviours[peer.number - 2](peer)
        return await established(peer)

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await peer.push(f"m{peer.number}")
        if peer.number == 1:
            await drop.wait()
        else:
            await peer.stay()

    async with serve(handle) as server, connect_proxy({f"{WS}:80": server.port}, answer) as proxy:
        policy = ReconnectPolicy(initial_delay=0.01, max_delay=0.01, refusal_grace=0)
        async with open_stream(PLAIN, proxy=proxy.url(), reconnect=policy, open_timeout=1) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
            drop.set()
            assert await story(events, 3) == ["disconnected 1006", "subscribed", "m2"]
    assert len(proxy.asked) == 2 + len(misbehaviours)


async def test_the_key_is_not_shown_to_a_proxy_that_is_not_agentmail(certificates: Certificates) -> None:
    """The proxy makes no connection, but records the request."""
    heard = bytearray()

    async def answer(peer: Peer) -> bool:
        await peer.send(ESTABLISHED)
        heard.extend(await peer.stream.receive_some())
        return False

    async with connect_proxy({}, answer) as proxy:
        failure = await failure_of_one_attempt(ENCRYPTED, proxy=proxy.url(), ssl_context=certificates.client)
    assert heard
    assert KEY.encode() not in heard
    assert (
        str(failure)
        == f"cannot establish TLS with {WS} port 443 through the proxy {proxy.name}: the server closed the connection"
    )


async def test_a_server_that_hangs_up_in_the_handshake_is_reported_with_the_proxy() -> None:
    async def handle(peer: Peer) -> None:
        await peer.read_request()

    async with serve(handle) as server, connect_proxy({f"{WS}:80": server.port}) as proxy:
        failure = await failure_of_one_attempt(PLAIN, proxy=proxy.url())
    assert str(failure) == f"{WS} port 80 through the proxy {proxy.name} closed the connection during the handshake"


# The REST API


async def ask_through(proxy: Proxy | None, certificates: Certificates, environment: AgentMailEnvironment) -> Any:
    transport = NetworkBackend(Proxies(http=proxy)).http_transport(certificates.client)
    async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
        return (await client.get(f"{environment.http}/v0/inboxes", headers={"Authorization": f"Bearer {KEY}"})).json()


async def test_a_request_that_is_not_encrypted_is_handed_to_the_proxy(certificates: Certificates) -> None:
    async with connect_proxy({}, answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as proxy:
        url = proxy_from_url(proxy.url(CREDENTIALS), "proxy")
        assert await ask_through(url, certificates, PLAIN) == {}
    assert (proxy.asked, proxy.authorizations) == ([f"{PLAIN.http}/v0/inboxes"], [BASIC])


@pytest.mark.parametrize(("answer", "text"), [(answer, text) for answer, text in REFUSALS if "HTTP status" in text])
async def test_a_request_that_a_proxy_refuses_says_which_proxy(
    answer: Answer, text: str, certificates: Certificates
) -> None:
    async with connect_proxy({}, answer) as proxy:
        with pytest.raises(httpx2.ProxyError) as caught:
            await ask_through(proxy_from_url(proxy.url(CREDENTIALS), "proxy"), certificates, ENCRYPTED)
    assert str(caught.value).startswith(f"the proxy {proxy.name} ")
    assert text.replace(f"{WS}:80", f"{API}:443") in str(caught.value)
    said = everything_said(caught.value)
    assert SECRET not in said
    assert BASIC[6:] not in said


@pytest.mark.parametrize(
    "answer", [answer for answer, text in REFUSALS if "HTTP status" not in text and "sent data" not in text]
)
async def test_a_request_that_a_proxy_does_not_forward_fails_with_words(
    answer: Answer, certificates: Certificates
) -> None:
    async with connect_proxy({}, answer) as proxy:
        with pytest.raises(httpx2.TransportError) as caught:
            await ask_through(proxy_from_url(proxy.url(CREDENTIALS), "proxy"), certificates, ENCRYPTED)
    assert str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # which have the headers in their frames


async def test_a_request_to_a_proxy_that_cannot_be_reached_says_so(certificates: Certificates) -> None:
    with reserved_port() as port, pytest.raises(httpx2.ConnectError) as caught:
        await ask_through(Proxy("http", "127.0.0.1", port), certificates, ENCRYPTED)
    assert str(caught.value) == f"connection refused: the proxy 127.0.0.1:{port}"


async def test_a_request_to_a_server_with_another_certificate_says_so_with_the_proxy(
    certificates: Certificates,
) -> None:
    async def handle(peer: Peer) -> None:
        await peer.start_tls(Certificates().servers)

    async with serve(handle) as server, connect_proxy({f"{API}:443": server.port}) as proxy:
        with pytest.raises(httpx2.ConnectError) as caught:
            await ask_through(proxy_from_url(proxy.url(), "proxy"), certificates, ENCRYPTED)
    whose = f"the certificate of {API} port 443 through the proxy {proxy.name}"
    assert str(caught.value).startswith(f"{whose} cannot be verified: ")


async def test_recovery_blocked_by_a_proxy_reports_it_and_the_stream_goes_on(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(peer: Peer) -> bool:
        refuse = status("403 Forbidden") if proxy.asked[-1].startswith(API) else established
        return await refuse(peer)

    monkeypatch.setattr("trio_agentmail._recovery.rest.ATTEMPTS", 1)
    fake = FakeAgentMail(api_keys={KEY})
    async with fake.serve(ssl_context=certificates.servers, allow_hosts={WS, API}) as where:
        async with connect_proxy({f"{WS}:443": port_of(where.websockets)}, answer) as proxy:
            async with open_agentmail_stream(
                api_key=KEY,
                environment=ENCRYPTED,
                proxy=proxy.url(CREDENTIALS),
                ssl_context=certificates.client,
            ) as events:
                async for event in events:
                    if isinstance(event, RecoveryFailed):
                        break
                await fake.deliver(inbox_id="agent@agentmail.to", subject="pushed")
                assert isinstance(await events.receive(), MessageReceivedEvent)
    assert isinstance(event, RecoveryFailed)
    assert f"the proxy {proxy.name} did not connect to {API}:443: HTTP status 403 Forbidden" in event.reason


# Nothing stays behind


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_socket_is_left_at_whichever_step_of_any_task_it_is_cancelled(
    scheme: str, certificates: Certificates
) -> None:
    tls = certificates.servers if scheme == "https" else None
    entered, step = False, 0
    while not entered:
        before = len(os.listdir("/proc/self/fd"))
        async with websockets_server(push_one, ssl=certificates.servers) as server:
            async with connect_proxy({f"{WS}:443": server.port}, tls=tls) as proxy:
                with trio.CancelScope() as scope, Interruption(step, scope.cancel).counting():
                    async with open_stream(
                        ENCRYPTED,
                        proxy=proxy.url(scheme=scheme),
                        ssl_context=certificates.client,
                        open_timeout=NEVER,
                        close_timeout=NEVER,
                    ):
                        entered = True
        assert len(os.listdir("/proc/self/fd")) == before, f"after step {step}"
        step += 1
    assert step > 20
