"""Whatever goes wrong, the API key appears in the Authorization header and nowhere else."""

import base64
import hashlib
import logging
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

import trio_agentmail
from tests.helpers.secret_key import KEY, MARK, assert_no_secret
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from tests.helpers.time_outs import ENTER_TIMEOUT, failure_to_enter
from trio_agentmail import (
    AgentMailEnvironment,
    AgentMailError,
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    Disconnected,
    ErrorEvent,
    Event,
    PermissionDeniedError,
    ReconnectPolicy,
    SQLiteJournal,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
)
from trio_agentmail._websocket import client_websocket
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Collect the messages of all loggers at all levels. None of them may contain the key."""
    caplog.set_level(logging.DEBUG)
    for name in ("trio_agentmail", "trio-websocket", "trio_websocket", "wsproto", "h11"):
        caplog.set_level(logging.DEBUG, logger=name)
    lines: list[str] = []
    yield lines
    for record in caplog.get_records("call"):
        if record.name == "trio-websocket" and record.getMessage().startswith("server-"):
            continue  # the fake's end of the connection, which says what the test had it say
        lines.append(logging.Formatter("%(name)s %(message)s").format(record))
        lines.append(repr(vars(record)))
    assert [line for line in lines if MARK in line] == []


async def raised_on_entering(fake: FakeAgentMail, **options: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        async with open_agentmail_stream(backend=fake, **({"api_key": KEY} | options)):
            pytest.fail("entered")
    assert_no_secret(caught.value)
    return caught.value


# Where error reporters look


def frames_of(exc: BaseException) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the frames of the package and of its callees in all tracebacks of an exception and its causes."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        exc_ = waiting.pop()
        if exc_ is None or id(exc_) in seen:
            continue
        seen.add(id(exc_))
        waiting += [exc_.__cause__, exc_.__context__]
        if isinstance(exc_, BaseExceptionGroup):
            waiting += exc_.exceptions
        for frame, line in traceback.walk_tb(exc_.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield f"{frame.f_code.co_filename}:{line}", dict(frame.f_locals)


def assert_no_secret_in_frames(exc: BaseException) -> None:
    shown = []
    for place, variables in frames_of(exc):
        for name, value in variables.items():
            # `cgitb` also shows the attributes that the surrounding lines mention.
            values = {name: value} | {f"{name}.{each}": it for each, it in getattr(value, "__dict__", {}).items()}
            shown += [f"{place} {each}" for each, it in values.items() if MARK in repr(it)]
    assert shown == []


async def garbage(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize("opener", [open_agentmail_session, open_agentmail_stream])
@pytest.mark.parametrize("key", [KEY, lambda: KEY], ids=["key", "callable"])
@pytest.mark.parametrize(
    "options",
    [
        {"buffer_size": 0},
        {"no_such_option": 1},
        {"inbox_ids": ["a"]},
        {"backend": int},
        {"recovery": 1},
        {"journal": 1},
        {"journal": SQLiteJournal("/nowhere/agent.db")},
        {
            "enter_timeout": 0.5,
            "environment": AgentMailEnvironment(http="http://127.0.0.1:1", websockets="ws://127.0.0.1:1"),
        },
        {
            "enter_timeout": 0.5,
            "environment": AgentMailEnvironment(http="http://127.0.0.1:1", websockets="wss://127.0.0.1:1"),
        },
    ],
    ids=lambda options: "-".join(options),
)
async def test_no_frame_holds_the_key_when_entering_fails(
    opener: Callable[..., Any], key: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(Exception) as caught:
        async with opener(**({"api_key": key, "recovery": None} | options)):
            pytest.fail("entered")
    assert_no_secret_in_frames(caught.value)


@pytest.mark.parametrize("opener", [open_agentmail_session, open_agentmail_stream])
@pytest.mark.parametrize("bad", [f"{KEY}\n", f"“{KEY}”", KEY.encode()], ids=["line end", "quotes", "bytes"])
@pytest.mark.parametrize("as_callable", [False, True])
async def test_no_frame_holds_an_invalid_key(opener: Callable[..., Any], bad: Any, as_callable: bool) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        async with opener(api_key=(lambda: bad) if as_callable else bad, backend=FakeAgentMail()):
            pytest.fail("entered")
    assert_no_secret_in_frames(caught.value)


@pytest.mark.parametrize("opener", [open_agentmail_session, open_agentmail_stream])
@pytest.mark.parametrize("key", [KEY, lambda: KEY], ids=["key", "callable"])
@pytest.mark.parametrize(
    "fault",
    [
        lambda fake: fake.faults.reject_handshakes(401),
        lambda fake: fake.faults.reject_handshakes(403),
        lambda fake: fake.faults.reject_handshakes(404),
        lambda fake: fake.faults.reject_handshakes(503, times=None),
        lambda fake: fake.faults.refuse_subscriptions("forbidden", "no"),
        lambda fake: fake.faults.hang_handshakes(None),
        lambda fake: fake.faults.refuse_connections(None),
        lambda fake: fake.faults.answer_connections(b"HTTP/1.1 garbage", None),
        lambda fake: fake.faults.fail_connections(ZeroDivisionError()),
    ],
    ids=["401", "403", "404", "503", "forbidden", "hangs", "refused", "garbage", "bug"],
)
async def test_no_frame_holds_the_key_when_agentmail_refuses(
    opener: Callable[..., Any], key: Any, fault: Callable[[FakeAgentMail], None], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake)
    with pytest.raises(Exception) as caught:
        async with opener(api_key=key, backend=fake):
            pytest.fail("entered")
    assert_no_secret_in_frames(caught.value)


async def test_no_frame_holds_the_key_when_a_server_speaks_something_else(
    adjustable_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, garbage, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        for scheme in ("ws", "wss"):
            caplog.clear()
            stream = open_agentmail_stream(
                api_key=lambda: KEY,
                enter_timeout=ENTER_TIMEOUT,
                environment=AgentMailEnvironment(http="http://127.0.0.1:1", websockets=f"{scheme}://127.0.0.1:{port}"),
            )
            failure = await failure_to_enter(stream, adjustable_clock, lambda: "for the next attempt" in caplog.text)
            assert_no_secret_in_frames(failure)
        nursery.cancel_scope.cancel()


async def test_no_frame_holds_the_key_of_a_stream_that_ends_later(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    with pytest.raises(AuthenticationError) as caught:
        async with open_agentmail_stream(api_key=lambda: KEY, backend=fake) as events:
            fake.faults.reject_handshakes(401, times=None)
            await fake.drop_connections()
            async for _ in events:
                pass
    assert_no_secret_in_frames(caught.value)


@pytest.mark.parametrize("what", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_no_frame_holds_the_key_when_control_c_strikes_while_a_request_is_sent(
    what: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt arrives in a task of recovery."""

    async def send_all(stream: trio.SocketStream, data: bytes | bytearray | memoryview) -> None:
        if b" /v0/inboxes" in bytes(data):
            raise what
        await real_send_all(stream, data)

    async def main() -> None:
        async with FakeAgentMail().serve() as environment:
            async with trio_agentmail.open_agentmail_stream(api_key=lambda: KEY, environment=environment) as events:
                async for _ in events:
                    pass

    real_send_all = trio.SocketStream.send_all
    monkeypatch.setattr(trio.SocketStream, "send_all", send_all)
    with pytest.raises(BaseException) as caught:
        trio.run(main)
    assert caught.value is what
    assert_no_secret_in_frames(caught.value)


# Text from the server


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ApiError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (302, ApiError),
        (503, ConnectionFailedError),
    ],
)
async def test_a_refusal_that_repeats_the_key_does_not_give_it_away(
    status: int, error: type[AgentMailError], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(
        status,
        headers=[
            ("X-Your-Request", f"Authorization: Bearer {KEY}"),
            (f"X-{KEY}", "a name"),
            ("Location", f"https://elsewhere.example/?api_key={KEY}"),
            ("WWW-Authenticate", f'Bearer error="{KEY} is wrong"'),
        ],
        body=orjson.dumps({"message": f"the key {KEY} {KEY} is not known"}),
        times=None,
    )
    refusal = await raised_on_entering(fake)
    assert type(refusal) is error
    cause = refusal.__cause__ if isinstance(refusal, ConnectionFailedError) else refusal
    assert isinstance(cause, ApiError)
    assert cause.status_code == status
    assert cause.body == '{"message":"the key *** *** is not known"}'
    assert cause.headers["x-your-request"] == "Authorization: Bearer ***"


async def test_a_subscription_refused_with_the_key_in_the_message_does_not_give_it_away(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_subscriptions(f"forbidden {KEY}", f"{KEY} may not do this")
    refusal = await raised_on_entering(fake)
    assert isinstance(refusal, SubscriptionRejectedError)
    assert refusal.message == "*** may not do this"


async def test_a_close_with_the_key_as_its_reason_does_not_give_it_away(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.close_instead_of_confirming(4401, f"no such key: {KEY}", times=None)
    refusal = await raised_on_entering(fake)
    assert isinstance(refusal, SubscriptionRejectedError)
    assert refusal.message.endswith("no such key: ***")
    fake.faults.clear()
    fake.faults.close_instead_of_confirming(1011, f"no such key: {KEY}", times=None)
    assert isinstance(await raised_on_entering(fake), ConnectionFailedError)


async def test_a_loss_with_the_key_as_its_reason_does_not_give_it_away(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(api_key=KEY, backend=fake) as session:
        assert_no_secret(await session.events.receive())
        await fake.drop_connections(1011, f"your key is {KEY}")
        lost = await session.events.receive()
        assert isinstance(lost, Disconnected)
        assert lost.reason.endswith("your key is ***")
        assert_no_secret(lost, session.statistics())


async def test_a_server_that_echoes_the_request_does_not_give_the_key_away(
    adjustable_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An echo server answers with the request itself."""

    async def echo(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, echo, 0)
        for answer in (None, f"HTTP/1.1 {KEY}\r\n\r\n", f"HTTP/1.1 200 {KEY}\r\n{KEY}\r\n\r\n"):
            if answer is not None:

                async def talk(stream: trio.SocketStream, answer: str = answer) -> None:
                    await stream.receive_some()
                    await stream.send_all(answer.encode())

                listeners = await nursery.start(trio.serve_tcp, talk, 0)
            port = listeners[0].socket.getsockname()[1]
            environment = AgentMailEnvironment(http="http://127.0.0.1", websockets=f"ws://127.0.0.1:{port}")
            caplog.clear()
            stream = open_agentmail_stream(api_key=KEY, environment=environment, enter_timeout=ENTER_TIMEOUT)
            failure = await failure_to_enter(stream, adjustable_clock, lambda: "for the next attempt" in caplog.text)
            assert_no_secret(failure)
        nursery.cancel_scope.cancel()


# Everything that the package shows


async def test_when_everything_goes_wrong_the_key_is_shown_nowhere(
    autojump_clock: MockClock, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def consume(events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            received.append(event)

    fake = FakeAgentMail(api_keys={KEY})
    received: list[Event] = []
    policy = ReconnectPolicy(refusal_grace=30)
    with pytest.raises(AuthenticationError) as caught:
        async with (
            open_agentmail_session(
                Subscribe(inbox_ids=["agent@agentmail.to"]),
                api_key=lambda: KEY,
                backend=fake,
                reconnect=policy,
                ping_interval=5,
                ping_timeout=5,
            ) as session,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(consume, session.events)
            assert_no_secret(session, session.statistics(), session.events, session._supervisor)
            assert_no_secret(*vars(session._supervisor).values())
            await fake.deliver(inbox_id="agent@agentmail.to")
            fake.faults.refuse_connections(2)
            fake.faults.reject_handshakes(503, headers=[("X-Key", KEY)], body=KEY.encode(), times=2)
            fake.faults.hang_handshakes()
            fake.faults.withhold_confirmations()
            fake.faults.refuse_subscriptions("rate_limited", KEY)
            fake.faults.close_instead_of_confirming(1008, KEY)
            fake.faults.drop_after_confirming(2)
            await fake.drop_connections(1011, KEY)
            await trio.sleep(300)
            await fake.wait_subscribed()
            assert_no_secret(session.statistics())
            fake.faults.silence_connections()
            await trio.sleep(60)
            fake.faults.refuse_subscriptions("forbidden", KEY)
            with pytest.raises(SubscriptionRejectedError) as refused:
                await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
            assert_no_secret(refused.value)
            await session.subscribe(Subscribe(inbox_ids=["other@agentmail.to"]))
            fake.api_keys = ()
            fake.faults.reject_handshakes(401, headers=[("X-Key", KEY)], body=KEY.encode(), times=None)
            await fake.drop_connections()
            await trio.sleep_forever()
    assert_no_secret(caught.value, session, session.statistics(), *received)
    assert sum(isinstance(event, Disconnected) for event in received) >= 2
    assert sum(isinstance(event, Subscribed) for event in received) >= 3
    # Each request has the key in one header. The log covers all of this, including trio-websocket's part.
    assert len(fake.record.handshakes) > 10
    for handshake in fake.record.handshakes:
        shown = [name for name, value in handshake.headers.items() if MARK in value or MARK in name]
        assert shown == ["authorization"]
        assert handshake.headers["authorization"] == f"Bearer {KEY}"
        assert MARK not in handshake.path + handshake.query
    loggers = {record.name for record in caplog.records}
    assert {"trio_agentmail", "trio-websocket"} <= loggers


async def test_an_error_frame_that_repeats_the_key_is_passed_on_but_not_logged(autojump_clock: MockClock) -> None:
    """A push is the caller's own data and is delivered unchanged, but the package must not show it."""
    fake = FakeAgentMail()
    async with open_agentmail_session(api_key=KEY, backend=fake) as session:
        await fake.send_raw(orjson.dumps({"type": "error", "name": "oh", "message": "no key here"}))
        await fake.send_raw(f"not JSON: {KEY}")
        await session.events.receive()
        error = await session.events.receive()
        assert isinstance(error, ErrorEvent)
        await session.events.receive()
        assert_no_secret(session.statistics(), error)


async def test_each_connection_is_redacted_with_the_key_that_it_was_made_with(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    keys = [f"am_old_{MARK}", f"am_new_{MARK}_and_more", f"am_newest_{MARK}", f"am_last_{MARK}"]
    async with open_agentmail_session(api_key=lambda: keys.pop(0), backend=fake) as session:
        await fake.drop_connections(1011, f"am_old_{MARK}")
        await fake.wait_subscribed()
        await session.events.receive()
        assert_no_secret(await session.events.receive())
        await session.subscribe(Subscribe(inbox_ids=["agent@agentmail.to"]))
        await fake.drop_connections(1011, f"am_newest_{MARK}")
        await trio.sleep(1)
        assert_no_secret(session.statistics())


async def test_the_old_connection_gives_away_neither_its_own_key_nor_the_new_one(
    autojump_clock: MockClock,
) -> None:
    """While `subscribe` opens a second connection, the first one still exists and uses its own key."""
    fake = FakeAgentMail()
    keys = [f"am_old_{MARK}", f"am_new_{MARK}", f"am_newest_{MARK}"]
    async with open_agentmail_session(api_key=lambda: keys.pop(0), backend=fake) as session:
        fake.faults.withhold_confirmations()
        with trio.move_on_after(1):
            await session.subscribe(Subscribe(inbox_ids=["agent@agentmail.to"]))
        await fake.drop_connections(1011, f"am_old_{MARK}")
        await trio.sleep(1)
        await session.events.receive()
        assert_no_secret(await session.events.receive(), session.statistics())


# Bad keys


@pytest.mark.parametrize(
    "key",
    [f"{KEY}\n", f"{KEY}\r\nX-Other: yes", f" {KEY}", f"{KEY} more", f"{KEY}é", f"{KEY}\x00", f"\t{KEY}", f"“{KEY}”"],
    ids=ascii,
)
@pytest.mark.parametrize("as_callable", [False, True])
async def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    key: str, as_callable: bool, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    source: str | Callable[[], str] = (lambda: key) if as_callable else key
    assert type(await raised_on_entering(fake, api_key=source)) is ValueError
    assert fake.record.handshakes == []


@pytest.mark.parametrize("key", [KEY.encode(), [KEY], {"key": KEY}, 5], ids=["bytes", "list", "dict", "int"])
@pytest.mark.parametrize("as_callable", [False, True])
async def test_a_key_that_is_not_a_string_is_refused_without_being_shown(
    key: object, as_callable: bool, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    assert type(await raised_on_entering(fake, api_key=(lambda: key) if as_callable else key)) is TypeError


async def test_a_callable_that_returns_a_bad_key_later_ends_the_block_without_showing_it(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    keys = iter([KEY, f"{KEY}\n"])
    with pytest.raises(ValueError) as caught:
        async with open_agentmail_stream(api_key=lambda: next(keys), backend=fake):
            await fake.drop_connections()
            await trio.sleep_forever()
    assert_no_secret(caught.value)


async def test_a_bad_key_in_the_environment_variable_is_refused_without_being_shown(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTMAIL_API_KEY", f"{KEY}\n")
    assert type(await raised_on_entering(FakeAgentMail(), api_key=None)) is ValueError


async def test_the_key_in_the_environment_variable_is_used_and_shown_nowhere(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTMAIL_API_KEY", KEY)
    fake = FakeAgentMail()
    async with open_agentmail_session(backend=fake) as session:
        assert_no_secret(session, session.statistics())
    assert [handshake.headers["authorization"] for handshake in fake.record.handshakes] == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "url",
    [
        f"wss://{KEY}@ws.agentmail.to",
        f"wss://user:{KEY}@ws.agentmail.to",
        f"wss://ws.agentmail.to?api_key={KEY}",
        f"wss://ws.agentmail.to#{KEY}",
        f"ws://{KEY}@localhost",
        f"{KEY}://ws.agentmail.to",
        f"wss://ws.agentmail.to:{KEY}",
        f"wss://user:{KEY}",
        f"wss://[{KEY}",
        f"{KEY}",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("field", ["http", "websockets"])
def test_a_url_with_the_key_in_it_is_refused_without_being_shown(url: str, field: str) -> None:
    urls: dict[str, Any] = {"http": "https://api.agentmail.to", "websockets": "wss://ws.agentmail.to"}
    urls[field] = url.replace("ws", "http", 1) if field == "http" else url
    with pytest.raises(ValueError) as caught:
        AgentMailEnvironment(**urls)
    assert_no_secret(caught.value)


async def test_settings_show_no_key(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_session(api_key=KEY, backend=fake) as session:
        supervisor = session._supervisor
        connections = supervisor._connector._live
        assert connections
        for part in (supervisor, supervisor._connector, supervisor._subscription, *connections):
            assert_no_secret(part, *vars(part).values())


async def test_a_key_that_begins_with_another_key_is_redacted_completely(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    keys = [KEY, KEY + "_and_more"]
    async with open_agentmail_stream(api_key=lambda: keys.pop(0), backend=fake) as events:
        await fake.drop_connections()
        await fake.wait_subscribed()
        await fake.drop_connections(1011, f"not {KEY}_and_more!")
        losses = [event for event in [await events.receive() for _ in range(4)] if isinstance(event, Disconnected)]
    assert [loss.reason for loss in losses][-1].endswith("not ***!")


@pytest.mark.parametrize("header", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Upgrade"])
async def test_an_acceptance_that_holds_the_key_does_not_give_it_away(
    header: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            request = bytes(await theirs.receive_some())
            key = request.lower().split(b"sec-websocket-key: ")[1]
            key = request[len(request) - len(key) :].split(b"\r\n")[0]
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
            upgrade = b"" if header == "Upgrade" else b"\r\nUpgrade: websocket"
            await theirs.send_all(head + upgrade + f"\r\n{header}: {MARK}\r\n\r\n".encode())

        nursery.start_soon(answer)
        with pytest.raises(ConnectionLostError, match="not a WebSocket server") as caught:
            async with client_websocket(ours, host="x", target="/v0", headers=[], max_message_size=100):
                pytest.fail("opened")
    assert_no_secret(caught.value)
    assert MARK not in caplog.text
