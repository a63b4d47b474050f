"""Control-C comes out of the block, whichever task it interrupts."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_agentmail
from tests.helpers.backends import FakeBackend
from tests.helpers.leaving import Mishap, Opener, leaving_nothing, with_both
from trio_agentmail import SQLiteJournal, Subscribe
from trio_agentmail.testing import FakeAgentMail

INBOX = "agent@agentmail.to"


def run(async_fn: Callable[[], Any]) -> None:
    trio.run(async_fn, clock=MockClock(autojump_threshold=0))


@with_both
def test_control_c_in_the_body_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with leaving_nothing(fake):
            with pytest.raises(KeyboardInterrupt):
                async with opener(backend=fake):
                    signal.raise_signal(signal.SIGINT)
        raise Mishap("got here")

    with pytest.raises(Mishap):
        run(main)
    assert fake.record.close_codes == [1000]


def interrupt_soon() -> None:
    """Press control-C while every task waits. Trio then delivers it to the main task."""

    async def interrupt() -> None:
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    trio.lowlevel.spawn_system_task(interrupt)


@with_both
def test_control_c_while_the_body_waits_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with opener(backend=fake):
            interrupt_soon()
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert fake.record.close_codes == [1000]


@with_both
def test_control_c_on_entering_comes_out_as_it_is(opener: Opener) -> None:
    fake = FakeAgentMail()
    fake.faults.hang_handshakes()

    async def main() -> None:
        interrupt_soon()
        async with opener(backend=fake):
            pytest.fail("not entered")

    with pytest.raises(KeyboardInterrupt):
        run(main)


@with_both
def test_control_c_in_a_task_of_the_stream_is_not_lost(opener: Opener) -> None:
    """Control-C may interrupt any task. An `api_key` callable runs in a task of the stream."""
    fake = FakeAgentMail()
    calls = 0

    def api_key() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return "am_key"

    async def main() -> None:
        async with leaving_nothing(fake):
            with pytest.raises(KeyboardInterrupt):
                async with opener(backend=fake, api_key=api_key):
                    await fake.drop_connections()
                    await trio.sleep(60)
        raise Mishap("got here")

    with pytest.raises(Mishap):
        run(main)
    assert calls == 2


@with_both
def test_control_c_while_closing_is_not_lost(opener: Opener) -> None:
    fake = FakeAgentMail()

    async def main() -> None:
        async with opener(backend=fake, close_timeout=60):
            fake.faults.silence_connections()
            await wait_all_tasks_blocked()
            interrupt_soon()

    with pytest.raises(KeyboardInterrupt):
        run(main)


class Interrupting(FakeBackend):
    """A backend that control-C interrupts.

    Args:
        where: The method that is interrupted.
        calls: The number of calls of this method before that.
        what: The exception that is raised.
    """

    def __init__(self, fake: FakeAgentMail, where: str, calls: int, what: BaseException) -> None:
        self._where = where
        super().__init__(fake)
        self._calls = calls
        self._what = what

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return partial(self._strike, value) if name == object.__getattribute__(self, "_where") else value

    def _strike(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise self._what
        return method(*args, **kwargs)


@pytest.mark.parametrize("what", [KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize("calls", [0, 1, 2, 5])
@pytest.mark.parametrize("where", ["open_websocket", "http_transport", "now", "run_sync"])
def test_control_c_comes_out_alone_from_any_task(where: str, calls: int, what: BaseException, tmp_path: Path) -> None:
    async def main() -> None:
        fake = FakeAgentMail()
        backend = Interrupting(fake, where, calls, what)
        async with leaving_nothing(fake):
            async with trio_agentmail.open_agentmail_stream(
                Subscribe(inbox_ids=[INBOX]), backend=backend, journal=SQLiteJournal(tmp_path / "agent.db")
            ):
                for _ in range(6):
                    await fake.deliver(inbox_id=INBOX)
                    await trio.sleep(2)
                    async with fake.faults.outage():
                        await fake.deliver(inbox_id=INBOX)
                        await trio.sleep(20)
                    await trio.sleep(30)

    with pytest.raises(BaseException) as caught:
        run(main)
    assert caught.value is what
