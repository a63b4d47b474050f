"""How long the first stream of a process blocks the event loop, measured by a task that wakes every millisecond."""

import ssl
import time
from typing import Any

import trio

from .processes import answer, certificates, run_client, running
from .report import Results

INBOX = "support@agentmail.to"
TURN = 0.001
"""Time for which the measuring task sleeps, in seconds."""

SECONDS = 1.0
"""Time of the measurement from just before the stream is opened, in seconds. All events have arrived by then."""


def measure(results: Results, rounds: int) -> None:
    for _ in range(rounds):
        for tls in (False, True):
            name = "the first stream, TLS" if tls else "the first stream"
            certificate = f"{certificates().name}/server.pem" if tls else None
            trusted = {"SSL_CERT_FILE": f"{certificates().name}/ca.pem"}
            with (
                results.run(name, "trio_agentmail"),
                running("first_stream", {"certificate": certificate}, {}) as server,
                running("first_stream", {"environment": server.answer()}, trusted) as process,
            ):
                for what, milliseconds in process.answer().items():
                    results.note(name, what, "ms", milliseconds)


async def serve(certificate: str | None) -> None:
    """Push one event of each type to each subscriber."""
    from trio_agentmail.testing import FakeAgentMail, make_event
    from trio_agentmail.testing._make_event import EVENT_TYPES

    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    fake = FakeAgentMail()
    async with fake.serve(ssl_context=context) as environment:
        urls = {"http": environment.http, "websockets": environment.websockets}
        answer({name: url.replace("localhost", "127.0.0.1") for name, url in urls.items()})
        await fake.wait_subscribed()
        await trio.sleep(0.1)
        for event_type in EVENT_TYPES:
            await fake.emit(make_event(event_type))
        await trio.sleep_forever()


async def watch(environment: dict[str, str]) -> dict[str, float]:
    from trio_agentmail import AgentMailEnvironment, open_agentmail_stream

    longest = {"entering": 0.0, "events": 0.0}
    phase = "entering"
    events = 0
    agentmail = AgentMailEnvironment(environment["http"], environment["websockets"])

    async def turns() -> None:
        while True:
            began = time.perf_counter()
            await trio.sleep(TURN)
            longest[phase] = max(longest[phase], time.perf_counter() - began - TURN)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns)
        await trio.sleep(0.1)
        longest["idle"], longest["entering"] = longest["entering"], 0.0
        began = time.perf_counter()
        with trio.move_on_after(SECONDS):
            async with open_agentmail_stream(api_key="am_any", environment=agentmail) as stream:
                entered = time.perf_counter() - began
                phase = "events"
                async for _ in stream:
                    events += 1
        nursery.cancel_scope.cancel()
    assert events > 15, events
    held = {f"longest hold: {what}": seconds * 1e3 for what, seconds in longest.items()}
    return held | {"until it is entered": entered * 1e3}


def main(environment: dict[str, str] | None = None, certificate: str | None = None) -> Any:
    return trio.run(serve, certificate) if environment is None else trio.run(watch, environment)


if __name__ == "__main__":
    run_client(main)
