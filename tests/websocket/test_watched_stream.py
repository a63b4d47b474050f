"""`read_until`: the time before which everything that the server sent has been read."""

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_one_way_pair

from trio_agentmail._watched_stream import CAUGHT_UP_AFTER, LARGE_READ, QUIET, WatchedStream

A_MOMENT = QUIET / 4


def watched(server: MemorySendStream, client: MemoryReceiveStream) -> WatchedStream:
    return WatchedStream(trio.StapledStream(server, client))


async def test_while_a_read_waits_all_has_been_read(autojump_clock: MockClock) -> None:
    server, client = memory_stream_one_way_pair()
    stream = watched(server, client)
    await trio.sleep(10)  # nothing reads
    assert stream.read_until == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.sleep(A_MOMENT)
        assert stream.read_until == 0  # data that the server could not send may be on its way
        await trio.sleep(QUIET)
        assert stream.read_until == trio.current_time()
        await trio.sleep(100)
        assert stream.read_until == trio.current_time()
        await server.send_all(b"data")
    assert stream.read_until == trio.current_time()
    came = trio.current_time()
    await trio.sleep(5)  # the data is processed, and nothing reads
    assert stream.read_until == came


async def test_bytes_that_waited_for_a_reader_do_not_count_as_read_when_reading_resumes(
    autojump_clock: MockClock,
) -> None:
    server, client = memory_stream_one_way_pair()
    stream = watched(server, client)
    await server.send_all(b"data")
    await stream.receive_some()
    await trio.sleep(1000)
    await server.send_all(b"more")
    await stream.receive_some()
    assert stream.read_until == 0
    # Bytes arrive continually and are read in time. After a while, no unread byte can be older than that.
    while trio.current_time() < 1000 + CAUGHT_UP_AFTER:
        await trio.sleep(A_MOMENT)
        await server.send_all(b"more")
        assert stream.read_until == 0
        await stream.receive_some()
    assert trio.current_time() - A_MOMENT <= stream.read_until < trio.current_time()


@pytest.mark.parametrize(
    ("size", "max_bytes", "may_have_left_some"),
    [(9, 10, False), (10, 10, True), (LARGE_READ - 1, None, False), (LARGE_READ, None, True)],
)
async def test_a_read_that_gets_as_much_as_it_can_may_have_left_some(
    size: int, max_bytes: int | None, may_have_left_some: bool, autojump_clock: MockClock
) -> None:
    server, client = memory_stream_one_way_pair()
    stream = watched(server, client)
    await trio.sleep(A_MOMENT)
    await server.send_all(bytes(size))
    await stream.receive_some(max_bytes)
    await trio.sleep(A_MOMENT)
    await server.send_all(b"data")
    await stream.receive_some(max_bytes)
    assert stream.read_until == (0 if may_have_left_some else A_MOMENT)
