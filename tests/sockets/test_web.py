"""The programs of docs/web.md: how they serve, how they stop, and how they fail."""

import asyncio
import errno
import gc
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from tests.examples import beside_asyncio, quart_app, starlette_app
from tests.examples.beside_asyncio import in_asyncio, run_trio
from tests.helpers.commands import environment_for, read_rest
from trio_agentmail import AgentMailEnvironment, AgentMailSession, open_agentmail_session, open_agentmail_stream
from trio_agentmail.testing import FakeAgentMail

ROOT = Path(__file__).parents[2]
INBOX = "agent@agentmail.to"
WEB = ["starlette_app", "quart_app"]


@asynccontextmanager
async def running(name: str, environment: AgentMailEnvironment, directory: Path) -> AsyncIterator[trio.Process]:
    """Run a program in a process of its own. It must end within 60 seconds after the block has begun."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "tests.helpers.web_process", name, environment.websockets, environment.http],
                env=environment_for(AGENTMAIL_API_KEY="am_key", PYTHONPATH=str(ROOT)),
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdin, process.stdout, process.stderr:
            with trio.fail_after(60):
                yield process
                await process.wait()
        nursery.cancel_scope.cancel()


async def read_until(stream: Any, pattern: str) -> str:
    """Return the first group of the pattern in what is read from the stream."""
    text = ""
    while (found := re.search(pattern, text)) is None:
        received = await stream.receive_some()
        assert received, text
        text += received.decode()
    return found.group(1)


async def port_of(process: trio.Process) -> int:
    return int(await read_until(process.stderr, r"Running on http://127\.0\.0\.1:(\d+) "))


@asynccontextmanager
async def client_of(process: trio.Process) -> AsyncIterator[httpx2.AsyncClient]:
    url = f"http://127.0.0.1:{await port_of(process)}"
    # Under Quart-Trio, the server waits for a connection that is kept alive, up to `graceful_timeout`.
    headers = {"Connection": "close"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", WEB)
async def test_mail_is_shown_and_what_is_under_way_at_a_sigterm_is_finished(name: str, tmp_path: Path) -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment, running(name, environment, tmp_path) as process:
        async with client_of(process) as client:
            await fake.deliver(inbox_id=INBOX, from_="Jane <jane@example.com>", subject="Hello")
            await read_until(process.stdout, "handled: (Hello)")
            assert (await client.get("/mail")).json() == [{"from": "Jane <jane@example.com>", "subject": "Hello"}]
            answer = await client.get("/health")
            assert answer.status_code == 200
            assert answer.json() == {"stream": "subscribed", "delivered": 1, "last_error": None}

            await fake.deliver(inbox_id=INBOX, subject="slow")
            await read_until(process.stdout, "begun: (slow)")
            process.terminate()
            await fake.wait_for(lambda: fake.record.close_codes)
            answer = await client.get("/health")
            assert answer.status_code == 503
            assert answer.json()["stream"] in ("stopping", "closed")  # closed: nothing waits for the workers
            assert process.stdin is not None
            await process.stdin.send_all(b"\n")
            assert b"handled: slow" in await read_rest(process.stdout)
        errors = await read_rest(process.stderr)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert fake.record.close_codes == [1000]


@pytest.mark.parametrize("name", WEB)
async def test_an_error_of_the_stream_ends_the_process_while_a_request_is_open(name: str, tmp_path: Path) -> None:
    fake = FakeAgentMail()

    async def ask(client: httpx2.AsyncClient) -> None:
        with suppress(httpx2.TransportError):
            await client.get("/hang")

    async with fake.serve() as environment, running(name, environment, tmp_path) as process:
        async with client_of(process) as client, trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            await read_until(process.stdout, "(hanging)")
            fake.faults.refuse_subscriptions("forbidden", "no longer yours", times=None)
            await fake.drop_connections()
            errors = await read_rest(process.stderr)
    assert process.returncode == 1
    last_line = errors.decode().rstrip().rpartition("\n")[2]
    assert last_line.endswith("SubscriptionRejectedError: the subscription was refused: forbidden: no longer yours")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("example", [starlette_app, quart_app])
async def test_a_server_that_fails_ends_the_stream(
    example: Any, taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeAgentMail()
    with fake.installed(), trio.fail_after(60), pytest.raises(ExceptionGroup) as caught:
        await example.main(f"127.0.0.1:{taken_port}")
    assert is_only_of_the_port(caught.value)
    assert fake.record.close_codes == [1000]

    with warnings.catch_warnings():
        # Hypercorn leaves the socket for which there was no port to the garbage collector.
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        del caught
        gc.collect()


def is_only_of_the_port(group: ExceptionGroup[Exception]) -> bool:
    rest = group.split(lambda exc: isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE)[1]
    return rest is None


# asyncio


async def test_asyncio_gets_mail_and_what_is_under_way_at_a_sigterm_is_finished(tmp_path: Path) -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment, running("beside_asyncio", environment, tmp_path) as process:
        port = int(await read_until(process.stdout, r"listening on port (\d+)\n"))
        await fake.wait_subscribed()
        await fake.deliver(inbox_id=INBOX, subject="Hello")
        await read_until(process.stdout, "handled: (Hello)")
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await read_rest(stream) == b"Hello\n"

        await fake.deliver(inbox_id=INBOX, subject="slow")
        await read_until(process.stdout, "begun: (slow)")
        process.terminate()
        await fake.wait_for(lambda: fake.record.close_codes)
        assert process.stdin is not None
        await process.stdin.send_all(b"\n")
        assert b"handled: slow" in await read_rest(process.stdout)
        assert await read_rest(process.stderr) == b""
    assert process.returncode == 0
    assert fake.record.close_codes == [1000]


async def test_an_error_of_the_stream_ends_the_asyncio_program(tmp_path: Path) -> None:
    fake = FakeAgentMail()
    async with fake.serve() as environment, running("beside_asyncio", environment, tmp_path) as process:
        port = int(await read_until(process.stdout, r"listening on port (\d+)\n"))
        await fake.wait_subscribed()
        async with await trio.open_tcp_stream("127.0.0.1", port):
            fake.faults.refuse_subscriptions("forbidden", "no longer yours", times=None)
            await fake.drop_connections()
            errors = await read_rest(process.stderr)
    assert process.returncode == 1
    assert b"SubscriptionRejectedError: the subscription was refused: forbidden: no longer yours\n" in errors


def test_an_error_of_the_asyncio_program_ends_the_stream(
    taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeAgentMail()
    with fake.installed(), pytest.raises(ExceptionGroup) as caught:
        asyncio.run(beside_asyncio.main(taken_port))
    assert is_only_of_the_port(caught.value)
    assert fake.connected == 0


def test_a_cancelled_asyncio_task_ends_the_stream_first_even_if_cancelled_often() -> None:
    fake = FakeAgentMail()
    seen: list[object] = []
    task: Any = None

    async def listen() -> None:
        try:
            async with open_agentmail_stream() as events:
                async for event in events:
                    seen.append(event)
                    task.cancel()
        finally:
            with trio.CancelScope(shield=True):
                task.cancel()
                await trio.lowlevel.checkpoint()
            seen.append("left")

    async def program() -> None:
        nonlocal task
        task = asyncio.current_task()
        try:
            await run_trio(listen)
        finally:
            assert seen[1:] == ["left"]
            assert fake.connected == 0

    with fake.installed(), pytest.raises(asyncio.CancelledError):
        asyncio.run(program())


def test_asyncio_code_may_ask_a_session_how_it_is() -> None:
    answers = []

    async def handle(session: AgentMailSession) -> None:
        await asyncio.sleep(0)
        answers.append((session.state, session.statistics().connections))

    async def listen() -> None:
        async with open_agentmail_session() as session:
            await in_asyncio(handle(session))

    with FakeAgentMail().installed():
        asyncio.run(run_trio(listen))
    assert answers == [("subscribed", 1)]


def test_what_an_asyncio_handler_raises_comes_out_as_itself() -> None:
    error = ValueError("an error of the handler")

    async def handle() -> None:
        await asyncio.sleep(0)
        raise error

    async def listen() -> None:
        await in_asyncio(handle())

    with pytest.raises(ValueError, match="an error of the handler") as caught:
        asyncio.run(run_trio(listen))
    assert caught.value is error


def test_an_asyncio_handler_is_cancelled_and_waited_for_when_trio_is_cancelled() -> None:
    told = []

    async def handle(begun: trio.Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("handler")

    async def listen() -> None:
        begun = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_asyncio, handle(begun))
            await begun.wait()
            nursery.cancel_scope.cancel()
        told.append("Trio")

    asyncio.run(run_trio(listen))
    assert told == ["handler", "Trio"]
