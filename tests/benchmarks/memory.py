"""Memory: the peak with a stalled consumer, and the size of an idle stream."""

import gc
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from .contenders import SUBSCRIBE, open_stream
from .processes import RunFailed, run_client, serve
from .report import Results
from .throughput import check_last

MIB = 2**20
STALLED = {"100 KB": 10_000, "100 KB, CJK": 10_000, "8 MiB": 100}
"""The events that are pushed to a sleeping consumer, and their number."""

STALL = 8.0
"""Time for which it sleeps after the first event, in seconds. The server must wait for room during much of it."""

IDLE = 1_000
"""Number of connections in one process."""

IDLE_CONTENDERS = {False: ("stream", "trio-websocket"), True: ("stream", "trio-websocket", "SSLStream")}


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for case, count in STALLED.items():
            with (
                results.run(f"{count:,} x {case}", "stream"),
                serve(case, count, pause=1.0) as server,
                server.client("memory", what="stalled", count=count) as client,
            ):
                peaks = client.answer()
                push = server.process.last_answer()["pushes"][0]
                if push["longest_wait"] < STALL / 4:
                    raise RunFailed("the server never had to wait")
                peaks["server's bytes until it waited"] = push["bytes_before_it"]
                for what, size in peaks.items():
                    results.note(f"{count:,} x {case}", what, "MiB", size / MIB)
        for tls, contenders in IDLE_CONTENDERS.items():
            case = f"{IDLE:,} idle, {'TLS' if tls else 'TCP'}"
            for contender in contenders:
                with (
                    results.run(case, contender, "KB each") as note,
                    serve(tls=tls) as server,
                    server.client("memory", what="idle", contender=contender, count=IDLE) as client,
                ):
                    note(client.answer())


# Stalled


async def stalled(url: str, count: int) -> dict[str, int]:
    """Return how far the peaks of the resident memory exceed that of the subscribed, idle process."""
    async with open_stream(url) as events:
        await events.receive()  # Subscribed
        idle = resident()
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak: imports may have used more
        await events.receive()
        await trio.sleep(STALL)
        peaks = {"stream, stalled": resident("VmHWM") - idle}
        for _ in range(count - 1):
            event = await events.receive()
    check_last(event, count)
    # The kernel updates VmHWM when memory is released, so it may be below the peak that was read before.
    return peaks | {"stream, then drained": max(resident("VmHWM") - idle, *peaks.values())}


def resident(which: str = "VmRSS") -> int:
    """Return the present or the peak resident memory of this process (VmHWM), in bytes."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# Idle


@asynccontextmanager
async def connected(contender: str, url: str, context: ssl.SSLContext) -> AsyncIterator[None]:
    """Open one connection and subscribe. For "SSLStream" only encrypt it."""
    if contender == "stream":
        async with open_stream(url) as events:
            await events.receive()
            yield
    elif contender == "trio-websocket":
        from .loop import connect

        secure = url.startswith("wss")
        async with connect(url + "/v0", ssl_context=context if secure else None) as websocket:
            await websocket.send_message(SUBSCRIBE)
            await websocket.get_message()
            yield
    else:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", urlsplit(url).port or 0, ssl_context=context)
        async with stream:
            await stream.do_handshake()
            yield


async def start_all(nursery: trio.Nursery, async_fn: Callable[..., Awaitable[None]], count: int) -> None:
    """Start this many tasks with `nursery.start`, 20 at a time so as not to overload the server."""

    async def start_some() -> None:
        for _ in range(count // 20):
            await nursery.start(async_fn)

    async with trio.open_nursery() as starters:
        for _ in range(20):
            starters.start_soon(start_some)


async def idle(url: str, count: int, contender: str) -> float:
    """Return the growth of the resident memory per connection, in KB (1,000 bytes)."""
    context = ssl.create_default_context()

    async def hold(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with connected(contender, url, context):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)  # the part that all connections share is not counted
        gc.collect()
        before = resident()
        await start_all(nursery, hold, count)
        gc.collect()
        grown = resident() - before
        nursery.cancel_scope.cancel()
    return grown / count / 1000


def client(url: str, what: str, count: int, contender: str = "") -> Any:
    if what == "stalled":
        return trio.run(stalled, url, count)
    return trio.run(idle, url, count, contender)


if __name__ == "__main__":
    run_client(client)
