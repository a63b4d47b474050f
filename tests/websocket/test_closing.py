"""Closing a WebSocket sends one close frame, and never hangs."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.taking import taking
from tests.helpers.websocket_server import CLOSE, PING, TEXT, Server, close_frame, connected_to, frame
from trio_agentmail.errors import ConnectionLostError


async def test_closing_sends_1000_and_waits_for_the_servers_answer(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        frames.append(await server.receive_frame())
        await trio.sleep(2)
        await server.send(close_frame(1000))

    frames: list[tuple[int, bytes]] = []
    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()
    assert frames == [(CLOSE, (1000).to_bytes(2))]


async def test_messages_that_cross_the_close_frame_do_not_hold_it_up(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        for _ in range(100):
            await server.send(frame(TEXT, b"x" * 500))
        await trio.sleep(2)
        await server.send(close_frame(1000))

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_messages_that_are_not_received_do_not_delay_the_close(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + frame(TEXT, b"x") * 100)
        assert (await server.receive_frame())[0] == CLOSE
        await server.send(close_frame(1000))

    async with taking(0), connected_to(talk) as websocket:
        await wait_all_tasks_blocked()
        await websocket.close()


async def test_closing_waits_for_a_hang_up_after_a_ping_that_crosses_the_close_frame(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        opcode, _ = await server.receive_frame()
        assert opcode == CLOSE
        await server.send(frame(PING, b"crosses"))
        await trio.sleep(2)
        await server.send(close_frame(1000))
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_a_server_that_hangs_up_instead_of_answering_the_close_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        await server.receive_frame()
        await trio.sleep(2)
        await server.stream.aclose()

    async with taking(2), connected_to(talk) as websocket:
        await websocket.close()


async def test_closing_what_has_ended_takes_no_time(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.send(await server.read_request() + close_frame(1001))

    async with taking(0), connected_to(talk) as websocket:
        with pytest.raises(ConnectionLostError):
            await websocket.receive()
        await websocket.close()


async def test_closing_what_was_cut_takes_no_time_even_if_the_server_reads_no_more(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        assert isinstance(server.stream, trio.abc.HalfCloseableStream)
        await server.stream.send_eof()
        await trio.sleep_forever()

    async with taking(0), connected_to(talk, lockstep=True) as websocket:
        with pytest.raises(ConnectionLostError):
            await websocket.receive()
        await websocket.close()


async def test_a_block_that_is_left_without_a_close_cuts_the_stream(autojump_clock: MockClock) -> None:
    async def talk(server: Server) -> None:
        await server.accept()
        while data := await server.stream.receive_some():
            sent_by_client.append(bytes(data))

    sent_by_client: list[bytes] = []
    error = ValueError()
    async with taking(0):
        with pytest.raises(ValueError) as caught:
            async with connected_to(talk):
                raise error
    assert caught.value is error
    assert error.__context__ is None
    assert sent_by_client == []
