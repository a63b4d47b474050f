"""A WebSocket used by several tasks, any of which may be cancelled."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.taking import taking
from tests.helpers.websocket_server import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Server,
    close_frame,
    connected_to,
    frame,
    receive_until_cancelled,
    receive_until_lost,
)
from trio_agentmail._websocket import ClientWebSocket
from trio_agentmail.errors import ConnectionLostError

plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


class TricklingStream(trio.abc.SendStream):
    """A stream that sends a byte a second."""

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data):
            await self._stream.send_all(bytes([byte]))
            await trio.sleep(1)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._stream.aclose()


@plain_and_tls
async def test_a_receive_that_is_cancelled_anywhere_loses_nothing(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        stream = server.stream
        if isinstance(stream, trio.SSLStream):  # the TLS records arrive byte by byte
            transport = stream.transport_stream
            stream.transport_stream = trio.StapledStream(TricklingStream(transport), transport)
        else:
            server.stream = trio.StapledStream(TricklingStream(stream), stream)
        await server.send(frame(TEXT, "grüße".encode()) + frame(TEXT, b"in ", fin=False))
        await server.send(frame(PING, b"!") + frame(0, b"two parts") + close_frame(1001))

    received = []
    cancelled = 0
    async with connected_to(talk, tls=tls) as websocket:
        with pytest.raises(ConnectionLostError) as caught:
            while True:
                with trio.move_on_after(0.7) as scope:
                    received.append(await websocket.receive())
                cancelled += scope.cancelled_caught
    assert received == ["grüße".encode(), b"in two parts"]
    assert caught.value.code == 1001
    assert cancelled > 40


async def test_a_receive_that_was_cancelled_is_no_longer_reading(autojump_clock: MockClock) -> None:
    async with connected_to(Server.accept) as websocket:
        with trio.move_on_after(1):
            await websocket.receive()
        assert websocket.silent_since is None


@pytest.mark.parametrize(("last", "code"), [(close_frame(1008), 1008), (frame(3), 1002)], ids=["close", "failure"])
async def test_a_receive_cancelled_while_it_answers_a_close_frame_keeps_the_end(
    last: bytes, code: int, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(last)
        await trio.sleep_forever()  # without reading an answer

    async with connected_to(talk, lockstep=True) as websocket:
        with trio.move_on_after(1), suppress(ConnectionLostError):
            await websocket.receive()
        async with taking(0):
            with trio.fail_after(10), pytest.raises(ConnectionLostError) as caught:
                await websocket.receive()
        assert caught.value.code == code


@plain_and_tls
async def test_a_receive_cancelled_while_it_answers_a_ping_leaves_room_for_the_close_frame(
    tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            if frame_[0] == TEXT:
                await server.send(frame(PING, b"?"))
            elif frame_[0] == CLOSE:
                await server.send(close_frame(1000))

    for steps in range(15):  # after one of these it has begun to send its pong
        frames: list[tuple[int, bytes]] = []
        async with taking(0), connected_to(talk, tls=tls) as websocket:
            receiving = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_until_cancelled, websocket, receiving)
                await wait_all_tasks_blocked()
                await websocket.send("ping me")
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                receiving.cancel()
            with trio.move_on_after(5):
                await websocket.close()
            await wait_all_tasks_blocked()
        assert frames[-1] == (CLOSE, (1000).to_bytes(2))


@plain_and_tls
async def test_of_two_tasks_that_receive_each_message_goes_to_one(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        for number in range(0, 30, 3):
            await trio.sleep(1)
            await server.send(b"".join(frame(TEXT, str(number + n).encode()) for n in range(3)))
        await server.send(close_frame(1001))

    async def receive() -> None:
        with pytest.raises(ConnectionLostError) as caught:
            while True:
                received.append(int(await websocket.receive()))
                await trio.lowlevel.checkpoint()
        assert caught.value.code == 1001

    received: list[int] = []
    async with taking(10), connected_to(talk, tls=tls) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(receive)
    assert sorted(received) == list(range(30))


async def test_when_the_task_that_reads_is_cancelled_the_other_one_reads_on(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(2)
        await server.send(frame(TEXT, b"hello"))

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope(deadline=trio.current_time() + 1)
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await wait_all_tasks_blocked()
        assert await websocket.receive() == b"hello"
        assert receiving.cancelled_caught


@pytest.mark.parametrize(("last", "code"), [(close_frame(1008), 1008), (frame(3), 1002)], ids=["close", "failure"])
async def test_two_tasks_that_receive_both_learn_of_the_end_at_once(
    last: bytes, code: int, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(1)
        await server.send(last)
        await trio.sleep_forever()

    async def receive() -> None:
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        codes.append(caught.value.code)

    codes: list[int] = []
    async with taking(1), connected_to(talk) as websocket:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(receive)
    assert codes == [code, code]


@plain_and_tls
async def test_closing_ends_a_receive_of_another_task_too(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            await trio.sleep(2)
            await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk, tls=tls) as websocket:
        async with taking(2), trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_lost, websocket)
            await wait_all_tasks_blocked()
            await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_however_often_it_is_closed_there_is_one_close_frame(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        nursery.start_soon(answer, server)
        async for frame_ in server.frames():
            frames.append(frame_)

    async def answer(server: Server) -> None:
        await trio.sleep(3)
        await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with taking(3), trio.open_nursery() as nursery, connected_to(talk) as websocket:
        with trio.move_on_after(1) as scope:
            await websocket.close()
        assert scope.cancelled_caught
        async with trio.open_nursery() as closing:
            closing.start_soon(websocket.close)
            closing.start_soon(websocket.close)
        await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


@plain_and_tls
@pytest.mark.parametrize(
    ("crossing", "code"),
    [
        (close_frame(1001), 1001),
        (frame(CLOSE), 1005),
        (frame(PING, b"?") + frame(TEXT, b"one") + close_frame(1001), 1001),
        (frame(3), 1002),
        (frame(TEXT, b"x" * 1001), 1009),
        (frame(TEXT, b"\xff"), 1007),
    ],
    ids=["close", "close without a code", "more than a close", "failure", "oversized", "not UTF-8"],
)
async def test_anything_may_cross_our_close_frame_and_there_is_no_second_one(
    crossing: bytes, code: int, tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + crossing)
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with taking(0), connected_to(talk, tls=tls) as websocket:
        await wait_all_tasks_blocked()
        await websocket.close()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
    assert caught.value.code == code
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_closing_while_another_task_answers_a_close_frame_sends_no_second_one(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(close_frame(1001))
        await trio.sleep(1)
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk, lockstep=True) as websocket:
        async with taking(1), trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_lost, websocket)
            await wait_all_tasks_blocked()
            await websocket.close()
        await wait_all_tasks_blocked()
    assert frames == [(CLOSE, (1001).to_bytes(2))]


async def test_nothing_is_sent_behind_our_close_frame(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)

    frames: list[tuple[int, bytes]] = []
    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(websocket.close)
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            with pytest.raises(ConnectionLostError):
                await websocket.send("x")
            with pytest.raises(ConnectionLostError):
                await websocket.ping()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


@pytest.mark.parametrize("action", [lambda ws: ws.send("x"), ClientWebSocket.close], ids=["send", "close"])
async def test_who_sends_or_closes_is_cancelled_at_once_even_if_the_server_reads_no_more(
    action: Callable[[ClientWebSocket], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with connected_to(Server.accept, lockstep=True) as websocket, taking(1):
        with trio.move_on_after(1):
            await action(websocket)


@plain_and_tls
async def test_a_ping_that_was_cancelled_is_forgotten(tls: bool, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for _, payload in server.frames():
            await trio.sleep(2)
            await server.send(frame(PONG, payload))

    async with taking(4), connected_to(talk, tls=tls) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        with trio.move_on_after(1) as scope:
            await websocket.ping()
        assert scope.cancelled_caught
        await websocket.ping()  # the pong to the first ping, a second from now, does not answer this one
        receiving.cancel()


@plain_and_tls
async def test_a_ping_cancelled_at_any_moment_leaves_room_for_the_close_frame(
    tls: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        async for frame_ in server.frames():
            frames.append(frame_)
            if frame_[0] == CLOSE:
                await server.send(close_frame(1000))

    async def ping() -> None:
        with pinging:
            await websocket.ping()

    for steps in range(10):
        frames: list[tuple[int, bytes]] = []
        pinging = trio.CancelScope()
        async with taking(0), connected_to(talk, tls=tls) as websocket:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ping)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                pinging.cancel()
            with trio.move_on_after(5):
                await websocket.close()
            await wait_all_tasks_blocked()
        assert frames[-1:] == [(CLOSE, (1000).to_bytes(2))]


@pytest.mark.parametrize("payload", [b"", b"\x01", (1).to_bytes(4), (1).to_bytes(9), (2).to_bytes(8), b"x" * 8])
async def test_a_pong_to_no_ping_of_ours_answers_none(payload: bytes, autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        _, right = await server.receive_frame()
        assert payload != right
        await server.send(frame(PONG, payload))
        await trio.sleep(2)
        await server.send(frame(PONG, right))

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await websocket.ping()
        receiving.cancel()


async def test_the_pong_to_a_ping_that_was_cancelled_answers_those_before_it(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        pings = [await server.receive_frame() for _ in range(2)]
        await trio.sleep(2)
        await server.send(frame(PONG, pings[1][1]))  # RFC 6455, 5.5.3: a pong may answer the last ping only
        await trio.sleep_forever()

    async def ping_and_give_up() -> None:
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await websocket.ping()

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        nursery.start_soon(ping_and_give_up)
        with trio.fail_after(10):
            await websocket.ping()
        receiving.cancel()


@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
@pytest.mark.parametrize("end", [close_frame(1000), frame(3), b""], ids=["close", "failure", "cut"])
async def test_a_ping_whose_pong_comes_right_before_the_end_has_been_answered(
    end: bytes, closing: bool, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        _, payload = await server.receive_frame()
        await trio.sleep(1)
        await server.send(frame(PONG, payload) + end)
        await server.stream.aclose()

    async with taking(1), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive_until_lost, websocket)
        if closing:
            nursery.start_soon(close_later, websocket)
        await websocket.ping()


async def close_later(websocket: ClientWebSocket) -> None:
    await wait_all_tasks_blocked()
    await websocket.close()
