"""Unexpected answers of the REST API: they are read within limits and become failed requests."""

import gc
import gzip
import logging
import traceback
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import httpx2
import orjson
import pytest
import trio
from trio.testing import MockClock

from tests.core.test_secrets import KEY as SECRET
from tests.core.test_secrets import MARK, assert_no_secret
from tests.helpers import rest_api
from tests.helpers.rest_api import EPOCH, KEY, Api, RestBackend, asked_key, clock_of, date, rest
from trio_agentmail import (
    AgentMailEnvironment,
    ApiError,
    AuthenticationError,
    MessageReceivedEvent,
    Recovery,
    RecoveryFailed,
    Subscribe,
    open_agentmail_stream,
)
from trio_agentmail._clock import ServerClock
from trio_agentmail._network import NetworkBackend
from trio_agentmail._network_transport import SteadyTransport
from trio_agentmail._recovery.paging import MAX_EMPTY_PAGES, pages_of
from trio_agentmail._recovery.rest import ATTEMPTS, REQUEST_TIMEOUT, SMALLEST_LIMIT, Rest
from trio_agentmail.errors import AnswerTooLargeError, RequestFailedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"
ANSWER = {"answer": 42}
LIMIT = 16 * 2**20


class Body(httpx2.AsyncByteStream):
    """A body in pieces, as it comes over the network."""

    def __init__(self, pieces: Sequence[bytes] | AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.taken = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._pieces, Sequence):
            for piece in self._pieces:
                await trio.lowlevel.checkpoint()
                self.taken += 1
                yield piece
        else:
            async for piece in self._pieces:
                self.taken += 1
                yield piece

    async def aclose(self) -> None:
        self.is_closed = True


def wire(*pieces: bytes, status: int = 200, **headers: str | bytes) -> httpx2.Response:
    """An answer that is read as if it came over a network."""
    raw = [
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    return httpx2.Response(status, headers=raw, stream=Body(pieces))


def always(answer: Callable[[], Any]) -> Api:
    """Answer `/x` the same each time."""
    return Api({"/x": lambda _: answer()})


async def failure_of(answer: Callable[[], Any], **arguments: Any) -> tuple[Exception, Api]:
    api = always(answer)
    async with rest(api, **arguments) as asks:
        with pytest.raises((ApiError, RequestFailedError)) as caught:
            await asks.get("/x")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return caught.value, api


# Text


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


# Limits


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)  # without mtime, the names of tests would contain the time


def bomb(size: int) -> bytes:
    """Spaces, compressed a thousand times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(size // 2**20)) + packer.flush()


@pytest.mark.parametrize("name", ["gzip", "x-gzip", " GZIP\t", "identity", ""])
async def test_an_answer_may_be_compressed_with_gzip(name: str) -> None:
    data = orjson.dumps({"text": "Hello " * 10_000})
    if "gzip" in name.lower():
        data = packed(data)
    api = always(lambda: wire(data[:10], data[10:], Content_Encoding=name))
    async with rest(api) as asks:
        assert await asks.get("/x") == {"text": "Hello " * 10_000}
    assert api.requests[0].headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("name", ["br", "zstd", "deflate", "compress", "gzip, gzip", "gzip, br", "\xff", ","])
async def test_an_answer_with_another_content_encoding_is_a_failure(name: str, autojump_clock: MockClock) -> None:
    failure, api = await failure_of(lambda: wire(b"{}", Content_Encoding=name))
    assert type(failure) is RequestFailedError
    assert "Content-Encoding that was not asked for" in str(failure)
    assert len(api.requests) == ATTEMPTS


@pytest.mark.parametrize("pieces", [[b"no gzip"], [packed(b"{}")[:10], b"\xff" * 50], [b"{}"]], ids=repr)
async def test_an_answer_not_compressed_as_its_headers_say_is_a_failure(
    pieces: list[bytes], autojump_clock: MockClock
) -> None:
    failure, api = await failure_of(lambda: wire(*pieces, Content_Encoding="gzip"))
    assert "not compressed as its headers say" in str(failure)
    assert len(api.requests) == ATTEMPTS


async def test_a_truncated_answer_is_a_failure(autojump_clock: MockClock) -> None:
    data = packed(b'{"a": "' + b"b" * 1_000 + b'"}')[:-20]
    failure, _ = await failure_of(lambda: wire(data, Content_Encoding="gzip"))
    assert "not a JSON object" in str(failure)


@pytest.mark.parametrize("size", [LIMIT - 2, LIMIT - 1])
@pytest.mark.parametrize("is_packed", [True, False])
async def test_an_answer_may_be_as_large_as_a_message(size: int, is_packed: bool, autojump_clock: MockClock) -> None:
    data = b"{" + b" " * (size - 1) + b"}"
    data, encoding = (packed(data), "gzip") if is_packed else (data, "")
    async with rest(always(lambda: wire(data, Content_Encoding=encoding))) as asks:
        assert await asks.get("/x") == {}


@pytest.mark.parametrize("is_packed", [True, False])
async def test_a_larger_answer_is_given_up_and_not_requested_again(is_packed: bool, autojump_clock: MockClock) -> None:
    data = b"{" + b" " * (LIMIT - 1) + b"}"
    data, encoding = (packed(data), "gzip") if is_packed else (data, "")
    failure, api = await failure_of(lambda: wire(data, Content_Encoding=encoding))
    assert type(failure) is AnswerTooLargeError
    assert str(failure) == "the answer has more than 16777216 bytes"
    assert len(api.requests) == 1


async def test_decompression_stops_at_the_limit(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []

    class Counted:
        def __init__(self, wbits: int) -> None:
            self._unpacker = zlib.decompressobj(wbits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            piece = self._unpacker.decompress(data, limit)
            unpacked.append(len(piece))
            return piece

    class Zlib:
        MAX_WBITS, error, decompressobj = zlib.MAX_WBITS, zlib.error, Counted

    data = bomb(100 * 2**20)
    monkeypatch.setattr("trio_agentmail._recovery.exchange.zlib", Zlib)
    pieces = [data[at : at + 2**16] for at in range(0, len(data), 2**16)]
    failure, _ = await failure_of(lambda: wire(*pieces, Content_Encoding="gzip"))
    assert isinstance(failure, AnswerTooLargeError)
    assert sum(unpacked) == LIMIT + 1


async def test_data_that_decompresses_to_nothing_is_limited_as_well(autojump_clock: MockClock) -> None:
    whole = packed(b"{}")
    trailing = [b"\x00" * 2**20] * 17  # after its end, which gzip ignores
    failure, _ = await failure_of(lambda: wire(whole, *trailing, Content_Encoding="gzip"))
    assert isinstance(failure, AnswerTooLargeError)


async def test_the_limit_follows_the_largest_message_but_is_never_below_a_page(autojump_clock: MockClock) -> None:
    for largest, limit in ((1, SMALLEST_LIMIT), (2 * 2**20, 2 * 2**20)):
        for excess in (0, 1):
            data = b"{" + b" " * (limit + excess - 2) + b"}"
            backend = RestBackend(always(partial(wire, data)))
            asks = Rest(backend, rest_api.settings(max_message_size=largest), asked_key(), ServerClock(backend.now))
            async with asks.connected():
                if excess:
                    with pytest.raises(AnswerTooLargeError):
                        await asks.get("/x")
                else:
                    assert await asks.get("/x") == {}


@pytest.mark.parametrize("pause", [0.0, 0.001])
async def test_an_answer_without_end_is_given_up(pause: float, autojump_clock: MockClock) -> None:
    async def without_end() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(pause)
            yield b" " * 2**16

    body = Body(without_end())
    failure, _ = await failure_of(lambda: httpx2.Response(200, stream=body))
    assert isinstance(failure, AnswerTooLargeError)
    assert body.is_closed
    assert body.taken == LIMIT // 2**16 + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its generator is left
async def test_an_answer_without_end_or_checkpoints_is_given_up(autojump_clock: MockClock) -> None:
    async def without_end() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 2**16

    failure, _ = await failure_of(lambda: httpx2.Response(200, stream=Body(without_end())))
    assert isinstance(failure, AnswerTooLargeError)
    gc.collect()


async def test_an_answer_made_in_memory_is_limited_as_well(autojump_clock: MockClock) -> None:
    failure, _ = await failure_of(lambda: httpx2.Response(200, content=b" " * (LIMIT + 1)))
    assert isinstance(failure, AnswerTooLargeError)
    packing = {"Content-Encoding": "gzip"}
    async with rest(always(lambda: httpx2.Response(200, headers=packing, content=packed(b'{"a": 1}')))) as asks:
        assert await asks.get("/x") == {"a": 1}


async def test_the_body_of_a_refusal_is_cut(autojump_clock: MockClock) -> None:
    for answer in (
        lambda: wire(*[b"no " * 10_000] * 100, status=404),
        lambda: wire(packed(b"no " * 1_000_000), status=404, Content_Encoding="gzip"),
    ):
        failure, _ = await failure_of(answer)
        assert isinstance(failure, ApiError)
        assert failure.body == ("no " * 30_000)[: 2**16]


async def test_a_refusal_is_reported_even_if_its_body_breaks_off(autojump_clock: MockClock) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"no su"
        raise httpx2.ReadError("reset")

    async def trickles() -> AsyncIterator[bytes]:
        while True:
            yield b"no "
            await trio.sleep(1)

    for answer, body in (
        (lambda: httpx2.Response(401, stream=Body(breaks())), "no su"),
        (lambda: httpx2.Response(401, stream=Body(trickles())), "no no "),
        (lambda: wire(b"no gzip", status=401, Content_Encoding="gzip"), ""),
        (lambda: wire(b"no brotli", status=401, Content_Encoding="br"), ""),
    ):
        began = trio.current_time()
        failure, _ = await failure_of(answer)
        assert isinstance(failure, AuthenticationError)
        assert failure.body == body
        assert trio.current_time() - began <= 2


async def test_a_body_that_breaks_off_is_transient(autojump_clock: MockClock) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"{"
        raise httpx2.ReadError("reset")

    failure, api = await failure_of(lambda: httpx2.Response(200, stream=Body(breaks())))
    assert str(failure) == "ReadError: reset"
    assert len(api.requests) == ATTEMPTS


async def test_the_time_is_that_of_the_headers_however_long_the_body_takes(autojump_clock: MockClock) -> None:
    async def trickles() -> AsyncIterator[bytes]:
        for piece in (b"{", b"}"):
            yield piece
            await trio.sleep(10)

    headers = {"Date": date(EPOCH + 600)}
    async with rest(always(lambda: httpx2.Response(200, headers=headers, stream=Body(trickles())))) as asks:
        assert await asks.get("/x") == {}
        assert trio.current_time() == 20
        assert clock_of(asks).ahead == 600


# Listings


async def test_a_page_that_is_too_large_is_requested_in_smaller_ones() -> None:
    def page(request: httpx2.Request) -> dict[str, Any]:
        limit = int(request.url.params["limit"])
        asked.append(limit)
        begin = int(request.url.params.get("page_token", "0"))
        items = [{"n": n, "text": "x" * 6 * 2**20} for n in range(begin, min(begin + limit, 5))]
        return {"items": items} | ({"next_page_token": str(begin + limit)} if begin + limit < 5 else {})

    asked: list[int] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=page(request))

    async with rest(handle) as asks:
        found = [item["n"] async for found in pages_of(asks, "/x", "items", {}, 10) for item in found.items]
    assert found == [0, 1, 2, 3, 4]
    assert asked == [10, 2, 2, 2]


async def test_an_item_that_is_too_large_by_itself_ends_the_listing() -> None:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"items": [{"text": "x" * LIMIT}]})

    async with rest(handle) as asks:
        with pytest.raises(AnswerTooLargeError):
            async for _ in pages_of(asks, "/x", "items", {}):
                pytest.fail("a page")
    assert asks.requests == 4  # 100, 20, 4, 1


def endless(items: Callable[[int], list[dict[str, Any]]]) -> rest_api.Handler:
    """A listing whose pages each name a next one."""

    async def handle(request: httpx2.Request) -> httpx2.Response:
        number = int(request.url.params.get("page_token", "0"))
        return httpx2.Response(200, json={"items": items(number), "next_page_token": str(number + 1)})

    return handle


async def test_a_listing_of_empty_pages_ends() -> None:
    async with rest(endless(lambda number: [])) as asks:
        with pytest.raises(RequestFailedError, match="empty pages"):
            async for page in pages_of(asks, "/x", "items", {}):
                assert page.has_more
    assert asks.requests == MAX_EMPTY_PAGES


async def test_a_listing_that_repeats_a_page_ends() -> None:
    async with rest(endless(lambda number: [{"n": 1}])) as asks:
        with pytest.raises(RequestFailedError, match="the same page twice"):
            async for _ in pages_of(asks, "/x", "items", {}):
                pass
    assert asks.requests == 2


async def test_a_listing_may_have_many_empty_pages() -> None:
    async with rest(endless(lambda number: [{"n": number}] if number % 900 == 0 else [])) as asks:
        pages = pages_of(asks, "/x", "items", {})
        for _ in range(2 * MAX_EMPTY_PAGES):
            await anext(pages)
        await pages.aclose()


@pytest.mark.parametrize("token", ["half \ud83d", "\x00\r\n", "a&b=c#d", "../..", "größe", "%"], ids=ascii)
async def test_a_page_token_may_be_any_text(token: str) -> None:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(parse_qs(request.url.query.decode(), errors="surrogatepass"))
        return httpx2.Response(200, json=ANSWER)

    asked: list[dict[str, list[str]]] = []
    async with rest(handle) as asks:
        assert await asks.get("/x", {"page_token": token}) == ANSWER
    assert asked == [{"page_token": [token]}]


async def test_a_page_token_too_long_for_a_url_is_a_request_that_failed(autojump_clock: MockClock) -> None:
    async with rest(endless(lambda number: [])) as asks:
        with pytest.raises(RequestFailedError, match="InvalidURL"):
            await asks.get("/x", {"page_token": "x" * 2**17})


# Answers that are too large, through a stream


@pytest.mark.parametrize("subscribe", [Subscribe(inbox_ids=[INBOX]), Subscribe()], ids=["inbox", "threads"])
async def test_missed_mail_with_large_bodies_comes_all_the_same(
    subscribe: Subscribe, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with open_agentmail_stream(subscribe, backend=fake, ping_interval=None, max_message_size=2**20) as events:
        await anext(events)
        await trio.sleep(1)
        fake.faults.swallow_pushes(5)
        first = await fake.deliver(inbox_id=INBOX, text="x" * 300_000)
        thread = first.message.thread_id
        for _ in range(4):
            await fake.deliver(inbox_id=INBOX, text="x" * 300_000, thread_id=thread)
        found: list[MessageReceivedEvent] = []
        while len(found) < 5:
            event = await anext(events)
            assert isinstance(event, MessageReceivedEvent)
            found.append(event)
    assert [len(event.message.text or "") for event in found] == [300_000] * 5
    assert "without its body" not in caplog.text


async def test_missed_mail_that_is_too_large_comes_without_its_body(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), backend=fake, ping_interval=None, max_message_size=2**20
    ) as events:
        await anext(events)
        await trio.sleep(1)
        fake.faults.swallow_pushes(2)
        large = await fake.deliver(inbox_id=INBOX, subject="large", text="x" * 2**21)
        small = await fake.deliver(inbox_id=INBOX, text="small")
        found = [await anext(events) for _ in range(2)]
    assert all(isinstance(event, MessageReceivedEvent) for event in found)
    one, other = (event.message for event in found if isinstance(event, MessageReceivedEvent))
    assert (one.message_id, one.subject, one.text) == (large.message.message_id, "large", None)
    assert (other.message_id, other.text) == (small.message.message_id, "small")
    assert "delivered without its body, which cannot be fetched: the answer has more than 1048576 bytes" in caplog.text


@pytest.mark.parametrize(("length", "status"), [(2**17, None), (20_000, 414)])
async def test_missed_mail_whose_id_is_too_long_for_a_url_comes_without_its_body(
    length: int, status: int | None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    if status is not None:
        fake.faults.fail_requests(status, times=None, path="/messages/")
    async with open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake, ping_interval=None) as events:
        await anext(events)
        await trio.sleep(1)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=INBOX, message_id="x" * length, subject="long")
        event = await anext(events)
    assert isinstance(event, MessageReceivedEvent)
    assert (len(event.message.message_id), event.message.subject, event.message.text) == (length, "long", None)
    assert "a mail is delivered without its body, which cannot be fetched" in caplog.text


async def test_a_pushed_mail_whose_body_is_too_large_comes_without_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    recovery = Recovery(fetch_bodies=True)
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), backend=fake, recovery=recovery, max_message_size=2**20
    ) as events:
        await anext(events)
        await fake.deliver(inbox_id=INBOX, text="x" * 2**21, body_in_push=False)
        event = await anext(events)
    assert isinstance(event, MessageReceivedEvent)
    assert event.message.text is None
    assert "could not be fetched: the answer has more than 1048576 bytes" in caplog.text


async def test_held_mail_is_checked_in_smaller_batches_if_the_answer_is_too_large(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        ids = orjson.loads(request.content)["message_ids"]
        asked.append(len(ids))
        return wire(b" " * 2**19 * len(ids)) if len(ids) > 2 else fake._rest.answer(request)

    asked: list[int] = []
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.faults.answer_requests(answer, times=None, path="batch-get")
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), backend=fake, ping_interval=None, max_message_size=2**20
    ) as events:
        await anext(events)
        held = [await fake.deliver(inbox_id=INBOX, held=True) for _ in range(7)]
        for _ in held:
            await anext(events)  # the review
        fake.faults.swallow_pushes(14)  # each mail, and that it was released
        for event in held:
            await fake.mail.release(INBOX, event.message.message_id)
        found = {(await anext(events)).message.message_id for _ in held}  # type: ignore[union-attr]
        assert found == {event.message.message_id for event in held}
        assert asked[:7] == [7, 3, 1, 2, 4, 2, 2]


async def test_a_held_mail_that_is_too_large_by_itself_delays_no_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        ids = orjson.loads(request.content)["message_ids"]
        return wire(b" " * (2**20 + 1)) if large.message.message_id in ids else fake._rest.answer(request)

    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    fake.faults.answer_requests(answer, times=None, path="batch-get")
    async with open_agentmail_stream(
        Subscribe(inbox_ids=[INBOX]), backend=fake, ping_interval=None, max_message_size=2**20
    ) as events:
        await anext(events)
        large = await fake.deliver(inbox_id=INBOX, held=True)
        small = await fake.deliver(inbox_id=INBOX, held=True)
        await anext(events)
        await anext(events)
        fake.faults.swallow_pushes(4)
        await fake.mail.release(INBOX, large.message.message_id)
        await fake.mail.release(INBOX, small.message.message_id)
        event = await anext(events)
    assert isinstance(event, MessageReceivedEvent)
    assert event.message.message_id == small.message.message_id
    assert "held mail could not be checked: the answer has more" in caplog.text


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


# Logs and tracebacks


async def test_requests_are_logged_at_debug_only_and_without_ids(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX)
    async with open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake) as events:
        await anext(events)
        await trio.sleep(1)
        fake.faults.swallow_pushes()
        await fake.deliver(inbox_id=INBOX, message_id="<secret-id@example.com>")
        assert isinstance(await anext(events), MessageReceivedEvent)
        fake.faults.fail_requests(500, times=20)
        fake.faults.break_requests(times=20)
        await trio.sleep(1_000)
    lines = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] != "trio-websocket"]
    shown = [line for line in lines if "agent@" in line or "agent%40" in line or "secret-id" in line]
    assert shown == []
    ours = [record for record in caplog.records if record.getMessage().startswith("REST: ")]
    assert {record.levelno for record in ours} == {logging.DEBUG}
    assert {record.name for record in ours} == {"trio_agentmail"}
    assert ours[0].getMessage() == "REST: GET inboxes: an object, 0.000 s"
    told = {record.getMessage().rpartition(",")[0] for record in ours}
    assert told == {
        "REST: GET inboxes: an object",
        "REST: GET inboxes/…/messages: an object",
        "REST: GET inboxes/…/messages/…: an object",
        "REST: GET inboxes/…/messages: HTTP status 500",
        "REST: GET inboxes/…/messages: ReadError: connection reset by FakeAgentMail",
    }


async def test_over_a_socket_httpx2_logs_requests_of_others_and_none_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fake = FakeAgentMail()
    async with fake.serve() as environment:
        asks = Rest(
            NetworkBackend(), rest_api.settings(environment=environment), asked_key(), ServerClock(lambda: EPOCH)
        )
        async with asks.connected():
            await asks.get("/inboxes")
        assert caplog.records == []
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.get(f"{environment.http}/v0/inboxes", headers={"Authorization": f"Bearer {KEY}"})
    assert [record.name for record in caplog.records] == ["httpx2"]


async def test_a_key_that_a_server_repeats_does_not_get_into_httpcore2s_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpcore2", "httpcore2.connection", "httpcore2.http11"):
        caplog.set_level(logging.DEBUG, logger=name)
    odd = SECRET + "'\\\""  # its repr() is another text
    fake = FakeAgentMail(api_keys={odd, KEY})
    fake.faults.answer_requests(
        lambda request: httpx2.Response(200, headers={"X-Echo": request.headers["Authorization"]}, json=ANSWER),
        times=None,
    )
    async with fake.serve() as environment:
        asks = Rest(
            NetworkBackend(), rest_api.settings(environment=environment), asked_key(odd), ServerClock(lambda: EPOCH)
        )
        async with asks.connected():
            await asks.get("/inboxes")
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("httpcore2")]
        assert any("X-Echo" in line and "Bearer ***" in line for line in lines)
        assert [line for line in lines if MARK in line] == []
        caplog.clear()
        # The log of other users of httpcore2 is unchanged.
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.get(f"{environment.http}/v0/inboxes", headers={"Authorization": f"Bearer {KEY}"})
    assert any(f"Bearer {KEY}" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("failure", [401, 404, httpx2.ReadError("reset"), "no object", "bug"], ids=repr)
async def test_no_local_of_a_traceback_shows_the_key(failure: Any, autojump_clock: MockClock) -> None:
    def answer(request: httpx2.Request) -> Any:
        if failure == "bug":
            raise ZeroDivisionError
        if isinstance(failure, Exception):
            raise failure
        return wire(b"[]") if failure == "no object" else failure

    # Concatenated, since a literal would be in this frame.
    async with rest(Api({"/x": answer}), lambda: SECRET[:5] + SECRET[5:]) as asks:
        with pytest.raises(Exception) as caught:
            await asks.get("/x")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert MARK not in "".join(shown.format())


def test_the_key_is_redacted_however_it_is_shown() -> None:
    key = asked_key("am_a'b\\c")
    assert key.redacted("x am_a'b\\c " + repr("am_a'b\\c")) == 'x *** "***"'


async def test_a_request_without_an_answer_says_how_long_it_waited(autojump_clock: MockClock) -> None:
    async def hang(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with rest(hang) as asks:
        with pytest.raises(RequestFailedError, match=f"no answer within {REQUEST_TIMEOUT:.0f} s"):
            await asks.get("/x")
