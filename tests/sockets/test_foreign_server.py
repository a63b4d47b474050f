"""The same promises against another implementation: the server of the `websockets` package, on the mock clock."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol
from websockets.trio.server import Server, ServerConnection

from tests.helpers.backends import FakeBackend
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    AuthenticationError,
    ConnectionFailedError,
    Disconnected,
    MessageReceivedEvent,
    PermissionDeniedError,
    Subscribe,
    Subscribed,
    UnknownEvent,
    events,
)
from trio_agentmail._backend import WebSocket
from trio_agentmail._nursery import background_nursery
from trio_agentmail._websocket import client_websocket


class Cable(trio.abc.HalfCloseableStream):
    """A stream that can be cut without notice to either end. Then nothing arrives, and what is sent is lost."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.is_cut = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_cut:
            await self._stream.send_all(data)
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if self.is_cut:
            await trio.sleep_forever()
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if not self.is_cut and isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        if not self.is_cut:
            await self._stream.aclose()


class Connection(ServerConnection):
    """A server connection that counts pings."""

    pings = 0
    pongs = 0

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame):
            self.pings += event.opcode is Opcode.PING
            self.pongs += event.opcode is Opcode.PONG
        super().process_event(event)

    async def push(self, *event_ids: object) -> None:
        for event_id in event_ids:
            await self.send(json.dumps({"event_type": "new.kind", "event_id": str(event_id)}))


Handle = Callable[[Connection], Awaitable[None]]


async def stay(connection: Connection) -> None:
    """Do nothing until the client goes. Pings are answered anyway."""
    await connection.wait_closed()


class Foreign(FakeBackend):
    """A backend that connects to the `websockets` package's server.

    Args:
        handle: Called with a confirmed connection. When it returns, the connection is closed.
        process_request, options: See `websockets.trio.server.serve`.
    """

    def __init__(
        self,
        handle: Handle = stay,
        process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.handle = handle
        self.process_request = process_request
        self.options = {"ping_interval": None} | options
        self.opened_at: list[float] = []
        self.requests: list[Request] = []
        self.subscriptions: list[Any] = []
        self.connections: list[Connection] = []
        self.cables: list[Cable] = []

    @asynccontextmanager
    async def open_websocket(
        self,
        url: str,
        *,
        headers: Sequence[tuple[str, str]],
        max_message_size: int,
        ssl_context: ssl.SSLContext | None,
    ) -> AsyncIterator[WebSocket]:
        ours, theirs = memory_stream_pair()
        self.opened_at.append(trio.current_time())
        async with background_nursery() as nursery:
            # Cancelling the client must not cancel the server, which sees the end of the connection.
            alive = trio.CancelScope(shield=True)
            nursery.start_soon(self._serve_while, alive, theirs)
            try:
                async with client_websocket(
                    ours, host="ws.example", target="/v0", headers=headers, max_message_size=max_message_size
                ) as websocket:
                    yield websocket
            finally:
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                alive.cancel()

    async def _serve_while(self, alive: trio.CancelScope, stream: trio.abc.Stream) -> None:
        with alive:
            await self._serve(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        cable = Cable(stream)
        protocol = ServerProtocol(extensions=enable_server_permessage_deflate(None))
        server = Server([], self._serve)
        async with trio.open_nursery() as nursery:
            connection = Connection(nursery, cable, protocol, server, **self.options)
            await connection.handshake(self.process_request)
            assert connection.request is not None
            self.requests.append(connection.request)
            if connection.state is not OPEN:
                await connection.close_stream()
                return
            self.connections.append(connection)
            self.cables.append(cable)
            connection.start_keepalive()
            with suppress(ConnectionClosed):
                self.subscriptions.append(json.loads(await connection.recv()))
                await connection.send('{"type":"subscribed"}')
                await self.handle(connection)
            await connection.aclose()

    @property
    def waits(self) -> list[float]:
        return [round(later - earlier, 3) for earlier, later in pairwise(self.opened_at)]


def word(event: events.Event) -> str:
    """Return an event as a word: S(ubscribed), D(isconnected) with its code, or the id of an event."""
    match event:
        case Subscribed():
            return "S"
        case Disconnected(code=code):
            return f"D{code}"
        case UnknownEvent(event_id=event_id):
            return str(event_id)
        case _:  # pragma: no cover
            raise AssertionError(event)


async def take(channel: trio.MemoryReceiveChannel[events.Event], number: int) -> str:
    return " ".join([word(await anext(channel)) for _ in range(number)])


# In good weather


async def test_the_key_is_in_the_header_and_the_subscription_is_sent(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    async with open_agentmail_stream(Subscribe(inbox_ids=["a"]), backend=foreign, api_key="am_other") as stream:
        assert await take(stream, 1) == "S"
    [request] = foreign.requests
    assert request.path == "/v0"
    assert request.headers["Authorization"] == "Bearer am_other"
    assert foreign.subscriptions == [{"type": "subscribe", "inbox_ids": ["a"]}]


async def test_events_come_in_order_whole_or_in_fragments_as_text_or_binary(autojump_clock: MockClock) -> None:
    async def push(connection: Connection) -> None:
        await connection.push(1)
        await connection.send(iter(['{"event_type":"new.kind",', '"event_id":', '"2"}']))
        await connection.send(b'{"event_type":"new.kind","event_id":"3"}')
        await connection.send(iter([b'{"event_type":"new.kind"', b',"event_id":"4"}']))
        await connection.push(5)
        await stay(connection)

    async with open_agentmail_stream(backend=Foreign(push)) as stream:
        assert await take(stream, 6) == "S 1 2 3 4 5"


async def test_a_mail_comes_with_its_umlauts(autojump_clock: MockClock) -> None:
    message = {"inbox_id": "a", "message_id": "<1@x>", "subject": "Grüße 🦀", "from": "Jörg <j@x>"}

    async def push(connection: Connection) -> None:
        frame = {"type": "event", "event_type": "message.received", "event_id": "1", "message": message}
        await connection.send(json.dumps(frame, ensure_ascii=False))
        await stay(connection)

    async with open_agentmail_stream(backend=Foreign(push)) as stream:
        assert await take(stream, 1) == "S"
        event = await anext(stream)
        assert isinstance(event, MessageReceivedEvent)
        assert (event.message.subject, event.message.from_) == ("Grüße 🦀", "Jörg <j@x>")


@pytest.mark.parametrize("buffer_size", [1, 64])
async def test_a_slow_consumer_gets_a_thousand_events_in_order(buffer_size: int, autojump_clock: MockClock) -> None:
    async def push(connection: Connection) -> None:
        await connection.push(*range(1_000))
        await stay(connection)

    async with open_agentmail_stream(backend=Foreign(push), buffer_size=buffer_size) as stream:
        await trio.sleep(3600)
        assert await take(stream, 1_001) == " ".join(["S", *map(str, range(1_000))])


async def test_leaving_closes_with_1000(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    async with open_agentmail_stream(backend=foreign):
        left_at = trio.current_time()
    [connection] = foreign.connections
    assert connection.close_code == 1000
    assert connection.protocol.close_rcvd_then_sent
    assert trio.current_time() == left_at


async def test_cancelled_it_is_cut(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    with trio.move_on_after(10):
        async with open_agentmail_stream(backend=foreign):
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(foreign.opened_at[0] + 10)
    [connection] = foreign.connections
    assert connection.protocol.close_rcvd is None


async def test_a_new_subscription_is_a_new_connection_and_the_old_one_is_closed_with_1000(
    autojump_clock: MockClock,
) -> None:
    async def push_what_was_asked_for(connection: Connection) -> None:
        await connection.push(*foreign.subscriptions[-1]["inbox_ids"], "both")
        await stay(connection)

    foreign = Foreign(push_what_was_asked_for)
    async with open_agentmail_session(Subscribe(inbox_ids=["a"]), backend=foreign) as session:
        await session.subscribe(Subscribe(inbox_ids=["b"]))
        assert await take(session.events, 5) == "S a both S b"
        await wait_all_tasks_blocked()
        assert [connection.close_code for connection in foreign.connections] == [1000, None]


# Refusals


@pytest.mark.parametrize(
    ("status", "error"),
    [(HTTPStatus.UNAUTHORIZED, AuthenticationError), (HTTPStatus.FORBIDDEN, PermissionDeniedError)],
)
async def test_a_refused_key_is_raised_at_once_with_what_the_server_says(
    status: HTTPStatus, error: type[AuthenticationError | PermissionDeniedError], autojump_clock: MockClock
) -> None:
    foreign = Foreign(process_request=lambda connection, request: connection.respond(status, "who are you?\n"))
    with pytest.raises(error, match="who are you") as caught:
        async with open_agentmail_stream(backend=foreign):
            pass  # pragma: no cover
    assert caught.value.status_code == status
    assert caught.value.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(foreign.opened_at) == 1


async def test_retry_after_is_a_floor_under_the_wait(no_jitter: None, autojump_clock: MockClock) -> None:
    def busy_at_first(connection: ServerConnection, request: Request) -> Response | None:
        if len(foreign.opened_at) > 1:
            return None
        response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later\n")
        response.headers["Retry-After"] = "12"
        return response

    foreign = Foreign(process_request=busy_at_first)
    async with open_agentmail_stream(backend=foreign):
        assert foreign.waits == [12]


async def test_a_server_that_stays_busy_is_a_connection_failed(autojump_clock: MockClock) -> None:
    foreign = Foreign(
        process_request=lambda connection, request: connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later\n")
    )
    with pytest.raises(ConnectionFailedError, match="HTTP status 503: later"):
        async with open_agentmail_stream(backend=foreign):
            pass  # pragma: no cover
    assert trio.current_time() - foreign.opened_at[0] == pytest.approx(30)


# Losses


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 3000, 4000, 4999])
async def test_a_close_is_a_disconnected_with_its_code_and_reason_behind_what_came_before(
    code: int, autojump_clock: MockClock
) -> None:
    async def close_at_first(connection: Connection) -> None:
        first = len(foreign.connections) == 1
        await connection.push(f"{first}1", f"{first}2")
        if first:
            await connection.aclose(code, "so it is")
        await stay(connection)

    foreign = Foreign(close_at_first)
    async with open_agentmail_stream(backend=foreign) as stream:
        assert await take(stream, 3) == "S True1 True2"
        lost = await anext(stream)
        assert isinstance(lost, Disconnected)
        assert lost.code == code
        assert "so it is" in lost.reason
        assert await take(stream, 3) == "S False1 False2"
    # Our side of the closing handshake.
    assert [connection.close_code for connection in foreign.connections] == [code, 1000]


async def test_a_connection_that_ends_without_a_close_frame_is_1006(autojump_clock: MockClock) -> None:
    async def hang_up_at_first(connection: Connection) -> None:
        if len(foreign.connections) == 1:
            await connection.push(1)
            await connection.close_stream()
        await stay(connection)

    foreign = Foreign(hang_up_at_first)
    async with open_agentmail_stream(backend=foreign) as stream:
        assert await take(stream, 4) == "S 1 D1006 S"


async def test_a_server_that_accepts_and_drops_is_not_hammered(no_jitter: None, autojump_clock: MockClock) -> None:
    async def drop(connection: Connection) -> None:
        await connection.close_stream()

    foreign = Foreign(drop)
    async with open_agentmail_stream(backend=foreign):
        await trio.sleep(3600)
    assert foreign.waits[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert len(foreign.opened_at) == 1 + 6 + 118


async def test_a_connection_that_lasted_starts_the_waits_over(no_jitter: None, autojump_clock: MockClock) -> None:
    async def close_after_a_minute(connection: Connection) -> None:
        await trio.sleep(60)

    foreign = Foreign(close_after_a_minute)
    async with open_agentmail_stream(backend=foreign):
        await trio.sleep(600)
    assert set(foreign.waits) == {60.5}


async def test_a_message_that_is_too_large_is_1009_to_both_sides(autojump_clock: MockClock) -> None:
    async def push_too_much_at_first(connection: Connection) -> None:
        if len(foreign.connections) == 1:
            await connection.push(1)
            await connection.send("x" * 1_001)
        await stay(connection)

    foreign = Foreign(push_too_much_at_first)
    async with open_agentmail_stream(backend=foreign, max_message_size=1_000) as stream:
        assert await take(stream, 4) == "S 1 D1009 S"
        await wait_all_tasks_blocked()
        close = foreign.connections[0].protocol.close_rcvd
        assert close is not None
        assert close.code == 1009


# Liveness


async def test_idle_hours_are_survived_by_our_pings(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    async with open_agentmail_session(backend=foreign) as session:
        await trio.sleep(3 * 3600 + 1)
        assert session.state == "subscribed"
    [connection] = foreign.connections
    assert connection.pings == 3 * 3600 / 20
    assert connection.close_code == 1000


async def test_idle_hours_are_survived_by_the_servers_pings(autojump_clock: MockClock) -> None:
    foreign = Foreign(ping_interval=20, ping_timeout=20)
    async with open_agentmail_session(backend=foreign, ping_interval=None) as session:
        await trio.sleep(3 * 3600 + 1)
        assert session.state == "subscribed"
    [connection] = foreign.connections
    assert (connection.pings, connection.pongs) == (0, 3 * 3600 / 20)
    assert connection.close_code == 1000


async def test_the_servers_pings_are_signs_of_life(autojump_clock: MockClock) -> None:
    foreign = Foreign(ping_interval=15, ping_timeout=15)
    async with open_agentmail_session(backend=foreign):
        await trio.sleep(3600)
    [connection] = foreign.connections
    assert connection.pings == 0


async def test_a_half_open_connection_is_noticed_and_made_again(autojump_clock: MockClock) -> None:
    async def push(connection: Connection) -> None:
        await connection.push(len(foreign.connections))
        await stay(connection)

    foreign = Foreign(push)
    async with open_agentmail_stream(backend=foreign) as stream:
        assert await take(stream, 2) == "S 1"
        await trio.sleep(5)
        foreign.cables[0].is_cut = True
        await foreign.connections[0].push("lost on the way")
        began = trio.current_time()
        assert await take(stream, 1) == "D1006"
        # Twenty seconds of silence, of which five had passed, and twenty for the ping.
        assert trio.current_time() - began == pytest.approx(15 + 20)
        assert await take(stream, 2) == "S 2"


async def test_leaving_a_half_open_connection_takes_close_timeout(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    async with open_agentmail_stream(backend=foreign, close_timeout=3):
        foreign.cables[0].is_cut = True
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(3)


async def test_a_sleeping_consumer_may_be_cut_off_and_loses_nothing_that_was_received(
    autojump_clock: MockClock,
) -> None:
    async def push(connection: Connection) -> None:
        first = 10 * len(foreign.connections)
        await connection.push(*range(first, first + 9))
        await stay(connection)

    foreign = Foreign(push, ping_interval=20, ping_timeout=20, close_timeout=10)
    async with open_agentmail_stream(backend=foreign, buffer_size=2) as stream:
        await trio.sleep(3600)
        assert [connection.close_code for connection in foreign.connections] == [1006]
        assert await take(stream, 12) == "S 10 11 12 13 14 15 16 17 18 D1011 S"
        assert await take(stream, 9) == "20 21 22 23 24 25 26 27 28"
