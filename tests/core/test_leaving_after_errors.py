"""Errors of the stream and bugs of a backend end the block, and come out as themselves."""

from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.backends import FakeBackend
from tests.helpers.leaving import Mishap, Opener, chain, leaving_nothing, refuse_for_good, with_both
from tests.helpers.streams import open_agentmail_session, open_agentmail_stream
from tests.helpers.taking import taking
from trio_agentmail import ReconnectPolicy, Subscribe, SubscriptionRejectedError
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


def fail() -> NoReturn:
    raise Mishap


# Non-retryable errors


@with_both
async def test_a_fatal_error_cancels_the_body_and_comes_out_alone(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    cleaned_up = False
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    await trio.sleep_forever()
                finally:
                    cleaned_up = True
    assert cleaned_up
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))
    assert caught.value.message == "not any more"


@with_both
async def test_a_fatal_error_cancels_the_body_at_once(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.refuse_subscriptions("forbidden", "not any more")
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError):
            async with opener(backend=fake):
                pytest.fail("refused on entering")
        policy = ReconnectPolicy(initial_delay=0, max_delay=0)
        async with taking(0):
            with pytest.raises(SubscriptionRejectedError):
                async with opener(backend=fake, reconnect=policy):
                    await refuse_for_good(fake)
                    await trio.sleep(1)


@with_both
async def test_a_fatal_error_during_the_bodys_cleanup_waits_for_it(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    policy = ReconnectPolicy(initial_delay=0, max_delay=0)
    async with leaving_nothing(fake), taking(7):
        with pytest.raises(SubscriptionRejectedError):
            async with opener(backend=fake, reconnect=policy):
                await refuse_for_good(fake)
                with trio.CancelScope(shield=True):
                    await trio.sleep(7)


@with_both
async def test_what_the_body_raises_about_a_fatal_error_comes_out_with_that_in_its_context(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    await trio.sleep_forever()
                finally:
                    raise Mishap
    mishap, fatal = chain(caught.value)
    assert mishap is caught.value
    assert isinstance(fatal, SubscriptionRejectedError)


@with_both
async def test_what_the_body_raises_after_a_fatal_error_keeps_its_own_context_before_that(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                try:
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise KeyError("the body's own context")
                except KeyError:
                    raise Mishap  # noqa: B904
    assert [type(exc) for exc in chain(caught.value)] == [Mishap, KeyError, SubscriptionRejectedError]


@with_both
async def test_a_body_that_swallows_its_cancellation_does_not_swallow_the_fatal_error(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                await refuse_for_good(fake)
                with suppress(trio.Cancelled):
                    await trio.sleep_forever()
    assert list(chain(caught.value)) == [caught.value]


@with_both
async def test_a_fatal_error_cancels_the_bodys_own_nursery_and_still_comes_out_alone(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(SubscriptionRejectedError) as caught:
            async with opener(backend=fake):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(trio.sleep_forever)
                    await refuse_for_good(fake)
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))


@with_both
async def test_tasks_of_the_body_that_raise_when_cancelled_do_so_out_of_their_nursery(
    opener: Opener, autojump_clock: MockClock
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Mishap

    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ExceptionGroup) as caught:
            async with opener(backend=fake):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail_when_cancelled)
                    nursery.start_soon(fail_when_cancelled)
                    nursery.start_soon(trio.sleep_forever)
                    await refuse_for_good(fake)
    assert [type(exc) for exc in caught.value.exceptions] == [Mishap, Mishap]
    assert any(isinstance(exc, SubscriptionRejectedError) for exc in chain(caught.value))


async def test_a_fatal_error_keeps_the_exception_that_the_caller_handles_as_its_context(
    autojump_clock: MockClock,
) -> None:
    fake = FakeAgentMail()
    outside = ValueError("outside")
    with pytest.raises(SubscriptionRejectedError) as caught:
        try:
            raise outside
        except ValueError:
            fake.faults.refuse_subscriptions("forbidden", "no")
            async with open_agentmail_stream(backend=fake):
                pytest.fail("refused on entering")
    assert not any(isinstance(exc, trio.Cancelled) for exc in chain(caught.value))


# A bug in the backend


class BuggyBackend(FakeBackend):
    """A backend with a bug in call number `at` of `open_websocket`, counted from 1."""

    def __init__(self, fake: FakeAgentMail, at: int) -> None:
        super().__init__(fake)
        self._at = at
        self._connections = 0

    def open_websocket(self, url: str, **kwargs: Any) -> Any:
        self._connections += 1
        if self._connections == self._at:
            raise ZeroDivisionError("a bug")
        return super().open_websocket(url, **kwargs)


@with_both
async def test_a_bug_in_the_backend_on_entering_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyBackend(fake, 1)):
                pytest.fail("not entered")


@with_both
async def test_a_bug_in_the_backend_on_reconnecting_comes_out_as_itself(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyBackend(fake, 2)):
                await fake.drop_connections()
                await trio.sleep_forever()


async def test_a_bug_in_the_backend_on_changing_the_subscription_is_raised_there(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with open_agentmail_session(backend=BuggyBackend(fake, 2)) as session:
            with pytest.raises(ZeroDivisionError):
                await session.subscribe(Subscribe(inbox_ids=[INBOX]))
            assert session.state == "subscribed"
        assert fake.record.close_codes == [1000]


@with_both
async def test_a_bug_in_the_fake_on_entering_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    class BrokenKeys(set[str]):
        def __contains__(self, key: object) -> bool:
            raise ZeroDivisionError

    fake = FakeAgentMail(api_keys=BrokenKeys())
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=fake):
                pytest.fail("not entered")


@with_both
async def test_a_bug_in_the_fake_while_the_body_sleeps_comes_out_as_itself(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake), taking(0):
        with pytest.raises(ValueError, match="message"):
            async with opener(backend=fake):
                next(iter(fake._connections)).push(5)  # type: ignore[arg-type]
                await trio.sleep_forever()


class BuggyGoodbye(FakeBackend):
    """A backend with a bug that shows when a connection is closed, in a task of the stream."""

    def __init__(self, fake: FakeAgentMail, error: Exception | None = None) -> None:
        super().__init__(fake)
        self._error = error or ZeroDivisionError("a bug")

    @asynccontextmanager
    async def open_websocket(self, url: str, **kwargs: Any) -> Any:
        async with super().open_websocket(url, **kwargs) as websocket:
            yield websocket
            raise self._error


@with_both
async def test_a_bug_in_the_backend_on_leaving_comes_out_as_itself(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with opener(backend=BuggyGoodbye(fake)):
                pass


@with_both
async def test_a_network_failure_on_leaving_is_no_bug(opener: Opener, autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        async with opener(backend=BuggyGoodbye(fake, ConnectionResetError("reset"))):
            pass
        assert fake.record.close_codes == [1000]


@with_both
async def test_what_the_stream_failed_with_may_be_raised_by_the_body_as_well(
    opener: Opener, autojump_clock: MockClock
) -> None:
    fake = FakeAgentMail()
    error = Mishap()

    def ask_for_the_key() -> str:
        if fake.record.handshakes:
            raise error
        return "am_key"

    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with opener(backend=fake, api_key=ask_for_the_key):
                await fake.drop_connections()
                try:
                    await trio.sleep_forever()
                finally:
                    raise error
    assert caught.value is error
    assert error.__context__ is not error


async def test_a_bug_that_showed_on_an_earlier_connection_is_not_forgotten(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(ZeroDivisionError):
            async with open_agentmail_session(backend=BuggyGoodbye(fake)) as session:
                for inbox_id in ("one", "two"):
                    await session.subscribe(Subscribe(inbox_ids=[inbox_id]))
                    await trio.sleep(1)


async def test_what_a_callable_for_the_key_raises_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    async with leaving_nothing(fake):
        with pytest.raises(Mishap) as caught:
            async with open_agentmail_stream(backend=fake, api_key=fail):
                pytest.fail("not entered")
    assert caught.value.__context__ is None
