"""Any text for a proxy's URL, and any answer of a proxy, is handled."""

import traceback
from urllib.parse import quote

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from trio_agentmail._handshake import ask_for_tunnel
from trio_agentmail._proxy import Proxy, proxy_from_url

PROXY = Proxy("http", "proxy.example", 3128, ("user", "S3CRET"))

beginnings = st.sampled_from(["", "http://", "https://", "http://user:", "http://user:password@", "http://proxy:"])


@settings(deadline=None)
@given(st.builds(str.__add__, beginnings, st.text()))
def test_any_text_is_a_proxy_or_a_value_error(url: str) -> None:
    try:
        proxy = proxy_from_url(url, "proxy")
    except ValueError as exc:
        assert str(exc).startswith("proxy ")  # noqa: PT017
        shown = traceback.TracebackException(type(exc), exc, exc.__traceback__, capture_locals=True).stack
        assert all("url" not in (frame.locals or {}) for frame in list(shown)[1:])
    else:
        assert proxy_from_url(proxy.url, "proxy") == Proxy(proxy.scheme, proxy.host, proxy.port)


without_surrogates = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(without_surrogates.filter(lambda user: ":" not in user), without_surrogates)
def test_percent_encoded_credentials_may_have_any_characters(user: str, password: str) -> None:
    url = f"http://{quote(user, safe='')}:{quote(password, safe='')}@proxy.example:3128"
    assert proxy_from_url(url, "proxy").credentials == (user, password)


pieces = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"HTTP/1.0 ",
        b"200 OK",
        b"407 No",
        b"101 Switching Protocols",
        b"100 Continue",
        b"\r\n",
        b"\n",
        b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
        b"Upgrade: websocket",
        b": ",
        b"\x00",
        b"S3CRET",
    ]
)


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, st.binary()), max_size=20))
async def test_any_answer_of_a_proxy_is_accepted_or_a_connection_error(answer: list[bytes]) -> None:
    ours, theirs = memory_stream_pair()
    for piece in answer:
        await theirs.send_all(piece)
    await theirs.send_eof()
    try:
        with trio.fail_after(60):
            await ask_for_tunnel(ours, PROXY, "ws.example", 443)
    except ConnectionError as exc:
        assert str(exc).startswith("the proxy proxy.example:3128 ")  # noqa: PT017
        assert "S3CRET" not in str(exc)  # noqa: PT017
    else:
        assert b"HTTP/1." in b"".join(answer)


@pytest.mark.parametrize("status", ["200 OK", "299 Fine"])
async def test_after_the_proxy_has_connected_the_stream_is_the_servers(status: str) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_tunnel, ours, PROXY, "ws.example", 443)
        await theirs.send_all(f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode())
    await theirs.send_all(b"hello")
    assert await ours.receive_some() == b"hello"
