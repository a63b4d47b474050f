"""Requests that fail: which are retried, when, and what is raised."""

import gc
from collections.abc import AsyncIterator

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.rest_answers import answers, kinds_of, refused
from tests.helpers.rest_api import EPOCH, Api, date, rest
from trio_agentmail import ApiError, AuthenticationError, PermissionDeniedError
from trio_agentmail._recovery.rest import ATTEMPTS, REQUEST_TIMEOUT
from trio_agentmail.errors import RequestFailedError

ANSWER = {"answer": 42}


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
