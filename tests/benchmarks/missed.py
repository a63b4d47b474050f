"""Recovery of many missed mails: time, requests, memory, and the latency of live events meanwhile.

The server is a `FakeAgentMail` on real ports, in a process of its own: `missed_server.py`.
"""

import time
from pathlib import Path
from typing import Any

import httpx2
import trio

from trio_agentmail import (
    AgentMailEnvironment,
    CaughtUp,
    Disconnected,
    MessageReceivedEvent,
    Subscribe,
    Subscribed,
    open_agentmail_stream,
)
from trio_agentmail._network import NetworkBackend

from .contenders import KEY
from .memory import MIB, resident
from .missed_server import COUNT, INBOX, LIVE_INBOX
from .processes import RunFailed, run_client, running
from .report import Results

CASES = {
    "one inbox": (True, 1),
    "whole key, a thread each": (False, 1),
    "whole key, threads of 10": (False, 10),
}
"""Whether the subscription names the inbox or covers the whole key, and how many of the mails form a thread."""

DELAYS = {"loopback": 0.0, "50 ms": 0.05}
"""Delays that are added to each answer of the REST API, in seconds."""

PATIENCE = 400.0


def measure(results: Results) -> None:
    for delay_name, delay in DELAYS.items():
        for case, (by_inbox, thread_size) in CASES.items():
            with (
                results.run(f"{COUNT:,} missed, {delay_name}", case),
                running("missed_server", {"thread_size": thread_size}, {}) as server,
                running("missed", server.answer() | {"by_inbox": by_inbox, "delay": delay}, {}) as process,
            ):
                for (what, unit), value in zip(FIGURES, process.answer(PATIENCE), strict=True):
                    results.note(f"{COUNT:,} missed, {delay_name}: {what}", case, unit, value)


FIGURES = (
    ("until CaughtUp", "s"),
    ("requests", ""),
    ("CPU time of the client", "ms a mail"),
    ("peak memory over idle", "MiB"),
    ("live events, p50", "ms"),
    ("live events, p99", "ms"),
)


class SlowTransport(httpx2.AsyncBaseTransport):
    """Delays answers, as a more distant server would."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, delay: float) -> None:
        self._transport = transport
        self._delay = delay

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(self._delay)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


class SlowBackend(NetworkBackend):
    def __init__(self, delay: float) -> None:
        super().__init__()
        self._delay = delay

    def http_transport(self, ssl_context: Any) -> httpx2.AsyncBaseTransport:
        return SlowTransport(super().http_transport(ssl_context), self._delay)


async def main(http: str, websockets: str, by_inbox: bool, delay: float) -> list[float]:
    environment = AgentMailEnvironment(http=http, websockets=websockets)
    subscribe = Subscribe(inbox_ids=[INBOX, LIVE_INBOX]) if by_inbox else Subscribe()
    backend = SlowBackend(delay)
    async with open_agentmail_stream(subscribe, api_key=KEY, environment=environment, backend=backend) as events:
        assert isinstance(await events.receive(), Subscribed)
        await trio.sleep(1.0)  # the first sweep is over
        await ask(http, "/go")  # mail arrives while no client is connected
        assert isinstance(await events.receive(), Disconnected)
        idle = resident()
        Path("/proc/self/clear_refs").write_text("5")
        recovered: set[str] = set()
        latencies: list[float] = []
        with trio.fail_after(PATIENCE):
            # In an outage of more than two seconds, the first mail is found before the connection is back.
            event = await events.receive()
            began, cpu_began = time.perf_counter(), time.process_time()
            while not isinstance(event, CaughtUp):
                assert isinstance(event, MessageReceivedEvent | Subscribed)
                if isinstance(event, MessageReceivedEvent):
                    if event.message.inbox_id != LIVE_INBOX:
                        recovered.add(event.message.message_id)
                    elif event.origin == "live":
                        latencies.append(time.perf_counter() - float(event.message.subject or "nan"))
                event = await events.receive()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    if event.failed or len(recovered) != COUNT or len(latencies) < 10:
        raise RunFailed(f"{len(recovered):,} mails were recovered, and {len(latencies)} came live: {event}")
    latencies.sort()
    return [
        seconds,
        event.requests,
        cpu / COUNT * 1e3,
        (resident("VmHWM") - idle) / MIB,
        latencies[len(latencies) // 2] * 1e3,
        latencies[len(latencies) * 99 // 100] * 1e3,
    ]


async def ask(http: str, path: str) -> None:
    async with httpx2.AsyncClient(trust_env=False, timeout=None) as client:
        await client.get(http + path, headers={"Authorization": f"Bearer {KEY}"})


def client(http: str, websockets: str, by_inbox: bool, delay: float) -> list[float]:
    return trio.run(main, http, websockets, by_inbox, delay)


if __name__ == "__main__":
    run_client(client)
