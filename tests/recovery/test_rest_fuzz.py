"""Whatever the REST API answers to any call of recovery, the stream goes on, and so does the next run."""

import gzip
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.helpers import rest_api
from trio_agentmail import (
    AgentMailEnvironment,
    ApiError,
    Event,
    MessageReceivedEvent,
    Recovery,
    SQLiteJournal,
    Subscribe,
    open_agentmail_stream,
)
from trio_agentmail._clock import ServerClock
from trio_agentmail._network import NetworkBackend
from trio_agentmail._recovery.rest import Rest
from trio_agentmail.errors import RequestFailedError
from trio_agentmail.testing import FakeAgentMail

MANY = int(os.environ.get("FUZZ_EXAMPLES", "200"))
"""Examples of each of the long tests: by hand, more of them."""

fuzzed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

INBOX, OTHER, POD = "agent@example.com", "other@example.com", "pod_1"

# The kinds of calls, by their paths

CALLS: dict[str, tuple[Subscribe, Callable[[str], bool]]] = {
    "the time": (Subscribe(inbox_ids=[INBOX]), lambda path: path == "/v0/inboxes"),
    "messages": (Subscribe(inbox_ids=[INBOX]), lambda path: path.endswith("/messages")),
    "a message": (Subscribe(inbox_ids=[INBOX]), lambda path: "/messages/" in path and not path.endswith("batch-get")),
    "held mail": (Subscribe(inbox_ids=[INBOX]), lambda path: path.endswith("/batch-get")),
    "threads": (Subscribe(), lambda path: path == "/v0/threads"),
    "threads of a pod": (Subscribe(pod_ids=[POD]), lambda path: path == f"/v0/pods/{POD}/threads"),
    "a thread": (Subscribe(), lambda path: "/threads/" in path),
    "everything": (Subscribe(inbox_ids=[INBOX], pod_ids=[POD]), lambda path: True),
}

# Answers

deep = st.sampled_from([50, 253, 254, 255, 300, 1_000, 1_021, 1_022, 1_023, 1_024, 1_025, 5_000])
odd_text = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=5),
    st.sampled_from(
        ["", "/", "..", "\x00", "\ud83d", "\udc00\ud800", "x" * 2**16, "é" * 40_000, INBOX, "message.received", "NaN"]
    ),
)
odd_time = st.one_of(
    st.datetimes().map(lambda when: when.isoformat() + "Z"),
    st.sampled_from(
        [
            "0001-01-01T00:00:00+23:59",
            "0001-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59-23:59",
            "9999-12-31T23:59:59.999999Z",
            "2024-02-30T00:00:00Z",
            "2026-W01",
            "20260101",
            "+10000-01-01",
        ]
    ),
)
odd_number = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0]))
odd_leaf = st.one_of(st.none(), st.booleans(), odd_number, odd_text, odd_time, st.builds(lambda n: Deep(n), deep))
odd_value = st.recursive(
    odd_leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(odd_text, inner, max_size=3)),
    max_leaves=6,
)


class Deep:
    """A list in a list in a list, deeper than the standard library can write."""

    def __init__(self, levels: int) -> None:
        self.levels = levels


def written(value: Any) -> bytes:
    """JSON as a server might write it: lone surrogates, numbers of any size, any depth."""
    holes: list[int] = []

    def hole(deep: Any) -> str:
        holes.append(deep.levels)
        return f"\ue000{len(holes) - 1}\ue000"

    text = json.dumps(value, default=hole)
    for number, levels in enumerate(holes):
        text = text.replace(f'"\\ue000{number}\\ue000"', "[" * levels + "]" * levels)
    return text.encode()


class Change:
    """Changes one place in a good answer: a value, a name, or whether it is there."""

    def __init__(self, place: int, value: Any, how: str) -> None:
        self.position = place
        self.value = value
        self.how = how

    def __repr__(self) -> str:
        return f"Change({self.position}, {str(self.value)[:60]!r}, {self.how})"

    def apply(self, value: Any) -> None:
        places: list[tuple[Any, Any]] = []
        waiting = [value]
        while waiting:
            item = waiting.pop()
            inner: Sequence[Any] = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in inner]
            waiting += [item[key] for key in inner if isinstance(item[key], dict | list)]
        if not places:
            return
        container, key = places[self.position % len(places)]
        if self.how == "remove":
            del container[key]
        elif self.how == "add" and isinstance(container, dict):
            container["new_field"] = self.value
        elif self.how == "add":
            container.append(self.value)
        elif self.how == "double" and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = self.value


changes = st.builds(
    Change,
    st.integers(0, 500),
    odd_value,
    st.sampled_from(["set", "set", "set", "remove", "add", "double"]),
)
header_name = st.sampled_from(
    [
        b"Content-Type",
        b"Content-Encoding",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Set-Cookie",
        b"Date",
        b"Retry-After",
        b"Location",
        b"Link",
        b"X-Odd",
        b"\xff",
    ]
)
header_value = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"text/html; charset=nonsense",
            b"text/html; charset=undefined",
            b"text/html; charset=idna",
            b"application/json; charset=utf-16",
            b"application/json; charset=rot13",
            b"; ; charset=\xff",
            b"gzip",
            b"GZIP, gzip",
            b"br",
            b"deflate",
            b"x-gzip",
            b"identity",
            "größe=ü; Domain=ß".encode(),
            b"a=b; Domain=agentmail.to; Path=/",
            b"http://[::1",
            b"//elsewhere.example/\xff",
            b"-1",
            b"99999999999999999999",
            b"9" * 5_000,
            b"Fri, 31 Dec 9999 23:59:59 -2359",
            b"Thu, 01 Jan 1970 00:00:00 GMT",
            b"chunked",
        ]
    ),
    st.datetimes().map(lambda when: format_datetime(when).encode()),
)
status = st.one_of(
    st.just(200),
    st.sampled_from([0, 1, 100, 101, 103, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 408, 410, 413, 418]),
    st.sampled_from([425, 429, 431, 451, 500, 502, 503, 504, 520, 599, 600, 999, 1000, -1]),
)
body = st.one_of(
    st.binary(max_size=200),
    st.builds(written, odd_value),
    st.builds(lambda value: written({"messages": value, "threads": value, "next_page_token": value}), odd_value),
    st.builds(lambda levels: b"[" * levels + b"]" * levels, deep),
    st.just(b'{"messages": [' + b"[],{}," * 2_000 + b'0], "threads": 5}'),
)
failures = st.sampled_from(
    [
        httpx2.ConnectError("no"),
        httpx2.ReadTimeout("no"),
        httpx2.RemoteProtocolError("no"),
        httpx2.DecodingError("no"),
        httpx2.TooManyRedirects("no"),
        httpx2.InvalidURL("no"),
        httpx2.StreamClosed(),
        httpx2.CookieConflict("no"),
        OSError("no"),
        ConnectionResetError("no"),
        trio.BrokenResourceError("no"),
        trio.ClosedResourceError("no"),
    ]
)


class Odd:
    """A random answer, or a good one that has been changed."""

    def __init__(
        self,
        status: int | None,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        changes: list[Change],
        packed: bool,
        breaks: bool,
        failure: Exception | None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.changes = changes
        self.packed = packed
        self.breaks = breaks
        self.failure = failure

    def __repr__(self) -> str:
        return f"Odd({self.status}, {self.headers}, {self.body[:60]!r}, {self.changes}, {self.packed}, {self.breaks})"

    def answer(self, good: httpx2.Response) -> httpx2.Response:
        if self.failure is not None:
            raise self.failure
        body, status = self.body, self.status or 200
        if self.status is None:
            value = orjson.loads(good.content or b"{}")
            for change in self.changes:
                change.apply(value)
            body, status = written(value), good.status_code
        headers = list(self.headers)
        if self.packed:
            body = gzip.compress(body, 1, mtime=0)
            headers.append((b"Content-Encoding", b"gzip"))
        return httpx2.Response(status, headers=headers, stream=Body(body, self.breaks))


class Body(httpx2.AsyncByteStream):
    def __init__(self, data: bytes, breaks: bool) -> None:
        self._data = data
        self._breaks = breaks

    async def __aiter__(self) -> Any:
        half = len(self._data) // 2
        yield self._data[:half]
        await trio.lowlevel.checkpoint()
        if self._breaks:
            raise httpx2.ReadError("the connection was reset")
        yield self._data[half:]


odd = st.one_of(
    st.builds(
        Odd,
        st.none(),
        st.just([]),
        st.just(b""),
        st.lists(changes, min_size=1, max_size=4),
        st.booleans(),
        st.just(False),
        st.none(),
    ),
    st.builds(
        Odd,
        status,
        st.lists(st.tuples(header_name, header_value), max_size=4),
        body,
        st.just([]),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([None] * 5) | failures,
    ),
)


async def a_day_with(
    subscribe: Subscribe,
    is_meant: Callable[[str], bool],
    oddities: Sequence[Odd],
    journal: SQLiteJournal | None,
) -> None:
    """A stream with a gap, swallowed pushes, held mail and mail without its body."""
    fake = FakeAgentMail()
    fake.mail.add_inbox(INBOX, pod_id=POD)
    fake.mail.add_inbox(OTHER, pod_id=POD)
    left = list(oddities)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        good = fake._rest.answer(request)
        return left.pop(0).answer(good) if left and is_meant(request.url.path) else good

    async def consume() -> None:
        async for event in events:
            received.append(event)
            if journal is not None and isinstance(event, MessageReceivedEvent):
                await journal.ack(event)

    async def deliver() -> None:
        await fake.deliver(inbox_id=INBOX, text="Hello")
        await fake.deliver(inbox_id=OTHER, thread_id=thread, timestamp=None)

    fake.faults.answer_requests(answer, times=None)
    received: list[Event] = []
    thread = (await fake.deliver(inbox_id=OTHER)).message.thread_id
    recovery = Recovery(fetch_bodies=True)
    async with open_agentmail_stream(
        subscribe, backend=fake, api_key="am_any", ping_interval=None, recovery=recovery, journal=journal
    ) as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            held = await fake.deliver(inbox_id=INBOX, held=True)
            await trio.sleep(1)
            await fake.deliver(inbox_id=INBOX, body_in_push=False)
            await deliver()
            fake.faults.swallow_pushes(2)
            await deliver()
            await trio.sleep(5)
            await fake.drop_connections()
            fake.faults.refuse_connections()
            await deliver()
            await trio.sleep(320)
            await fake.mail.release(INBOX, held.message.message_id)
            await trio.sleep(310)
            # The stream is alive, and pushed mail comes.
            await fake.wait_subscribed()
            last = await fake.deliver(inbox_id=INBOX)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
    assert len(left) < len(oddities) or not oddities, "it was not asked"
    assert last.message.message_id in [
        event.message.message_id for event in received if isinstance(event, MessageReceivedEvent)
    ]


def run(function: Callable[..., Awaitable[None]], *args: Any) -> None:
    trio.run(function, *args, clock=MockClock(autojump_threshold=0))


def try_it(call: str, oddities: list[Odd]) -> None:
    subscribe, is_meant = CALLS[call]
    run(a_day_with, subscribe, is_meant, oddities, None)


def try_it_with_a_journal(call: str, oddities: list[Odd]) -> None:
    subscribe, is_meant = CALLS[call]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "agent.db")
        run(a_day_with, subscribe, is_meant, oddities, SQLiteJournal(path))
        run(a_day_with, subscribe, is_meant, [], SQLiteJournal(path))


some_oddities = st.lists(odd, min_size=1, max_size=8)


@pytest.mark.parametrize("call", CALLS)
@settings(fuzzed, max_examples=10)
@given(some_oddities)
def test_no_answer_ends_the_stream(call: str, oddities: list[Odd]) -> None:
    try_it(call, oddities)


@pytest.mark.parametrize("call", ["everything", "a thread"])
@settings(fuzzed, max_examples=4)
@given(some_oddities)
def test_no_answer_keeps_a_journal_from_being_written_and_read_again(call: str, oddities: list[Odd]) -> None:
    try_it_with_a_journal(call, oddities)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("call", CALLS)
@settings(fuzzed, max_examples=MANY)
@given(some_oddities)
def test_none_of_many_answers_ends_the_stream(call: str, oddities: list[Odd]) -> None:
    try_it(call, oddities)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("call", CALLS)
@settings(fuzzed, max_examples=MANY // 10)
@given(some_oddities)
def test_none_of_many_answers_keeps_a_journal_from_being_written_and_read_again(call: str, oddities: list[Odd]) -> None:
    try_it_with_a_journal(call, oddities)


# Bytes over a real socket

line = st.one_of(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 100 Continue",
            b"HTTP/1.1 101 Switching Protocols",
            b"HTTP/1.1 404",
            b"HTTP/2 200",
            b"Content-Length: 2",
            b"Content-Length: 0",
            b"Transfer-Encoding: chunked",
            b"Content-Encoding: gzip",
            b"Connection: close",
            b"Upgrade: h2c",
            b"2",
            b"{}",
            b"0",
            b"",
            gzip.compress(b"{}", mtime=0),
        ]
    ),
    st.binary(max_size=20),
    st.tuples(header_name, header_value).map(b": ".join),
)
wire = st.one_of(
    st.lists(line, max_size=8).map(b"\r\n".join),
    st.lists(line, max_size=8).map(lambda lines: b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n{}"),
    st.binary(max_size=100),
)


async def ask_over_a_socket(answer: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
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
            http = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            environment = AgentMailEnvironment(http=http, websockets="ws://127.0.0.1:1")
            asks = Rest(
                NetworkBackend(),
                rest_api.settings(environment=environment),
                rest_api.asked_key(),
                ServerClock(time.time),
            )
            async with asks.connected():
                # A single attempt returns a failure and does not raise it.
                assert isinstance(await asks._attempt("GET", "/x", None, None), dict | ApiError | RequestFailedError)
            nursery.cancel_scope.cancel()


@settings(fuzzed, max_examples=40)
@given(wire)
def test_any_bytes_over_a_socket_are_an_answer_or_a_failed_request(answer: bytes) -> None:
    trio.run(ask_over_a_socket, answer)


@pytest.mark.long
@settings(fuzzed, max_examples=5 * MANY)
@given(wire)
def test_many_bytes_over_a_socket_are_an_answer_or_a_failed_request(answer: bytes) -> None:
    trio.run(ask_over_a_socket, answer)
