"""Messages are received and sent, and every byte is a sign of life."""

from contextlib import suppress
from typing import NoReturn

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from tests.helpers.taking import taking
from tests.helpers.websocket_server import (
    BINARY,
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
from trio_agentmail._nursery import background_nursery
from trio_agentmail._watched_stream import SEND_TIMEOUT
from trio_agentmail._websocket import client_websocket
from trio_agentmail.errors import ConnectionLostError

# Messages


async def test_messages_come_in_order_and_any_shape(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        await server.send(answer + frame(TEXT, "grüße".encode()) + frame(BINARY, b"\xff\x00"))
        await server.send(frame(TEXT, b"in ", fin=False) + frame(PING, b"!") + frame(0, b"two parts"))
        await server.send(frame(TEXT, b""))
        assert await server.receive_frame() == (PONG, b"!")
        await server.send(frame(TEXT, b"after the pong"))

    async with taking(0), connected_to(talk) as websocket:
        received = [await websocket.receive() for _ in range(5)]
    assert received == ["grüße".encode(), b"\xff\x00", b"in two parts", b"", b"after the pong"]


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (close_frame(1000), 1000),
        (close_frame(1001, "going away"), 1001),
        (close_frame(1008, "policy"), 1008),
        (close_frame(4401, "no"), 4401),
        (frame(CLOSE), 1005),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(3, b"?"), 1002),
        (frame(11, b"?"), 1002),
        (b"\xc1\x01x", 1002),
        (frame(0, b"continues nothing"), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, (999).to_bytes(2)), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(TEXT, b"x" * 1001), 1009),
        (frame(TEXT, b"x" * 600, fin=False) + frame(0, b"x" * 600, fin=False) + frame(0, b"x" * 600), 1009),
        (frame(BINARY, b"x" * 1001), 1009),
        (frame(TEXT, b"x" * 2**17), 1009),
    ],
    ids=[
        "1000",
        "1001",
        "1008",
        "4401",
        "no code",
        "not UTF-8",
        "reason not UTF-8",
        "reserved opcode",
        "reserved control opcode",
        "reserved bit",
        "continues nothing",
        "half a code",
        "bad code",
        "large ping",
        "ping in parts",
        "oversized",
        "oversized in parts",
        "oversized binary",
        "very oversized",
    ],
)
@pytest.mark.parametrize("then", ["leave it open", "hang up"])
async def test_nothing_before_the_end_is_lost_and_it_is_left_at_once(
    last: bytes, code: int, then: str, autojump_clock: MockClock
) -> None:
    async def talk(server: Server) -> None:
        answer = await server.read_request()
        await server.send(answer + frame(TEXT, b"one") + frame(TEXT, b"two") + frame(TEXT, b"three") + last)
        if then == "hang up":
            await server.stream.aclose()

    async with taking(0), connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        for text in (b"one", b"two", b"three"):
            assert await websocket.receive() == text
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == code
        for action in (websocket.receive, websocket.ping):
            with pytest.raises(ConnectionLostError):
                await action()
        with pytest.raises(ConnectionLostError):
            await websocket.send("x")


async def test_the_reason_of_a_close_frame_is_reported(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + close_frame(4000, "maintenance"))

    async with connected_to(talk) as websocket:
        with pytest.raises(ConnectionLostError, match="maintenance"):
            await websocket.receive()


async def test_a_message_of_exactly_the_largest_size_is_received(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, ("ü" * 1000).encode()))

    async with connected_to(talk, max_message_size=1000) as websocket:
        assert await websocket.receive() == "ü".encode() * 1000


async def test_very_many_messages_of_one_read_leave_others_their_turn(autojump_clock: MockClock) -> None:
    messages = [b"%d" % number for number in range(10_500)]

    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + b"".join(frame(TEXT, message) for message in messages))

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with connected_to(talk) as websocket, background_nursery() as nursery:
        assert await websocket.receive() == messages[0]
        nursery.start_soon(other)
        assert [await websocket.receive() for _ in messages[1:]] == messages[1:]
        assert 5 <= turns <= 20


async def test_a_stream_cut_at_any_byte_loses_no_whole_message(autojump_clock: MockClock) -> None:
    data = frame(TEXT, b"one") + frame(TEXT, b"two", fin=False) + frame(0, b"three")
    for size in range(len(data) + 1):

        async def talk(server: Server, size: int = size) -> None:
            await server.send(await server.read_request() + data[:size])
            await server.stream.aclose()

        received = []
        async with taking(0), connected_to(talk) as websocket:
            with pytest.raises(ConnectionLostError) as caught:
                while True:
                    received.append(await websocket.receive())
        assert caught.value.code == 1006
        assert received == [b"one", b"twothree"][: (size >= 5) + (size == len(data))]


async def test_a_stream_that_breaks_is_a_lost_connection(autojump_clock: MockClock) -> None:
    class BreakingStream(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> NoReturn:
            await trio.sleep(1)
            raise trio.BrokenResourceError("reset")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def talk(server: Server) -> None:
        await server.accept()

    client_end, server_end = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, Server(server_end))
        async with client_websocket(
            client_end, host="ws.example", target="/v0", headers=[], max_message_size=1000
        ) as websocket:
            await server_end.send_all(frame(TEXT, b"the last"))
            assert await websocket.receive() == b"the last"
            client_end.receive_stream, real = BreakingStream(), client_end.receive_stream  # type: ignore[assignment]
            with pytest.raises(ConnectionLostError) as caught:
                await websocket.receive()
        await real.aclose()
    assert caught.value.code == 1006


# Sending


async def test_what_is_sent_arrives(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        assert await server.receive_frame() == (TEXT, b"hello")
        opcode, payload = await server.receive_frame()
        assert opcode == PING
        await trio.sleep(2)
        await server.send(frame(PONG, payload))

    async with taking(2), connected_to(talk) as websocket:
        await websocket.send("hello")
        receiving = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_until_cancelled, websocket, receiving)
            await websocket.ping()
            receiving.cancel()


async def test_a_server_that_stops_reading_is_not_sent_to_for_ever_and_is_still_heard(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await trio.sleep(2 * SEND_TIMEOUT)
        await server.send(frame(TEXT, b"still here"))
        await trio.sleep_forever()

    async with connected_to(talk, lockstep=True) as websocket:
        async with taking(SEND_TIMEOUT):
            await websocket.send("hello")
        async with taking(0):
            await websocket.send("hello")  # half of the first message may have been sent, so nothing may follow it
        async with taking(SEND_TIMEOUT):
            assert await websocket.receive() == b"still here"


async def test_a_pong_that_cannot_be_sent_costs_nothing_that_came_before_the_end(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.send(frame(PING, b"?") + frame(TEXT, b"one") + frame(PING, b"?") + frame(TEXT, b"two"))
        await server.stream.aclose()

    async with connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        assert [await websocket.receive(), await websocket.receive()] == [b"one", b"two"]
        with pytest.raises(ConnectionLostError) as caught:
            await websocket.receive()
        assert caught.value.code == 1006


async def test_a_ping_that_waits_when_the_connection_ends_raises(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        await trio.sleep(2)
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(receive_until_lost, websocket)
        with pytest.raises(ConnectionLostError):
            await websocket.ping()


async def test_a_pong_answers_all_the_pings_before_it_too_and_no_later_one(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        pings = [await server.receive_frame() for _ in range(3)]
        await server.send(frame(PONG, b"of nothing") + frame(PONG, pings[1][1]))
        await trio.sleep(2)
        await server.send(frame(PONG, pings[2][1]))

    async def ping() -> None:
        await websocket.ping()
        answered_at.append(trio.current_time() - started)

    started = trio.current_time()
    answered_at: list[float] = []
    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        async with trio.open_nursery() as pinging:
            for _ in range(3):
                pinging.start_soon(ping)
        receiving.cancel()
    assert answered_at == [0, 0, 2]


# Signs of life


async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        for byte in frame(TEXT, b"x" * 20):
            await trio.sleep(1)
            await server.send(bytes([byte]))

    async with connected_to(talk) as websocket, trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        nursery.start_soon(receive_until_cancelled, websocket, receiving)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        assert websocket.silent_since == started
        for seconds in range(1, 22):
            await trio.sleep_until(started + seconds)
            await wait_all_tasks_blocked()
            assert websocket.silent_since == started + seconds
        receiving.cancel()


async def test_there_is_no_silence_while_messages_wait_to_be_received(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, b"one") + frame(TEXT, b"two"))

    async with connected_to(talk) as websocket:
        await trio.sleep(100)
        assert websocket.silent_since is None
        assert await websocket.receive() == b"one"
        await trio.sleep(100)
        assert websocket.silent_since is None
        assert await websocket.receive() == b"two"
        await trio.sleep(100)
        assert websocket.silent_since is None
        async with trio.open_nursery() as nursery:
            receiving = trio.CancelScope()
            nursery.start_soon(receive_until_cancelled, websocket, receiving)
            await wait_all_tasks_blocked()
            assert websocket.silent_since == trio.current_time()
            receiving.cancel()


async def test_nothing_is_read_ahead_of_receive(autojump_clock: MockClock) -> None:
    sent = 0

    async def talk(server: Server) -> None:
        nonlocal sent
        await server.accept()
        with suppress(trio.BrokenResourceError):  # the client has gone
            for number in range(100):
                await server.send(frame(TEXT, str(number).encode()))
                sent += 1

    async with connected_to(talk, lockstep=True) as websocket:
        await wait_all_tasks_blocked()
        assert sent == 0
        for number in range(10):
            assert await websocket.receive() == str(number).encode()
            await wait_all_tasks_blocked()
            assert sent == number + 1
