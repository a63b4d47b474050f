"""The error for a failed connection has the reason and names the host."""

import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers.backends import FakeBackend
from tests.helpers.servers import (
    KEY,
    NEVER,
    Peer,
    environment,
    failure_of_one_attempt,
    open_stream,
    reserved_port,
    serve,
)
from tests.helpers.time_outs import ENTER_TIMEOUT, OPEN_TIMEOUT, failure_to_enter
from trio_agentmail import AgentMailEnvironment, ConnectionFailedError, ReconnectPolicy, open_agentmail_session
from trio_agentmail._backend import WebSocket
from trio_agentmail._network import NetworkBackend
from trio_agentmail._why import connect_error, describe, tls_error

HOST = "ws.agentmail.example"


# Over real sockets


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_the_error_for_a_refused_connection_names_host_and_port(
    scheme: str, caplog: pytest.LogCaptureFixture, adjustable_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, logger="trio_agentmail")
    with reserved_port() as port:
        stream = open_stream(environment(port, scheme=scheme), enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: "for the next attempt" in caplog.text)
    said = f"connection refused: 127.0.0.1 port {port}"
    assert str(failure) == f"not subscribed within enter_timeout (7.0 s): {said}"
    assert isinstance(failure.__cause__, ConnectionRefusedError)
    assert failure.__cause__.errno == errno.ECONNREFUSED
    assert f"for the next attempt: ConnectionRefusedError: {said}" in caplog.text


async def test_the_failure_of_a_reconnect_is_in_the_statistics() -> None:
    stop = trio.Event()

    async def run_server(*, task_status: trio.TaskStatus[None]) -> None:
        async with serve(Peer.confirm, port=port):
            task_status.started()
            await stop.wait()

    with reserved_port() as port:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_server)
            async with open_agentmail_session(
                api_key=KEY,
                environment=environment(port),
                reconnect=ReconnectPolicy(initial_delay=0.01, max_delay=0.01),
                recovery=None,
            ) as session:
                stop.set()
                said = f"ConnectionRefusedError: connection refused: 127.0.0.1 port {port}"
                while session.statistics().last_error != said:  # noqa: ASYNC110
                    await trio.sleep(0.001)


async def test_the_error_for_a_name_that_cannot_be_resolved_suggests_a_proxy() -> None:
    nowhere = AgentMailEnvironment(http="https://api.invalid", websockets="wss://ws.invalid")
    failure = await failure_of_one_attempt(nowhere)
    assert isinstance(failure, socket.gaierror)
    assert failure.errno in (socket.EAI_NONAME, socket.EAI_AGAIN)
    assert str(failure).startswith("cannot resolve ws.invalid: ")
    assert str(failure).endswith("; if only a proxy can resolve it, set $HTTPS_PROXY or pass proxy=…")


async def test_a_server_that_closes_during_the_handshake_is_named() -> None:
    async def handle(peer: Peer) -> None:
        await peer.read_request()

    async with serve(handle) as server:
        failure = await failure_of_one_attempt(server.environment)
    assert str(failure) == f"127.0.0.1 port {server.port} closed the connection during the handshake"


async def test_a_server_that_resets_during_the_handshake_is_named_with_the_reason() -> None:
    async def handle(peer: Peer) -> None:
        await peer.read_request()
        peer.reset()

    async with serve(handle) as server:
        failure = await failure_of_one_attempt(server.environment)
    assert str(failure).startswith(f"127.0.0.1 port {server.port} broke the connection during the handshake: ")
    assert "reset by peer" in str(failure)


async def test_a_server_that_does_not_answer_the_handshake_is_named(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        await peer.read_request()
        if peer.number == 1:
            adjustable_clock.jump(OPEN_TIMEOUT)
        await peer.wait_for_hang_up()

    async with serve(handle) as server:
        stream = open_stream(server, open_timeout=OPEN_TIMEOUT, enter_timeout=ENTER_TIMEOUT)
        failure = await failure_to_enter(stream, adjustable_clock, lambda: server.connections > 1)
    assert str(failure).endswith(
        f"did not open within open_timeout (4.0 s): it was still waiting for 127.0.0.1 port {server.port} "
        "to answer the handshake"
    )


async def test_a_first_attempt_that_outlasts_enter_timeout_says_what_it_waited_for(
    adjustable_clock: MockClock,
) -> None:
    async def does_not_answer(peer: Peer) -> None:
        await peer.read_request()
        adjustable_clock.jump(ENTER_TIMEOUT)
        await peer.wait_for_hang_up()

    async def does_not_confirm(peer: Peer) -> None:
        await peer.accept()
        await peer.read_subscription()
        adjustable_clock.jump(ENTER_TIMEOUT)
        await peer.stay()

    async def failure(handle: Callable[[Peer], Awaitable[None]]) -> tuple[str, int]:
        async with serve(handle) as server:
            with pytest.raises(ConnectionFailedError) as caught:
                async with open_stream(server, open_timeout=NEVER, enter_timeout=ENTER_TIMEOUT):
                    pytest.fail("entered")
        return str(caught.value), server.port

    said, port = await failure(does_not_answer)
    assert said.endswith(f"the first attempt was still waiting for 127.0.0.1 port {port} to answer the handshake")
    said, _ = await failure(does_not_confirm)
    assert said.endswith("the first attempt was still waiting for the confirmation")


async def ask(url: str) -> Exception:
    async with httpx2.AsyncClient(transport=NetworkBackend().http_transport(None), timeout=None) as client:
        with pytest.raises(httpx2.TransportError) as caught:
            await client.get(url)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return caught.value


async def test_failed_requests_have_the_reason_as_well() -> None:
    async def handle(peer: Peer) -> None:
        await peer.stream.receive_some()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def hang_up(peer: Peer) -> None:
        await peer.stream.receive_some()

    with reserved_port() as port:
        assert str(await ask(f"https://127.0.0.1:{port}/v0")) == f"connection refused: 127.0.0.1 port {port}"
    failure = await ask("https://api.invalid/v0")
    assert str(failure).startswith("cannot resolve api.invalid: ")
    assert "proxy=" in str(failure)
    async with serve(handle) as server:
        failure = await ask(f"https://127.0.0.1:{server.port}/v0")
    assert str(failure).startswith(
        f"cannot establish TLS with 127.0.0.1 port {server.port}: the server there does not speak TLS"
    )
    async with serve(hang_up) as server:
        assert str(await ask(f"http://127.0.0.1:{server.port}/v0"))


# A backend's exceptions without a message


class Speechless(FakeBackend):
    @asynccontextmanager
    async def open_websocket(self, url: str, **kwargs: Any) -> AsyncIterator[WebSocket]:
        await trio.lowlevel.checkpoint()
        try:
            raise ssl.SSLError(1, "what TLS said")
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError from exc
        yield


async def test_the_reason_is_never_empty(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionFailedError) as caught:
        async with open_stream(AgentMailEnvironment.PROD, backend=Speechless()):
            pytest.fail("entered")
    assert str(caught.value).endswith(": what TLS said")
    assert [line for line in caplog.text.splitlines() if line.rstrip().endswith(":")] == []
    assert describe(trio.BrokenResourceError()) == "BrokenResourceError"


# The functions themselves


def several(*attempts: OSError) -> OSError:
    """Return the exception that Trio raises when several attempts failed."""
    error = OSError("all attempts to connect failed")
    error.__cause__ = ExceptionGroup("all attempts to connect failed", attempts)
    return error


REFUSED = OSError(errno.ECONNREFUSED, "Error connecting to ('127.0.0.1', 1)")
UNREACHABLE = OSError(errno.ENETUNREACH, "Error connecting to ('::1', 1)")
TIMED_OUT = OSError(errno.ETIMEDOUT, "Error connecting to ('10.0.0.1', 1)")


@pytest.mark.parametrize(
    ("failure", "error", "text"),
    [
        (several(REFUSED), ConnectionRefusedError, f"connection refused: {HOST} port 443"),
        (several(REFUSED, REFUSED), ConnectionRefusedError, f"connection refused: {HOST} port 443"),
        (several(TIMED_OUT), TimeoutError, f"connection timed out: {HOST} port 443"),
        (several(UNREACHABLE), OSError, f"network is unreachable: {HOST} port 443"),
        (several(UNREACHABLE, REFUSED), OSError, f"network is unreachable, connection refused: {HOST} port 443"),
        (OSError(errno.EMFILE, "socket()"), OSError, f"too many open files: {HOST} port 443"),
        (OSError("No results found"), OSError, f"No results found: {HOST} port 443"),
        (OSError(), OSError, f"OSError: {HOST} port 443"),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            socket.gaierror,
            f"cannot resolve {HOST}: Name or service not known; try this",
        ),
        (socket.gaierror("no such name"), socket.gaierror, f"cannot resolve {HOST}: no such name; try this"),
        (socket.gaierror(), socket.gaierror, f"cannot resolve {HOST}: gaierror; try this"),
    ],
)
def test_every_tcp_failure_has_a_reason_and_keeps_its_class(failure: OSError, error: type[OSError], text: str) -> None:
    told = connect_error(failure, HOST, f"{HOST} port 443", "; try this")
    assert type(told) is error
    assert str(told) == text
    first = failure.__cause__.exceptions[0] if isinstance(failure.__cause__, ExceptionGroup) else failure
    assert isinstance(first, OSError)
    assert told.errno == first.errno


def test_the_reason_is_in_the_words_of_the_operating_system() -> None:
    number = errno.EHOSTUNREACH
    assert str(connect_error(OSError(number, "x"), HOST, HOST)).lower() == f"{os.strerror(number)}: {HOST}".lower()


def test_a_tls_failure_without_a_message_has_a_reason() -> None:
    assert str(tls_error(trio.BrokenResourceError(), HOST)) == f"cannot establish TLS with {HOST}: BrokenResourceError"
