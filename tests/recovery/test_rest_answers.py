"""Unexpected answers of the REST API become failed requests."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import Body, always, bomb, failure_of, wire
from tests.helpers.rest_api import EPOCH, Api, RestBackend, asked_key, rest
from tests.helpers.secret_key import KEY as SECRET
from tests.helpers.secret_key import assert_no_secret
from trio_agentmail import AgentMailEnvironment, ApiError, RecoveryFailed, Subscribe, open_agentmail_stream
from trio_agentmail._clock import ServerClock
from trio_agentmail._network import NetworkBackend
from trio_agentmail._network_transport import SteadyTransport
from trio_agentmail._recovery.rest import ATTEMPTS, Rest
from trio_agentmail.errors import AnswerTooLargeError, RequestFailedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


# Text and headers

CHARSETS = ["nonsense", "undefined", "idna", "punycode", "hex", "rot13", "base64", "utf-16", "utf-7", "\xff", '"', ""]


@pytest.mark.parametrize("charset", CHARSETS)
async def test_a_refusal_is_read_whatever_charset_it_names(charset: str, autojump_clock: MockClock) -> None:
    content_type = f"text/html; charset={charset}".encode("latin-1")
    failure, _ = await failure_of(lambda: wire(b"\xff oops \xc3\xbc", status=403, Content_Type=content_type))
    assert isinstance(failure, ApiError)
    assert (failure.status_code, failure.body) == (403, "\ufffd oops ü")
    assert failure.headers["content-type"] == content_type.decode("latin-1")


async def test_an_answer_is_json_whatever_charset_it_names() -> None:
    async with rest(always(lambda: wire(b'{"a": "\xc3\xbc"}', Content_Type="text/html; charset=rot13"))) as asks:
        assert await asks.get("/x") == {"a": "ü"}


async def test_the_last_of_repeated_headers_is_kept(autojump_clock: MockClock) -> None:
    def answer() -> httpx2.Response:
        headers = [(b"X-A", b"1"), (b"x-a", b"2"), (b"\xff\xfe", b"\xfd")]
        return httpx2.Response(404, headers=headers, stream=Body([]))

    failure, _ = await failure_of(answer)
    assert isinstance(failure, ApiError)
    assert {**failure.headers, "date": ""} == {"x-a": "2", "ÿþ": "ý", "date": ""}


@pytest.mark.parametrize("status", [-1, 0, 1, 100, 101, 103, 201, 204, 206, 302, 418, 600, 999, 1000])
async def test_a_status_may_be_any_number(status: int, autojump_clock: MockClock) -> None:
    failure, _ = await failure_of(lambda: wire(b"so it is", status=status))
    assert isinstance(failure, ApiError)
    assert (failure.status_code, failure.body) == (status, "so it is")


# Cookies


@pytest.mark.parametrize(
    "cookie", [b"a=b; Path=/", "größe=ü; Domain=ß".encode(), b"\xff\xfe=\xfd", b"a=b; Domain=agentmail.to", b"=", b""]
)
async def test_no_cookie_is_sent_back(cookie: bytes, autojump_clock: MockClock) -> None:
    api = Api({"/x": lambda _: httpx2.Response(200, headers=[(b"Set-Cookie", cookie)], stream=Body([b"{}"]))})
    async with rest(api) as asks:
        await asks.get("/x")
        await asks.get("/x")
    assert len(api.requests) == 2
    assert all("Cookie" not in request.headers for request in api.requests)


# Exceptions that httpx2 does not expect


class Broken(httpx2.AsyncBaseTransport):
    """A transport with a bug, in its head or in its body."""

    def __init__(self, failure: BaseException, where: str) -> None:
        self._failure = failure
        self._where = where

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        if self._where == "head":
            raise self._failure
        return httpx2.Response(200, stream=BrokenBody(self._failure, self._where))

    async def aclose(self) -> None:
        if self._where == "connections":
            raise self._failure


class BrokenBody(httpx2.AsyncByteStream):
    def __init__(self, failure: BaseException, where: str) -> None:
        self._failure = failure
        self._where = where

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{}"
        if self._where == "body":
            raise self._failure

    async def aclose(self) -> None:
        if self._where == "end":
            raise self._failure


class BrokenBackend(RestBackend):
    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        super().__init__(Api({}))
        self._transport = transport

    def http_transport(self, ssl_context: Any) -> httpx2.AsyncBaseTransport:
        return SteadyTransport(self._transport)


@pytest.mark.parametrize("where", ["head", "body", "end"])
@pytest.mark.parametrize(
    "failure",
    [RuntimeError("bug"), LookupError("bug"), UnicodeError("bug"), AssertionError("bug"), OSError("bug")],
    ids=repr,
)
async def test_any_exception_below_the_transport_is_a_failed_request(
    failure: Exception, where: str, autojump_clock: MockClock
) -> None:
    backend = BrokenBackend(Broken(failure, where))
    asks = Rest(backend, rest_api.settings(), asked_key(SECRET), ServerClock(backend.now))
    async with asks.connected():
        with pytest.raises(RequestFailedError, match=f"^{type(failure).__name__}: bug$") as caught:
            await asks.get("/x")
    assert asks.requests == ATTEMPTS
    assert caught.value.__context__ is None
    assert_no_secret(caught.value)


async def test_connections_that_cannot_be_closed_cause_no_error() -> None:
    backend = BrokenBackend(Broken(RuntimeError("bug"), "connections"))
    asks = Rest(backend, rest_api.settings(), asked_key(), ServerClock(backend.now))
    async with asks.connected():
        assert await asks.get("/x") == {}


@pytest.mark.parametrize("failure", [httpx2.ReadError("as it is"), KeyboardInterrupt()], ids=repr)
async def test_transport_errors_and_base_exceptions_pass_unchanged(failure: BaseException) -> None:
    transport = SteadyTransport(Broken(failure, "head"))
    with pytest.raises(type(failure)) as caught:
        await transport.handle_async_request(httpx2.Request("GET", "http://x"))
    assert caught.value is failure


GARBAGE: dict[str, bytes] = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "nothing": b"",
    "nul": b"\x00" * 1_000,
    "half a status": b"HTTP/1.1 20",
    "status 0": b"HTTP/1.1 000 \r\nContent-Length: 2\r\n\r\n{}",
    "status 999": b"HTTP/1.1 999 \r\nContent-Length: 2\r\n\r\n{}",
    "status 99": b"HTTP/1.1 99 \r\nContent-Length: 2\r\n\r\n{}",
    "status 1000": b"HTTP/1.1 1000 \r\n\r\n{}",
    "HTTP/0.9": b"{}",
    "HTTP/2": b"HTTP/2 200\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "switches": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\x00\x00",
    "switches to nothing": b"HTTP/1.1 101 \r\n\r\n",
    "early hints, and the end": b"HTTP/1.1 103 \r\nLink: <x>\r\n\r\n" * 100,
    "header without colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n{}",
    "header of nothing": b"HTTP/1.1 200 OK\r\n: x\r\n\r\n{}",
    "header with nul": b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 2\r\n\r\n{}",
    "folded header": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "large header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20 + b"\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 100_000 + b"\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "a length too large": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    "a length too small": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
    "odd transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\n{}",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{",
    "a chunk without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}",
    "large trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: " + b"x" * 2**20,
    "a bomb": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + bomb(64 * 2**20),
    "a bomb of a refusal": b"HTTP/1.1 404 \r\nContent-Encoding: gzip\r\n\r\n" + bomb(64 * 2**20),
    "no content with content": b"HTTP/1.1 204 \r\nContent-Length: 2\r\n\r\n{}",
    "odd redirect": b"HTTP/1.1 307 \r\nLocation: http://[::1\xff\r\nContent-Length: 0\r\n\r\n",
    "bad cookie": b"HTTP/1.1 404 \r\nSet-Cookie: gr\xc3\xb6\xc3\x9fe=\xff\r\nContent-Length: 0\r\n\r\n",
}


@asynccontextmanager
async def speaking(answer: bytes) -> AsyncIterator[AgentMailEnvironment]:
    """A server that sends these bytes to each client, and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await stream.receive_some()
                await stream.send_all(answer)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                return

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            base = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            yield AgentMailEnvironment(http=base, websockets="ws://127.0.0.1:1")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_over_a_socket_is_a_failed_request(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_agentmail._recovery.rest.full_jitter", lambda ceiling: 0.0)
    async with speaking(answer) as environment:
        asks = Rest(
            NetworkBackend(), rest_api.settings(environment=environment), asked_key(), ServerClock(lambda: EPOCH)
        )
        async with asks.connected():
            with suppress(ApiError, RequestFailedError):
                assert await asks.get("/x") == {}
    gc.collect()  # no generator, and so no connection, is left to collect


async def test_an_abandoned_answer_over_a_socket_leaves_no_connection() -> None:
    hung_up = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                await stream.send_all(b" " * 2**16)
        except trio.BrokenResourceError:
            hung_up.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            base = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            environment = AgentMailEnvironment(http=base, websockets="ws://127.0.0.1:1")
            asks = Rest(
                NetworkBackend(), rest_api.settings(environment=environment), asked_key(), ServerClock(lambda: EPOCH)
            )
            async with asks.connected():
                with pytest.raises(AnswerTooLargeError):
                    await asks.get("/x")
                await hung_up.wait()
            nursery.cancel_scope.cancel()
    gc.collect()


async def test_garbage_fails_the_recovery_and_the_stream_goes_on(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.faults.answer_requests(lambda _: wire(b"<html>", Content_Type="text/html; charset=hex"), times=None)
    async with open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake) as events:
        await anext(events)
        assert isinstance(await anext(events), RecoveryFailed)
        event = await fake.deliver(inbox_id=INBOX)
        assert await anext(events) == event
