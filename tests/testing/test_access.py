"""Which requests the fake lets in on its ports: those of programs, and not those of web pages from elsewhere."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx2
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import Subscribed
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._emulator.emulator import Emulator
from trio_agentmail.testing._emulator.server import serve
from trio_agentmail.testing._wire.access import AccessCheck

INBOX = "agent@agentmail.to"

LET_IN = [
    {"Host": "localhost:8490"},
    {"Host": "LocalHost"},
    {"Host": "localhost.:1"},
    {"Host": "127.0.0.1:8490"},
    {"Host": "127.9.9.9"},
    {"Host": "[::1]:8490"},
    {"Host": "[::ffff:127.0.0.1]"},
    {"Host": "[0:0:0:0:0:0:0:1]"},
    {"Host": "192.0.2.7:8490"},  # at which it came
    {"Host": "AgentMail:8025"},
    {"Host": "[2001:DB8::0:7]"},
    {"Host": "localhost", "Origin": "http://localhost:3000"},
    {"Host": "localhost", "Origin": "https://127.0.0.1"},
    {"Host": "localhost", "Origin": "http://[::1]:1", "Sec-Fetch-Site": "cross-site"},
    {"Host": "localhost", "Sec-Fetch-Site": "none"},
    {"Host": "localhost", "Sec-Fetch-Site": "same-origin"},
    {"Host": "localhost", "Sec-Fetch-Site": "same-site"},
]

KEPT_OUT = [
    {},
    {"Host": ""},
    {"Host": "evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example"},
    {"Host": "evil.localhost.example"},
    {"Host": "notlocalhost"},
    {"Host": "localhost.."},
    {"Host": "localhost@evil.example"},
    {"Host": "evil.example@localhost"},
    {"Host": "localhost:80@evil.example"},
    {"Host": "localhost:80:80"},
    {"Host": "localhost:port"},
    {"Host": "localhost, evil.example"},
    {"Host": "localhost evil.example"},
    {"Host": "localhost/evil.example"},
    {"Host": "localhost#"},
    {"Host": "localhost?"},
    {"Host": "%6cocalhost"},
    {"Host": "l\xf6calhost"},
    {"Host": "[localhost]"},
    {"Host": "[::1"},
    {"Host": "::1"},
    {"Host": "[::2]"},
    {"Host": "[::ffff:192.0.2.1]"},
    {"Host": "0.0.0.0:8490"},
    {"Host": "127.1"},
    {"Host": "2130706433"},
    {"Host": "192.0.2.8"},
    {"Host": "agentmail.evil.example"},
    *(
        {"Host": "localhost", "Origin": origin}
        for origin in [
            *("https://evil.example", "null", "", "localhost", "localhost:3000", "http://", "file://"),
            *("http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://localhost:1@evil.example"),
            *("http://evil.example#localhost", "http://localhost/", "http://localhost http://evil.example"),
            *("chrome-extension://localhost", "ftp://localhost", "http://192.0.2.7", "http://agentmail"),
            *("http://[::1", "http://0.0.0.0", "http://localhost:1:1", "http://xn--localhost"),
        ]
    ),
    {"Host": "localhost", "Sec-Fetch-Site": "cross-site"},
    {"Host": "localhost", "Sec-Fetch-Site": ""},
    {"Host": "localhost", "Sec-Fetch-Site": "none, cross-site"},
]


def head(headers: list[tuple[str, str]], target: str = "/v0/inboxes", version: str = "1.0") -> h11.Request:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return h11.Request(method="GET", target=target, headers=encoded, http_version=version)


CHECK = AccessCheck("192.0.2.7", ["agentmail", "2001:db8::7"])


@pytest.mark.parametrize("headers", LET_IN, ids=str)
def test_programs_of_this_machine_and_pages_of_its_own_are_let_in(headers: dict[str, str]) -> None:
    assert CHECK.refusal(head(list(headers.items()))) is None


@pytest.mark.parametrize("headers", KEPT_OUT, ids=str)
def test_names_that_are_not_ours_and_pages_from_elsewhere_are_kept_out(headers: dict[str, str]) -> None:
    refusal = CHECK.refusal(head(list(headers.items())))
    assert refusal is not None
    assert refusal.status == 403
    assert refusal.answer["message"].isprintable()


@pytest.mark.parametrize("name", ["Origin", "Sec-Fetch-Site"])
def test_of_two_headers_the_good_one_does_not_hide_the_bad_one(name: str) -> None:
    good, bad = {"Origin": ("http://localhost", "http://evil.example"), "Sec-Fetch-Site": ("none", "cross-site")}[name]
    for pair in ((good, bad), (bad, good)):
        assert CHECK.refusal(head([("Host", "localhost"), *((name, value) for value in pair)])) is not None


@pytest.mark.parametrize(
    ("target", "is_let_in"),
    [
        ("http://localhost:1/v0", True),
        ("http://evil.example/v0", False),
        ("http://evil.example", False),
        ("http://localhost@evil.example/v0", False),
        ("//evil.example/v0", True),  # a path
        ("*", True),  # which is refused later
    ],
)
def test_who_asks_as_one_asks_a_proxy_is_judged_by_that_name_too(target: str, is_let_in: bool) -> None:
    assert (CHECK.refusal(head([("Host", "localhost")], target)) is None) is is_let_in


def test_an_ipv4_address_in_ipv6_is_itself() -> None:
    assert AccessCheck("::ffff:192.0.2.7").refusal(head([("Host", "192.0.2.7")])) is None


@pytest.mark.parametrize(
    ("names", "error"),
    [("agentmail", TypeError), ([7], TypeError), (["a:1"], ValueError), (["http://a"], ValueError), ([""], ValueError)],
)
async def test_names_that_make_no_sense_are_refused_at_once(names: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with FakeAgentMail().serve(allow_hosts=names):
            pass


# Over real sockets


class Served:
    """A fake or an emulator on ports, and raw bytes to them."""

    def __init__(self, fake: FakeAgentMail, ports: dict[str, int]) -> None:
        self.fake = fake
        self.ports = ports

    async def say(self, kind: str, data: bytes, *, eof: bool = True) -> bytes:
        """Return everything that is answered to these bytes."""
        async with await trio.open_tcp_stream("127.0.0.1", self.ports[kind]) as stream:
            answer = b""
            try:
                await stream.send_all(data)
                if eof:
                    await stream.send_eof()
                while data := await stream.receive_some():
                    answer += data
            except trio.BrokenResourceError:
                pass  # it need not have read everything
            return answer


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[Served]:
    emulator = Emulator(lambda _: None, inboxes=[(INBOX, None)])
    with trio.fail_after(60):
        async with serve(emulator, **arguments) as environment:
            ports = {kind: int(getattr(environment, kind).rpartition(":")[2]) for kind in ("http", "websockets")}
            yield Served(emulator.fake, ports)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


PAGE = "Origin: https://evil.example"
FROM_A_PAGE = {
    "read": ("GET", "/v0/inboxes/agent@agentmail.to/messages", PAGE),
    "write": ("POST", "/v0/inboxes", PAGE),
    "change": ("PATCH", "/v0/inboxes/agent@agentmail.to", PAGE),
    "delete": ("DELETE", "/v0/inboxes/agent@agentmail.to", PAGE),
    "preflight": ("OPTIONS", "/v0/inboxes", PAGE),
    "head": ("HEAD", "/v0/inboxes", PAGE),
    "control": ("POST", "/_emulator/reset", PAGE),
    "state": ("GET", "/_emulator", PAGE),
    "download": ("GET", "/downloads/x", PAGE),
    "image": ("GET", "/downloads/x", "Sec-Fetch-Site: cross-site"),
    "sandboxed": ("POST", "/v0/inboxes", "Origin: null"),
}


@pytest.mark.parametrize("what", FROM_A_PAGE)
async def test_a_page_from_elsewhere_gets_nothing_from_the_rest_api_and_changes_nothing(what: str) -> None:
    method, path, header = FROM_A_PAGE[what]
    async with serving() as served:
        answer = await served.say("http", request(method, path, "Host: localhost", header, "Authorization: Bearer a"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert (b"programs on its own machine" in answer) is (method != "HEAD")
        assert served.fake.record.requests == []
        assert served.fake._agentmail.inboxes() == (INBOX,)
        assert "a request is answered with 403" in served.fake.explain()


async def test_what_a_page_sends_is_read_and_forgotten_so_that_it_gets_its_answer() -> None:
    async with serving() as served:
        data = request("POST", "/v0/inboxes", "Host: localhost", PAGE, body=b"x" * 2**22)
        assert (await served.say("http", data)).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("kind", ["http", "websockets"])
@pytest.mark.parametrize("host", ["Host: evil.example", "Host: localhost\r\nHost: localhost", "X: y"])
async def test_a_name_that_comes_to_mean_this_machine_gets_nothing(kind: str, host: str) -> None:
    async with serving() as served:
        answer = await served.say(kind, request("GET", "/v0", host, "Authorization: Bearer a"))
        # h11 refuses a request that has none or two.
        assert answer.startswith(b"HTTP/1.1 403 " if "evil" in host else b"HTTP/1.1 400 ")
        assert served.fake.record.requests == []
        assert served.fake.record.handshakes == []


def handshake(*headers: str, path: str = "/v0?api_key=a") -> bytes:
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    return "\r\n".join([f"GET {path} HTTP/1.1", *headers, *upgrade, key, "", ""]).encode()


async def test_a_page_from_elsewhere_gets_no_websocket() -> None:
    async with serving() as served:
        answer = await served.say("websockets", handshake("Host: localhost", PAGE), eof=False)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert json.loads(body)["code"] == "forbidden"
        assert served.fake.record.handshakes == []
        answer = await served.say("websockets", request("HEAD", "/v0", "Host: localhost", PAGE))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"\r\n\r\n")


async def test_a_page_of_this_machine_gets_a_websocket_and_no_orders_obeyed() -> None:
    async with serving() as served:
        page = "Origin: http://localhost:3000"
        async with await trio.open_tcp_stream("127.0.0.1", served.ports["websockets"]) as stream:
            for byte in handshake("Host: localhost", page):
                await stream.send_all(bytes([byte]))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        answer = await served.say("http", request("GET", "/v0/inboxes", "Host: localhost", page))
        assert answer.startswith(b"HTTP/1.1 401 ")
        answer = await served.say("http", request("POST", "/_emulator/reset", "Host: localhost", page))
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_a_name_that_is_allowed_is_let_in() -> None:
    fake = FakeAgentMail()
    async with fake.serve(allow_hosts=["agentmail"]) as environment:
        async with httpx2.AsyncClient(headers={"Host": "agentmail:8490", "Authorization": "Bearer a"}) as client:
            assert (await client.get(environment.http + "/v0/inboxes")).status_code == 200
        async with open_agentmail_stream(environment=environment, api_key="a") as events:
            assert isinstance(await events.receive(), Subscribed)


async def test_in_memory_any_name_will_do() -> None:
    async with httpx2.AsyncClient(transport=FakeAgentMail().http_transport()) as client:
        headers = {"Authorization": "Bearer a", "Origin": "https://evil.example"}
        assert (await client.get("https://api.agentmail.to/v0/inboxes", headers=headers)).status_code == 200


# Garbage

GOOD = request("GET", "/v0/inboxes", "Host: localhost", "Authorization: Bearer a").replace(
    b"Connection: close\r\n", b""
)
HEAD = GOOD.replace(b"GET", b"HEAD")

AFTER = [
    b"\x00",
    b"\xff" * 100,
    b"garbage\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /v0/inboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v0/inboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nzz\r\n",
    b"POST /v0/inboxes HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v0/inboxes?limit=%ff&labels=[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://localhost:99999/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: localhost:99999\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"X" * 100_000,
]


@pytest.mark.parametrize("before", [b"", GOOD, HEAD, GOOD + HEAD], ids=["first", "get", "head", "both"])
@pytest.mark.parametrize("garbage", AFTER, ids=lambda garbage: ascii(garbage)[:40])
async def test_garbage_is_answered_or_hung_up_on_and_harms_nobody(
    before: bytes, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        answer = await served.say("http", before + garbage)
        assert answer.count(b"HTTP/1.1 200") == before.count(b"HTTP/1.1")
        await served.say("websockets", garbage)
        await served.say("websockets", handshake("Host: localhost") + garbage)
        assert (await served.say("http", GOOD)).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records  # the emulator logs a bug and goes on


pieces = st.one_of(
    st.sampled_from([*AFTER[:-1], GOOD, HEAD, handshake("Host: localhost"), b"\r\n", b"\r\n\r\n", b"GET ", b": "]),
    st.binary(max_size=40),
    # frames of a WebSocket: a first byte, a second, a mask, and what may be a text
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=12), st.sampled_from([b"", b"{}"])).map(b"".join),
)


@given(
    kind=st.sampled_from(["http", "websockets"]),
    shakes_hands=st.booleans(),
    data=st.lists(pieces, max_size=4).map(b"".join),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_end_the_emulator_or_show_a_bug(
    kind: str, shakes_hands: bool, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def send() -> None:
        async with serving() as served:
            await served.say(kind, (handshake("Host: localhost") if shakes_hands else b"") + data)
            assert (await served.say("http", GOOD)).startswith(b"HTTP/1.1 200 ")

    trio.run(send)
    assert not caplog.records
