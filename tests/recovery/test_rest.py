"""Requests to the REST API: what is sent, over which connections, and how many at once."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import answers, clock, refused
from tests.helpers.rest_api import KEY, Api, RestBackend, asked_key, rest
from trio_agentmail import AgentMailEnvironment, ApiError
from trio_agentmail._network import NetworkBackend
from trio_agentmail._recovery.rest import CONCURRENCY, Rest, segment
from trio_agentmail.errors import RequestFailedError

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=200)

ANSWER = {"answer": 42}


# Requests


async def test_the_method_url_and_headers_of_requests() -> None:
    api = Api({"/x": ANSWER})
    async with rest(api) as asks:
        await asks.get("/x", {"after": "2025-01-01T00:00:00.000Z", "limit": "1"})
        await asks.post("/x", {"message_ids": ["<a@b>", "ü"]})
    asked, told = api.requests
    assert str(asked.url) == "https://api.agentmail.to/v0/x?after=2025-01-01T00%3A00%3A00.000Z&limit=1"
    assert (asked.method, told.method) == ("GET", "POST")
    assert asked.headers["Authorization"] == told.headers["Authorization"] == f"Bearer {KEY}"
    assert told.headers["Content-Type"] == "application/json"
    assert told.content == '{"message_ids":["<a@b>","ü"]}'.encode()
    assert "Content-Type" not in asked.headers


@pytest.mark.parametrize(
    "message_id",
    [
        "<plain@host.example>",
        "<a/b?c#d@host>",
        "<50%2F50@host>",
        "<a b+c&d=e;f@host>",
        "<größe@höst>",
        "<\U0001f4e8@host>",
        "<half \ud83d@host>",
        "<a\\b\x00\r\n@host>",
        "/",
        ".",
        "..",
        "...",
        "%",
    ],
    ids=ascii,
)
async def test_any_message_id_stays_one_segment_of_its_path(message_id: str) -> None:
    api = Api({})
    async with rest(api) as asks:
        with pytest.raises(ApiError):
            await asks.get(f"/inboxes/{segment(message_id)}/messages/{segment(message_id)}")
    [path] = api.asked
    _, inboxes, first, messages, second = path.split("/")
    assert (inboxes, messages) == ("inboxes", "messages")
    assert unquote(first, errors="surrogatepass") == unquote(second, errors="surrogatepass") == message_id


@repeatable
@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_text_stays_one_segment(text: str) -> None:
    path = httpx2.URL(f"https://host/v0/threads/{segment(text)}/end").raw_path.decode()
    v0, threads, quoted, end = path[1:].split("/")
    assert (v0, threads, end) == ("v0", "threads", "end")
    assert unquote(quoted, errors="surrogatepass") == text


async def test_a_message_id_too_long_for_a_url_is_a_request_that_failed(autojump_clock: MockClock) -> None:
    async with rest(Api({})) as asks:
        with pytest.raises(RequestFailedError, match="InvalidURL"):
            await asks.get(f"/inboxes/a/messages/{segment('x' * 2**17)}")


async def test_no_redirect_is_followed(autojump_clock: MockClock) -> None:
    api = answers(refused(307, Location="https://elsewhere.example/v0/x"), ANSWER)
    async with rest(api) as asks:
        with pytest.raises(ApiError) as caught:
            await asks.get("/x")
    assert caught.value.status_code == 307
    assert [request.url.host for request in api.requests] == ["api.agentmail.to"]


async def test_eight_requests_are_under_way_at_once_and_no_more(autojump_clock: MockClock) -> None:
    async def slow(request: httpx2.Request) -> dict[str, Any]:
        under_way.append(request)
        at_once.append(len(under_way))
        await trio.sleep(1)
        under_way.remove(request)
        return ANSWER

    under_way: list[httpx2.Request] = []
    at_once: list[int] = []
    async with rest(Api({"/x": slow})) as asks:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * CONCURRENCY):
                nursery.start_soon(asks.get, "/x")
    assert max(at_once) == CONCURRENCY == 8
    assert trio.current_time() == 3


async def test_a_request_that_waits_for_its_retry_takes_no_slot(autojump_clock: MockClock) -> None:
    async with rest(Api({"/down": lambda _: refused(503, Retry_After="50"), "/x": ANSWER})) as asks:
        async with trio.open_nursery() as nursery:
            for _ in range(CONCURRENCY):
                nursery.start_soon(asks.get, "/down")
            await trio.sleep(1)
            await asks.get("/x")
            assert trio.current_time() == 1
            nursery.cancel_scope.cancel()


# Connections


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[AgentMailEnvironment, trio.MemoryReceiveChannel[bytes]]]:
    """A server on a real socket. The channel yields what it receives, and `b""` when the client has closed."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            while data := await stream.receive_some():
                receives.send_nowait(data)
        receives.send_nowait(b"")

    receives, received = trio.open_memory_channel[bytes](1000)
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            base = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            yield AgentMailEnvironment(http=base, websockets="ws://127.0.0.1:1"), received
            nursery.cancel_scope.cancel()


async def test_cancelled_requests_leave_neither_connections_nor_slots_taken() -> None:
    async with silent_server() as (environment, received):
        asks = Rest(NetworkBackend(), rest_api.settings(environment=environment), asked_key(), clock())
        async with asks.connected():
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for _ in range(2 * CONCURRENCY):
                        nursery.start_soon(asks.get, "/x")
                    for _ in range(CONCURRENCY):
                        assert (await received.receive()).startswith(b"GET /v0/x ")
                    nursery.cancel_scope.cancel()
                for _ in range(CONCURRENCY):
                    assert await received.receive() == b""
    assert asks.requests == 2 * CONCURRENCY


async def test_a_request_cancelled_while_it_waits_is_not_retried(autojump_clock: MockClock) -> None:
    api = answers(refused(503, Retry_After="50"))
    async with rest(api) as asks:
        with trio.move_on_after(25) as scope:
            await asks.get("/x")
        assert scope.cancelled_caught
        await trio.sleep(100)
    assert len(api.requests) == 1


class Connections(RestBackend):
    """Counts the open connections."""

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self.open = 0
        self.opened = 0

    def http_transport(self, ssl_context: ssl.SSLContext | None) -> httpx2.AsyncBaseTransport:
        self.open += 1
        self.opened += 1
        return Transport(super().http_transport(ssl_context), self)


class Transport(httpx2.AsyncBaseTransport):
    """A transport whose closing takes time."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, connections: Connections) -> None:
        self._transport = transport
        self._connections = connections

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await trio.sleep(1)
        self._connections.open -= 1


async def test_connections_are_kept_open_only_inside_the_block(autojump_clock: MockClock) -> None:
    backend = Connections(Api({"/x": ANSWER}))
    asks = Rest(backend, rest_api.settings(), asked_key(), clock())
    assert backend.opened == 0
    async with asks.connected():
        async with asks.connected():
            await asks.get("/x")
        await asks.get("/x")
        assert (backend.open, backend.opened) == (1, 1)
    assert backend.open == 0
    async with asks.connected():
        await asks.get("/x")
        assert (backend.open, backend.opened) == (1, 2)


async def test_a_block_entered_while_a_transport_closes_gets_another(autojump_clock: MockClock) -> None:
    async def come_and_go() -> None:
        async with asks.connected():
            await asks.get("/x")

    backend = Connections(Api({"/x": ANSWER}))
    asks = Rest(backend, rest_api.settings(), asked_key(), clock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_go)
        await trio.sleep(0.5)
        async with asks.connected():
            await trio.sleep(5)
            await asks.get("/x")
            assert (backend.open, backend.opened) == (1, 2)
    assert backend.open == 0
