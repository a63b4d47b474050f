"""The log of a fake: a history in words, and waiting for a condition."""

import inspect
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trio_agentmail._nursery import background_nursery

__all__ = ["Log"]

T = TypeVar("T")

CHECK_EVERY = 0.1
CHECK_EVERY_PART = 0.01
"""The interval between checks of a condition while nothing happens at the fake: this number of seconds, or this
fraction of the time waited so far if that is longer. A test on a mock clock may wait a day, and each check takes a
millisecond.
"""

MAX_ENTRIES = 1000
"""Maximum number of entries that are kept, the latest ones."""


@attrs.define(kw_only=True)
class LogEntry:
    """Something that has happened, once or several times in a row."""

    at: float
    text: str
    times: int = 1
    last_at: float

    def __str__(self) -> str:
        if self.times == 1:
            return self.text
        return f"{self.text} ({self.times} times in {self.last_at - self.at:.3f} s)"


class Log:
    """The history of a fake.

    Args:
        still_to_come: Returns descriptions of the faults that are still to come.

    Attributes:
        on_note: Called with the text of each note, which may come from a client.
        on_change: Called whenever something has changed.
    """

    def __init__(self, still_to_come: Callable[[], list[str]]) -> None:
        self.on_note: Callable[[str], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        self._still_to_come = still_to_come
        self._entries: deque[LogEntry] = deque(maxlen=MAX_ENTRIES)
        self._changed = trio.Event()

    def note(self, text: str) -> None:
        """Add an entry, and notify the tasks that wait. Outside of a Trio run, which has no clock, do nothing."""
        if not trio.lowlevel.in_trio_run():
            return
        now = trio.current_time()
        if self._entries and self._entries[-1].text == text:
            self._entries[-1].times += 1
            self._entries[-1].last_at = now
        else:
            self._entries.append(LogEntry(at=now, text=text, last_at=now))
        self.notify()
        self.on_note(text)

    def notify(self) -> None:
        """Wake up the tasks that wait for a condition, so that they check it again."""
        self._changed.set()
        self._changed = trio.Event()
        self.on_change()

    def explain(self) -> str:
        """Describe the history: see `FakeAgentMail.explain`."""
        if self._entries:
            start = self._entries[0].at
            lines = [f"{entry.at - start:10.3f} s  {entry}" for entry in self._entries]
        else:
            lines = ["nothing has happened here: no connection, no mail, no request"]
        if left := self._still_to_come():
            lines.append(f"still to come: {', '.join(left)}")
        # A mail may contain lone surrogates, which not every output can encode.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")

    async def wait_for(
        self,
        condition: Callable[[], T],
        within: float,
        instead: Callable[[T], str] = lambda result: f"the condition is {repr(result)[:200]}",
    ) -> T:
        """Wait until a condition holds: see `FakeAgentMail.wait_for`.

        Args:
            instead: Describes the last result of the condition, for the error message.
        """
        await trio.lowlevel.checkpoint()
        began = trio.current_time()
        with trio.move_on_after(within):
            while not _result(condition):
                waited = trio.current_time() - began
                changed = self._changed
                async with background_nursery() as nursery:
                    nursery.start_soon(self._check_when_idle, condition)
                    with trio.move_on_after(max(CHECK_EVERY, CHECK_EVERY_PART * waited)):
                        await changed.wait()
                    nursery.cancel_scope.cancel()
        if not (result := _result(condition)):
            raise AssertionError(f"this did not happen within {within:g} s: {instead(result)}\n{self.explain()}")
        return result

    async def _check_when_idle(self, condition: Callable[[], object]) -> None:
        """Check a condition once, when all tasks are blocked.

        It must not do so in a loop: a mock clock does not advance while a task waits for all tasks to block.
        """
        await wait_all_tasks_blocked()
        if _result(condition):
            self.notify()


def _result(condition: Callable[[], T]) -> T:
    result = condition()
    if inspect.iscoroutine(result):
        result.close()  # or Python would warn that it was never awaited
        raise TypeError("the condition is an async function: wait_for() takes a synchronous one")
    return result
