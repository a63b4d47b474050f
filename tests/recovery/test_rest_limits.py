"""Answers of the REST API are read within limits of size and time."""

import gc
import gzip
import zlib
from collections.abc import AsyncIterator
from functools import partial

import httpx2
import orjson
import pytest
import trio
from trio.testing import MockClock

from tests.helpers import rest_api
from tests.helpers.rest_answers import LIMIT, Body, always, bomb, failure_of, wire
from tests.helpers.rest_api import EPOCH, RestBackend, asked_key, clock_of, date, rest
from trio_agentmail import (
    ApiError,
    AuthenticationError,
    MessageReceivedEvent,
    Recovery,
    Subscribe,
    open_agentmail_stream,
)
from trio_agentmail._clock import ServerClock
from trio_agentmail._recovery.rest import ATTEMPTS, SMALLEST_LIMIT, Rest
from trio_agentmail.errors import AnswerTooLargeError, RequestFailedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)  # without mtime, the names of tests would contain the time


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
    trailing = [b"\x00" * 2**20] * 17  # after the end of the data, where gzip ignores it
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the generator of the body is left over
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
        fake.faults.swallow_pushes(14)  # each mail and its release
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
