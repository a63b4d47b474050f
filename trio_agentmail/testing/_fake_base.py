"""What all sides of the fake share: who may do what, the mail, the time, and what is seen of it all."""

import inspect
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import TypeVar

import attrs
import h11
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_agentmail._nursery import background_nursery
from trio_agentmail.events import Event

from ._agentmail.agentmail import AgentMail
from ._agentmail.keys import ApiKeys
from ._agentmail.mail.events import to_milliseconds
from ._agentmail.refusals import Refusal
from ._door import Door
from ._fake_http_server import Refuse

__all__ = ["FakeBase"]

T = TypeVar("T")

LOOK_EVERY = 0.1
LOOK_EVERY_PART = 0.01
"""Between two looks at a condition that nothing here makes true: so many seconds, or such a part of the time waited so
far. On a mock clock a day may pass, and each look costs a millisecond."""

LOGGED = 1000
"""How many of the last things that happened are told by `explain`: a week of sweeps need not be kept."""


@attrs.define(kw_only=True)
class LogEntry:
    """What has happened, and how often in a row."""

    at: float
    text: str
    times: int = 1
    last_at: float

    def __str__(self) -> str:
        if self.times == 1:
            return self.text
        return f"{self.text} ({self.times} times in {self.last_at - self.at:.3f} s)"


class FakeBase(ABC):
    """The common ground of the classes that `FakeAgentMail` is made of, which documents the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = int(time.time())
        self._agentmail = AgentMail(now=datetime.fromtimestamp(self._epoch, UTC))
        self._outages = 0
        self._changed = trio.Event()
        self._log: deque[LogEntry] = deque(maxlen=LOGGED)
        # The pytest plug-in, where there is one, tells of it if the test fails.
        if (plugin := sys.modules.get("trio_agentmail._pytest_plugin")) is not None:
            plugin.made.append(self)

    @property
    def api_keys(self) -> ApiKeys:
        return self._agentmail.keys.api_keys

    @api_keys.setter
    def api_keys(self, api_keys: ApiKeys) -> None:
        self._agentmail.keys.api_keys = api_keys

    @property
    def permissions(self) -> Collection[str] | None:
        return self._agentmail.keys.permissions

    @permissions.setter
    def permissions(self, permissions: Collection[str] | None) -> None:
        self._agentmail.keys.permissions = permissions

    def now(self) -> float:
        """The time of day here, in seconds since the epoch: on a mock clock it passes as that does."""
        on_mock_clock = trio.lowlevel.in_trio_run() and isinstance(trio.lowlevel.current_clock(), MockClock)
        return self._epoch + trio.current_time() if on_mock_clock else time.time()

    def _now(self) -> datetime:
        return to_milliseconds(datetime.fromtimestamp(self.now(), UTC))

    def _door(self, stream: trio.SocketStream, allow_hosts: Collection[str]) -> Refuse:
        """Who is let in on a TCP connection."""
        door = Door(stream.socket.getsockname()[0], allow_hosts)

        def refuse(head: h11.Request) -> Refusal | None:
            refusal = door.refusal(head)
            if refusal is not None:
                self._note(f"a request is answered with {refusal.status}: {refusal.answer['message']}")
            return refusal

        return refuse

    # What can be seen from here

    async def wait_for(self, condition: Callable[[], T], within: float = 60.0) -> T:
        """Wait until a condition holds: it is looked at whenever something has happened here, whenever no task has
        anything to do, and now and then.

        For example `await fake.wait_for(lambda: fake.messages("agent@agentmail.to", "sent"))`.

        Args:
            condition: A function, not an async one, whose result is true when it holds.
            within: Seconds, by Trio's clock; `math.inf`: as long as it takes.

        Returns:
            What the condition returned.

        Raises:
            AssertionError: It did not hold in time. The message is that of `explain`.
            TypeError: The condition is an async function.
        """
        return await self._wait_for(condition, within, lambda result: f"the condition is {repr(result)[:200]}")

    async def _wait_for(self, condition: Callable[[], T], within: float, but: Callable[[T], str]) -> T:
        """
        Args:
            but: What is so instead.
        """
        await trio.lowlevel.checkpoint()
        began = trio.current_time()
        with trio.move_on_after(within):
            while not _result(condition):
                waited = trio.current_time() - began
                changed = self._changed
                async with background_nursery() as nursery:
                    nursery.start_soon(self._look_when_idle, condition)
                    with trio.move_on_after(max(LOOK_EVERY, LOOK_EVERY_PART * waited)):
                        await changed.wait()
                    nursery.cancel_scope.cancel()
        if not (result := _result(condition)):
            raise AssertionError(f"this did not happen within {within:g} s: {but(result)}\n{self.explain()}")
        return result

    async def _look_when_idle(self, condition: Callable[[], object]) -> None:
        """Once, and not again and again: on a mock clock, time does not pass while somebody waits for that."""
        await wait_all_tasks_blocked()
        if _result(condition):
            self._notify()

    def explain(self) -> str:
        """What has happened here lately, in words: who connected and listened to what, what was pushed, to whom and why
        not to others, and what was requested."""
        if self._log:
            start = self._log[0].at
            lines = [f"{entry.at - start:10.3f} s  {entry}" for entry in self._log]
        else:
            lines = ["nothing has happened here: nobody connected, nothing was delivered, nothing requested"]
        if left := self._faults_left():
            lines.append(f"still to come: {', '.join(left)}")
        told = "\n".join(lines)
        # A mail may have anything in it, and not everybody who shows a text can show half a character.
        return told.encode("utf-8", "backslashreplace").decode("utf-8")

    def _note(self, text: str) -> None:
        """Something has happened. Outside of a run there is no time at which."""
        if not trio.lowlevel.in_trio_run():
            return
        now = trio.current_time()
        if self._log and self._log[-1].text == text:
            self._log[-1].times += 1
            self._log[-1].last_at = now
        else:
            self._log.append(LogEntry(at=now, text=text, last_at=now))
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @abstractmethod
    def _push_event(self, event: Event) -> None:
        """Push an event to those who listen for it."""

    @abstractmethod
    def _faults_left(self) -> list[str]:
        """Faults that were asked for, and have not struck."""

    async def run_sync(self, function: Callable[[], T]) -> T:
        """What makes this a `Backend`: on a mock clock no thread is used, since that would not wait for one."""
        if isinstance(trio.lowlevel.current_clock(), MockClock):
            await trio.lowlevel.checkpoint()
            return function()
        return await trio.to_thread.run_sync(function)


def _result(condition: Callable[[], T]) -> T:
    result = condition()
    if inspect.iscoroutine(result):
        result.close()  # or Python would warn that nobody has waited for it
        raise TypeError("the condition is an async function: wait_for() takes one that has its answer at once")
    return result
