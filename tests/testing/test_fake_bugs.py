"""An exception in the fake, in a function of the test or by Ctrl-C comes out as itself and not in a group."""

import signal
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import Subscribe
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"
BEARER = {"Authorization": "Bearer a"}


class Bug(Exception):
    pass


class Alarm(BaseException):
    pass


KINDS = [Bug, KeyboardInterrupt, SystemExit, Alarm]


class Keys(set[str]):
    """A collection of API keys with a bug."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __contains__(self, key: object) -> bool:
        raise self.error


def raising(error: BaseException) -> Callable[..., Any]:
    def answer(*_: object) -> Any:
        raise error

    return answer


async def on_entering_a_stream(error: BaseException) -> None:
    async with open_agentmail_stream(backend=FakeAgentMail(api_keys=Keys(error)), api_key="a"):
        await trio.sleep_forever()


async def in_a_stream(error: BaseException) -> None:
    fake = FakeAgentMail()
    async with open_agentmail_stream(backend=fake, api_key="a") as events:
        fake.api_keys = Keys(error)
        await fake.drop_connections()
        async for _ in events:
            pass


async def in_a_request_of_a_stream(error: BaseException) -> None:
    fake = FakeAgentMail()
    async with trio_agentmail.open_agentmail_stream(Subscribe(inbox_ids=[INBOX]), backend=fake, api_key="a") as events:
        await trio.sleep(1)
        fake.faults.answer_requests(raising(error))
        await fake.drop_connections()
        async for _ in events:
            pass


async def in_a_request_in_memory(error: BaseException) -> None:
    fake = FakeAgentMail()
    fake.faults.answer_requests(raising(error))
    async with httpx2.AsyncClient(transport=fake.http_transport()) as client:
        await client.get("https://api.example/v0/inboxes", headers=BEARER)


async def in_a_condition(error: BaseException) -> None:
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise error

    await FakeAgentMail().wait_for(look)


async def in_chaos(error: BaseException) -> None:
    fake = FakeAgentMail()
    with patch.object(fake.faults, "drop_connections", raising(error)):
        async with fake.chaos(1, faults={"drop_connections"}):
            await trio.sleep_forever()


async def in_a_request_that_is_served(error: BaseException) -> None:
    fake = FakeAgentMail()
    fake.faults.answer_requests(raising(error))
    async with fake.serve() as environment, httpx2.AsyncClient() as client:
        await client.get(environment.http + "/v0/inboxes", headers=BEARER)


async def in_a_handshake_that_is_served(error: BaseException) -> None:
    async with FakeAgentMail(api_keys=Keys(error)).serve() as environment:
        async with open_agentmail_stream(environment=environment, api_key="a"):
            await trio.sleep_forever()


async def in_the_body_of_serve(error: BaseException) -> None:
    async with FakeAgentMail().serve():
        raise error


IN_MEMORY = [
    *(on_entering_a_stream, in_a_stream, in_a_request_of_a_stream, in_a_request_in_memory, in_a_condition, in_chaos),
]
SERVED = [
    *(in_a_request_that_is_served, in_a_handshake_that_is_served, in_the_body_of_serve),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [*IN_MEMORY, *SERVED], ids=lambda place: place.__name__)
def test_what_is_raised_comes_out_as_itself_and_alone(
    place: Callable[[BaseException], Awaitable[None]], kind: type[BaseException]
) -> None:
    error = kind("it is broken")

    async def run() -> None:
        with trio.fail_after(60):
            await place(error)

    with pytest.raises(kind) as caught:
        trio.run(run, clock=MockClock(autojump_threshold=0) if place in IN_MEMORY else None)
    assert caught.value is error


async def in_two_requests_at_once(errors: list[BaseException]) -> None:
    fake = FakeAgentMail()
    both = trio.Event()

    async def answer(_: httpx2.Request) -> httpx2.Response:
        if len(fake.record.requests) == 2:
            both.set()
        await both.wait()
        raise errors.pop()

    fake.faults.answer_requests(answer, times=None)
    with trio.fail_after(60):
        async with fake.serve() as environment, httpx2.AsyncClient() as client, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client.get, environment.http + "/v0/inboxes")


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_errors_at_once_one_comes_out(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        trio.run(in_two_requests_at_once, [kind("one"), kind("another")])


@pytest.mark.parametrize("kinds", [(Bug, KeyboardInterrupt), (KeyboardInterrupt, Bug)])
def test_an_interrupt_is_not_lost_in_a_bug_that_comes_at_the_same_time(kinds: tuple[type[BaseException], ...]) -> None:
    with pytest.raises(KeyboardInterrupt):
        trio.run(in_two_requests_at_once, [kind() for kind in kinds])


def test_an_interrupt_of_the_body_is_not_lost_in_a_bug() -> None:
    async def run() -> None:
        fake = FakeAgentMail(api_keys=Keys(Bug()))
        async with fake.serve() as environment, httpx2.AsyncClient() as client:
            try:
                await client.get(environment.http + "/v0/inboxes", headers=BEARER)
            finally:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trio.run(run)


async def cut(fake: FakeAgentMail) -> None:
    await fake.drop_connections()


async def serve(fake: FakeAgentMail) -> None:
    async with fake.serve():
        await trio.sleep_forever()


async def wait(fake: FakeAgentMail) -> None:
    await fake.wait_connected(7)


@pytest.mark.parametrize("waiting", [cut, serve, wait])
def test_control_c_comes_out_of_whatever_the_test_waits_for(
    waiting: Callable[[FakeAgentMail], Awaitable[None]],
) -> None:
    async def run() -> None:
        fake = FakeAgentMail()

        @trio.lowlevel.spawn_system_task
        async def interrupt() -> None:
            await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGINT)

        async with open_agentmail_stream(backend=fake, api_key="a", close_timeout=0.01):
            fake.faults.slow_down(0.1)
            await fake.deliver(inbox_id=INBOX)  # which takes longer than a cut waits
            await waiting(fake)
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(run)
