"""Leaving the block over real sockets leaves none of them open."""

import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers.leaving import Mishap, Opener, refuse_for_good, with_both
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from trio_agentmail import AgentMailEnvironment, ReconnectPolicy, Subscribe, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._faults.table import Faults

INBOX = "agent@agentmail.to"


def open_sockets() -> set[socket.socket]:
    gc.collect()  # a socket that was not closed warns here, and warnings are errors
    return {thing for thing in gc.get_objects() if isinstance(thing, socket.socket) and thing.fileno() != -1}


@asynccontextmanager
async def served_leaving_nothing(fake: FakeAgentMail) -> AsyncIterator[AgentMailEnvironment]:
    """The same as `leaving_nothing`, over sockets. When the block ends, the fake has seen all connections end."""
    async with fake.serve() as environment:
        before = open_sockets()
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield environment
        with trio.fail_after(2):
            await fake.wait_connected(0)
            await wait_all_tasks_blocked()
        assert open_sockets() == before
        assert trio.lowlevel.current_statistics().tasks_living == tasks


@with_both
async def test_left_by_an_exception_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    error = Mishap()
    async with served_leaving_nothing(fake) as environment:
        with pytest.raises(Mishap) as caught:
            async with opener(api_key="am_key", environment=environment):
                raise error
        assert caught.value is error
        assert error.__context__ is None
    assert fake.record.close_codes == [1000]


@with_both
async def test_cancelled_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    async with served_leaving_nothing(fake) as environment:
        with trio.move_on_after(60) as scope:
            async with opener(api_key="am_key", environment=environment, buffer_size=1):
                for _ in range(10):
                    await fake.deliver(inbox_id=INBOX)
                await wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert fake.record.close_codes == [None]


@pytest.mark.parametrize("fault", [Faults.hang_handshakes, Faults.withhold_confirmations])
async def test_cancelled_on_entering_no_socket_stays_open(fault: Callable[[Faults], None]) -> None:
    fake = FakeAgentMail()
    fault(fake.faults)
    async with served_leaving_nothing(fake) as environment:
        with trio.move_on_after(0.1) as scope:
            async with open_agentmail_stream(api_key="am_key", environment=environment):
                pytest.fail("not entered")
        assert scope.cancelled_caught


@with_both
async def test_ended_by_a_fatal_error_no_socket_stays_open(opener: Opener) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0.01)
    async with served_leaving_nothing(fake) as environment:
        with pytest.raises(SubscriptionRejectedError):
            async with opener(api_key="am_key", environment=environment, reconnect=policy):
                await refuse_for_good(fake)
                await trio.sleep(5)


async def test_many_losses_and_changes_of_subscription_leave_no_socket_open() -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0, max_delay=0)
    async with served_leaving_nothing(fake) as environment:
        async with open_agentmail_session(api_key="am_key", environment=environment, reconnect=policy) as session:
            with trio.fail_after(5):
                for number in range(10):
                    await session.subscribe(Subscribe(inbox_ids=[f"{number}@agentmail.to"]))
                    await fake.drop_connections()
                    await fake.wait_subscribed()
