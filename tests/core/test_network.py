"""`NetworkBackend`: the time of day, threads for the disk, and HTTP. `tests/sockets` has its WebSockets."""

import ssl
import threading
import time
from functools import partial

import httpx2
import pytest
import trio
import trustme

from tests.helpers.servers import Peer, serve
from trio_agentmail._network import NetworkBackend


async def answer(peer: Peer, context: ssl.SSLContext | None = None) -> None:
    if context is not None:
        await peer.start_tls(context)
    await peer.stream.receive_some()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_it_tells_the_time_of_this_machine() -> None:
    before = time.time()
    assert before <= NetworkBackend().now() <= time.time()


async def test_what_waits_for_a_disk_is_called_in_a_thread_and_others_go_on_meanwhile() -> None:
    went_on = threading.Event()

    def wait() -> threading.Thread:
        assert went_on.wait(10)
        return threading.current_thread()

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def go_on() -> None:
            went_on.set()

        assert await NetworkBackend().run_sync(wait) is not threading.current_thread()


async def test_what_the_function_raises_comes_out_as_it_is() -> None:
    error = OSError("disk full")

    def fail() -> None:
        raise error

    with pytest.raises(OSError) as caught:
        await NetworkBackend().run_sync(fail)
    assert caught.value is error


async def test_a_thread_is_waited_for_though_the_caller_is_cancelled() -> None:
    ended = False

    def write(scope: trio.CancelScope) -> str:
        nonlocal ended
        trio.from_thread.run_sync(scope.cancel)
        time.sleep(0.05)
        ended = True
        return "written"

    with trio.CancelScope() as scope:
        # The result of the thread is returned to the caller. The next await is cancelled.
        assert await NetworkBackend().run_sync(lambda: write(scope)) == "written"
        assert ended
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_requests_go_directly_to_the_server_regardless_of_proxies_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    transport = NetworkBackend().http_transport(None)
    async with serve(answer) as server, httpx2.AsyncClient(transport=transport) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}")).json() == {}


@pytest.mark.parametrize("trusting", [True, False])
async def test_requests_use_the_given_tls_context_or_the_authorities_of_the_system(
    trusting: bool,
) -> None:
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    transport = NetworkBackend().http_transport(ours if trusting else None)
    async with serve(partial(answer, context=theirs)) as server, httpx2.AsyncClient(transport=transport) as client:
        url = f"https://127.0.0.1:{server.port}"
        if trusting:
            assert (await client.get(url)).json() == {}
        else:
            with pytest.raises(httpx2.ConnectError) as caught:
                await client.get(url)
            assert str(caught.value).startswith(f"the certificate of 127.0.0.1 port {server.port} cannot be verified: ")
