"""The stream over real TCP, from a server of the `websockets` package and from one that places frames by hand."""

import os
import select
import threading
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from itertools import count

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from websockets.frames import Close
from websockets.sync.server import ServerConnection as SyncServerConnection
from websockets.sync.server import serve as serve_in_this_thread
from websockets.trio.server import ServerConnection

from tests.helpers.servers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    NEVER,
    PATIENCE,
    PING,
    PONG,
    SUBSCRIBED,
    TEXT,
    HungUp,
    Peer,
    environment,
    frame,
    mail,
    open_stream,
    serve,
    stay,
    story,
    websockets_server,
)
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from tests.helpers.time_outs import pass_time
from trio_agentmail import (
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    Subscribe,
    UnknownEvent,
)
from trio_agentmail._watched_stream import WatchedStream

# What goes out


async def test_the_key_is_in_the_header_and_the_filters_are_in_the_subscription() -> None:
    requests = []

    async def handle(websocket: ServerConnection, number: int) -> None:
        assert websocket.request is not None
        requests.append(websocket.request)
        await stay(websocket)

    subscribe = Subscribe(inbox_ids=["agent@agentmail.to"], event_types=["message.received"])
    async with websockets_server(handle) as server:
        async with open_stream(server, subscribe=subscribe) as events:
            assert await story(events, 1) == ["subscribed"]
    [request] = requests
    assert request.path == "/v0"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Host"] == f"127.0.0.1:{server.port}"
    assert server.subscriptions == [
        {"type": "subscribe", "inbox_ids": ["agent@agentmail.to"], "event_types": ["message.received"]}
    ]


# What comes in


async def test_a_thousand_events_come_in_the_order_in_which_they_were_sent() -> None:
    names = [f"m{n}" for n in range(1000)]

    async def handle(websocket: ServerConnection, number: int) -> None:
        for name in names:
            await websocket.send(mail(name))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1001) == ["subscribed", *names]
        assert await server.goodbye() == 1000
    assert server.connections == 1


async def test_a_message_of_8_mib_comes_whole() -> None:
    text = "0123456789abcdef" * 2**19

    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail("large", text=text))
        await websocket.send(mail("small"))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
            large = await events.receive()
            assert isinstance(large, MessageReceivedEvent)
            assert large.message.text == text
            assert await story(events, 1) == ["small"]
    assert server.connections == 1


async def test_a_message_of_the_largest_size_comes_and_a_larger_one_costs_the_connection() -> None:
    largest = len(mail("m1"))

    async def handle(websocket: ServerConnection, number: int) -> None:
        if number == 1:
            await websocket.send(mail("ä1"))  # as many characters, more bytes
            await websocket.send(mail("m12"))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server, max_message_size=largest) as events:
            assert await story(events, 4) == ["subscribed", "ä1", "disconnected 1009", "subscribed"]
        assert server.connections == 2


async def test_a_message_in_fragments_comes_as_one() -> None:
    text = mail("m1", subject="Grüße 😀")

    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(iter(text))  # one character a frame
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
            event = await events.receive()
            assert isinstance(event, MessageReceivedEvent)
            assert event.raw == text
            assert event.message.subject == "Grüße 😀"


async def test_pings_between_fragments_are_answered_and_a_character_may_be_split() -> None:
    data = mail("m1", subject="Grüße 😀").encode()
    half = data.index("😀".encode()) + 2
    pongs = []

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await peer.send(frame(TEXT, data[:half], fin=False))
        await peer.send(frame(PING, "one"))
        pongs.append(await peer.receive())  # the answer does not wait for the rest of the message
        await peer.send(frame(CONTINUATION, data[half:-1], fin=False), frame(PING, "two"), frame(PING))
        await peer.send(frame(CONTINUATION, fin=False), frame(CONTINUATION, data[-1:]))
        pongs.extend([await peer.receive(), await peer.receive()])
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
            event = await events.receive()
            assert isinstance(event, MessageReceivedEvent)
            assert event.message.subject == "Grüße 😀"
        assert await server.goodbye() == 1000
    assert [(pong.opcode, bytes(pong.data)) for pong in pongs] == [(PONG, b"one"), (PONG, b"two"), (PONG, b"")]


async def test_a_frame_that_comes_byte_by_byte_is_a_frame() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        for byte in frame(TEXT, mail("m1")):
            await peer.send(bytes([byte]))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 2) == ["subscribed", "m1"]


async def test_binary_frames_are_decoded_like_text() -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail("m1").encode())
        await websocket.send([mail("m2")[:30].encode(), mail("m2")[30:].encode()])
        await websocket.send(b"\xff\xfe")
        await websocket.send(b"")
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 5) == ["subscribed", "m1", "m2", "UnknownEvent", "UnknownEvent"]
    assert server.connections == 1


async def test_frames_that_are_no_events_are_seen_and_cost_nothing() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        for text in (
            SUBSCRIBED,
            '{"type": "error", "name": "oops"}',
            "",
            "null",
            "[" * 10_000,
            '{"event_type": "new"}',
        ):
            await peer.send(frame(TEXT, text))
        await peer.send(frame(PONG, "nobody asked"))
        await peer.push("m1")
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]
            second = await events.receive()
            assert isinstance(second, UnknownEvent)  # a second confirmation tells nothing new
            assert second.payload == {"type": "subscribed"}
            assert second.event_type == "subscribed"
            error = await events.receive()
            assert isinstance(error, ErrorEvent)
            assert error.name == "oops"
            assert await story(events, 5) == ["UnknownEvent"] * 4 + ["m1"]
    assert server.connections == 1


async def test_events_that_come_before_the_confirmation_come_after_it_in_the_stream() -> None:
    async def handle(peer: Peer) -> None:
        await peer.accept()
        await peer.read_subscription()
        await peer.send(frame(TEXT, mail("m1")), frame(PING), frame(BINARY, mail("m2")), frame(TEXT, SUBSCRIBED))
        await peer.push("m3")
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, buffer_size=1) as events:
            assert await story(events, 4) == ["subscribed", "m1", "m2", "m3"]
    assert server.connections == 1


# Liveness


async def test_an_idle_connection_is_kept_by_pings_in_both_directions(adjustable_clock: MockClock) -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        for _ in range(8):  # twice what a silence may last
            await pass_time(adjustable_clock, 1.0)
        await websocket.send(mail("m1"))
        await stay(websocket)

    async with websockets_server(handle, ping_interval=0.5, ping_timeout=3.5) as server:
        async with open_stream(server, ping_interval=0.4, ping_timeout=3.5) as events:
            assert await story(events, 2) == ["subscribed", "m1"]
        assert await server.goodbye() == 1000
    assert server.connections == 1


async def test_after_a_silence_a_ping_goes_out() -> None:
    pinged = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        ping = await peer.receive()
        assert ping.opcode is PING
        pinged.set()
        await peer.send(frame(PONG, bytes(ping.data)))
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, ping_interval=0.1, ping_timeout=NEVER):
            await pinged.wait()


async def test_a_consumer_that_blocks_the_event_loop_is_not_taken_for_a_dead_server(
    monkeypatch: pytest.MonkeyPatch, adjustable_clock: MockClock
) -> None:
    # The server is in a thread of its own, so that it answers while the event loop stands still. After each ping the
    # loop stands still until the pong has come and its time is over, so that both wake us together.
    send_all = WatchedStream.send_all
    pings = 0
    enough = trio.Event()

    async def send_and_block(self: WatchedStream, data: bytes) -> None:
        nonlocal pings
        before = self.last_heard
        await send_all(self, data)
        if data[0] == 0x80 | PING and self.last_heard == before:  # the pong has not been read while this was sent
            pings += 1
            assert isinstance(self._stream, trio.SocketStream)
            assert select.select([self._stream.socket.fileno()], [], [], PATIENCE)[0]
            adjustable_clock.jump(1)
            if pings == 8:
                enough.set()

    def handle(websocket: SyncServerConnection) -> None:
        websocket.recv()
        websocket.send(SUBSCRIBED)
        for _ in websocket:
            pass

    monkeypatch.setattr(WatchedStream, "send_all", send_and_block)
    with serve_in_this_thread(handle, "127.0.0.1", 0, ping_interval=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with trio.fail_after(PATIENCE):
                async with open_agentmail_stream(
                    api_key=KEY,
                    environment=environment(server.socket.getsockname()[1]),
                    ping_interval=0.05,
                    ping_timeout=1,
                ) as events:
                    assert await story(events, 1) == ["subscribed"]
                    await enough.wait()
                    await trio.sleep(0.01)
                    assert events.statistics().current_buffer_used == 0  # no Disconnected
        finally:
            server.shutdown()
            thread.join()


async def test_a_frame_that_trickles_in_for_longer_than_the_ping_timeout_is_not_silence(
    adjustable_clock: MockClock,
) -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        data = frame(TEXT, mail("slow", text="x" * 7_000))
        for start in range(0, len(data), 1000):  # and it answers no ping
            await pass_time(adjustable_clock, 1.0)
            await peer.send(data[start : start + 1000])
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, ping_interval=0.5, ping_timeout=4) as events:
            assert await story(events, 2) == ["subscribed", "slow"]
    assert server.connections == 1


# Back-pressure


async def test_a_stalled_consumer_stops_the_server_and_loses_nothing(adjustable_clock: MockClock) -> None:
    padding = "x" * 2**16
    names = [f"m{n}" for n in range(640)]  # 40 MiB
    sent = 0

    async def handle(websocket: ServerConnection, number: int) -> None:
        nonlocal sent
        for name in names:
            await websocket.send(mail(name, text=padding))
            sent += 1
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_stream(server, buffer_size=4, ping_interval=0.5, ping_timeout=2) as events:
            await wait_all_tasks_blocked(0.1)  # until the server is blocked
            before = sent
            assert 4 < sent < 320
            for _ in range(10):  # twice what a silence may last
                await pass_time(adjustable_clock, 0.5)
            assert sent == before
            assert await story(events, 641) == ["subscribed", *names]
        assert await server.goodbye() == 1000
    assert server.connections == 1


async def test_a_stalled_consumer_gets_what_came_before_the_server_cut_it_off() -> None:
    cut = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            await peer.push(*(f"m{n}" for n in range(50)))
            cut.set()
            return  # hangs up
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, buffer_size=3) as events:
            await cut.wait()
            await trio.sleep(0.3)
            assert server.connections == 1  # a loss is noticed when reading resumes
            names = [f"m{n}" for n in range(50)]
            assert await story(events, 53) == ["subscribed", *names, "disconnected 1006", "subscribed"]


async def test_pongs_that_can_no_longer_be_sent_cost_nothing_that_came_before_the_cut() -> None:
    cut = trio.Event()
    names = [f"m{n}" for n in range(300)]

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            await peer.send(b"".join(frame(TEXT, mail(name)) + frame(PING, b"still there?") for name in names))
            with trio.move_on_after(0.1):
                await peer.wait_for_hang_up()  # takes the pongs for what was read at once
            cut.set()
            return  # hangs up, so that every other pong is answered by a reset
        await peer.stay()

    async with serve(handle) as server:
        async with open_stream(server, buffer_size=3) as events:
            await cut.wait()
            await trio.sleep(0.1)
            assert await story(events, 303) == ["subscribed", *names, "disconnected 1006", "subscribed"]


# Leaving


async def leave_by_the_end(events: trio.MemoryReceiveChannel[Event]) -> None:
    await events.receive()


async def leave_by_break(events: trio.MemoryReceiveChannel[Event]) -> None:
    async for _ in events:
        break


async def leave_by_exception(events: trio.MemoryReceiveChannel[Event]) -> None:
    raise LookupError("mine")


@pytest.mark.parametrize("leave", [leave_by_the_end, leave_by_break, leave_by_exception])
async def test_left_in_peace_the_websocket_is_closed_with_1000(
    leave: Callable[[trio.MemoryReceiveChannel[Event]], Awaitable[None]],
) -> None:
    expected = pytest.raises(LookupError, match="mine") if leave is leave_by_exception else nullcontext()
    async with websockets_server(lambda websocket, number: stay(websocket)) as server:
        with expected:
            async with open_stream(server, close_timeout=NEVER) as events:
                clone = events.clone()
                await leave(events)
        assert await server.goodbye() == 1000
        async for _ in clone:  # comes to its end
            pass
    assert server.connections == 1


async def test_cancelled_the_stream_is_left_at_once_by_force() -> None:
    async with serve(confirm_and_ignore_the_rest) as server:
        with trio.CancelScope() as scope:
            async with open_stream(server, close_timeout=NEVER) as events:
                assert await story(events, 1) == ["subscribed"]
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await server.goodbye() == 1006


async def confirm_and_ignore_the_rest(peer: Peer) -> None:
    """Read without answering, not even a close frame, until the client hangs up."""
    await peer.confirm()
    received = []
    with suppress(HungUp, trio.BrokenResourceError):
        while True:
            received.append(await peer.receive())
    codes = [Close.parse(frame.data).code for frame in received if frame.opcode is CLOSE]
    peer.server.note_goodbye(codes[0] if codes else 1006)


async def test_a_server_that_ignores_the_close_frame_delays_leaving_by_the_close_timeout() -> None:
    async with serve(confirm_and_ignore_the_rest) as server:
        async with open_stream(server, close_timeout=0.2) as events:
            assert await story(events, 1) == ["subscribed"]
        assert await server.goodbye() == 1000


async def test_a_server_that_answers_the_close_frame_and_stays_is_not_waited_for() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await peer.stay()
        await trio.sleep_forever()

    async with serve(handle) as server:
        async with open_stream(server, close_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
        assert await server.goodbye() == 1000


async def test_a_server_that_hangs_up_instead_of_answering_the_close_frame_is_left() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        goodbye = await peer.receive()
        peer.server.note_goodbye(Close.parse(goodbye.data).code)

    async with serve(handle) as server:
        async with open_stream(server, close_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
        assert await server.goodbye() == 1000


async def test_a_ping_that_crosses_our_close_frame_does_no_harm() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        goodbye = await peer.receive()
        peer.server.note_goodbye(Close.parse(goodbye.data).code)
        await peer.send(frame(PING, "crossing"), frame(TEXT, mail("late")))
        await peer.send(frame(CLOSE, bytes(goodbye.data)))

    async with serve(handle) as server:
        async with open_stream(server, close_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
        assert await server.goodbye() == 1000


async def test_our_close_frame_arrives_although_the_server_keeps_sending_before_reading_it() -> None:
    leaving = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.confirm()
        await leaving.wait()
        for _ in range(5):
            await trio.sleep(0.02)
            await peer.send(frame(PING, "crossing"), frame(TEXT, mail("late")))
        goodbye = await peer.receive()
        peer.server.note_goodbye(Close.parse(goodbye.data).code)

    async with serve(handle) as server:
        async with open_stream(server, close_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
            leaving.set()
        with trio.fail_after(5):
            assert await server.goodbye() == 1000


async def test_a_server_that_pushes_without_end_sees_a_polite_close() -> None:
    flooded = trio.Event()

    async def handle(websocket: ServerConnection, number: int) -> None:
        for n in count():
            await websocket.send(mail(f"m{n}", text="x" * 10_000))
            if n == 10:
                flooded.set()

    async with websockets_server(handle) as server:
        async with open_stream(server, buffer_size=2, close_timeout=NEVER) as events:
            assert await story(events, 1) == ["subscribed"]
            await flooded.wait()
        assert await server.goodbye() == 1000
    assert server.connections == 1


async def test_without_receivers_the_connection_is_closed_and_the_body_goes_on() -> None:
    async with websockets_server(lambda websocket, number: stay(websocket)) as server:
        async with open_stream(server, ping_interval=0.1) as events:
            events.close()
            assert await server.goodbye() == 1000
            await trio.sleep(0.1)
    assert server.connections == 1


# Another subscription


async def test_a_new_subscription_leaves_no_gap_and_the_old_connection_is_closed_with_1000() -> None:
    async def handle(websocket: ServerConnection, number: int) -> None:
        await websocket.send(mail(f"m{number}"))
        await websocket.send(mail("both"))
        await stay(websocket)

    async with websockets_server(handle) as server:
        async with open_agentmail_session(api_key=KEY, environment=server.environment, buffer_size=1) as session:
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
            assert await story(session.events, 5) == ["subscribed", "m1", "both", "subscribed", "m2"]
            assert await server.goodbye() == 1000
            assert session.statistics().connections == 2
        assert await server.goodbye() == 1000
    assert server.subscriptions == [
        {"type": "subscribe"},
        {"type": "subscribe", "inbox_ids": ["other@agentmail.to"]},
    ]


# What is left behind


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
async def test_a_server_without_pongs_cannot_keep_the_old_subscription_in_force() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        for number in count():
            if peer.number == 2:
                await peer.push("new")
                await peer.stay()
                return
            await peer.push(f"old {number}")
            await trio.sleep(0.02)

    async with serve(handle) as server:
        async with open_agentmail_session(
            api_key=KEY, environment=environment(server.port), ping_timeout=0.3, close_timeout=0.1
        ) as session:
            await session.subscribe(Subscribe(inbox_ids=["a"]))
            words: list[str] = []
            while words[-1:] != ["new"]:
                words += await story(session.events, 1)
        kinds = [word.split()[0] for word in words]
        assert (kinds[0], kinds[-2:]) == ("subscribed", ["subscribed", "new"])
        assert set(kinds[1:-2]) == {"old"}


async def test_a_replaced_idle_connection_delivers_everything_before_its_pong(adjustable_clock: MockClock) -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        if peer.number == 1:
            ping = await peer.receive()
            assert ping.opcode is PING
            for name in ("old 1", "old 2", "old 3"):
                await peer.push(name)
                await trio.sleep(0.05)
            await peer.send(frame(PONG, bytes(ping.data)))
        else:
            await peer.push("new")
        await peer.stay()

    async with serve(handle) as server:
        async with open_agentmail_session(api_key=KEY, environment=environment(server.port), ping_timeout=4) as session:
            await pass_time(adjustable_clock, 6)  # idle for longer than a pong may take
            await session.subscribe(Subscribe(inbox_ids=["a"]))
            expected = ["subscribed", "old 1", "old 2", "old 3", "subscribed", "new"]
            assert await story(session.events, 6) == expected


async def test_a_reset_on_leaving_is_left_alone() -> None:
    async def handle(peer: Peer) -> None:
        await peer.confirm()
        while (await peer.receive()).opcode is not CLOSE:
            pass
        await peer.send(frame(PING, b"crosses the close frame"))
        await trio.sleep(0.1)
        peer.reset()

    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 1) == ["subscribed"]


async def test_no_socket_is_left() -> None:
    async def handle(peer: Peer) -> None:
        if peer.number % 2:
            return  # hangs up before the handshake
        await peer.confirm()
        if peer.number < 10:
            await peer.send(frame(CLOSE))
        await peer.stay()

    before = os.listdir("/proc/self/fd")
    async with serve(handle) as server:
        async with open_stream(server) as events:
            assert await story(events, 9) == ["subscribed", *["disconnected 1005", "subscribed"] * 4]
    assert server.connections == 10
    assert len(os.listdir("/proc/self/fd")) == len(before)
