"""Entering the block: events before the confirmation, how long entering may take, and what is refused at once."""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.backends import FakeBackend
from tests.helpers.failures import times
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import (
    AgentMailEnvironment,
    ApiError,
    ConnectionFailedError,
    Disconnected,
    Event,
    ReconnectPolicy,
    Subscribe,
    Subscribed,
    SubscriptionRejectedError,
    UnknownEvent,
)
from trio_agentmail._backend import WebSocket
from trio_agentmail.errors import ConnectionLostError
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._faults.table import Faults

MIB = 2**20

Opener = Callable[..., AbstractAsyncContextManager[Any]]
both_openers = pytest.mark.parametrize(
    "opener", [open_agentmail_stream, open_agentmail_session], ids=["stream", "session"]
)


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTMAIL_API_KEY", raising=False)


def raw(event: Event) -> str:
    assert isinstance(event, UnknownEvent)
    return event.raw


def numbered(n: int) -> str:
    return f'{{"event_type":"new.kind","event_id":"{n}"}}'


# What comes before the confirmation


async def test_the_block_is_entered_when_the_subscription_is_confirmed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    subscribe = Subscribe(inbox_ids=["a"], event_types=["message.received"])
    async with open_agentmail_stream(subscribe, backend=fake) as events:
        assert fake.record.subscriptions == [subscribe]
        assert fake.subscribed == 1
        confirmed = events.receive_nowait()
        assert confirmed == Subscribed(inbox_ids=("a",), event_types=("message.received",))
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_events_that_come_before_the_confirmation_come_after_subscribed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(numbered(1), "not JSON", numbered(2))
    async with open_agentmail_stream(backend=fake) as events:
        await fake.send_raw(numbered(3))
        assert isinstance(await anext(events), Subscribed)
        assert [raw(await anext(events)) for _ in range(4)] == [numbered(1), "not JSON", numbered(2), numbered(3)]


async def test_events_that_come_before_a_later_confirmation_come_after_it_too(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake) as events:
        fake.faults.push_before_confirming(numbered(1), numbered(2))
        await fake.drop_connections()
        assert isinstance(await anext(events), Subscribed)
        assert isinstance(await anext(events), Disconnected)
        assert isinstance(await anext(events), Subscribed)
        assert [raw(await anext(events)) for _ in range(2)] == [numbered(1), numbered(2)]


@pytest.mark.parametrize("buffer_size", [1, 64])
async def test_a_thousand_events_before_the_confirmation_do_not_deadlock(
    buffer_size: int, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    texts = [numbered(n) for n in range(1_000)]
    fake.faults.push_before_confirming(*texts)
    async with open_agentmail_stream(backend=fake, buffer_size=buffer_size) as events:
        assert isinstance(await anext(events), Subscribed)
        assert [raw(await anext(events)) for _ in texts] == texts
    assert len(fake.record.handshakes) == 1


async def test_events_that_wait_for_the_confirmation_count_as_buffered(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(numbered(n) for n in range(100)))
    async with open_agentmail_session(backend=fake, buffer_size=10) as session:
        await wait_all_tasks_blocked()
        assert session.statistics().buffered == 101


async def test_more_than_a_thousand_events_before_the_confirmation_fail_the_attempt(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(numbered(n) for n in range(1_001)))
    async with open_agentmail_session(backend=fake) as session:
        await fake.send_raw(numbered(0))
        assert isinstance(await anext(session.events), Subscribed)
        # The events of the failed attempt were not delivered, and are not known.
        event = await anext(session.events)
        assert isinstance(event, UnknownEvent)
        assert event.event_id == "0"
        assert session.statistics().received == 1
        assert "1001 events" in (session.statistics().last_error or "")
        assert len(fake.record.handshakes) == 2
        assert fake.connected == 1


async def test_sixteen_mib_before_the_confirmation_are_held(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    texts = [f"{n:02}" + "x" * (4 * MIB - 2) for n in range(4)]
    fake.faults.push_before_confirming(*texts)
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        for text in texts:
            assert raw(await anext(events)) == text
    assert len(fake.record.handshakes) == 1


async def test_more_than_sixteen_mib_before_the_confirmation_fail_the_attempt(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    fake.faults.push_before_confirming(*(f"{n:02}" + "x" * (4 * MIB - 2) for n in range(4)), "x")
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await anext(events), Subscribed)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
    assert len(fake.record.handshakes) == 2


# How long it may take


@pytest.mark.parametrize("open_timeout", [10, 4])
@pytest.mark.parametrize("fault", [Faults.hang_handshakes, Faults.withhold_confirmations])
async def test_an_attempt_that_is_not_answered_is_given_up_after_open_timeout(
    fault: Callable[[Faults], None], open_timeout: float, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake.faults)
    async with open_agentmail_session(backend=fake, open_timeout=open_timeout) as session:
        assert times(fake) == [0, open_timeout + 0.5]
        assert fake.connected == 1
        assert f"open_timeout ({open_timeout} s)" in (session.statistics().last_error or "")


async def test_a_network_that_hangs_is_given_up_after_open_timeout(no_jitter: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.delay_connections(math.inf)
    began = trio.current_time()
    async with open_agentmail_session(backend=fake) as session:
        assert trio.current_time() - began == pytest.approx(10.5)
        assert "did not open" in (session.statistics().last_error or "")


async def test_open_timeout_does_not_end_a_connection_that_was_confirmed(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, open_timeout=1):
        await trio.sleep(100)
        assert len(fake.record.handshakes) == 1


@both_openers
async def test_transient_failures_beyond_enter_timeout_raise_connection_failed(
    opener: Opener, no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, body=b"down for maintenance", times=None)
    began = trio.current_time()
    with pytest.raises(ConnectionFailedError, match=r"enter_timeout \(30.0 s\).*down for maintenance") as caught:
        async with opener(backend=fake):
            pass  # pragma: no cover
    assert trio.current_time() - began == pytest.approx(30)
    assert times(fake) == [0, 0.5, 1.5, 3.5, 7.5, 15.5]
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.status_code == 503


@pytest.mark.parametrize("fault", [Faults.hang_handshakes, Faults.withhold_confirmations])
async def test_enter_timeout_holds_for_all_attempts_and_cuts_the_last(
    fault: Callable[..., None], no_jitter: None, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    fault(fake.faults, times=None)
    began = trio.current_time()
    with pytest.raises(ConnectionFailedError) as caught:
        async with open_agentmail_stream(backend=fake):
            pass  # pragma: no cover
    assert trio.current_time() - began == pytest.approx(30)
    assert times(fake) == [0, 10.5, 21.5]
    assert isinstance(caught.value.__cause__, ConnectionLostError)
    await fake.wait_connected(0)


async def test_enter_timeout_may_be_shorter_than_one_attempt(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()
    began = trio.current_time()
    with pytest.raises(ConnectionFailedError, match=r"enter_timeout \(3 s\)"):
        async with open_agentmail_stream(backend=fake, enter_timeout=3):
            pass  # pragma: no cover
    assert trio.current_time() - began == pytest.approx(3)


async def test_enter_timeout_does_not_bound_a_later_outage(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, enter_timeout=3) as events:
        fake.faults.reject_handshakes(503, times=20)
        await fake.drop_connections()
        assert isinstance(await anext(events), Subscribed)
        assert isinstance(await anext(events), Disconnected)
        assert isinstance(await anext(events), Subscribed)


# Bad arguments

SECONDS: list[tuple[object, type[Exception]]] = [
    ("5", TypeError),
    (True, TypeError),
    ([5], TypeError),
    (-1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
]
WHOLE_NUMBERS: list[tuple[object, type[Exception]]] = [
    ("5", TypeError),
    (True, TypeError),
    (None, TypeError),
    (1.5, TypeError),
    (math.inf, TypeError),
    (0, ValueError),
    (-1, ValueError),
]
BAD_ARGUMENTS = [
    *(("ping_interval", value, error) for value, error in [*SECONDS, (0, ValueError)]),
    *(("ping_timeout", value, error) for value, error in [*SECONDS, (0, ValueError), (None, TypeError)]),
    *(("open_timeout", value, error) for value, error in [*SECONDS, (0, ValueError), (None, TypeError)]),
    *(("enter_timeout", value, error) for value, error in [*SECONDS, (0, ValueError), (None, TypeError)]),
    *(("close_timeout", value, error) for value, error in [*SECONDS, (None, TypeError)]),
    *(("buffer_size", value, error) for value, error in WHOLE_NUMBERS),
    *(("max_message_size", value, error) for value, error in WHOLE_NUMBERS),
    *(("environment", value, TypeError) for value in (None, "prod", AgentMailEnvironment)),
    *(("reconnect", value, TypeError) for value in (None, True, ReconnectPolicy)),
    *(("ssl_context", value, TypeError) for value in (True, "cert.pem", ssl.SSLContext)),
]


@pytest.mark.parametrize(
    ("name", "value", "error"), BAD_ARGUMENTS, ids=[f"{name}={value!r}" for name, value, _ in BAD_ARGUMENTS]
)
@both_openers
async def test_a_bad_argument_is_refused_at_once_by_name(
    opener: Opener, name: str, value: object, error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(error) as caught:
        async with opener(backend=fake, **{name: value}):
            pass  # pragma: no cover
    assert name in str(caught.value)
    # A sentence for whoever reads the traceback.
    assert len(str(caught.value)) < 200
    assert "Attribute(" not in str(caught.value)
    assert fake.record.handshakes == []


@pytest.mark.parametrize("value", ["agent@agentmail.to", ["agent@agentmail.to"], None, Subscribe])
@both_openers
async def test_what_is_no_subscription_is_refused_at_once(
    opener: Opener, value: object, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    with pytest.raises(TypeError, match=r"the first argument is a Subscribe\("):
        async with opener(value, backend=fake):
            pass  # pragma: no cover
    assert fake.record.handshakes == []


async def test_the_smallest_settings_are_good_enough(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(
        backend=fake, buffer_size=1, close_timeout=0, ping_interval=0.001, ping_timeout=0.001, open_timeout=0.001
    ) as events:
        assert isinstance(await anext(events), Subscribed)


# The key

BAD_KEYS: list[tuple[object, type[Exception]]] = [
    ("", ValueError),
    ("am_secret\n", ValueError),
    (" am_secret", ValueError),
    ("am_sec ret", ValueError),
    ("am_secret\r\nX-Header: 1", ValueError),
    ("am_sécret", ValueError),
    ("am_secret\0", ValueError),
    (b"am_secret", TypeError),
    (7, TypeError),
    (["am_secret"], TypeError),
]


@pytest.mark.parametrize("how", ["given", "returned"])
@pytest.mark.parametrize(("key", "error"), BAD_KEYS, ids=lambda value: repr(value))
async def test_a_bad_key_is_refused_at_once_without_being_shown(
    how: str, key: object, error: type[Exception], autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    source: Any = key if how == "given" else lambda: key
    with pytest.raises(error, match="the API key") as caught:
        async with open_agentmail_stream(backend=fake, api_key=source):
            pass  # pragma: no cover
    assert "secret" not in str(caught.value)
    assert "sécret" not in str(caught.value)
    assert fake.record.handshakes == []


async def test_a_callable_that_returns_no_key_is_refused_at_once(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    source: Any = lambda: None  # noqa: E731
    with pytest.raises(TypeError, match=r"the API key must be a string.*not NoneType"):
        async with open_agentmail_stream(backend=fake, api_key=source):
            pass  # pragma: no cover
    assert fake.record.handshakes == []


@pytest.mark.parametrize("variable", [None, ""])
async def test_without_a_key_the_message_says_where_to_put_one(
    variable: str | None, no_variable: None, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    if variable is not None:
        monkeypatch.setenv("AGENTMAIL_API_KEY", variable)
    keyless = FakeBackend()
    keyless.api_key = None
    with pytest.raises(ValueError, match=r"no API key: set \$AGENTMAIL_API_KEY, or pass api_key="):
        async with open_agentmail_stream(backend=keyless):
            pass  # pragma: no cover
    assert keyless.fake.record.attempts == 0


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setenv("AGENTMAIL_API_KEY", "am_from_environment")
    fake = FakeAgentMail(api_keys={"am_from_environment"})
    async with open_agentmail_stream(backend=fake):
        assert fake.record.handshakes[0].headers["authorization"] == "Bearer am_from_environment"


async def test_a_key_that_is_given_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv("AGENTMAIL_API_KEY", "am_from_environment")
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, api_key="am_given"):
        assert fake.record.handshakes[0].headers["authorization"] == "Bearer am_given"


async def test_a_backend_may_bring_its_own_key(no_variable: None, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake):
        assert fake.record.handshakes[0].headers["authorization"] == f"Bearer {fake.api_key}"


@pytest.mark.parametrize("error", [KeyError("vault"), RuntimeError("vault"), FileNotFoundError(2, "no key file")])
async def test_what_a_callable_for_the_key_raises_comes_out_at_once_as_it_is(
    error: Exception, autojump_clock: MockClock
) -> None:
    def ask() -> str:
        raise error

    began = trio.current_time()
    with pytest.raises(type(error)) as caught:
        async with open_agentmail_stream(backend=FakeAgentMail(), api_key=ask):
            pass  # pragma: no cover
    assert caught.value is error
    assert trio.current_time() == began


async def test_what_a_callable_for_the_key_raises_later_ends_the_block(autojump_clock: MockClock) -> None:
    keys = ["am_1"]
    fake = FakeAgentMail()
    with pytest.raises(IndexError):
        async with open_agentmail_stream(backend=fake, api_key=keys.pop):
            await fake.drop_connections()
            await trio.sleep_forever()
    assert len(fake.record.handshakes) == 1


@pytest.mark.parametrize("backend", [FakeAgentMail, "fake", object()])
async def test_an_invalid_backend_is_refused_at_once(backend: Any, autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match=r"backend takes an object that opens WebSockets, like FakeAgentMail\(\)"):
        async with open_agentmail_stream(backend=backend):
            pytest.fail("entered")


async def test_a_context_for_servers_is_refused_at_once(autojump_clock: MockClock) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(ValueError, match="ssl_context is a context for servers"):
        async with open_agentmail_stream(backend=FakeAgentMail(), ssl_context=context):
            pytest.fail("entered")


async def test_a_confirmation_in_the_very_moment_in_which_time_runs_out_is_too_late(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()

    class LateOnce(FakeBackend):
        late = True

        @asynccontextmanager
        async def open_websocket(self, url: str, **kwargs: Any) -> AsyncIterator[WebSocket]:
            async with super().open_websocket(url, **kwargs) as websocket:
                receive = websocket.receive

                async def receive_late() -> bytes:
                    data = await receive()
                    with trio.CancelScope(shield=True):
                        await trio.sleep(5)
                    return data

                if self.late:
                    self.late = False
                    websocket.receive = receive_late  # type: ignore[method-assign]
                yield websocket

    async with open_agentmail_session(backend=LateOnce(fake), open_timeout=5) as session:
        await trio.sleep(100)
        assert session.statistics().connections == 1
        assert len(fake.record.handshakes) == 2
        assert isinstance(session.events.receive_nowait(), Subscribed)
        with pytest.raises(trio.WouldBlock):
            session.events.receive_nowait()


def test_outside_of_trio_it_says_where_it_runs() -> None:
    async def main() -> None:
        async with open_agentmail_stream(backend=FakeAgentMail()):
            pytest.fail("entered")

    with pytest.raises(RuntimeError, match="must be opened under Trio"):
        asyncio.run(main())
    with pytest.raises(RuntimeError, match="must be opened under Trio"):
        main().send(None)


@pytest.mark.parametrize(
    ("name", "message", "words"),
    [
        ("forbidden", "not yours", "forbidden: not yours"),
        ("forbidden", "", "forbidden"),
        ("", "not yours", "not yours"),
        ("", "", "AgentMail gave no reason"),
        ("\n", "\t", "AgentMail gave no reason"),
    ],
)
def test_a_refused_subscription_always_says_something(name: str, message: str, words: str) -> None:
    assert str(SubscriptionRejectedError(name, message)) == f"the subscription was refused: {words}"
