"""Requests to the REST API: retries, limits, and the key in one header only."""

import gc
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.core.test_secrets import KEY as SECRET
from tests.core.test_secrets import MARK, assert_no_secret
from tests.helpers import rest_api
from tests.helpers.rest_api import EPOCH, KEY, Api, RestBackend, asked_key, clock_of, date, rest
from trio_agentmail import AgentMailEnvironment, ApiError, AuthenticationError, PermissionDeniedError
from trio_agentmail._clock import ServerClock
from trio_agentmail._network import NetworkBackend
from trio_agentmail._reconnect import http_date
from trio_agentmail._recovery.paging import Page, pages_of
from trio_agentmail._recovery.rest import ATTEMPTS, CONCURRENCY, REQUEST_TIMEOUT, Rest, segment
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.testing import FakeAgentMail

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=200)

ANSWER = {"answer": 42}


def answers(*items: Any) -> Api:
    """Answer `/x` with each of these in turn; the last is repeated."""
    left = list(items)

    def answer(request: httpx2.Request) -> Any:
        item = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(item, Exception):
            raise item
        return item

    return Api({"/x": answer})


def clock() -> ServerClock:
    return ServerClock(time.time)


def refused(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


# Failures and retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_transient_failures_are_retried_after_increasing_delays(
    status: int, autojump_clock: MockClock, no_jitter: None
) -> None:
    api = answers(*[status] * (ATTEMPTS - 1), ANSWER)
    async with rest(api) as asks:
        assert await asks.get("/x") == ANSWER
    assert trio.current_time() == 1 + 2 + 4 + 8
    assert asks.requests == len(api.requests) == ATTEMPTS


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_a_lasting_failure_is_raised_as_itself(status: int, autojump_clock: MockClock) -> None:
    api = answers(status)
    async with rest(api) as asks:
        with pytest.raises(ApiError) as caught:
            await asks.get("/x")
    assert type(caught.value) is ApiError
    assert caught.value.status_code == status
    assert len(api.requests) == ATTEMPTS


@pytest.mark.parametrize("status", [201, 204, 302, 304, 400, 401, 402, 403, 404, 405, 409, 410, 422])
async def test_a_refusal_is_not_retried(status: int, autojump_clock: MockClock) -> None:
    kinds = {401: AuthenticationError, 403: PermissionDeniedError}
    api = answers(status)
    async with rest(api) as asks:
        with pytest.raises(ApiError) as caught:
            await asks.get("/x")
    assert type(caught.value) is kinds.get(status, ApiError)
    assert len(api.requests) == 1
    assert trio.current_time() == 0


async def test_delays_are_drawn_so_that_many_clients_come_back_spread_out(autojump_clock: MockClock) -> None:
    waits = set()
    for _ in range(5):
        before = trio.current_time()
        async with rest(answers(503, ANSWER)) as asks:
            await asks.get("/x")
        waits.add(trio.current_time() - before)
    assert len(waits) == 5
    assert max(waits) <= 1


async def test_retry_after_is_obeyed(autojump_clock: MockClock) -> None:
    async with rest(answers(refused(503, Retry_After="57"), ANSWER)) as asks:
        await asks.get("/x")
    assert trio.current_time() == 57


async def test_a_server_that_asks_for_more_than_a_minute_is_left_to_the_next_scan(
    autojump_clock: MockClock,
) -> None:
    api = answers(refused(503, Retry_After="61"), ANSWER)
    async with rest(api) as asks:
        with pytest.raises(ApiError, match="503"):
            await asks.get("/x")
    assert (trio.current_time(), len(api.requests)) == (0, 1)


async def test_retry_after_may_be_a_date(autojump_clock: MockClock) -> None:
    async with rest(answers(refused(503, Retry_After=date(EPOCH + 47)), ANSWER)) as asks:
        await asks.get("/x")
    assert trio.current_time() == 47


async def test_a_retry_after_date_is_compared_with_the_date_of_its_answer(autojump_clock: MockClock) -> None:
    api = answers(refused(503, Retry_After=date(EPOCH + 6047)), ANSWER)
    api.ahead = 6000.0
    async with rest(api) as asks:
        await asks.get("/x")
    assert trio.current_time() == 47


async def test_retry_after_is_capped_at_an_hour(autojump_clock: MockClock) -> None:
    async with rest(answers(refused(429, Retry_After="86400"), ANSWER)) as asks:
        await asks.get("/x")
    assert trio.current_time() == 3600


async def test_after_a_429_all_requests_of_the_key_wait(autojump_clock: MockClock) -> None:
    async def ask(path: str) -> None:
        await asks.get(path)
        done[path] = trio.current_time()

    api = answers(refused(429, Retry_After="100"), ANSWER)
    api.answers["/y"] = api.answers["/z"] = ANSWER
    done: dict[str, float] = {}
    async with rest(api) as asks, trio.open_nursery() as nursery:
        nursery.start_soon(ask, "/x")
        await trio.sleep(1)
        nursery.start_soon(ask, "/y")
        await trio.sleep(98)
        nursery.start_soon(ask, "/z")
        assert api.asked == ["/x"]
    assert done == {"/x": 100, "/y": 100, "/z": 100}


async def test_requests_that_wait_after_a_429_wait_for_the_next_429_as_well(autojump_clock: MockClock) -> None:
    # The second 429 answers a request that was under way when the first one came.
    async def late(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(5)
        return refused(429, Retry_After="100")

    async def ask(path: str) -> None:
        await asks.get(path)
        done[path] = trio.current_time()

    api = answers(refused(429, Retry_After="10"), ANSWER)
    api.answers["/slow"] = late
    done: dict[str, float] = {}
    async with rest(api) as asks, trio.open_nursery() as nursery:
        nursery.start_soon(ask, "/slow")
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, "/x")
        await trio.sleep(20)
        api.answers["/slow"] = ANSWER
        assert api.asked == ["/slow", "/x"]
    assert done == {"/x": 105, "/slow": 105}


async def test_retry_after_of_a_503_delays_only_its_own_request(autojump_clock: MockClock) -> None:
    api = answers(refused(503, Retry_After="50"), ANSWER)
    api.answers["/y"] = ANSWER
    async with rest(api) as asks, trio.open_nursery() as nursery:
        nursery.start_soon(asks.get, "/x")
        await trio.sleep(1)
        await asks.get("/y")
        assert trio.current_time() == 1


async def test_a_request_without_an_answer_is_given_up_and_retried(autojump_clock: MockClock, no_jitter: None) -> None:
    async def never(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with rest(Api({"/x": never})) as asks:
        with pytest.raises(RequestFailedError, match="no answer within 30 s"):
            await asks.get("/x")
    assert trio.current_time() == ATTEMPTS * REQUEST_TIMEOUT + 1 + 2 + 4 + 8


async def test_an_answer_that_trickles_for_ever_is_given_up(autojump_clock: MockClock) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(1)
            yield b" "

    started: list[float] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        started.append(trio.current_time())
        return httpx2.Response(200, content=trickle()) if len(started) == 1 else httpx2.Response(200, json=ANSWER)

    async with rest(handle) as asks:
        assert await asks.get("/x") == ANSWER
    assert REQUEST_TIMEOUT <= started[1] <= REQUEST_TIMEOUT + 1


def kinds_of(cls: type[httpx2.RequestError]) -> Iterator[type[httpx2.RequestError]]:
    yield cls
    for kind in cls.__subclasses__():
        yield from kinds_of(kind)


@pytest.mark.parametrize("kind", [*kinds_of(httpx2.RequestError)], ids=lambda kind: kind.__name__)
async def test_every_request_error_of_httpx2_is_transient(
    kind: type[httpx2.RequestError], autojump_clock: MockClock
) -> None:
    api = answers(kind("the cable is out"), ANSWER)
    async with rest(api) as asks:
        assert await asks.get("/x") == ANSWER
    api = answers(kind("the cable is out"))
    async with rest(api) as asks:
        with pytest.raises(RequestFailedError, match=f"^{kind.__name__}: the cable is out$"):
            await asks.get("/x")
    assert len(api.requests) == ATTEMPTS


async def test_a_failure_names_its_root_cause(autojump_clock: MockClock) -> None:
    failure = httpx2.ConnectError("")
    failure.__cause__ = RuntimeError()
    failure.__cause__.__context__ = OSError("no route to host")
    async with rest(answers(failure)) as asks:
        with pytest.raises(RequestFailedError, match=r"^OSError: no route to host$"):
            await asks.get("/x")


@pytest.mark.filterwarnings("ignore:.*httpx2:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_body_that_cannot_be_decompressed_is_transient(autojump_clock: MockClock) -> None:
    def broken(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx2.ByteStream(b"no gzip"))

    async with rest(Api({"/x": broken})) as asks:
        with pytest.raises(RequestFailedError):
            await asks.get("/x")
    gc.collect()  # collects the generators of httpx2 here, so that the warning belongs to this test


async def test_a_bug_comes_out_as_itself(autojump_clock: MockClock) -> None:
    async with rest(answers(ZeroDivisionError())) as asks:
        with pytest.raises(ZeroDivisionError):
            await asks.get("/x")


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"42", b'"text"', b"[]", b'[{"answer": 42}]', b"<html>Sign in</html>", b"\xff", b'{"a": '],
    ids=repr,
)
async def test_an_answer_that_is_not_an_object_is_transient(body: bytes, autojump_clock: MockClock) -> None:
    async with rest(answers(httpx2.Response(200, content=body), ANSWER)) as asks:
        assert await asks.get("/x") == ANSWER
    api = answers(httpx2.Response(200, content=body))
    async with rest(api) as asks:
        with pytest.raises(RequestFailedError, match="not a JSON object"):
            await asks.get("/x")
    assert len(api.requests) == ATTEMPTS


async def test_a_lone_surrogate_is_accepted() -> None:
    async with rest(answers(httpx2.Response(200, content=rb'{"preview": "half \ud83d"}'))) as asks:
        assert await asks.get("/x") == {"preview": "half �"}


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


# The key


class Keys:
    """A key that is replaced while the stream runs."""

    def __init__(self) -> None:
        self.key = "am_old"
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.key


def knows(*keys: str) -> Callable[[httpx2.Request], Any]:
    def answer(request: httpx2.Request) -> Any:
        return ANSWER if request.headers["Authorization"].removeprefix("Bearer ") in keys else 401

    return answer


async def test_a_replaced_key_is_noticed(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": knows("am_new")})
    async with rest(api, keys) as asks:
        keys.key = "am_new"
        assert await asks.get("/x") == ANSWER
        assert trio.current_time() == 0
        assert await asks.get("/x") == ANSWER
    assert (len(api.requests), keys.asked) == (3, 2)


async def test_a_replaced_key_is_noticed_by_all_requests_under_way(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": knows("am_new")})
    api.took = 1
    async with rest(api, keys) as asks:
        keys.key = "am_new"
        async with trio.open_nursery() as nursery:
            for _ in range(CONCURRENCY):
                nursery.start_soon(asks.get, "/x")


async def test_a_replaced_key_is_noticed_by_the_last_attempt_as_well(autojump_clock: MockClock) -> None:
    keys = Keys()
    async with rest(answers(*[503] * (ATTEMPTS - 1), 401, ANSWER), keys) as asks:
        keys.key = "am_new"
        assert await asks.get("/x") == ANSWER


async def test_an_unchanged_key_that_is_refused_is_not_retried(autojump_clock: MockClock) -> None:
    keys = Keys()
    api = Api({"/x": 401})
    async with rest(api, keys) as asks:
        with pytest.raises(AuthenticationError):
            await asks.get("/x")
    assert (len(api.requests), keys.asked) == (1, 2)


async def test_a_key_that_changes_each_time_is_not_retried_for_ever(autojump_clock: MockClock) -> None:
    keys = iter(f"am_{number}" for number in range(100))
    api = Api({"/x": 401})
    async with rest(api, lambda: next(keys)) as asks:
        with pytest.raises(AuthenticationError):
            await asks.get("/x")
    assert len(api.requests) == 2


async def test_what_an_api_key_function_raises_comes_out_as_itself() -> None:
    def ask() -> str:
        raise KeyError("vault")

    keys: list[Callable[[], str]] = [lambda: "am_old", ask]
    async with rest(Api({"/x": 401}), lambda: keys.pop(0)()) as asks:
        with pytest.raises(KeyError, match="vault"):
            await asks.get("/x")


@pytest.mark.parametrize(
    "failure",
    [
        *[
            httpx2.Response(
                status,
                headers={"X-Echo": f"Bearer {SECRET}", f"X-{SECRET}": "", "Location": f"https://x/?api_key={SECRET}"},
                json={"message": f"{SECRET} is not allowed to"},
            )
            for status in (302, 400, 401, 403, 404, 429, 500)
        ],
        *[kind(f"Illegal header value b'Bearer {SECRET}'") for kind in kinds_of(httpx2.RequestError)],
        httpx2.InvalidURL(f"https://{SECRET}@host"),
        httpx2.Response(200, text=SECRET),
    ],
    ids=repr,
)
async def test_no_failure_shows_the_key(failure: Any, autojump_clock: MockClock) -> None:
    async with rest(answers(failure), SECRET) as asks:
        with pytest.raises((ApiError, RequestFailedError)) as caught:
            await asks.get("/x", {"a": "b"})
        assert_no_secret(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [200, 401])
async def test_no_logger_shows_the_key_at_any_level(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.headers["Authorization"])
        return httpx2.Response(status, json={"your_key": SECRET})

    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "httpcore2.connection", "httpcore2.http11", "h11", "trio_agentmail"):
        caplog.set_level(logging.DEBUG, logger=name)
    sent: list[str] = []
    fake = FakeAgentMail()
    fake.faults.answer_requests(answer, times=None)
    async with fake.serve() as environment:
        asks = Rest(NetworkBackend(), rest_api.settings(environment=environment), asked_key(SECRET), clock())
        async with asks.connected():
            try:
                assert await asks.get("/inboxes", {"limit": "1"}) == {"your_key": SECRET}
            except AuthenticationError as exc:
                assert_no_secret(exc)
    assert sent == [f"Bearer {SECRET}"]
    assert {record.name.partition(".")[0] for record in caplog.records} == {"trio_agentmail", "httpcore2"}
    shown = [logging.Formatter().format(record) + repr(vars(record)) for record in caplog.records]
    assert [line for line in shown if MARK in line] == []


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


# Listings


async def collect(asks: Rest, size: int = 100) -> list[Page]:
    return [page async for page in pages_of(asks, "/x", "items", {"after": "then"}, size)]


async def test_a_listing_is_read_to_its_end() -> None:
    api = Api(
        {
            "/x": {"items": [{"n": 1}, {"n": 2}], "next_page_token": "b c"},
            "/x?b c": {"items": [], "next_page_token": "d"},
            "/x?d": {"items": [{"n": 3}], "next_page_token": None},
        }
    )
    async with rest(api) as asks:
        assert await collect(asks, 50) == [
            Page([{"n": 1}, {"n": 2}], has_more=True),
            Page([], has_more=True),
            Page([{"n": 3}], has_more=False),
        ]
    assert [(request.url.params["after"], request.url.params["limit"]) for request in api.requests] == [
        ("then", "50")
    ] * 3


async def test_each_request_of_a_listing_awaits_the_pace(autojump_clock: MockClock) -> None:
    api = Api({"/x": {"items": [], "next_page_token": "b"}, "/x?b": {"items": []}})
    async with rest(api) as asks:
        async for _ in pages_of(asks, "/x", "items", {}, pace=partial(trio.sleep, 10)):
            pass
    assert api.times == [10, 20]


async def test_a_listing_without_a_pace_has_a_checkpoint_for_each_request() -> None:
    async with rest(Api({"/x": {"items": []}})) as asks:
        with trio.CancelScope() as scope:
            scope.cancel()
            await collect(asks)
        assert scope.cancelled_caught
    assert asks.requests == 0


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c", "b"]])
async def test_a_page_token_that_comes_again_does_not_go_on_for_ever(circle: list[str]) -> None:
    # It is not the end either: the caller must learn that it has not seen everything.
    left = iter([*circle, *circle, *circle])
    async with rest(lambda_handler(lambda _: {"items": [], "next_page_token": next(left)})) as asks:
        with pytest.raises(RequestFailedError, match="page_token twice"):
            await collect(asks)
    assert asks.requests == len(set(circle)) + 1


def lambda_handler(answer: Callable[[httpx2.Request], dict[str, Any]]) -> rest_api.Handler:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=answer(request))

    return handle


@pytest.mark.parametrize(
    ("page", "items"),
    [
        ({"count": 0}, []),
        ({"items": [1, None, "text", [], {"n": 1}]}, [{"n": 1}]),
        ({"items": [], "next_page_token": ""}, []),
        ({"items": [], "next_page_token": 7}, []),
        ({"items": [], "next_page_token": {}}, []),
    ],
    ids=repr,
)
async def test_a_page_may_have_any_shape(page: dict[str, Any], items: list[Any]) -> None:
    async with rest(Api({"/x": page})) as asks:
        assert await collect(asks) == [Page(items, has_more=False)]


@pytest.mark.parametrize(
    "page", [{}, {"count": 1}, {"items": None}, {"items": 5}, {"items": {"n": 1}}, {"items": "text"}], ids=repr
)
async def test_a_page_without_its_field_is_a_failure_and_not_empty(page: dict[str, Any]) -> None:
    async with rest(Api({"/x": page})) as asks:
        with pytest.raises(RequestFailedError, match="without 'items'"):
            await collect(asks)


# The time of day


@pytest.mark.parametrize("skew", [-600.0, -2.0, 2.0, 600.0, 86_400.0])
async def test_every_answer_tells_how_far_the_clocks_are_apart(skew: float, autojump_clock: MockClock) -> None:
    api = answers(404, ANSWER)
    async with rest(api) as asks:
        clock = clock_of(asks)
        assert (clock.ahead, clock.now()) == (0, EPOCH)
        assert not clock.is_known
        api.ahead = skew
        with pytest.raises(ApiError):
            await asks.get("/x")
        assert clock.is_known
        assert clock.ahead == skew
        await trio.sleep(10)
        assert clock.now() == EPOCH + 10 + skew
        api.ahead = 0.0
        await asks.get("/x")
        assert (clock.ahead, clock.now()) == (0, EPOCH + 10)


@pytest.mark.parametrize("skew", [-1.4, -1.0, 0.5, 1.4])
async def test_a_difference_within_whole_seconds_is_ignored(skew: float, autojump_clock: MockClock) -> None:
    backend = RestBackend(answers(httpx2.Response(200, json=ANSWER, headers={"Date": date(EPOCH)})))
    backend.wrong_by = -skew
    clock = ServerClock(backend.now)
    asks = Rest(backend, rest_api.settings(), asked_key(), clock)
    async with asks.connected():
        await asks.get("/x")
    assert clock.is_known
    assert clock.ahead == 0


@pytest.mark.parametrize(
    ("value", "ahead"),
    [
        ("Wed, 01 Jan 2025 01:00:00 GMT", 3600),
        ("Wednesday, 01-Jan-25 01:00:00 GMT", 3600),
        ("Wed Jan  1 01:00:00 2025", 3600),
        ("Wed, 01 Jan 2025 01:00:00 -0000", 3600),
        ("Wed, 01 Jan 2025 01:00:00", 3600),
        ("Wed, 01 Jan 2025 01:00:00 +0100", 0),
        ("", 0),
        ("now", 0),
        ("1735689600", 0),
        ("Wed, 01 Jan 2025 25:61:00 GMT", 0),
        ("Wed, 01 Jan 2025 01:00:00 +9999", 0),
        ("Wed, 01 Jan 0000 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +1200", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 -1200", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
async def test_a_date_may_have_any_shape(
    value: str, ahead: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        async with rest(answers(httpx2.Response(200, json=ANSWER, headers={"Date": value}))) as asks:
            await asks.get("/x")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert clock_of(asks).ahead == ahead
    assert clock_of(asks).is_known


@repeatable
@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ (Jan|Feb|x) -?\d+ \d+:\d+:\d+ (GMT|[+-]\d+|EST)"))
def test_no_date_header_causes_an_error(value: str) -> None:
    async def main() -> float:
        clock = ServerClock(lambda: EPOCH)
        clock.answered(http_date(value))
        return clock.ahead

    assert abs(trio.run(main, clock=MockClock())) < 366 * 86_400


async def test_a_key_without_permissions_can_learn_the_time(autojump_clock: MockClock) -> None:
    api = Api({"/inboxes": 403})
    api.ahead = 600.0
    async with rest(api) as asks:
        await asks.learn_the_time()
    assert clock_of(asks).ahead == 600
    assert len(api.requests) == 1
    assert api.requests[0].url.params["limit"] == "1"


async def test_without_an_answer_learning_the_time_fails(autojump_clock: MockClock) -> None:
    async with rest(Api({"/inboxes": lambda _: unreachable()})) as asks:
        with pytest.raises(RequestFailedError, match="refused"):
            await asks.learn_the_time()
    assert not clock_of(asks).is_known
    assert clock_of(asks).ahead == 0


async def test_a_refusal_or_a_malformed_answer_tells_the_time_nevertheless(autojump_clock: MockClock) -> None:
    for answer in (500, httpx2.Response(200, content=b"<html>")):
        api = Api({"/inboxes": answer})
        api.ahead = 600.0
        async with rest(api) as asks:
            with suppress(RequestFailedError):
                await asks.learn_the_time()
        assert clock_of(asks).ahead == pytest.approx(600, abs=1)


def unreachable() -> Any:
    raise httpx2.ConnectError("refused")
