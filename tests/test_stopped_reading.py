"""A server that reads no more, and has taken no part of our last frame, holds up nobody."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair

from tests.backends import FakeBackend
from tests.streams import open_agentmail_stream
from tests.test_websocket import PING, TEXT, Server, frame, taking
from trio_agentmail import ConnectionFailed
from trio_agentmail._nursery import background_nursery
from trio_agentmail._websocket import WebSocket, client_websocket
from trio_agentmail.testing import FakeAgentMail


class StopsReading(FakeBackend):
    """A backend whose server reads the handshake, and the subscription too if it is to confirm it, and no more."""

    def __init__(self, *, confirms: bool = True, pings: bool = False) -> None:
        super().__init__()
        self._confirms = confirms
        self._pings = pings

    @asynccontextmanager
    async def open_websocket(
        self, url: str, *, headers: Sequence[tuple[str, str]], max_message_size: int, ssl_context: ssl.SSLContext | None
    ) -> AsyncIterator[WebSocket]:
        client_end, server_end = lockstep_stream_pair()
        async with background_nursery() as nursery:
            nursery.start_soon(self._talk, Server(server_end))
            async with client_websocket(
                client_end, host="ws.example", target="/v0", headers=headers, max_message_size=max_message_size
            ) as websocket:
                yield websocket

    async def _talk(self, server: Server) -> None:
        await server.accept()
        if self._confirms:
            await server.stream.receive_some()
            await server.send(frame(TEXT, b'{"type": "subscribed"}'))
        await trio.sleep(5)
        if self._pings:
            await server.send(frame(PING, b"?"))


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_ping_or_pong_that_it_does_not_take_does_not_hold_up_a_cancelled_stream(
    who: str, autojump_clock: MockClock
) -> None:
    backend = StopsReading(pings=who == "server")
    async with taking(7):
        with trio.move_on_after(7):
            async with open_agentmail_stream(backend=backend, ping_interval=5 if who == "client" else None):
                await trio.sleep_forever()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_nor_one_that_is_left_in_peace_beyond_close_timeout(who: str, autojump_clock: MockClock) -> None:
    backend = StopsReading(pings=who == "server")
    async with taking(7 + 3):
        async with open_agentmail_stream(
            backend=backend, ping_interval=5 if who == "client" else None, close_timeout=3
        ):
            await trio.sleep(7)


async def test_a_subscription_that_it_does_not_take_does_not_hold_up_entering(autojump_clock: MockClock) -> None:
    async with taking(4):
        with pytest.raises(ConnectionFailed):
            async with open_agentmail_stream(backend=StopsReading(confirms=False), open_timeout=4, enter_timeout=4):
                pytest.fail("entered")
    async with taking(3):
        with trio.move_on_after(3):
            async with open_agentmail_stream(backend=StopsReading(confirms=False)):
                pytest.fail("entered")


async def test_left_in_the_moment_of_a_ping_it_still_says_goodbye(autojump_clock: MockClock) -> None:
    for steps in range(10):
        fake = FakeAgentMail()
        async with taking(10), open_agentmail_stream(backend=fake, ping_interval=10):
            await trio.sleep(10)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
        assert fake.close_codes == [1000]
