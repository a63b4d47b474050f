"""A `Backend` can be written from public names alone: here the `websockets` package opens the connections.

The server is trio-websocket's, in memory, on the mock clock. `tests/sockets/test_websockets_backend.py` has the same
backend over real sockets.
"""

import ast
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from tests.helpers import websockets_backend
from tests.helpers.websockets_backend import WebsocketsBackend
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailSession,
    AuthenticationError,
    Backend,
    ConnectionFailedError,
    Disconnected,
    Event,
    MessageReceivedEvent,
    PermissionDeniedError,
    Subscribe,
    Subscribed,
    UnknownEvent,
    WebSocket,
    open_agentmail_session,
)
from trio_agentmail.testing import encode_event, make_event

KEY = "am_key"

PLAIN = AgentMailEnvironment(http="http://127.0.0.1", websockets="ws://127.0.0.1")


class Server:
    """A server of AgentMail's protocol in memory.

    Attributes:
        mute: Whether it answers no ping and no close frame.
        refusal: The status, headers and body with which it refuses handshakes.
        connections: The connections whose subscription was confirmed.
        subscriptions: What they sent.
        headers: The headers of each handshake.
        close_codes: The close codes that it saw, in the order in which connections ended.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.mute = False
        self.refusal: tuple[int, dict[str, str], bytes] | None = None
        self.connections: list[WebSocketConnection] = []
        self.subscriptions: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.close_codes: list[Any] = []

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    async def _serve(self, stream: trio.StapledStream[Any, Any]) -> None:
        if self.mute:
            send_all = stream.send_all

            async def send_nothing_that_answers(data: bytes | bytearray | memoryview) -> None:
                if data[0] not in (0x88, 0x8A):  # a close frame, a pong
                    await send_all(data)

            stream.send_all = send_nothing_that_answers  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            request: WebSocketRequest = await wrap_server_stream(nursery, stream)
            self.headers.append({name.decode(): value.decode() for name, value in request.headers})
            if self.refusal is not None:
                status, headers, body = self.refusal
                lines = [(name.encode(), value.encode()) for name, value in headers.items()]
                await request.reject(status, extra_headers=lines, body=body)
                nursery.cancel_scope.cancel()
                return
            connection = await request.accept()
            try:
                self.subscriptions.append(await connection.get_message())
                await connection.send_message('{"type": "subscribed"}')
                self.connections.append(connection)
                await connection.get_message()
            except ConnectionClosed as exc:
                self.close_codes.append(exc.reason.code if exc.reason else None)
            nursery.cancel_scope.cancel()

    async def push(self, *subjects: str) -> None:
        for subject in subjects:
            await self.connections[-1].send_message(encode_event(make_event(MessageReceivedEvent, subject=subject)))


def open_session(backend: Backend, **settings: Any) -> AbstractAsyncContextManager[AgentMailSession]:
    return open_agentmail_session(api_key=KEY, backend=backend, environment=PLAIN, recovery=None, **settings)


@asynccontextmanager
async def session_and_server(**settings: Any) -> AsyncIterator[tuple[AgentMailSession, Server]]:
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        async with open_session(WebsocketsBackend(server.connect), **settings) as session:
            yield session, server
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


def subjects(events: list[Event]) -> list[str | None]:
    return [event.message.subject for event in events if isinstance(event, MessageReceivedEvent)]


def test_its_modules_import_nothing_private_of_this_package() -> None:
    """Neither the backend nor this test."""
    for path in (inspect.getfile(websockets_backend), __file__):
        tree = ast.parse(Path(path).read_text())
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert [name for name in imported if name.startswith("trio_agentmail")] != []
        assert [name for name in imported if name.startswith("trio_agentmail._")] == []


def test_every_type_in_the_protocols_is_public() -> None:
    modules = ("builtins", "collections.abc", "contextlib", "ssl", "typing", "httpx2")
    for protocol in (Backend, WebSocket):
        for name, member in vars(protocol).items():
            function = member.fget if isinstance(member, property) else member
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            for annotation in function.__annotations__.values():
                for part in parts_of(annotation):
                    assert part is WebSocket or part.__module__.partition(".")[0] in {m.split(".")[0] for m in modules}


def parts_of(annotation: Any) -> list[Any]:
    """The classes in an annotation."""
    if isinstance(annotation, str):
        assert annotation.startswith("httpx2.")
        return []
    if isinstance(annotation, list | tuple):
        return [part for each in annotation for part in parts_of(each)]
    arguments = parts_of(list(getattr(annotation, "__args__", ())))
    return arguments if arguments else [annotation] if isinstance(annotation, type) else []


async def test_events_come_in_order_and_the_key_and_the_subscription_are_sent(autojump_clock: MockClock) -> None:
    subscribe = Subscribe(inbox_ids=["agent@agentmail.to"])
    async with session_and_server(subscribe=subscribe) as (session, server):
        await server.push("one", "two", "three")
        assert isinstance(await session.events.receive(), Subscribed)
        assert subjects([await session.events.receive() for _ in range(3)]) == ["one", "two", "three"]
        assert session.statistics().received == 3
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "agent@agentmail.to" in server.subscriptions[0]
    assert server.close_codes == [1000]


async def test_an_idle_connection_is_kept_alive_by_pings(autojump_clock: MockClock) -> None:
    async with session_and_server() as (session, server):
        await trio.sleep(3600)
        assert session.state == "subscribed"
        assert session.statistics().connections == 1
        await server.push("after an hour")
        assert isinstance(await session.events.receive(), Subscribed)
        assert subjects([await session.events.receive()]) == ["after an hour"]
    assert server.close_codes == [1000]


async def test_a_server_that_answers_no_ping_is_given_up(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        server.mute = True
        backend = WebsocketsBackend(server.connect)
        async with open_session(backend, close_timeout=1) as session:
            server.mute = False
            assert isinstance(await session.events.receive(), Subscribed)
            loss = await session.events.receive()
            assert trio.current_time() == 40
            assert isinstance(loss, Disconnected)
            assert (loss.code, loss.reason) == (
                1006,
                "silent for 20.0 s (ping_interval), then no answer to a ping for 20.0 s",
            )
            assert isinstance(await session.events.receive(), Subscribed)
        nursery.cancel_scope.cancel()


async def test_a_close_frame_is_reported_with_its_code_after_the_events_before_it(autojump_clock: MockClock) -> None:
    async with session_and_server() as (session, server):
        await server.push("before")
        with trio.move_on_after(1):  # trio-websocket may wait for ever when its reader has ended
            await server.connections[0].aclose(1001, "going away")
        received = [await session.events.receive() for _ in range(4)]
        assert [type(event) for event in received] == [Subscribed, MessageReceivedEvent, Disconnected, Subscribed]
        loss = received[2]
        assert isinstance(loss, Disconnected)
        assert (loss.code, loss.reason) == (1001, "the WebSocket was closed: going away")
        await server.push("after")
        assert subjects([await session.events.receive()]) == ["after"]


async def test_a_message_that_is_too_large_costs_the_connection(autojump_clock: MockClock) -> None:
    async with session_and_server(max_message_size=2000) as (session, server):
        await server.push("before")
        await server.connections[0].send_message("x" * 2001)
        received = [await session.events.receive() for _ in range(4)]
        assert [type(event) for event in received] == [Subscribed, MessageReceivedEvent, Disconnected, Subscribed]
        assert isinstance(received[2], Disconnected)
        assert received[2].code == 1009


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (403, PermissionDeniedError)])
async def test_a_refusal_raises_with_status_headers_and_body(
    status: int, error: type[AuthenticationError | PermissionDeniedError], autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        server.refusal = status, {"X-Request-Id": "r1"}, b"no such key"
        with pytest.raises(error) as caught:
            async with open_session(WebsocketsBackend(server.connect)):
                pytest.fail("entered")
    assert caught.value.status_code == status
    assert caught.value.headers["x-request-id"] == "r1"
    assert caught.value.body == "no such key"
    assert len(server.headers) == 1


async def refuse(host: str, port: int) -> trio.abc.Stream:
    raise ConnectionRefusedError("connection refused")


async def speak_something_else(host: str, port: int) -> trio.abc.Stream:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"220 mail.example ESMTP\r\n" * 2)
    await theirs.aclose()
    return ours


@pytest.mark.parametrize("open_stream", [refuse, speak_something_else])
async def test_failures_to_connect_are_transient(
    open_stream: Callable[[str, int], Awaitable[trio.abc.Stream]], autojump_clock: MockClock
) -> None:
    backend = WebsocketsBackend(open_stream)
    with pytest.raises(ConnectionFailedError):
        async with open_session(backend):
            pytest.fail("entered")
    assert trio.current_time() == pytest.approx(30)


async def test_a_subscription_is_replaced_without_a_gap(autojump_clock: MockClock) -> None:
    async with session_and_server() as (session, server):
        await server.push("on the first connection")
        await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
        await server.push("on the second connection")
        received = [await session.events.receive() for _ in range(4)]
        assert [type(event) for event in received] == [
            Subscribed,
            MessageReceivedEvent,
            Subscribed,
            MessageReceivedEvent,
        ]
        assert subjects(received) == ["on the first connection", "on the second connection"]
        await wait_all_tasks_blocked()
        assert server.close_codes == [1000]
    assert server.close_codes == [1000, 1000]


async def test_a_stream_is_stopped_with_work_under_way(autojump_clock: MockClock) -> None:
    async with session_and_server() as (session, server):
        await server.push("one", "two")
        await wait_all_tasks_blocked()
        await session.stop()
        assert server.close_codes == [1000]
        assert subjects([event async for event in session.events]) == ["one", "two"]


async def test_a_slow_consumer_loses_nothing_and_no_deadline_runs(autojump_clock: MockClock) -> None:
    async with session_and_server(buffer_size=1) as (session, server):
        sent = [str(number) for number in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.push, *sent)
            await trio.sleep(3600)
            assert isinstance(await session.events.receive(), Subscribed)
            assert subjects([await session.events.receive() for _ in sent]) == sent
    assert len(server.connections) == 1


async def test_bytes_that_are_no_text_are_an_unknown_event(autojump_clock: MockClock) -> None:
    async with session_and_server() as (session, server):
        await server.connections[0].send_message(b"\xff\xfe")
        assert isinstance(await session.events.receive(), Subscribed)
        assert isinstance(await session.events.receive(), UnknownEvent)


async def test_cancelled_it_leaves_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        server.mute = True
        with trio.move_on_after(5):
            async with open_session(WebsocketsBackend(server.connect)):
                await trio.sleep_forever()
        assert trio.current_time() == 5
        nursery.cancel_scope.cancel()
