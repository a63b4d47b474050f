"""A confirmed connection is lost over real TCP, in every way that a server or a network can cause.

Each time, the consumer sees what came before, one `Disconnected`, and a `Subscribed` where it goes on.
"""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock
from websockets.trio.server import ServerConnection

from tests.helpers.servers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NEVER,
    PATIENCE,
    PING,
    TEXT,
    Peer,
    Server,
    close_frame,
    frame,
    mail,
    open_stream,
    proxy_to,
    reserved_port,
    serve,
    stay,
    story,
    websockets_server,
    word,
)
from tests.helpers.time_outs import OPEN_TIMEOUT
from trio_agentmail import ApiError, AuthenticationError, ConnectionFailedError, Disconnected, ReconnectPolicy

LIMIT = 2**16
"""`max_message_size` in these tests."""


async def lose(trouble: Callable[[Peer], Awaitable[None]], *expected: str) -> None:
    """Deliver m1, lose the connection, and go on with m2 on the next one.

    Args:
        expected: The events between m1 and the next `Subscribed`.
    """
    m1_taken = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            await peer.push("m1")
            await m1_taken.wait()  # an RST takes with it what has not been read
            await trouble(peer)
        else:
            await peer.push("m2")
            await peer.stay()

    async with serve(handle) as server:
        async with open_stream(
            server, ping_interval=None, open_timeout=NEVER, close_timeout=NEVER, max_message_size=LIMIT
        ) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
            m1_taken.set()
            assert await story(events, len(expected) + 2) == [*expected, "subscribed", "m2"]
        assert await server.goodbye() == 1000
    assert server.connections == 2


# Closed


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4000, 4999])
async def test_after_the_confirmation_every_close_code_is_followed_by_another_connection(code: int) -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail(f"m{number}"))
        if number == 1:
            await websocket.aclose(code, "because")
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
            lost = await events.receive()
            assert isinstance(lost, Disconnected)
            assert lost.code == code
            assert "because" in lost.reason
            assert await story(events, 2) == ["subscribed", "m2"]
        assert await server.goodbye() == code  # it was answered with the same code
        assert await server.goodbye() == 1000
    assert server.connections == 2


async def test_a_close_code_that_was_registered_late_is_reported_as_it_is() -> None:
    # 1014, bad gateway, is younger than the lists in many libraries.
    async def trouble(peer: Peer) -> None:
        await peer.send(close_frame(1014))
        await peer.wait_for_hang_up()

    await lose(trouble, "disconnected 1014")


async def test_a_close_frame_without_a_code_is_code_1005() -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(close_frame(None))
        await peer.wait_for_hang_up()

    await lose(trouble, "disconnected 1005")


async def test_a_close_frame_ends_the_connection_though_the_tcp_connection_stays_open() -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(frame(TEXT, mail("last")), close_frame(1001))
        await trio.sleep_forever()

    await lose(trouble, "last", "disconnected 1001")


async def test_what_follows_a_close_frame_is_not_delivered() -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(close_frame(1001), frame(TEXT, mail("late")), frame(PING), close_frame(1002))
        await trio.sleep_forever()

    await lose(trouble, "disconnected 1001")


async def test_the_same_close_code_again_and_again_is_never_fatal_once_confirmed() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number <= 5:
            await peer.send(close_frame(1008))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 11) == ["subscribed", *["disconnected 1008", "subscribed"] * 5]


# Cut


async def test_a_connection_that_ends_without_a_close_frame_is_code_1006() -> None:
    async def trouble(peer: Peer) -> None:
        peer.hang_up()
        await peer.wait_for_hang_up()

    await lose(trouble, "disconnected 1006")


async def test_a_reset_connection_is_code_1006() -> None:
    async def trouble(peer: Peer) -> None:
        peer.reset()

    await lose(trouble, "disconnected 1006")


@pytest.mark.parametrize("end", [Peer.hang_up, Peer.reset])
async def test_a_connection_may_end_in_the_middle_of_a_frame(end: Callable[[Peer], None]) -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(frame(TEXT, mail("torn"))[:-1])
        end(peer)

    await lose(trouble, "disconnected 1006")


@pytest.mark.parametrize("end", [Peer.hang_up, Peer.reset])
async def test_a_connection_may_end_between_two_fragments(end: Callable[[Peer], None]) -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(frame(TEXT, mail("torn"), fin=False))
        end(peer)

    await lose(trouble, "disconnected 1006")


async def test_what_came_just_before_the_end_is_delivered() -> None:
    async def trouble(peer: Peer) -> None:
        await peer.push("last", "very last")
        peer.hang_up()
        await peer.wait_for_hang_up()

    await lose(trouble, "last", "very last", "disconnected 1006")


# Against the protocol

LATE = frame(TEXT, mail("late"))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(frame(TEXT, b'{"name": "\xff"}'), 1007, id="bytes that are not UTF-8"),
        pytest.param(frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"x"), 1007, id="half a character"),
        pytest.param(frame(3, "?"), 1002, id="an opcode for data that nobody knows"),
        pytest.param(frame(11), 1002, id="an opcode for control that nobody knows"),
        pytest.param(frame(TEXT, mail("late"), reserved=4), 1002, id="compressed, though not agreed"),
        pytest.param(frame(BINARY, mail("late"), reserved=1), 1002, id="a reserved bit"),
        pytest.param(frame(TEXT, mail("late"), masked=True), 1002, id="masked"),
        pytest.param(frame(PING, "x", fin=False), 1002, id="a ping in fragments"),
        pytest.param(frame(PING, "x" * 126), 1002, id="a large ping"),
        pytest.param(frame(CONTINUATION, mail("late")), 1002, id="a continuation of nothing"),
        pytest.param(frame(TEXT, "{", fin=False) + LATE, 1002, id="a message within a message"),
        pytest.param(frame(CLOSE, b"\x03"), 1002, id="half a close code"),
        pytest.param(close_frame(999), 1002, id="a close code too low"),
        pytest.param(close_frame(5000), 1002, id="a close code too high"),
        pytest.param(close_frame(1005), 1002, id="a close code that is not for the wire"),
        pytest.param(frame(CLOSE, b"\x03\xe8\xff"), 1007, id="a close reason that is not UTF-8"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", 1002, id="HTTP"),
    ],
)
async def test_a_frame_against_the_protocol_costs_the_connection_but_not_what_came_before(
    wrong: bytes, code: int
) -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(frame(TEXT, mail("good")), frame(BINARY, mail("too")), wrong, LATE)
        await trio.sleep_forever()

    await lose(trouble, "good", "too", f"disconnected {code}")


# Too large


async def test_an_oversized_frame_does_not_cost_the_fifty_good_ones_before_it() -> None:
    names = [f"good{n}" for n in range(50)]

    async def trouble(peer: Peer) -> None:
        good = [frame(TEXT, mail(name)) for name in names]
        await peer.send(*good, frame(TEXT, mail("large", text="x" * LIMIT)), LATE)
        await trio.sleep_forever()

    await lose(trouble, *names, "disconnected 1009")


async def test_an_oversized_frame_in_one_packet_with_good_ones_does_not_cost_those() -> None:
    names = [f"good{n}" for n in range(50)]

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            await peer.push(*names, "x" * 2000, "late")
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, max_message_size=1000, buffer_size=1) as events:
            await trio.sleep(0.2)
            assert await story(events, 53) == ["subscribed", *names, "disconnected 1009", "subscribed"]
    assert server.connections == 2


async def test_an_oversized_message_in_fragments_that_goes_on_and_on_costs_one_connection() -> None:
    async def trouble(peer: Peer) -> None:
        await peer.send(frame(TEXT, "x" * LIMIT, fin=False))
        while True:
            await peer.send(frame(CONTINUATION, "x" * LIMIT, fin=False))
            await peer.send(frame(CONTINUATION, "x" * LIMIT * 2, fin=False))

    await lose(trouble, "disconnected 1009")


async def test_an_oversized_frame_is_reported_to_the_server() -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        if number == 1:
            await websocket.send("x" * (LIMIT + 1))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server, max_message_size=LIMIT) as events:
            assert await story(events, 3) == ["subscribed", "disconnected 1009", "subscribed"]
            assert await server.goodbye() == 1009
    assert server.connections == 2


# Silence


async def test_a_half_open_connection_is_noticed_by_its_silence(adjustable_clock: MockClock) -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail(f"m{number}"))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with proxy_to(server) as proxy:
            async with open_stream(proxy.server, ping_interval=0.05, ping_timeout=4) as events:
                assert await story(events, 2) == ["subscribed", "m1"]
                proxy.swallowing.add(1)
                await proxy.swallowed.wait()  # a ping or its pong
                adjustable_clock.jump(4)
                with trio.fail_after(3):
                    lost = await events.receive()
                assert isinstance(lost, Disconnected)
                assert lost.code == 1006
                assert "ping" in lost.reason
                assert await story(events, 2) == ["subscribed", "m2"]
    assert server.connections == 2


async def test_a_server_that_reads_and_answers_no_ping_is_given_up(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            assert (await peer.receive()).opcode is PING
            adjustable_clock.jump(4)
            while True:
                await peer.receive()
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, ping_interval=0.1, ping_timeout=4) as events:
            assert await story(events, 3) == ["subscribed", "disconnected 1006", "subscribed"]
            assert server.connections == 2


async def test_a_frame_that_stops_half_way_is_silence(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            await peer.send(frame(TEXT, mail("torn"))[:20])
            assert (await peer.receive()).opcode is PING
            adjustable_clock.jump(4)
            await trio.sleep_forever()
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, ping_interval=0.1, ping_timeout=4) as events:
            assert await story(events, 3) == ["subscribed", "disconnected 1006", "subscribed"]


async def test_leaving_over_a_half_open_connection_takes_the_close_timeout_at_most() -> None:
    async with websockets_server(lambda websocket, number: stay(websocket)) as server:
        async with proxy_to(server) as proxy:
            async with open_stream(proxy.server, close_timeout=0.2) as events:
                assert await story(events, 1) == ["subscribed"]
                proxy.swallowing.add(1)
    assert server.connections == 1


# Coming back


async def test_a_server_that_restarts_is_found_again_and_what_it_repeats_is_delivered_once() -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail("same"))
        await websocket.send(mail(f"after {server_names.pop(0)}"))
        await stay(websocket)

    async def run_server(port: int, stop: trio.Event, task_status: trio.TaskStatus[Server]) -> None:
        async with websockets_server(handle, port=port) as server:
            task_status.started(server)
            await stop.wait()

    server_names = ["start", "restart"]
    with trio.fail_after(PATIENCE), reserved_port() as port:
        async with trio.open_nursery() as nursery:
            stops = [trio.Event(), trio.Event()]
            server = await nursery.start(run_server, port, stops[0])
            async with open_stream(server) as events:
                assert await story(events, 3) == ["subscribed", "same", "after start"]
                stops[0].set()
                assert await story(events, 1) == ["disconnected 1001"]
                with trio.move_on_after(0.3):  # meanwhile the port refuses connections, of which nothing is seen
                    pytest.fail(f"{await events.receive()}")
                server = await nursery.start(run_server, port, stops[1])
                assert await story(events, 2) == ["subscribed", "after restart"]
            assert await server.goodbye() == 1000
            stops[1].set()


async def reset(peer: Peer) -> None:
    peer.reset()


async def send_too_large_a_frame(peer: Peer) -> None:
    await peer.send(frame(TEXT, "x" * (LIMIT + 1)))
    await peer.stay()


@pytest.mark.parametrize("drop", [reset, send_too_large_a_frame])
async def test_a_server_that_confirms_and_then_drops_is_not_hammered(drop: Callable[[Peer], Awaitable[None]]) -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await drop(peer)

    # Full jitter: ten delays, with ceilings of 0.1, 0.2, 0.4, … seconds, take 0.8 s or less in one of 10¹⁰ runs.
    policy = ReconnectPolicy(initial_delay=0.1, max_delay=100.0)
    async with serve(handle) as server:
        async with open_stream(server, reconnect=policy, max_message_size=LIMIT) as events:
            told = await story(events, 2)
            with trio.move_on_after(0.8):
                async for event in events:
                    told.append(word(event))
        assert server.connections <= 10
    assert set(told[0::2]) == {"subscribed"}
    assert len(set(told[1::2])) == 1


async def test_failures_of_the_next_connections_are_not_seen_in_the_stream(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        match peer.number:
            case 1:
                await peer.confirm()
            case 2:
                peer.reset()
            case 3:
                await peer.read_request()
                await peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            case 4:
                await peer.accept()
                await peer.push("early")
            case 5:
                await peer.accept()
                await peer.read_subscription()
                await peer.send(close_frame(1008))
            case 6:
                await peer.read_request()
                await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            case 7:
                adjustable_clock.jump(OPEN_TIMEOUT)
                await trio.sleep_forever()
            case _:
                await peer.confirm()
                await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, open_timeout=OPEN_TIMEOUT) as events:
            assert await story(events, 3) == ["subscribed", "disconnected 1006", "subscribed"]
        assert await server.goodbye() == 1000
    assert server.connections == 8


async def test_a_refusal_that_persists_ends_the_block_with_it() -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.confirm()
            await peer.push("m1")
        else:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")

    policy = ReconnectPolicy(initial_delay=0.01, max_delay=0.05, refusal_grace=0)
    async with serve(handle) as server:
        with pytest.raises(ApiError) as caught:
            async with open_stream(server, reconnect=policy) as events:
                assert await story(events, 3) == ["subscribed", "m1", "disconnected 1006"]
                await trio.sleep_forever()
    assert (caught.value.status_code, caught.value.body) == (404, "gone")
    assert server.connections == 1 + 3


@pytest.mark.parametrize(
    "status",
    ["301 Moved Permanently\r\nLocation: http://127.0.0.1:1/", "400 Bad Request", "404 Not Found", "451 For Reasons"],
)
async def test_one_refusal_of_an_intermediary_is_survived(status: str) -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 2:
            await peer.read_request()
            await peer.send(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\ngone".encode())
            return
        await peer.confirm()
        await peer.push(f"m{peer.number}")
        if peer.number > 2:
            await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 5) == ["subscribed", "m1", "disconnected 1006", "subscribed", "m3"]
    assert server.connections == 3


async def test_a_key_that_is_refused_for_longer_than_the_grace_ends_the_block() -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.confirm()
        else:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    policy = ReconnectPolicy(initial_delay=0.05, max_delay=0.05, refusal_grace=0.3)
    async with serve(handle) as server:
        with pytest.raises(AuthenticationError):
            async with open_stream(server, reconnect=policy) as events:
                assert await story(events, 2) == ["subscribed", "disconnected 1006"]
                await trio.sleep_forever()
    assert server.connections > 2


async def test_an_outage_that_lasts_too_long_ends_the_block(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.confirm()
        else:
            peer.reset()
        if peer.number == 4:
            adjustable_clock.jump(5)

    policy = ReconnectPolicy(initial_delay=0.01, max_delay=0.05, give_up_after=5)
    async with serve(handle) as server:
        with pytest.raises(ConnectionFailedError, match="give_up_after"):
            async with open_stream(server, reconnect=policy) as events:
                assert await story(events, 2) == ["subscribed", "disconnected 1006"]
                await trio.sleep_forever()
    assert server.connections > 2


async def test_leaving_during_an_outage_takes_no_time() -> None:
    refusing = trio.Event()

    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.confirm()
        else:
            await peer.read_request()  # and never answer it
            refusing.set()
            await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, open_timeout=NEVER, close_timeout=NEVER) as events:
            assert await story(events, 2) == ["subscribed", "disconnected 1006"]
            await refusing.wait()
        assert await server.goodbye() == 1006
    assert server.connections == 2
